"""Processes that a child started and that left its process group."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

from pytest_gpudiscovery.probes.guardian import NAME as GUARDIAN
from pytest_gpudiscovery.supervise import procfs
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

SCAN_S = 1.0


def outside(pid: int) -> list[tuple[int, procfs.Stat]]:
    """Return the descendants of PID, alive, that killing its process group does not reach.

    A probe's guardian is none: it ends when the probe does, and cleans up before.
    """
    found = ((other, procfs.stat(other)) for other in procfs.descendants(pid))
    return [
        (other, stat)
        for other, stat in found
        if stat and stat.group != pid and stat.state != "Z" and stat.name != GUARDIAN
    ]


def kill(pid: int, start: int) -> bool:
    """Send SIGKILL to PID if it is still the process that started at START (ticks); whether it was sent."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        pidfd = -1  # no such process, or no such call
    try:
        now = procfs.stat(pid)
        if now is None or now.start != start:
            return False
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
        return True
    except OSError:
        return False  # gone, or a setuid program
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def say(pid: int, name: str, killed: bool) -> str:
    """Return the note on one leftover."""
    return f"left behind outside its process group: PID {pid} ({name}), {'killed' if killed else 'could not be killed'}"


def holders(pipes: Iterable[int], child: int, after: int, run: Callable[[Probe], ChildResult]) -> list[dict[str, Any]]:
    """Return [{pid, name, start}] of the processes that still hold one of PIPES (our reading ends).

    CHILD is the pid that has ended, AFTER when it started. RUN supervises the look at every process,
    which takes SCAN_S at most.
    """
    request = {
        "inodes": [os.fstat(fd).st_ino for fd in pipes],
        "after": after,
        "session": os.getsid(0),
        "not": [os.getpid(), child],
    }
    result = run(Probe("leftovers", request, {}, SCAN_S))
    return list(result.answer["found"]) if result.ending is Ending.ANSWERED else []
