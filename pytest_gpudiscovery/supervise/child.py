"""The life of one supervised child: spawn, listen, deadline, evidence, SIGKILL, a bounded wait, abandon.

`run` returns at most EVIDENCE_S + KILL_WAIT_S after the deadline whatever the child does, also when it sleeps in
state D. One selectors loop, no thread. PR_SET_PDEATHSIG fires when the *thread* that spawned the child ends, so call
`run` from a thread that outlives it. Daemons that the child forked are found and killed as long as we live; when we
are killed with SIGKILL only the child itself goes with us (the signal is not inherited by fork).
"""

from __future__ import annotations

import functools
import os
import selectors
import time
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.supervise import (
    activity,
    blocked,
    evidence,
    forensics,
    identity,
    leftovers,
    procfs,
    reaper,
    spawn,
    transient,
    unseen,
)
from pytest_gpudiscovery.supervise.output import HeadTail
from pytest_gpudiscovery.supervise.transcript import Transcript
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe, Setup

EVIDENCE_S = 3.0  # for everything that is read of a child that hangs: forensics.DEADLINE_S and its own end
KILL_WAIT_S = 1.0  # for SIGKILL to end the child
INNER_KILL_WAIT_S = 0.3  # the same for a child that looks at another one
CHUNK = 1 << 16  # bytes a read; what a pipe holds
DRAIN_READS = 64  # after the end: what is in the pipe now, never until EOF (a grandchild may keep it open)
CLOSING_S = 0.05  # for the pipes to close after the end; longer means that somebody holds them
POLL_S = 0.02  # where pidfd_open(2) is missing or forbidden
REFUSED = 125  # probes/boot.py


def run(probe: Probe, *, extra: Path | None = None) -> ChildResult:
    """Run PROBE in its own process and say what became of it.

    EXTRA is a directory with further probe modules, by default the probe's own. Never raises for what the child or the
    host does; raises TypeError or ValueError for a request that is not JSON, and lets KeyboardInterrupt and SystemExit
    through after the child was killed.
    """
    reaper.reap()
    return _supervise(probe, extra=extra or (Path(probe.directory) if probe.directory else None))


def _supervise(probe: Probe, *, extra: Path | None = None, inner: bool = False) -> ChildResult:
    """Run PROBE; INNER is a look at another child: it gets less time to die, and is not looked at itself."""
    child = _Child(probe, inner)
    try:
        return child.live(extra)
    except BaseException:
        child.end_now()
        raise
    finally:
        child.close()


_look = functools.partial(_supervise, inner=True)


