"""One run of the gate as its processes share it: the engine, verdict.json after each stage, and what was said so far.

Knows nothing of pytest. The process that began the run (the only one, or pytest-xdist's controller) owns the report
directory's last word; workers write intermediate verdicts only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_gpudiscovery.engine import Engine
from pytest_gpudiscovery.model import StageRecord, State, Verdict
from pytest_gpudiscovery.options import UsageProblem
from pytest_gpudiscovery.reports import verdict_json
from pytest_gpudiscovery.stages.spec import RunContext, StageSpec
from pytest_gpudiscovery.verdict import conclude

LEDGER = "run"  # the folder of the records in the run directory
FALLBACK_DIRECTORIES = ("/dev/shm", "/run")  # where TMPDIR and /tmp are full or gone: that is stage 03's to judge
PAUSES_S = (1.0, 2.0, 3.0, 5.0)  # between the attempts of --gpu-wait; the last one is repeated
WORST_FIRST = (State.BLOCKED, State.INCOMPLETE, State.DEGRADED, State.READY)

Say = Callable[[str], None]
Show = Callable[[StageRecord], None]


def private_directory() -> str:
    """Return a new directory that only this user can use; raises UsageProblem where none can be made."""
    problem: OSError | None = None
    for folder in (None, *FALLBACK_DIRECTORIES):
        try:
            return tempfile.mkdtemp(prefix="gpu-discovery-", dir=folder)
        except OSError as error:
            problem = problem or error
    raise UsageProblem(f"no place for the run's records: {problem}; set TMPDIR to a directory that can be written")


class Run:
    """The stages of one run, over a ledger that all its processes share."""

    def __init__(
        self,
        context: RunContext,
        stages: Mapping[str, StageSpec],
        *,
        started: float,
        report: str,
        show: Show | None = None,
        ledger: str = LEDGER,
    ) -> None:
        self.context, self.stages, self.started, self.report = context, stages, started, report
        self.notes: list[str] = []
        self.selection: dict[str, Any] = {}
        self._directory = os.path.join(context.run_dir, ledger)
        self._show = show
        self._shown: set[str] = set()
        self._began_one = False
        self.engine = Engine(context, self._directory, stages)

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each stage."""
        return {name: spec.number for name, spec in self.stages.items()}

    def begin(self) -> str | None:
        """Move an older verdict aside and write an incomplete one; returns what went wrong, None when nothing did."""
        try:
            verdict_json.begin(self.report, self.verdict())
        except OSError as error:
            return f"reports cannot be written to {self.report} ({error.strerror or error}); a verdict.json there is old"
        return None

    def ensure(self, name: str) -> StageRecord:
        """Return the record of stage NAME; runs what is needed, shows each stage as it ends."""
        record = self.engine.ensure(name, on_start=self._on_start)
        self.publish()
        return record

    def complete(self) -> None:
        """Run every stage that was asked for and has not run."""
        for name in self.engine.selected:
            self.ensure(name)

    def again(self) -> None:
        """Forget every record: the next `ensure` asks the host anew."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._shown.clear()
        self.engine = Engine(self.context, self._directory, self.stages)

    def publish(self) -> None:
        """Show the records that are new, and write the verdict so far if this process ran one of them."""
        records = self.engine.records()
        fresh = [record for name, record in records.items() if name not in self._shown]
        self._shown.update(records)
        if self._show is not None:
            for record in fresh:
                self._show(record)
        if fresh and self._began_one:
            self._began_one = False
            with contextlib.suppress(OSError):  # the last write says so if it fails too
                verdict_json.write(self.report, self.verdict())

    def verdict(self) -> Verdict:
        """Return the verdict over what has run so far."""
        return conclude(self.engine, started=self.started, selection=self.selection, notes=tuple(self.notes))

    def explains(self, name: str) -> tuple[str, ...]:
        """Return the selected stages that cannot be reached when stage NAME did not pass."""
        record = self.engine.records().get(name)
        hung = bool(isinstance(getattr(record, "facts", None), dict) and record and record.facts.get("hung_probe"))
        lost = {name}
        for other, spec in self.stages.items():
            stuck = hung and spec.touches_driver and spec.number > self.stages[name].number
            if other in self.engine.selected and spec.built and (stuck or lost.intersection(spec.after)):
                lost.add(other)
        return tuple(other for other in self.stages if other in lost and other != name)

    def running(self) -> tuple[str, float, float] | None:
        """Return the stage that runs now, its begin in Unix time and its deadline in seconds; None when none does."""
        mark = self.engine.ledger.running()
        if mark is None or mark.get("stage") not in self.stages:
            return None
        name = mark["stage"]
        default = self.stages[name].deadline_s * self.context.scale
        return name, float(mark["started"]), self.context.deadlines.get(name, default)

    def _on_start(self, _: StageSpec) -> None:
        self.publish()
        self._began_one = True


def wait_until_ready(run: Run, seconds: float, say: Say) -> None:
    """Run the whole gate until it is ready or degraded, at most SECONDS from now; the last attempt's records stay."""
    until = time.monotonic() + seconds
    show, run._show = run._show, None  # only the attempt that counts is shown in full
    attempt = 0
    while True:
        attempt += 1
        run.complete()
        verdict = run.verdict()
        left = until - time.monotonic()
        pause = PAUSES_S[min(attempt, len(PAUSES_S)) - 1]
        if verdict.verdict in (State.READY, State.DEGRADED) or left <= pause:
            break
        say(f"attempt {attempt}: {in_short(verdict)}; asking again for {left:.0f} s")
        time.sleep(pause)
        run.again()
    run.notes.append(f"--gpu-wait: {verdict.verdict.value} at attempt {attempt}")
    run._show = show
    run._shown.clear()
    run.publish()


def repeat(run: Run, first: Verdict, times: int, say: Say) -> Verdict:
    """Run the whole gate TIMES - 1 times more; returns the worst verdict, with a note on what differed."""
    verdicts = [first]
    for number in range(2, times + 1):
        other = Run(
            run.context, run.stages, started=run.started, report=run.report, ledger=f"{LEDGER}-{number}"
        )
        other.selection = run.selection
        other.notes = run.notes
        other.engine.complete()
        verdicts.append(other.verdict())
        say(f"run {number} of {times}: {in_short(verdicts[-1])}")
    worst = min(verdicts, key=lambda verdict: WORST_FIRST.index(verdict.verdict))
    run.notes.append(differences(verdicts))
    return conclude_again(worst, tuple(run.notes), time.time() - run.started)


def conclude_again(verdict: Verdict, notes: tuple[str, ...], duration_s: float) -> Verdict:
    """Return VERDICT with the run's notes and duration."""
    import dataclasses  # noqa: PLC0415

    return dataclasses.replace(verdict, notes=notes, duration_s=round(duration_s, 3))


def differences(verdicts: Sequence[Verdict]) -> str:
    """Return one sentence on which stages ended differently between the runs."""
    seen: dict[str, list[str]] = {}
    for verdict in verdicts:
        for record in verdict.stages:
            seen.setdefault(record.name, []).append(record.outcome.value)
    differing = [f"{name} {', '.join(outcomes)}" for name, outcomes in seen.items() if len(set(outcomes)) > 1]
    return f"--gpu-repeat: {len(verdicts)} runs, " + ("; ".join(differing) if differing else "all ended alike")


def in_short(verdict: Verdict) -> str:
    """Return "blocked at nvml: ..." or the state alone."""
    first = verdict.blockers[0] if verdict.blockers else None
    return verdict.verdict.value + (f" at {first.stage}: {first.summary}" if first else "")
