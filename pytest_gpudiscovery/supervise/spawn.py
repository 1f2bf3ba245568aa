"""Starting a child so that nothing of it can hold us: own session, own pipes, a pidfd, no wait in Popen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pytest_gpudiscovery.supervise import payload, transient
from pytest_gpudiscovery.supervise.types import Probe

TRACEBACK_AT = 0.75  # of the deadline: before the last activity.WINDOW samples, which it would disturb


@dataclass
class Process:
    """A started child and our ends of its pipes, none of which blocks. `pidfd` is None where the kernel has none."""

    pid: int = 0
    out: int = -1
    err: int = -1
    journal: int = -1
    unit: str | None = None  # the transient unit that systemd runs for us; `pid` is systemd-run's then
    slice: str = ""
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

    def subject(self) -> int:
        """Return the pid of the process that runs the probe, 0 when it cannot be found."""
        if self.unit is None:
            return self.pid
        return next(iter(transient.pids(self.unit, self.slice)), 0)

    def kill_unit(self) -> None:
        """Send SIGKILL to everything that systemd runs for us; systemd-run then ends by itself."""
        if self.unit is not None:
            transient.kill(self.unit, self.slice)

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
    we learn the pid, the pipe closes and the child ends by itself. What systemd starts for us ends with its unit.
    """
    if probe.setup.transient:
        _start_unit(process, probe, interpreters, extra)
        return
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
    _started(process, popen)
    os.write(go, b"1")
    process.close(child_out, child_err, child_journal, child_go, go, memfd, nothing)
    _listen_to(process)


def _start_unit(process: Process, probe: Probe, interpreters: tuple[str, ...], extra: Path | None) -> None:
    """Start PROBE as a transient unit: its payload is its stdin, its journal its stdout, its output its stderr."""
    process.out, unused = process.pipe()
    process.err, child_err = process.pipe()
    process.journal, child_journal = process.pipe()
    chosen = interpreters or (sys.executable,)
    memfd = payload.pack(
        probe,
        journal_fd=transient.JOURNAL_FD,
        go_fd=-1,
        interpreters=chosen,
        extra=extra,
        traceback_after_s=max(TRACEBACK_AT * probe.deadline_s, 0.01),
    )
    process.fds.add(memfd)
    properties = probe.setup.transient
    process.unit, process.slice = transient.name(), transient.slice_of(properties)
    if probe.setup.drop_mknod:
        properties = tuple(transient.without_mknod(properties))
    program = [chosen[0], "-I", "-S", "-X", "faulthandler", "-c", transient.STUB, "0", probe.module]
    popen = subprocess.Popen(
        transient.argv(process.unit, properties, program, probe.deadline_s),
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        stdin=memfd,
        stdout=child_journal,
        stderr=child_err,
        start_new_session=True,
    )
    _started(process, popen)
    process.close(unused, child_err, child_journal, memfd)
    _listen_to(process)


def _started(process: Process, popen: subprocess.Popen[bytes]) -> None:
    process.pid = popen.pid
    popen.returncode = 0  # waiting is ours: Popen must neither wait nor warn when it is collected


def _listen_to(process: Process) -> None:
    for fd in (process.out, process.err, process.journal):
        os.set_blocking(fd, False)
    try:
        process.pidfd = os.pidfd_open(process.pid)
        process.fds.add(process.pidfd)
    except OSError:
        process.pidfd = None  # before Linux 5.3, or a seccomp filter that does not know the call