class _Child:
    def __init__(self, probe: Probe, inner: bool) -> None:
        self._probe, self._inner = probe, inner
        self._kill_wait_s = INNER_KILL_WAIT_S if inner else KILL_WAIT_S
        self._started, self._spawned = time.time(), time.monotonic()
        self._process = spawn.Process()
        self._transcript = Transcript(self._spawned)
        self._out, self._err = HeadTail(), HeadTail()
        self._selector = selectors.DefaultSelector()
        self._open: set[int] = set()  # pipes whose end was not seen
        self._dead = False
        self._notes: list[str] = []
        self._evidence: dict[str, Any] = {}
        self._samples: list[activity.Sample] = []

    # The stations of a life, in their order.

    def live(self, extra: Path | None) -> ChildResult:
        try:
            interpreters = self._interpreters()
            spawn.start(self._process, self._probe, interpreters, extra)
        except OSError as error:
            self._notes.append(f"could not be started: {error}")
            return self._result(Ending.NOT_SPAWNED)
        process, deadline_s = self._process, self._probe.deadline_s
        self._open = {process.out, process.err, process.journal}
        for fd in self._open | ({process.pidfd} if process.pidfd is not None else set()):
            self._selector.register(fd, selectors.EVENT_READ)
        for share in () if self._inner else activity.SAMPLES_AT:
            if self._listen(self._spawned + share * deadline_s):
                return self._ended()
            self._sample()
        if self._listen(self._spawned + deadline_s):
            return self._ended()
        if not self._inner:
            self._look_closely()
        self._kill()
        if self._listen(time.monotonic() + self._kill_wait_s) or self._unit_is_gone():
            self._finish()
            return self._result(Ending.TIMED_OUT)
        if not self._inner:
            self._evidence["after_sigkill"] = evidence.snapshot(process.subject(), in_exec=self._in_exec())
        process.kill()
        self._drain()
        reaper.abandon(process.pid)
        self._notes.append(f"PID {process.pid} outlived SIGKILL and was abandoned")
        return self._result(Ending.UNKILLABLE)

    def _ended(self) -> ChildResult:
        """Say what became of a child that ended by itself."""
        status, transcript = self._finish(), self._transcript
        code = 0 if status is None else os.waitstatus_to_exitcode(status)
        if status is None:
            self._notes.append("exit status unknown: something else in this process reaps its children")
        if self._process.unit is not None:
            code = self._of_unit(code)
            refusal = transient.refusal(self._err.text()) or transient.set_up_failed(code)
            if not transcript.begun and "setup" not in transcript.observed and refusal is not None:
                self._notes.append(f"systemd did not start it: {refusal}")
                return self._result(Ending.NOT_SPAWNED, code)
        if code == REFUSED and transcript.refused is not None:
            self._notes.append(transcript.refused)
            return self._result(Ending.NOT_SPAWNED, code)
        if "left_behind" in transcript.observed:
            self._notes.append(f"left behind: PIDs {transcript.observed['left_behind']}, killed")
        if "lowered" in transcript.observed:
            self._notes.append(f"a library lowered [from, to]: {transcript.observed['lowered']}")
        if code < 0:
            return self._result(Ending.SIGNALLED, signal=-code)
        if code > 0:
            return self._result(Ending.EXITED, code)
        return self._result(Ending.ANSWERED if transcript.answered else Ending.NO_ANSWER, code)

    def _unit_is_gone(self) -> bool:
        """Whether a transient unit has no process left, although systemd-run has not noticed."""
        return self._process.unit is not None and self._process.subject() == 0

    def _of_unit(self, code: int) -> int:
        """Return the exit code of the unit's main process: systemd-run says 1 for one that a signal ended."""
        number = transient.ending(self._err.text())
        return code if number is None else -number

    def end_now(self) -> None:
        """Kill the child, because its life was interrupted."""
        if self._process.pid:
            self._kill()
            if self._listen(time.monotonic() + self._kill_wait_s):
                self._process.reap()
            else:
                reaper.abandon(self._process.pid)

    def close(self) -> None:
        """Let go of every descriptor."""
        self._selector.close()
        self._process.close()

    def _interpreters(self) -> tuple[str, ...]:
        """Return which interpreters the child execs, in turn; none when it stays what it is."""
        setup = self._probe.setup
        if setup.interpreter is not None:
            return (setup.interpreter,)
        who = setup.identity
        if who is None and setup.mntns is not None:
            who = identity.ours()  # ours may be hidden there: the child tries them in turn
        if who is None and setup.transient:
            who = identity.ANYBODY  # a user that systemd makes, or root without its capabilities
        if who is None or (identity.is_ours(who) and setup.mntns is None and not setup.transient):
            return ()
        found = identity.interpreters(who)
        if not found:
            places = ", ".join(identity.LOOKED_AT)
            raise FileNotFoundError(f"no Python that uid {who.uid} can execute among {places}")
        return found

    # Listening.

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
                else:
                    self._read(key.fd)
        return True

    def _read(self, fd: int) -> bytes | None:
        """Take one chunk from FD; b"" at its end, None when there is nothing now."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return None
        if not data:
            self._open.discard(fd)
            self._selector.unregister(fd)
        elif fd == self._process.journal:
            self._transcript.feed(data, time.monotonic())
        else:
            (self._out if fd == self._process.out else self._err).feed(data)
        return data

    def _drain(self) -> None:
        for fd in tuple(self._open):
            for _ in range(DRAIN_READS):
                if not self._read(fd):
                    break

    # Looking and killing.

    def _sample(self) -> None:
        steps = self._transcript.steps()
        done = len(steps) + sum(step.duration_s is not None for step in steps)
        subject = self._process.subject()
        self._samples.append(activity.sample(subject, time.monotonic(), done, in_exec=self._in_exec()))

    def _look_closely(self) -> None:
        self._sample()
        subject = self._process.subject()
        snapshot = evidence.snapshot(subject, in_exec=self._in_exec())
        # Before the probe began, the child may still be who we are.
        setup = self._probe.setup if self._transcript.begun else Setup()
        seen = forensics.examine(subject, snapshot, setup, _look, age_s=time.monotonic() - self._spawned)
        self._evidence.update(
            at_deadline=snapshot,
            activity=activity.judge(self._samples),
            forensics=seen,
            blocked_in=blocked.describe(snapshot, seen),
            unseen=unseen.reasons(snapshot, seen),
            deadline_s=self._probe.deadline_s,
        )

    def _in_exec(self) -> bool:
        return any(step.duration_s is None and step.name.startswith("exec ") for step in self._transcript.steps())

    def _kill(self) -> None:
        """Send SIGKILL to everything that the child started and that can be found."""
        outside = leftovers.outside(self._process.pid)  # before: its death gives them to init
        if self._process.unit is None:
            self._process.kill()
        self._process.kill_unit()  # systemd-run sees its end, and ends
        self._notes += [leftovers.say(pid, stat.name, leftovers.kill(pid, stat.start)) for pid, stat in outside]

    def _finish(self) -> int | None:
        """Collect a child that has ended, and what it left behind; returns its wait status."""
        process = self._process
        stat = procfs.stat(process.pid)
        process.kill()  # whoever of its group is left; the zombie keeps the number ours
        self._drain()
        if self._open:
            self._wait_for_pipes(time.monotonic() + CLOSING_S)
        if self._open and stat is not None and not self._inner:
            for entry in leftovers.holders(self._open, process.pid, stat.start, _look):
                killed = leftovers.kill(entry["pid"], entry["start"])
                self._notes.append(leftovers.say(entry["pid"], entry["name"], killed))
        return process.reap()

    def _wait_for_pipes(self, until: float) -> None:
        """Take what comes until every pipe is closed or UNTIL comes: a killed process needs a moment to let go."""
        if self._process.pidfd is not None:
            self._selector.unregister(self._process.pidfd)
        while self._open and (left := until - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                self._read(key.fd)

    def _result(self, ending: Ending, exit_code: int | None = None, signal: int | None = None) -> ChildResult:
        transcript = self._transcript
        if ending is not Ending.NOT_SPAWNED and not transcript.begun:
            self._notes.append("the probe's own code was not reached")
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
            stderr=self._err.text() if self._process.unit is None else transient.own_words(self._err.text()),
            evidence=self._evidence,
            notes=(*self._notes, *transcript.notes()),
            pid=self._process.pid or None,
        )
