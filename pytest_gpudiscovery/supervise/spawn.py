"""Starting a child so that nothing of it can hold us: own session, own pipes, a pidfd, no wait in Popen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pytest_gpudiscovery.supervise import payload
from pytest_gpudiscovery.supervise.types import Probe

TRACEBACK_AT = 0.75  # of the deadline: before evidence.SAMPLE_AT, whose sample it would disturb


@dataclass
class Process:
    """A started child and our ends of its pipes, none of which blocks. `pidfd` is None where the kernel has none."""

    pid: int = 0
    out: int = -1
    err: int = -1
    journal: int = -1
    pidfd: int | None = None
    fds: set[int] = field(default_factory=set)  # everything still to be closed

    def pipe(self) -> tuple[int, int]:
        """Return a new pipe that `close` will close."""
        ends = os.pipe()
        self.fds.update(ends)
        return ends

    def close(self, *fds: int) -> None:
        """Close FDS, or everything when none is named."""
        for fd in fds or tuple(self.fds):
            self.fds.discard(fd)
            os.close(fd)

    def ended(self) -> bool:
        """Whether the child has ended; it stays a zombie, so its pid and process group are still its own."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True  # SIGCHLD is ignored, or another thread waits for any child

    def kill(self) -> None:
        """Send SIGKILL to the process group. Only before `reap`: afterwards the number may be somebody else's."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # gone already, or a setuid program took its place (PermissionError)

    def reap(self) -> int | None:
        """Return the wait status of the ended child, None when somebody else took it."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[1]
        except ChildProcessError:
            return None


def start(process: Process, probe: Probe, interpreters: tuple[str, ...], extra: Path | None) -> None:
    """Start PROBE and fill in PROCESS, which the caller closes whatever happens. Raises OSError.

    The child waits for one byte before it does anything: when KeyboardInterrupt comes between fork and the moment
    we learn the pid, the pipe closes and the child ends by itself.
    """
    process.out, child_out = process.pipe()
    process.err, child_err = process.pipe()
    process.journal, child_journal = process.pipe()
    child_go, go = process.pipe()
    memfd = payload.pack(
        probe,
        journal_fd=child_journal,
        go_fd=child_go,
        interpreters=interpreters,
        extra=extra,
        traceback_after_s=max(TRACEBACK_AT * probe.deadline_s, 0.01),
    )
    process.fds.add(memfd)
    isolated = ["-I"] if probe.site else ["-I", "-S"]
    nothing, unused = process.pipe()  # an end of file; not /dev/null, which a broken /dev may not have
    process.close(unused)
    popen = subprocess.Popen(
        [sys.executable, *isolated, "-X", "faulthandler", "-c", payload.STUB, str(memfd), probe.module],
        env=dict(probe.env),
        stdin=nothing,  # no cwd: Popen waits until exec, and a directory that hangs must not hang us
        stdout=child_out,
        stderr=child_err,
        pass_fds=(memfd, child_journal, child_go),
        start_new_session=True,
    )
    process.pid = popen.pid
    popen.returncode = 0  # waiting is ours: Popen must neither wait nor warn when it is collected
    os.write(go, b"1")
    process.close(child_out, child_err, child_journal, child_go, go, memfd, nothing)
    for fd in (process.out, process.err, process.journal):
        os.set_blocking(fd, False)
    try:
        process.pidfd = os.pidfd_open(process.pid)
        process.fds.add(process.pidfd)
    except OSError:
        process.pidfd = None  # before Linux 5.3, or a seccomp filter that does not know the call
