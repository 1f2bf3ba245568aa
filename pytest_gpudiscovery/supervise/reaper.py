"""Children that outlived SIGKILL: abandoned, and reaped without ever waiting for them."""

from __future__ import annotations

import os
import threading

_lock = threading.Lock()
_abandoned: set[int] = set()


def abandon(pid: int) -> None:
    """Remember PID, a child that SIGKILL has not ended yet, for a later `reap`."""
    with _lock:
        _abandoned.add(pid)


def reap() -> frozenset[int]:
    """Reap every abandoned child that has ended meanwhile and return those that have not. Never blocks."""
    with _lock:
        for pid in tuple(_abandoned):
            try:
                gone = os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                gone = True  # somebody else reaped it
            if gone:
                _abandoned.discard(pid)
        return frozenset(_abandoned)
