"""Ollama's own discovery, child by child, as its version starts them; see runner.py and llamaserver.py.

REQUEST["env"] is the whole environment of the child; this process itself runs without the service's preloaded objects,
so that it can look at a child that hangs in one.
"""

from __future__ import annotations

import os
import select
import time

from pytest_gpudiscovery.probes import llamaserver, private, runner
from pytest_gpudiscovery.probes.facts import errno_name
from pytest_gpudiscovery.probes.guardian import Guardian
from pytest_gpudiscovery.probes.wire import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal

IDS_APART = 10_000  # step numbers of one child's asker from the next one's
ANSWER = 1 << 20  # bytes
HOME = "/proc/self/no-home"  # where nothing can be read or written: neither does a runner need a home
CACHE_LIMIT = 1 << 30  # bytes of a JIT cache that is copied


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Answer REQUEST["ask"]: "layout", "one" (for one directory) or "several" (at once, as the second pass)."""
    return ASKED[request["ask"]](request, journal)


def layout(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return {"server": {"path", "executable"} or None, "newer", "tried"}: llama-server in one of REQUEST["servers"].

    `newer`: REQUEST["lib"] has libraries of llama.cpp, which only 0.30 and later have.
    """
    tried = []
    try:
        newer = any(name.startswith(("libllama", "libggml.so")) for name in os.listdir(request["lib"]))
    except OSError:
        newer = False
    with journal.step("look for llama-server") as step:
        for path in request["servers"]:
            try:
                os.stat(path)
            except OSError as error:
                tried.append({"path": path, "errno": errno_name(error)})
                continue
            step.result = path
            found = {"path": path, "executable": os.access(path, os.X_OK)}
            return {"server": found, "newer": newer, "tried": tried}
    return {"server": None, "newer": newer, "tried": tried}


