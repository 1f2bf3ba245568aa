"""A private directory for the run of one gate, removed whatever becomes of it.

It may hold gigabytes (an unpacked candidate) and the service's environment, so nobody may find it after the gate was
killed. A small shell outlives the gate for a moment and removes it then; where that was killed too (a whole cgroup, the
machine), a later run of the same user does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile

from pytest_gpudiscovery.options import UsageProblem
from pytest_gpudiscovery.probes import private

NAME = "gpu-discovery-"
FALLBACK = ("/dev/shm", "/run")  # noqa: S108 - made private by mkdtemp; where TMPDIR and /tmp are full or gone: that is stage 03's to judge
# "done" is said when the directory was removed in order; the end of the pipe without it is the end of the gate.
# Probes die with the gate, but not before it: one that still writes is why removal is tried again.
GUARD = """trap '' HUP INT TERM
read -r done || for turn in 1 2 3 4 5 6 7 8; do rm -rf -- "$1" && exit; sleep 0.2; done"""
GUARD_ENDS_S = 1.0
GUARD_ENV = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}


class Scratch:
    """A new directory that only this user can use, `path`."""

    def __init__(self) -> None:
        """Make it; raises UsageProblem where none can be made."""
        self.path = _make()
        self._guard = _guard(self.path)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._guard is not None and self._guard.stdin is not None:
            # It has nothing to do but read that line; somebody may have killed or stopped it all the same.
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                with self._guard.stdin as pipe:
                    pipe.write(b"done\n")
                self._guard.wait(GUARD_ENDS_S)
            self._guard = None


def _make() -> str:
    problem: OSError | None = None
    for folder in (None, *FALLBACK):
        try:
            place = folder or tempfile.gettempdir()
            private.sweep(place, NAME)
            return tempfile.mkdtemp(prefix=f"{NAME}{os.getpid()}-", dir=place)
        except OSError as error:
            problem = problem or error
    raise UsageProblem(f"no place for the run's records: {problem}; set TMPDIR to a directory that can be written")


def _guard(path: str) -> subprocess.Popen[bytes] | None:
    """Start the shell that removes PATH if this process is killed; None where there is no shell."""
    try:
        reader, writer = os.pipe()
    except OSError:
        return None
    try:
        # Its output goes nowhere: the end of a pipe that nobody can write to. A broken /dev has no /dev/null.
        guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "gpu-discovery-guard", path],
            stdin=reader,
            stdout=reader,
            stderr=reader,
            env=GUARD_ENV,
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
    except OSError:
        os.close(writer)
        return None
    finally:
        os.close(reader)
    guard.stdin = open(writer, "wb", buffering=0)  # noqa: SIM115 - closed by `remove`
    return guard
