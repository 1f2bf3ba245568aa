"""Starts a program as Ollama starts its children: a session of its own, the given environment, its output kept.

The probe ends it, whatever it does; and it ends with the probe, by PR_SET_PDEATHSIG. Nothing here waits without a
limit, and `import subprocess` would cost every such probe 20 ms.
"""

from __future__ import annotations

# The C half of the module signal: its Python half imports enum, which costs 7 ms.
import _signal  # type: ignore[import-not-found]
import errno
import os
import select
import time

from pytest_gpudiscovery.probes import setup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

HEAD, TAIL = 8_192, 24_576  # bytes of output that are kept
CHUNK = 65_536
KILL_S = 1.0  # for SIGKILL to end it
LINE = 65_536  # bytes without a line break that are taken for a line
IGNORED = (_signal.SIGPIPE, 25)  # Python ignores them, SIGXFSZ is 25, and what is ignored stays so across exec


class Output:
    """The first HEAD and the last TAIL bytes of what a program prints, stdout and stderr in the order of their coming.

    ON_LINE is called with (seconds after BEGAN, line) for each line, as it comes.
    """

    def __init__(self, began: float, on_line: Callable[[float, str], None] | None = None) -> None:
        self._began, self._on_line = began, on_line
        self._head, self._tail, self._rest = bytearray(), bytearray(), bytearray()
        self.total = 0

    def feed(self, data: bytes) -> None:
        """Take the next DATA."""
        self.total += len(data)
        room = HEAD - len(self._head)
        self._head += data[: max(0, room)]
        self._tail += data[max(0, room) :]
        del self._tail[:-TAIL]
        if self._on_line is None:
            return
        self._rest += data
        *lines, last = self._rest.split(b"\n")
        self._rest = last if len(last) < LINE else bytearray()
        for line in lines:
            self._on_line(time.monotonic() - self._began, line.decode("utf-8", "backslashreplace"))

    def to_json(self) -> dict[str, Any]:
        """Return {"text", "dropped"}: what was kept, and how many bytes between its halves were not."""
        dropped = self.total - len(self._head) - len(self._tail)
        middle = f"\n... {dropped} bytes dropped ...\n".encode() if dropped else b""
        text = (bytes(self._head) + middle + bytes(self._tail)).decode("utf-8", "backslashreplace")
        return {"text": text, "dropped": dropped}


class Spawned:
    """A running program. `problem` says why it could not be started; then `pid` is 0."""

    def __init__(
        self,
        argv: list[str],
        env: Mapping[str, str],
        *,
        apart: bool = False,
        on_line: Callable[[float, str], None] | None = None,
    ) -> None:
        """Start ARGV (argv[0] is a path) in ENV; APART keeps its stdout from its stderr, in `out` and `err`."""
        self.began = time.monotonic()
        self.argv, self.pid, self.problem = argv, 0, ""
        self.status: int | None = None  # exit code, negative for a signal; None while it runs
        self.err = Output(self.began, on_line)
        self.out = Output(self.began) if apart else self.err
        self._pipes: dict[int, Output] = {}
        self._start(env)

    def _start(self, env: Mapping[str, str]) -> None:
        err, child_err = os.pipe()
        out, child_out = os.pipe() if self.out is not self.err else (err, child_err)
        failed, child_failed = os.pipe()
        nothing, other = os.pipe()
        os.close(other)
        pid = os.fork()
        if pid == 0:
            self._become(env, nothing, child_out, child_err, child_failed)
        for fd in {child_out, child_err, child_failed, nothing}:
            os.close(fd)
        self._pipes = {out: self.out, err: self.err}
        for fd in self._pipes:
            os.set_blocking(fd, False)
        said = os.read(failed, 16)  # closed by exec; an exec from a dead file server is the supervisor's to end
        os.close(failed)
        self.pid = pid
        if said:
            self.problem = errno.errorcode.get(int(said), said.decode())
            self._reap(time.monotonic() + KILL_S)
            self.close()
            self.pid = 0

    def _become(self, env: Mapping[str, str], stdin: int, stdout: int, stderr: int, failed: int) -> None:
        """Run in the child: become the program. Never returns."""
        try:
            os.setsid()
            setup.prctl(setup.PR_SET_PDEATHSIG, setup.SIGKILL)
            try:
                setup.prctl(setup.PR_SET_PTRACER, setup.PR_SET_PTRACER_ANY)  # for the look at it when it hangs
            except OSError:
                pass  # no Yama
            for number in IGNORED:
                _signal.signal(number, _signal.SIG_DFL)
            for fd, place in ((stdin, 0), (stdout, 1), (stderr, 2)):
                os.dup2(fd, place)
            os.execve(self.argv[0], self.argv, dict(env))  # noqa: S606
        except OSError as error:
            os.write(failed, str(error.errno).encode())
        finally:
            os._exit(127)

    # Listening.

    @property
    def fds(self) -> list[int]:
        """The descriptors that become readable when it prints, or closes its output."""
        return list(self._pipes)

    def take(self) -> None:
        """Take what it printed until now."""
        for fd, output in list(self._pipes.items()):
            try:
                while data := os.read(fd, CHUNK):
                    output.feed(data)
                os.close(fd)
                del self._pipes[fd]
            except BlockingIOError:
                pass

    def ended(self) -> bool:
        """Whether it has ended; `status` is set then."""
        if self.status is None and self.pid:
            try:
                got, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else took it: setup.end_children, or a library
                got, status = self.pid, 0
            if got:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None or not self.pid

    def wait(self, until: float) -> bool:
        """Take its output until it ends (True) or UNTIL (time.monotonic()) comes (False)."""
        while not self.ended():
            left = until - time.monotonic()
            if left <= 0:
                return False
            if self._pipes:
                select.select(self.fds, [], [], min(left, 0.01))
            else:
                time.sleep(min(left, 0.005))
            self.take()
        self.take()
        return True

    # Ending.

    def kill(self) -> bool:
        """Send SIGKILL to its process group and wait KILL_S; whether it is dead. What it printed is kept."""
        if self.pid:
            group = self.pid
            try:
                os.killpg(group, setup.SIGKILL)
            except OSError:
                pass  # gone, with all that it started in its group
            dead = self._reap(time.monotonic() + KILL_S)
            self._reap_orphans(group, time.monotonic() + KILL_S)
            self.take()
            self.close()
            return dead
        return True

    def _reap(self, until: float) -> bool:
        while not self.ended():
            if time.monotonic() > until:
                return False
            time.sleep(0.002)
        return True

    def _reap_orphans(self, group: int, until: float) -> None:
        """Collect what it had started in its GROUP: this process is a subreaper, so they are our children now."""
        while time.monotonic() < until:
            try:
                if os.waitpid(-group, os.WNOHANG)[0] == 0:
                    time.sleep(0.002)
            except ChildProcessError:
                return

    def close(self) -> None:
        """Let go of its output."""
        for fd in self._pipes:
            os.close(fd)
        self._pipes = {}


def said(program: Spawned) -> dict[str, Any]:
    """Return {"argv", "problem", "exit", "output"} of PROGRAM."""
    return {
        "argv": program.argv,
        "problem": program.problem or None,
        "exit": program.status,
        "output": program.err.to_json(),
    }
