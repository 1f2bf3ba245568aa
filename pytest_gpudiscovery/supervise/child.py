"""The life of one supervised child: spawn, listen, deadline, evidence, SIGKILL, a bounded wait, abandon.

`run` returns at most EVIDENCE_S + KILL_WAIT_S after the deadline whatever the child does, also when it sleeps in
state D. One selectors loop, no thread. PR_SET_PDEATHSIG fires when the *thread* that spawned the child ends, so call
`run` from a thread that outlives it.
"""

from __future__ import annotations

import os
import selectors
import time
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.supervise import reaper, spawn
from pytest_gpudiscovery.supervise.output import HeadTail
from pytest_gpudiscovery.supervise.transcript import Transcript
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

KILL_WAIT_S = 1.0  # for SIGKILL to end the child
CHUNK = 1 << 16  # bytes a read; what a pipe holds
DRAIN_READS = 64  # after the end: what is in the pipe now, never until EOF (a grandchild may keep it open)
POLL_S = 0.02  # where pidfd_open(2) is missing or forbidden
REFUSED = 125  # probes/boot.py


def run(probe: Probe, *, extra: Path | None = None) -> ChildResult:
    """Run PROBE in its own process and say what became of it.

    EXTRA is a directory with further probe modules. Never raises for what the child or the host does; raises
    TypeError or ValueError for a request that is not JSON, and lets KeyboardInterrupt and SystemExit through after
    the child was killed.
    """
    reaper.reap()
    child = _Child(probe)
    try:
        return child.live(extra)
    except BaseException:
        child.end_now()
        raise
    finally:
        child.close()


class _Child:
    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._started, self._spawned = time.time(), time.monotonic()
        self._process = spawn.Process()
        self._transcript = Transcript(self._spawned)
        self._out, self._err = HeadTail(), HeadTail()
        self._selector = selectors.DefaultSelector()
        self._dead = False
        self._notes: list[str] = []
        self._evidence: dict[str, Any] = {}

    def live(self, extra: Path | None) -> ChildResult:
        try:
            spawn.start(self._process, self._probe, (), extra)
        except OSError as error:
            self._notes.append(f"could not be started: {error}")
            return self._result(Ending.NOT_SPAWNED)
        process = self._process
        for fd in (process.out, process.err, process.journal, process.pidfd):
            if fd is not None:
                self._selector.register(fd, selectors.EVENT_READ)
        if self._listen(self._spawned + self._probe.deadline_s):
            return self._ended()
        process.kill()
        if self._listen(time.monotonic() + KILL_WAIT_S):
            self._finish()
            return self._result(Ending.TIMED_OUT)
        self._drain()
        self._abandon()
        self._notes.append(f"PID {process.pid} outlived SIGKILL and was abandoned")
        return self._result(Ending.UNKILLABLE)

    def end_now(self) -> None:
        """Kill the child, because `live` was interrupted."""
        if not self._process.pid:
            return
        self._process.kill()
        if self._listen(time.monotonic() + KILL_WAIT_S):
            self._process.reap()
        else:
            self._abandon()

    def close(self) -> None:
        """Let go of every descriptor."""
        self._selector.close()
        self._process.close()

    def _abandon(self) -> None:
        reaper.abandon(self._process.pid)

    def _listen(self, until: float) -> bool:
        """Take what the child says until it ends (True) or UNTIL (time.monotonic()) comes (False)."""
        while not self._dead:
            left = until - time.monotonic()
            if left <= 0:
                return False
            if self._process.pidfd is None:
                left = min(left, POLL_S)
                self._dead = self._process.ended()
            for key, _ in self._selector.select(0 if self._dead else left):
                if key.fd == self._process.pidfd:
                    self._dead = True
                elif self._read(key.fd) == b"":
                    self._selector.unregister(key.fd)
        return True

    def _read(self, fd: int) -> bytes | None:
        """Take one chunk from FD; b"" at its end, None when there is nothing now."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return None
        if fd == self._process.journal:
            self._transcript.feed(data, time.monotonic())
        else:
            (self._out if fd == self._process.out else self._err).feed(data)
        return data

    def _drain(self) -> None:
        for fd in (self._process.out, self._process.err, self._process.journal):
            for _ in range(DRAIN_READS):
                if not self._read(fd):
                    break

    def _finish(self) -> int | None:
        """Collect a child that has ended; returns its wait status."""
        self._process.kill()  # whoever of its group is left; the zombie keeps the number ours
        self._drain()
        return self._process.reap()

    def _ended(self) -> ChildResult:
        status = self._finish()
        transcript = self._transcript
        if not transcript.begun:
            self._notes.append("ended before the probe's own code began")
        if status is None:
            self._notes.append("exit status unknown: the children of this process are reaped by somebody else")
        code = None if status is None else os.waitstatus_to_exitcode(status)
        if code == REFUSED and transcript.refused is not None:
            self._notes.append(transcript.refused)
            return self._result(Ending.NOT_SPAWNED, code)
        if code is not None and code < 0:
            return self._result(Ending.SIGNALLED, signal=-code)
        if code:
            return self._result(Ending.EXITED, code)
        return self._result(Ending.ANSWERED if transcript.answered else Ending.NO_ANSWER, code)

    def _result(self, ending: Ending, exit_code: int | None = None, signal: int | None = None) -> ChildResult:
        transcript = self._transcript
        return ChildResult(
            ending=ending,
            exit_code=exit_code,
            signal=signal,
            started=self._started,
            duration_s=round(time.monotonic() - self._spawned, 6),
            steps=transcript.steps(),
            observed=transcript.observed,
            answer=transcript.answer if ending is Ending.ANSWERED else None,
            stdout=self._out.text(),
            stderr=self._err.text(),
            evidence=self._evidence,
            notes=(*self._notes, *transcript.notes()),
            pid=self._process.pid or None,
        )
