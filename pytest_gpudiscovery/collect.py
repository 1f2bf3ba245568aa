"""What a bundle of evidence asks of this host when it is made: the kernel log's lines about the driver, and nvidia-smi.

Each is a supervised child with its own deadline. nvidia-smi calls the driver: it is left out on a simulated host, and
while a child that hung in the driver is still there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.model import Outcome, Verdict
from pytest_gpudiscovery.service import adopt
from pytest_gpudiscovery.service.who import CALLER
from pytest_gpudiscovery.supervise.child import run as run_probe
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

DEADLINE_S = 10.0
PROGRAM = "nvidia-smi"
PLACES = (
    "/usr/bin",
    "/usr/local/bin",
    "/usr/local/nvidia/bin",
    "/opt/bin",
    "/usr/lib/wsl/lib",
    "/run/current-system/sw/bin",
)
ENVIRONMENT = ("LD_LIBRARY_PATH", "PATH")  # not LD_PRELOAD: this asks the driver, not what stands before it
ABANDONED = re.compile(r"PID (\d{1,10}) outlived SIGKILL")
LIVE = {"kind": "live"}
Supervise = Callable[[Probe], ChildResult]


@dataclass(frozen=True)
class Extract:
    """One file for the bundle. `how` says in one line what it is, when it was asked, and why it is empty."""

    name: str
    text: str
    how: str


def extracts(verdict: Verdict, *, refused: str = "", supervise: Supervise = run_probe) -> tuple[Extract, ...]:
    """Ask this host, after VERDICT; REFUSED is a reason to ask nothing (the run was interrupted, another host)."""
    reason = refused or ("this verdict is of a simulated host" if verdict.simulated is not None else "")
    found = [_kernel_log(reason, supervise)]
    program = _find(os.environ.get("PATH", ""))
    reason = reason or driver_hangs(verdict) or ("" if program else "there is none")
    for name, arguments in (("nvidia-smi.txt", ()), ("nvidia-smi-q.txt", ("-q",))):
        extract, answered = _nvidia_smi(name, [program or PROGRAM, *arguments], reason, supervise)
        found.append(extract)
        if not answered:
            reason = reason or f"{PROGRAM} alone gave no answer"
    return tuple(found)


def driver_hangs(verdict: Verdict) -> str:
    """Return why the driver must not be called after VERDICT, "" where nothing speaks against it."""
    for record in verdict.stages:
        if record.outcome is not Outcome.UNKILLABLE:
            continue
        pids = _abandoned(record.evidence)
        if not pids or any(os.path.exists(f"/proc/{pid}") for pid in pids):
            who = f"PID {', '.join(map(str, pids))}" if pids else "a child"
            return f"the driver hung: {who} of stage {record.name} outlived SIGKILL and is still there"
    return ""


def _abandoned(evidence: Any) -> list[int]:
    found: list[int] = []
    for seen in evidence.values() if isinstance(evidence, Mapping) else ():
        notes = seen.get("notes") if isinstance(seen, Mapping) else None
        for note in notes if isinstance(notes, (list, tuple)) else ():
            found += [int(number) for number in ABANDONED.findall(str(note))]
    return found


def _kernel_log(reason: str, supervise: Supervise) -> Extract:
    name, what = "kernel.log", "lines of the kernel log about the driver (records of /dev/kmsg)"
    if reason:
        return Extract(name, "", f"{what}: not read: {reason}")
    result, said = _ask({"log": LIVE}, supervise)
    if not said and result.get("errno"):
        said = f"cannot be read here ({result['errno']}); root can"
    return Extract(name, str(result.get("text") or ""), f"{what}, {said or f'read {_clock()}'}")


def _nvidia_smi(name: str, argv: list[str], reason: str, supervise: Supervise) -> tuple[Extract, bool]:
    what = " ".join([PROGRAM, *argv[1:]])
    if reason:
        return Extract(name, "", f"{what}: not run: {reason}"), False
    result, said = _ask({"argv": argv}, supervise)
    if not said and result.get("errno"):
        said = f"not run: {result['errno']}"
    text = str(result.get("text") or "")
    if result.get("dropped"):
        text += f"\n... {result['dropped']} more bytes ...\n"
    answered = result.get("status") == 0
    ended = f"run {_clock()}, exit status {result.get('status')}"
    return Extract(name, text, f"{what}: {said or ended}"), answered


def _ask(request: Mapping[str, Any], supervise: Supervise) -> tuple[Mapping[str, Any], str]:
    env = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    setup = adopt.setup_for(CALLER, os.geteuid(), adopt.capabilities())
    result = supervise(Probe("excerpt", request, {**env, "LC_ALL": "C"}, DEADLINE_S, setup=setup))
    if result.ending is Ending.ANSWERED and isinstance(result.answer, Mapping):
        return result.answer, ""
    if result.ending in (Ending.TIMED_OUT, Ending.UNKILLABLE):
        blocked = str(result.evidence.get("blocked_in") or "unknown")
        return {}, f"no answer within {DEADLINE_S:g} s ({_clock()}); blocked in: {blocked}"
    why = "; ".join(result.notes) or result.ending.value.replace("_", " ")
    return {}, f"no answer ({_clock()}): {why}"


def _find(path: str) -> str | None:
    """Return the first nvidia-smi of PATH that may be executed; a relative entry is nobody's business."""
    for directory in (*path.split(":"), *PLACES):
        candidate = os.path.join(directory, PROGRAM)
        if directory.startswith("/") and os.access(candidate, os.X_OK):
            return candidate
    return None


def _clock() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
