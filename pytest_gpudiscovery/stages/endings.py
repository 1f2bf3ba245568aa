"""How a child of a native stage ended, in the words of findings."""

from __future__ import annotations

import signal as signals

from pytest_gpudiscovery.model import Outcome
from pytest_gpudiscovery.supervise.types import ChildResult, Ending

HANG_OUTCOMES = {Ending.TIMED_OUT: Outcome.TIMED_OUT, Ending.UNKILLABLE: Outcome.UNKILLABLE}
LOADER_ABORTS = 127  # ld.so's own assertions end the process so (elf/dl-minimal.c, __assert_fail)


def stuck(result: ChildResult) -> bool:
    """Whether the driver should be left alone after RESULT: a child that cannot be killed, or that waited in a call.

    One that computed in user space until SIGKILL ended it (PTX that is compiled, a shim that spins) holds nothing.
    """
    if result.ending is Ending.TIMED_OUT:
        return not str(result.evidence.get("blocked_in", "")).startswith("running")
    return result.ending is Ending.UNKILLABLE


def defect(result: ChildResult) -> bool:
    """Whether the child's end says something of the gate and nothing of the host."""
    if result.ending is Ending.NOT_SPAWNED:
        return True
    return result.ending is Ending.EXITED and result.exit_code == 1 and "Traceback (most recent" in result.stderr


def words(result: ChildResult) -> str:
    """Return how the child ended: "signal 11 (SIGSEGV)", "exit status 127", "exit status 0 without an answer"."""
    if result.ending is Ending.SIGNALLED and result.signal is not None:
        try:
            return f"signal {result.signal} ({signals.Signals(result.signal).name})"
        except ValueError:
            return f"signal {result.signal}"
    if result.ending is Ending.NO_ANSWER:
        return "exit status 0 without an answer"
    if result.ending is Ending.EXITED:
        return f"exit status {result.exit_code}"
    return str(result.ending.value).replace("_", " ")