def one(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Run one discovery. REQUEST: {"binary", "env", "limit_s", "cache": bool, "dirs", "server" (none for a runner)}."""
    with Guardian() as guardian:
        env = environment(request, journal, guardian)
        try:
            return discover(request, env, journal, guardian, "")
        finally:
            clean(env, journal)


def discover(
    request: dict[str, Any], env: dict[str, str], journal: Journal, guardian: Guardian, prefix: str
) -> dict[str, Any]:
    """Discover as REQUEST's Ollama does: by llama-server where one is named, else by the runner."""
    if request.get("trace"):
        return _traced(request, env, journal, guardian, prefix)
    if request.get("server"):
        return llamaserver.run(request, env, journal, guardian, prefix=prefix)
    return runner.run(request["binary"], env, request["limit_s"], journal, guardian, prefix=prefix)


def _traced(
    request: dict[str, Any], env: dict[str, str], journal: Journal, guardian: Guardian, prefix: str
) -> dict[str, Any]:
    """Discover under ld.so's account ("loader"), or under strace; `timeline` is in the answer, the account is not."""
    from pytest_gpudiscovery.loader.lddebug import ASKED  # noqa: PLC0415 - only a traced run reads these
    from pytest_gpudiscovery.probes import timeline  # noqa: PLC0415

    events = timeline.Timeline(journal, prefix)
    before: tuple[str, ...] = ()
    if request["trace"] == "strace":
        with journal.step(f"{prefix}look for strace") as step:
            program = timeline.strace(env)
            step.result = program or "not installed: ld.so's own account is all there is"
        if program is None:
            return {"timeline": [], "tracer": None}
        words, env = timeline.under_strace(program, env)
        before = tuple(words)
    else:
        env = {**env, "LD_DEBUG": ASKED}
        env.pop("LD_DEBUG_OUTPUT", None)
    hooks: dict[str, Any] = {"prefix": prefix, "before": before, "on_line": events.line, "on_tick": events.tick}
    if request.get("server"):
        answer = llamaserver.run(request, env, journal, guardian, **hooks)
        for step in (answer[name] for name in ("start", "list", "native") if answer[name]):
            text = step["output"]["text"]
            step["output"]["text"] = "\n".join(line for line in text.split("\n") if not timeline.ACCOUNT.match(line))
    else:
        answer = runner.run(request["binary"], env, request["limit_s"], journal, guardian, **hooks)
        answer["output"]["text"] = events.rest
    return {**answer, "timeline": events.events, "tracer": request["trace"]}


def several(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Run REQUEST["children"] ({"name", "env"}) all at once, as Ollama's second pass does.

    {"children": {name: what `one` answers}, "seconds"}
    """
    began = time.monotonic()
    answers: dict[str, Any] = {}
    with Guardian() as guardian, journal.step(f"second pass of {len(request['children'])} device(s)"):
        # Two may have one name: a device that a directory shows twice is started twice by Ollama too.
        readers: dict[int, tuple[str, int]] = {}
        for number, child in enumerate(request["children"], 1):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                _one_of_them(request, child, journal.apart(number * IDS_APART), guardian, writer)
            os.close(writer)
            readers[reader] = (child["name"], pid)
        parts: dict[int, bytes] = dict.fromkeys(readers, b"")
        while readers:
            # No limit here: each has one of its own, and the supervisor has one for all.
            for reader in select.select(list(readers), [], [])[0]:
                data = os.read(reader, 65_536)
                parts[reader] += data[: ANSWER - len(parts[reader])]
                if not data:
                    os.close(reader)
                    name, pid = readers.pop(reader)
                    answers[name] = _parsed(parts[reader], pid)
                    journal.observe("children", answers)
    return {"children": answers, "seconds": round(time.monotonic() - began, 6)}


def _one_of_them(
    request: dict[str, Any], child: dict[str, Any], journal: Journal, guardian: Guardian, writer: int
) -> None:
    """Run in a child of the probe; ends it."""
    try:
        env = environment({**request, **child}, journal, guardian)
        try:
            answer = discover({**request, **child}, env, journal, guardian, f"{child['name']}: ")
        finally:
            clean(env, journal)
        data = dumps(answer).encode()
        while data:
            data = data[os.write(writer, data) :]
        os._exit(0)
    except BaseException:
        import traceback  # noqa: PLC0415 - only for a defect of our own

        traceback.print_exc()
    os._exit(1)


def _parsed(data: bytes, pid: int) -> dict[str, Any]:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])  # its pipe has closed: it is ending
    if code or not data:
        return {"asker": code}
    import json  # noqa: PLC0415 - only here, and it costs 10 ms

    found = json.loads(data)
    return found if isinstance(found, dict) else {"asker": code}


def environment(request: dict[str, Any], journal: Journal, guardian: Guardian) -> dict[str, str]:
    """Return the child's environment: HOME and the JIT cache are private, everything else is as it was composed.

    With `cache` the child gets a copy of the service's JIT cache: what it compiles at its start depends on that.
    """
    env: dict[str, str] = dict(request["env"])
    cache = jit_cache(env)
    if env.get("HOME"):  # empty is none: os.UserHomeDir
        env["HOME"] = HOME  # without one Ollama ends with a panic, and so it must here
    if cache is None:
        return env
    if not request.get("cache"):
        env["CUDA_CACHE_PATH"] = f"{HOME}/ComputeCache"
        return env
    path = private.make()
    guardian.directory(path)
    journal.observe("private", path)
    env["CUDA_CACHE_PATH"] = path
    with journal.step(f"copy the JIT cache {cache}") as step:
        step.result = copy_tree(cache, path, CACHE_LIMIT)
    return env


def jit_cache(env: dict[str, str]) -> str | None:
    """Return the directory of the JIT cache that a CUDA program in ENV uses, None when ENV switches it off."""
    if env.get("CUDA_CACHE_DISABLE", "0") not in ("", "0"):
        return None
    return env.get("CUDA_CACHE_PATH") or (f"{env['HOME']}/.nv/ComputeCache" if env.get("HOME") else None)


def copy_tree(source: str, target: str, limit: int) -> int:
    """Copy the regular files below SOURCE into TARGET until LIMIT bytes are reached; returns how many bytes."""
    done = 0
    for folder, names, files in os.walk(source):
        below = target + folder[len(source) :]
        for name in names:
            os.makedirs(f"{below}/{name}", exist_ok=True)
        for name in files:
            try:
                size = os.stat(f"{folder}/{name}").st_size
                if done + size > limit:
                    return done
                with open(f"{folder}/{name}", "rb") as reader, open(f"{below}/{name}", "wb") as writer:
                    while (count := os.sendfile(writer.fileno(), reader.fileno(), None, 1 << 20)) > 0:
                        done += count
            except OSError:
                continue  # one entry that cannot be read is compiled anew
    return done


def clean(env: dict[str, str], journal: Journal) -> None:
    """Remove the private directory that `environment` made."""
    path = env.get("CUDA_CACHE_PATH", "")
    if private.NAME in path:
        private.remove(path)
        journal.observe("private", None)


ASKED = {"layout": layout, "one": one, "several": several}
