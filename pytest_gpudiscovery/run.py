"""One run of the gate as its processes share it: the engine, verdict.json after each stage, and what was said so far.

Knows nothing of pytest. The process that began the run (the only one, or pytest-xdist's controller) owns the report
directory's last word; workers write intermediate verdicts only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.engine import Engine
from pytest_gpudiscovery.model import StageRecord, State, Verdict
from pytest_gpudiscovery.options import UsageProblem
from pytest_gpudiscovery.reports import verdict_json
from pytest_gpudiscovery.stages.spec import RunContext, StageSpec, deadline_of
from pytest_gpudiscovery.verdict import conclude

LEDGER = "run"  # the folder of the records in the run directory
BEFORE = ".before"  # added to the name of the folder: the records of the attempt before
CLOSED = "closed"  # there once the controller wrote the final verdict
SYNC_S = 1.0
LAST_WORD_S = 2.0  # a writer that holds the lock for longer hangs in its disk; atomic replacement still holds

Show = Callable[[StageRecord], None]


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
        self.unfinished: str | None = None  # why what is published before the last word is no answer yet
        self._directory = os.path.join(context.run_dir, ledger)
        self.show = show
        self._shown: set[str] = set()
        self._began_one = False
        self._synced = 0.0  # time.monotonic() of the last write that waited for the disk
        self.engine = Engine(context, self._directory, stages)

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each stage."""
        return {name: spec.number for name, spec in self.stages.items()}

    def begin(self) -> str | None:
        """Move an older verdict aside and write an incomplete one; returns what went wrong, None when nothing did.

        Raises UsageProblem when an older verdict.json stays: whoever reads it would take it for this run's.
        """
        try:
            verdict_json.begin(self.report, self._so_far())
        except OSError as error:
            why = error.strerror or str(error)
            if (stands := self.stands()) is not False:
                where = os.path.join(self.report, verdict_json.NAME)
                old = f"the old {where} stands" if stands else f"whether an old {where} stands cannot be seen"
                raise UsageProblem(f"{old} and cannot be replaced ({why}); expected a directory to write to") from None
            return f"reports cannot be written to {self.report} ({why})"
        return None

    def stands(self) -> bool | None:
        """Whether there is a verdict.json in the report directory, None when nobody lets us look."""
        try:
            os.lstat(os.path.join(self.report, verdict_json.NAME))
        except PermissionError:
            return None
        except OSError:
            return False
        return True

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
        """Put every record aside: the next `ensure` asks the host anew."""
        shutil.rmtree(self._directory + BEFORE, ignore_errors=True)
        os.replace(self._directory, self._directory + BEFORE)
        self._reopen()

    def back(self) -> None:
        """Drop what was asked since `again`, and take the records that it put aside."""
        shutil.rmtree(self._directory, ignore_errors=True)
        os.replace(self._directory + BEFORE, self._directory)
        self._reopen()

    def _reopen(self) -> None:
        self._shown.clear()
        self.engine = Engine(self.context, self._directory, self.stages)

    def time_left(self) -> float:
        """Return the seconds until the run's deadline; infinite without one."""
        return math.inf if self.context.run_until is None else self.context.run_until - time.time()

    def hung(self) -> str | None:
        """Return the first stage a probe of which hung, None when none did."""
        records = self.engine.records().items()
        return next((n for n, r in records if isinstance(r.facts, dict) and r.facts.get("hung_probe")), None)

    def apart(self, ledger: str) -> Run:
        """Return a run like this one with records of its own and nothing to show."""
        other = Run(self.context, self.stages, started=self.started, report=self.report, ledger=ledger)
        other.selection, other.notes = self.selection, self.notes
        return other

    def publish(self) -> None:
        """Show the records that are new, and write the verdict so far if this process ran one of them."""
        records = self.engine.records()
        fresh = [record for name, record in records.items() if name not in self._shown]
        self._shown.update(records)
        if self.show is not None:
            for record in fresh:
                self.show(record)
        if fresh and self._began_one:
            self._began_one = False
            with contextlib.suppress(OSError), self._last_word() as closed:  # the last write says so if it fails too
                if not closed:
                    verdict_json.write(self.report, self._so_far(), so_far=True, sync=self._sync_is_due())

    def _sync_is_due(self) -> bool:
        """Whether the disk is waited for again: once a second, for quick stages follow each other."""
        now = time.monotonic()
        due = now - self._synced >= SYNC_S
        if due:
            self._synced = now
        return due

    def close(self, verdict: Verdict) -> None:
        """Write VERDICT as the last word: what another process of this run still writes is dropped. Raises OSError."""
        with self._last_word():
            Path(self.context.run_dir, CLOSED).touch()
            verdict_json.write(self.report, verdict)

    @contextlib.contextmanager
    def _last_word(self) -> Iterator[bool]:
        """Hold the right to write verdict.json, for which nobody waits long; gives whether the last word was said."""
        with open(os.path.join(self.context.run_dir, "verdict.lock"), "w", encoding="utf-8") as file:
            until = time.monotonic() + LAST_WORD_S
            while time.monotonic() < until:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.01)
            yield os.path.exists(os.path.join(self.context.run_dir, CLOSED))

    def show_all(self) -> None:
        """Show every record there is, whether it was shown before or not."""
        self._shown.clear()
        self.publish()

    def verdict(self) -> Verdict:
        """Return the verdict over what has run so far."""
        return conclude(self.engine, started=self.started, selection=self.selection, notes=tuple(self.notes))

    def _so_far(self) -> Verdict:
        verdict = self.verdict()
        if self.unfinished is None:
            return verdict
        return dataclasses.replace(verdict, verdict=State.INCOMPLETE, notes=(*verdict.notes, self.unfinished))

    def explains(self, name: str) -> tuple[str, ...]:
        """Return the selected stages that cannot be reached when stage NAME did not pass."""
        record = self.engine.records().get(name)
        facts = record.facts if record is not None and isinstance(record.facts, dict) else {}
        hung = self.stages[name].touches_driver and bool(facts.get("hung_probe"))
        lost = {name}
        for other, spec in self.stages.items():
            stuck = hung and spec.touches_driver and spec.number > self.stages[name].number
            if other in self.engine.selected and (stuck or lost.intersection(spec.after)):
                lost.add(other)
        return tuple(other for other in self.stages if other in lost and other != name)

    def running(self) -> tuple[str, float, float] | None:
        """Return the stage that runs now, its begin in Unix time and its deadline in seconds; None when none does."""
        mark = self.engine.ledger.running()
        if mark is None or mark.get("stage") not in self.stages:
            return None
        name = mark["stage"]
        if self.engine.ledger.read(name) is not None:
            return None  # it has ended, and the next one has not begun
        prior = {other: record for other, record in self.engine.records().items() if other != name}
        return name, float(mark["started"]), deadline_of(self.context, self.stages[name], prior)

    def _on_start(self, _: StageSpec) -> None:
        self.publish()
        self._began_one = True
