"""Cleans up behind a probe that was killed: a small process that outlives it for a moment.

PR_SET_PDEATHSIG ends what the probe started, not what that started in turn (the children of `ollama serve`). The
guardian holds the other end of a pipe: when the probe is gone, however it went, it kills the process groups that it was
told of and removes the private directories. Closing the guardian in order does neither.
"""

from __future__ import annotations

import os
import time

from pytest_gpudiscovery.probes import private, setup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

NAME = "gpu-guardian"  # by which the supervisor knows it and lets it live; the kernel keeps 15 characters
PR_SET_NAME = 15
TURNS, TURN_S = 40, 0.05  # what was killed may be in the middle of making a file


class Guardian:
    """Use as a context manager; tell it of groups and directories as they come and go."""

    def __enter__(self) -> Guardian:
        reader, self._writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._writer)
            _guard(reader)
        os.close(reader)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._writer, b"done\n")
        os.close(self._writer)
        os.waitpid(self._pid, 0)  # it has nothing to do but read that line

    def group(self, pid: int) -> None:
        """Have process group PID killed if this process is."""
        os.write(self._writer, b"+%d\n" % pid)

    def gone(self, pid: int) -> None:
        """Forget process group PID: it was killed, its number may be somebody else's soon."""
        os.write(self._writer, b"-%d\n" % pid)

    def directory(self, path: str) -> None:
        """Have PATH removed if this process is killed."""
        os.write(self._writer, b"d" + os.fsencode(path) + b"\n")


def _guard(reader: int) -> None:
    """Run in the forked child; ends it."""
    try:
        os.setsid()  # the supervisor's SIGKILL to the probe's group must not reach it
        setup.prctl(PR_SET_NAME, NAME.encode())
        for fd in (0, 1, 2):
            os.dup2(reader, fd)  # holds none of the probe's pipes open
        _close_others(reader)
        data = b""
        while part := os.read(reader, 4096):
            data += part
        groups: set[int] = set()
        directories = []
        for line in data.split(b"\n"):
            if line == b"done":
                os._exit(0)
            if line[:1] == b"+":
                groups.add(int(line[1:]))
            elif line[:1] == b"-":
                groups.discard(int(line[1:]))
            elif line[:1] == b"d":
                directories.append(os.fsdecode(line[1:]))
        for pid in groups:
            try:
                os.killpg(pid, setup.SIGKILL)
            except OSError:
                pass  # all of it is gone
        for path in directories:
            for _ in range(TURNS):
                private.remove(path)
                if not os.path.lexists(path):
                    break
                time.sleep(TURN_S)
    finally:
        os._exit(0)


def _close_others(reader: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != reader:
            try:
                os.close(fd)
            except OSError:
                pass  # the listing's own
