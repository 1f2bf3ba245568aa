"""Orders a close look at a hung child, from a child that may itself be caught and is then abandoned."""

from __future__ import annotations

import functools
import os
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from typing import Any

from pytest_gpudiscovery.probes.syscalls import lookup
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe, Setup

DEADLINE_S = 2.0
PY_SPY_S = 1.2  # of it; a static binary of 3 MB takes 0.1 s when the file cache is warm
ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}  # never the probe's: its LD_PRELOAD may be what hangs

NOT_FACTS = ("setup", "traceback", "left_behind", "lowered")  # what the look observes of itself


@functools.cache
def py_spy() -> str | None:
    """Return the py-spy program beside our interpreter or on PATH, None without one."""
    return shutil.which("py-spy", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))


def examine(
    pid: int, snapshot: Mapping[str, Any], setup: Setup, run: Callable[[Probe], ChildResult], *, age_s: float
) -> dict[str, Any]:
    """Return what probes/forensics.py sees of PID, with "error" when it was caught or could not look.

    SNAPSHOT is evidence.snapshot's; SETUP gives the identity, under which RUN supervises the look. AGE_S is for how
    long PID has lived.
    """
    threads = snapshot["threads"]
    request = {
        "pid": pid,
        "threads": [{"tid": thread["tid"], "path_at": _path_at(thread["syscall"])} for thread in threads],
        "age_s": age_s,
        "native": all(thread["state"] != "D" for thread in threads),
        "py_spy": py_spy(),
        "py_spy_s": PY_SPY_S,
    }
    look = Probe(
        "forensics",
        request,
        ENV,
        DEADLINE_S,
        setup=Setup(identity=setup.identity, interpreter=setup.interpreter),
    )
    result = run(look)
    seen = {key: value for key, value in result.observed.items() if key not in NOT_FACTS}
    if result.ending is not Ending.ANSWERED:
        seen["error"] = _why(result)
    return {**seen, "duration_s": result.duration_s}


def _why(result: ChildResult) -> str:
    """Return one line on a look that gave no answer."""
    where = f" in {result.open_step.name!r}" if result.open_step else ""
    if result.ending in (Ending.TIMED_OUT, Ending.UNKILLABLE):
        return f"caught{where} for {DEADLINE_S} s: the process holds what that needs, such as its memory map's lock"
    last = result.stderr.strip().rpartition("\n")[2]
    return f"{result.ending.value}{where}: {'; '.join(text for text in (*result.notes, last) if text)}"


def _path_at(syscall: Any) -> int | None:
    if not isinstance(syscall, dict):
        return None
    index = lookup(syscall["number"]).path_argument
    arguments = syscall["args"]
    return arguments[index] if index is not None and index < len(arguments) else None
