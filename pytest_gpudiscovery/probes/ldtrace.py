"""Asks ld.so itself, in the context of Ollama's own program, what it would load: no code of any library runs.

`LD_TRACE_LOADED_OBJECTS=1 LD_WARN=1 LD_BIND_NOW=1 ld.so --preload BACKEND PROGRAM` maps everything, binds every symbol,
prints what it found and ends before the first constructor (glibc, elf/rtld.c). It differs from dlopen on purpose: what
is preloaded stands in the global scope.
"""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

OUTPUT = 1 << 18  # bytes
MESSAGES = 20


def trace(loader: str, program: str, backend: str, env: Mapping[str, str], limit_s: float) -> dict[str, Any]:
    """Return {"files": {name: path}, "missing": [name], "messages": [text], "status": n}, or {"error": why}.

    LOADER is the path of ld.so. The answer comes within LIMIT_S seconds.
    """
    preload = ":".join(part for part in (env.get("LD_PRELOAD", ""), backend) if part)
    asked = {
        **env,
        "LD_TRACE_LOADED_OBJECTS": "1",
        "LD_WARN": "1",
        "LD_BIND_NOW": "1",
        "LD_PRELOAD": preload,
    }
    for name in ("LD_DEBUG", "LD_DEBUG_OUTPUT"):
        asked.pop(name, None)
    output, status = run([loader, program], asked, limit_s)
    if output is None:
        return {"error": status}
    return {**parse(output), "status": os.waitstatus_to_exitcode(status)}


def run(argv: list[str], env: Mapping[str, str], limit_s: float) -> tuple[str | None, Any]:
    """Return (output, wait status) of ARGV, or (None, why) when it cannot start or takes longer than LIMIT_S."""
    end = time.monotonic() + limit_s
    reader, writer = os.pipe()
    nothing, other = os.pipe()
    os.close(other)
    actions = [(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, writer, 2)]
    try:
        pid = os.posix_spawn(argv[0], argv, dict(env), file_actions=actions)
    except OSError as error:
        os.close(reader)
        return None, f"{argv[0]}: {error.strerror}"
    finally:
        os.close(writer)
        os.close(nothing)
    parts: list[bytes] = []
    size, ended = 0, False
    try:
        while size < OUTPUT and (left := end - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
            part = os.read(reader, 65_536)
            if not part:
                ended = True
                break
            parts.append(part)
            size += len(part)
    finally:
        os.close(reader)
    status = _wait(pid, end if ended else 0.0)
    if status is None:
        return None, f"{os.path.basename(argv[0])} did not end within {limit_s:g} s"
    return b"".join(parts).decode("utf-8", "backslashreplace"), status


def _wait(pid: int, end: float) -> int | None:
    """Return the wait status of PID; it is killed at END and then given a moment, never waited for without a limit."""
    killed = False
    while True:
        got, status = os.waitpid(pid, os.WNOHANG)
        if got:
            return None if killed else status
        if time.monotonic() > end:
            if killed:
                return None  # left to the supervisor, which ends the whole session
            os.kill(pid, 9)
            killed, end = True, time.monotonic() + 0.5
        time.sleep(0.002)


def parse(text: str) -> dict[str, Any]:
    """Return what OUTPUT of a trace says: files by name, names without a file, and ld.so's complaints."""
    files: dict[str, str] = {}
    missing: list[str] = []
    messages: list[str] = []
    for line in text.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if line.startswith("\t") and arrow:
            if rest.startswith("not found"):
                missing.append(name)
            else:
                files[name] = rest.rpartition(" (0x")[0] or rest
        elif line.startswith("\t") and line.rstrip().endswith(")"):
            path = line.strip().rpartition(" (0x")[0]
            files[path] = path  # an object that was named by its path: the backend, ld.so
        elif line.strip():
            messages.append(line.strip())
    return {"files": files, "missing": missing, "messages": list(dict.fromkeys(messages))[:MESSAGES]}
