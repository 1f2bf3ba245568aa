"""How a child of a native stage ended, in the words of findings."""

from __future__ import annotations

import signal as signals

from pytest_gpudiscovery.model import Outcome
from pytest_gpudiscovery.supervise.types import ChildResult, Ending

HANG_OUTCOMES = {Ending.TIMED_OUT: Outcome.TIMED_OUT, Ending.UNKILLABLE: Outcome.UNKILLABLE}
JIT_COMPILER = "libnvidia-ptxjitcompiler"
DRIVER_MARKS = ("/dev/nvidia", "libcuda.so", "libnvidia-")
NOT_STARTED = "error while loading shared libraries: "  # glibc, elf/rtld.c and dl-error-skeleton.c
LOADER_ABORTS = 127  # ld.so's own assertions end the process so (elf/dl-minimal.c, __assert_fail)


def defect(result: ChildResult) -> bool:
    """Whether the child's end says something of the gate and nothing of the host."""
    return result.ending is Ending.NOT_SPAWNED or result.python_failed


def unsafe(result: ChildResult) -> bool:
    """Whether no further child should touch the driver: this one cannot be killed, or was caught inside the driver.

    One that hung elsewhere (its own lock, a file) and died on SIGKILL says nothing against asking again.
    """
    return result.ending is Ending.UNKILLABLE or (
        result.ending is Ending.TIMED_OUT and "/dev/nvidia" in str(result.evidence.get("blocked_in"))
    )


def in_driver(result: ChildResult) -> bool:
    """Whether RESULT's child hung, and nothing shows that it was outside of the driver: then the driver is left alone.

    Shown is it by where it was blocked: a place that could be read, with neither a node nor a library of the driver.
    The compiler of PTX computes in user space: SIGKILL ends it, and it holds nothing that others wait for.
    """
    place = str(result.evidence.get("blocked_in") or "")
    if result.ending is Ending.TIMED_OUT and place.startswith("running") and JIT_COMPILER in place:
        return False
    shown = " < " in place and not any(mark in place for mark in DRIVER_MARKS)
    return result.ending in HANG_OUTCOMES and (result.ending is Ending.UNKILLABLE or not shown)


def signal_words(number: int) -> str:
    """Return "signal 7 (SIGBUS)": the name tells a file that was cut off from a bad pointer."""
    try:
        return f"signal {number} ({signals.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def refused(result: ChildResult) -> str:
    """Return what ld.so said where it did not let the child's program start, "" otherwise.

    "libm.so.6: file too short": a library of that name came first in the search, and no call of a probe was reached.
    """
    if result.ending is not Ending.EXITED or result.exit_code != LOADER_ABORTS:
        return ""
    said = next((line for line in result.stderr.splitlines() if NOT_STARTED in line), "")
    path, _, rest = said.partition(NOT_STARTED)[2].strip().partition(":")
    return f"{path}:{rest}" if said else ""


def words(result: ChildResult) -> str:
    """Return how the child ended: "signal 11 (SIGSEGV)", "exit status 127", "exit status 0 without an answer"."""
    if said := refused(result):
        return f"not started by ld.so: {said.rpartition('/')[2]}"
    if result.ending is Ending.SIGNALLED and result.signal is not None:
        return signal_words(result.signal)
    if result.ending is Ending.NO_ANSWER:
        return "exit status 0 without an answer"
    if result.ending is Ending.EXITED:
        return f"exit status {result.exit_code}"
    return str(result.ending.value).replace("_", " ")
