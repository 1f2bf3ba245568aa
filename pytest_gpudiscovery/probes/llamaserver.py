"""One discovery of Ollama from 0.30.0 on over one directory: llama-server, its --list-devices, and the native probe.

Follows v0.32.15:discover/llama_server.go:43-162, discover/native_probe.go:69-106 and llm/llama_server.go:445-560. The
three share one limit; the third has a shorter one of its own, and its failure is not fatal.
"""

from __future__ import annotations

import os
import select
import time

from pytest_gpudiscovery.probes import stuck
from pytest_gpudiscovery.probes.spawned import Spawned, said

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pytest_gpudiscovery.probes.guardian import Guardian
    from pytest_gpudiscovery.probes.journal import Journal

NATIVE_S = 15.0  # v0.32.15:discover/native_probe.go:23
SAMPLE_AT = 0.8
FIRST_PORT, PORTS = 49152, 16383
MARK = "system_info:"
NOT_GPU = ("libggml-base", "libggml-cpu")
TEXT = 32_768  # characters of one stream


def run(
    request: Mapping[str, Any],
    env: Mapping[str, str],
    journal: Journal,
    guardian: Guardian,
    *,
    prefix: str = "",
    before: tuple[str, ...] = (),
    on_line: Callable[[float, str], None] | None = None,
    on_tick: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Run the three processes, BEFORE (a tracer) before the argv of each.

    REQUEST: {"binary", "server", "dirs": [lib, directory], "limit_s"}.

    {"start", "list", "native": what each did, None for one that was not started, "seconds", "backend", "cudart"}
    """
    began = time.monotonic()
    server, dirs = request["server"], request["dirs"]
    end = began + request["limit_s"]
    mine = {**env}
    backend = next((found for found in map(gpu_backend, dirs[1:]) if found), None)
    if backend is not None:
        mine["GGML_BACKEND_PATH"] = backend
    answer: dict[str, Any] = {"backend": backend, "cudart": cudart(dirs), "limit_s": request["limit_s"]}
    answer |= {"start": None, "list": None, "native": None}
    port = FIRST_PORT + time.time_ns() % PORTS
    how = _How(mine, journal, guardian, prefix, before, on_line, on_tick)
    argv = [server, "--port", str(port), "--host", "127.0.0.1", "--no-webui", "--offline", "--verbose"]
    answer["start"] = how.run("llama-server", argv, end, until=MARK)
    if answer["start"]["reason"] != "timeout" and not answer["start"]["problem"]:
        answer["list"] = how.run(
            "llama-server --list-devices", [server, "--list-devices", "--offline", "--verbose"], end
        )
        if answer["list"]["reason"] == "exited" and answer["list"]["exit"] == 0:
            argv = [request["binary"], "gpu-discover", *(word for path in dirs for word in ("--lib-dir", path))]
            limit = min(end, time.monotonic() + NATIVE_S)
            answer["native"] = how.run("ollama gpu-discover", argv, limit, go=True)
    answer["seconds"] = round(time.monotonic() - began, 6)
    return answer


class _How:
    """What the three processes have in common."""

    def __init__(
        self,
        env: Mapping[str, str],
        journal: Journal,
        guardian: Guardian,
        prefix: str,
        before: tuple[str, ...],
        on_line: Callable[[float, str], None] | None,
        on_tick: Callable[[int, float], None] | None,
    ) -> None:
        self._env, self._journal, self._guardian, self._prefix = env, journal, guardian, prefix
        self._before, self._on_line, self._on_tick = before, on_line, on_tick
        self._began = time.monotonic()

    def run(
        self, name: str, argv: list[str], end: float, *, until: str | None = None, go: bool = False
    ) -> dict[str, Any]:
        """Run ARGV until it ends, prints a line with UNTIL on stderr, or END comes; then end it.

        GO: it is a Go program. `reason`: "exited", "seen" (the line came), "timeout", or "spawn" with a `problem`.
        """
        begun, seen = time.monotonic(), False
        lines = 0

        def line(at: float, text: str) -> None:
            nonlocal seen, lines
            lines += 1
            seen = seen or (until is not None and until in text)
            if self._on_line is not None:
                self._on_line(begun - self._began + at, text)

        with self._journal.step(f"{self._prefix}start {name}") as step:
            child = Spawned([*self._before, *argv], self._env, apart=True, on_line=line)
            step.result = child.problem or child.pid
        answer: dict[str, Any] = {"reason": "spawn"}
        if child.pid:
            self._guardian.group(child.pid)
            with self._journal.step(f"{self._prefix}wait for {name}") as step:
                reason, first = self._wait(child, end, lambda: seen)
                step.result = reason
            answer = {"reason": reason}
        ended = child.status
        if answer["reason"] == "timeout":
            with self._journal.step(f"{self._prefix}look at PID {child.pid}"):
                answer["stuck"] = {"first": first, **stuck.look(child.pid, None, time.monotonic() - begun)}
            if go and not self._before:
                with self._journal.step(f"{self._prefix}ask PID {child.pid} for its goroutines"):
                    answer["goroutines"] = stuck.goroutines(child)
        answer["dead"] = child.kill()
        if child.pid and answer["dead"]:
            self._guardian.gone(child.pid)
        answer |= {**said(child), "exit": ended, "pid": child.pid or None, "lines": lines}
        answer["out"] = child.out.to_json()["text"][:TEXT]
        return {**answer, "seconds": round(time.monotonic() - begun, 6)}

    def _wait(self, child: Spawned, end: float, seen: Callable[[], bool]) -> tuple[str, dict[str, Any] | None]:
        begun = time.monotonic()
        sample_at, first = begun + SAMPLE_AT * (end - begun), None
        while True:
            now = time.monotonic()
            if seen():
                return "seen", None
            if child.ended():
                child.take()
                return "seen" if seen() else "exited", None
            if now >= end:
                return "timeout", first
            if now >= sample_at and first is None:
                first = stuck.sample(child.pid)
            if child.fds:
                select.select(child.fds, [], [], max(0.0, min(end - now, 0.01)))
            else:
                time.sleep(0.002)
            child.take()
            if self._on_tick is not None:
                self._on_tick(child.pid, now - self._began)


def gpu_backend(directory: str) -> str | None:
    """Return the file of DIRECTORY that Ollama names in GGML_BACKEND_PATH: the first GPU backend by name."""
    names = sorted(name for name in _names(directory) if name.startswith("libggml-") and ".so" in name)
    return next((f"{directory}/{name}" for name in names if not name.startswith(NOT_GPU)), None)


def cudart(dirs: list[str]) -> list[str]:
    """Return the names of the CUDA runtimes in DIRS, from which Ollama reads the runtime's version."""
    return [name for path in dirs for name in sorted(_names(path)) if name.startswith("libcudart.so.")]


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
