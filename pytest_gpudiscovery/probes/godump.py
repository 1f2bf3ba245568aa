"""The goroutines of a Go program that hangs: SIGQUIT makes Go's runtime print them to stderr, and end.

Source: runtime/signal_unix.go and runtime/traceback.go of Go. Only for a child that the probe itself started, as the
last look before SIGKILL: the signal ends it. A program whose runtime has not begun (a preloaded constructor hangs) does
not catch the signal, and is not sent any.
"""

from __future__ import annotations

import os
import re
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.spawned import Spawned

SIGQUIT = 3
LIMIT_S = 1.0  # for the dump; the child is killed behind it
TEXT = 1 << 20  # bytes of a dump
GOROUTINES, FRAMES, NAME = 24, 12, 160
# runtime.goroutineheader; newer releases add gp=, m= and mp= behind the number
HEADER = re.compile(r"goroutine (\d+)(?: \w+=\S+)* \[([^\]]*)\]:")
CALL = re.compile(r"(?!created by )\S.*\(")  # a function; below it, indented, its file
CGO = "runtime.cgocall"  # stands above a call into C
PLUMBING = ("runtime.", "poll.", "syscall.", "sync.", "net.", "http.", "signal.")
OWN = re.compile(r".*\(idle\)|GC (sweep|scavenge|worker) .*|finalizer wait|cleanup wait")  # the runtime's, by state
NO_CORE = (1, 1)  # bytes of a core file; with 1 nothing is piped to a collector either: core(5)


def ask(child: Spawned) -> dict[str, Any]:
    """Return what `parse` says of CHILD's dump, which goes nowhere else; {"unknown": why} where there is none."""
    status = _text(f"/proc/{child.pid}/status")
    if not catches(status, SIGQUIT):
        why = "it is gone" if not status else "its Go runtime has not begun, or SIGQUIT is ignored"
        return {"unknown": f"no goroutines: {why}"}
    dump = bytearray()
    try:
        import resource  # noqa: PLC0415 - only for a child that hangs

        resource.prlimit(child.pid, resource.RLIMIT_CORE, NO_CORE)  # with GOTRACEBACK=crash it would dump one
        os.kill(child.pid, SIGQUIT)
    except (ImportError, OSError, ValueError) as error:
        return {"unknown": f"no goroutines: {error}"}
    _collect(child, dump, time.monotonic() + LIMIT_S)
    seen = parse(dump.decode("utf-8", "replace"))
    if not seen["count"]:
        return {"unknown": f"no goroutines came within {LIMIT_S:g} s of SIGQUIT (GOTRACEBACK=none?)"}
    return seen


def catches(status: str, number: int) -> bool:
    """Whether a process with the text STATUS of /proc/PID/status has a handler for signal NUMBER."""
    _, found, rest = status.partition("SigCgt:")
    digits = rest.split()[:1]
    try:
        return bool(found) and bool(int(digits[0], 16) >> (number - 1) & 1)
    except (IndexError, ValueError):
        return False


def _collect(child: Spawned, dump: bytearray, until: float) -> None:
    """Take what CHILD prints into DUMP until it ends or UNTIL comes."""
    fds = child.fds
    while fds and len(dump) < TEXT and (left := until - time.monotonic()) > 0:
        for fd in select.select(fds, [], [], left)[0]:
            try:
                data = os.read(fd, 65_536)
            except OSError:
                data = b""
            dump += data
            if not data:
                fds.remove(fd)
        if child.ended():
            until = min(until, time.monotonic() + 0.05)  # what is still in the pipe; somebody else may hold its end


def parse(text: str) -> dict[str, Any]:
    """Return {"count", "told": words, "goroutines": [{"id", "state", "frames": [function]}]} of a dump of goroutines.

    Those that call C come first, then goroutine 1; the runtime's own are only counted. `told` is a line on the first.
    Never raises.
    """
    found: list[dict[str, Any]] = []
    current: dict[str, Any] | None = None
    for line in text.splitlines():
        header = HEADER.match(line)
        if header is not None:
            current = {"id": int(header[1][:18]), "state": header[2][:NAME], "frames": []}
            found.append(current)
        elif not line.strip():
            current = None
        elif current is not None and len(current["frames"]) < FRAMES and CALL.match(line):
            current["frames"].append(function(line))
    theirs = [one for one in found if one["id"] and not OWN.match(one["state"])]  # 0 runs the scheduler
    theirs.sort(key=lambda one: (CGO not in one["frames"], one["id"] != 1))
    return {"count": len(found), "told": words(theirs[0]) if theirs else "", "goroutines": theirs[:GOROUTINES]}


def function(line: str) -> str:
    """Return "ml.(*Backend).Load" of a line with its arguments, which are addresses and say nothing."""
    name = line.rpartition("(")[0].strip()
    return name.rpartition("/")[2][:NAME] if "/" in name else name[:NAME]


def words(goroutine: dict[str, Any]) -> str:
    """Return "goroutine 1 [syscall, 1 minutes]: ggml._Cfunc_ggml_backend_load_all_from_path < ggml.init.func1"."""
    frames = [name for name in goroutine["frames"] if not name.startswith(PLUMBING)] or goroutine["frames"]
    called = f": {' < '.join(frames[:3])}" if frames else ""
    return f"goroutine {goroutine['id']} [{goroutine['state']}]{called}"


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65_536)
    except OSError:
        return ""
