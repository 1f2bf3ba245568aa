"""Runs the stage graph on demand, once per host and run, whichever process asks and in whichever order.

`ensure(name)` runs what NAME needs first, then NAME, and files the record. pytest items only read records: selection,
order, -x, --lf or -n cannot change the verdict.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from pytest_gpudiscovery import addressed
from pytest_gpudiscovery import stages as stage_table
from pytest_gpudiscovery.ledger import Ledger, LedgerBusyError
from pytest_gpudiscovery.model import Outcome, StageRecord
from pytest_gpudiscovery.outcome import HUNG, conclude, not_reached
from pytest_gpudiscovery.stages.spec import (
    Judgement,
    RunContext,
    StageInput,
    StageSpec,
    deadline_for,
    deadline_of,
    longest_of,
    unknown,
)
from pytest_gpudiscovery.supervise.child import run as run_probe
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

AFTER_DEADLINE_S = 4.0  # evidence at most 3 s, SIGKILL and the bounded wait at most 1 s
CANDIDATE_STAGE = "upgrade"  # only when a candidate was named
ANY_PROFILE, PROFILE_STAGE = "any", "enumeration"
OnStart = Callable[[StageSpec], None]
Supervise = Callable[[Probe], ChildResult]


class Engine:
    """One run of the gate. Every process that takes part makes its own Engine over the same RUN_DIR."""

    def __init__(
        self,
        context: RunContext,
        run_dir: str,
        stages: Mapping[str, StageSpec] | None = None,
        supervise: Supervise = run_probe,
    ) -> None:
        self.context = context
        self.stages = dict(stages if stages is not None else stage_table.table())
        self.ledger = Ledger(run_dir)
        self._supervise = supervise
        self._cache: dict[str, StageRecord] = {}
        self.target = context.target or _last(self.stages)
        # An asked-for set, not only the ancestors: a person who stops at `runtime` also wants NVML's answer.
        last = self.stages[self.target].number
        self.selected = tuple(name for name, spec in self.stages.items() if spec.number <= last)
        self.required = self.ancestors(self.target)
        if context.profile.get("profile", ANY_PROFILE) != ANY_PROFILE and PROFILE_STAGE in self.selected:
            # Whoever says what this host must be wants that asserted, also where the target does not need it.
            wanted = {*self.required, *self.ancestors(PROFILE_STAGE)}
            self.required = tuple(name for name in self.stages if name in wanted)

    def ancestors(self, name: str) -> tuple[str, ...]:
        """Return stage NAME and everything that must let it run, in order."""
        found_names: set[str] = set()
        todo = [name]
        while todo:
            current = todo.pop()
            if current not in found_names:
                found_names.add(current)
                todo.extend(self.stages[current].after)
        return tuple(stage for stage in self.stages if stage in found_names)

    def ensure(self, name: str, *, on_start: OnStart | None = None) -> StageRecord:
        """Return the record of stage NAME, running it and what it needs when they have not run yet."""
        if (record := self._known(name)) is not None:
            return record
        spec = self.stages[name]
        for parent in (*spec.soft_after, *spec.after):
            self.ensure(parent, on_start=on_start)
        limit = sum(longest_of(self.context, spec) + AFTER_DEADLINE_S for spec in self.stages.values()) + 30
        try:
            with self.ledger.lock(limit):
                if (record := self._known(name)) is not None:  # another worker ran it while this one waited
                    return record
                record = self._decide(spec, on_start)
                self.ledger.write(record)
                self.ledger.mark_running(None)
        except (LedgerBusyError, OSError) as error:
            # A full or vanished run directory: what cannot be filed is no answer, and never a traceback.
            record = self._record(spec, Outcome.PROBE_ERROR, f"the record cannot be kept: {error}", time.time(), 0.0)
        self._cache[name] = record
        return record

    def complete(self, *, on_start: OnStart | None = None) -> None:
        """Run every selected stage that has not run yet."""
        for name in self.selected:
            self.ensure(name, on_start=on_start)

    def records(self) -> dict[str, StageRecord]:
        """Return what has run so far, by stage in order; runs nothing and waits for nothing."""
        if len(self._cache) < len(self.stages):
            for name in self.ledger.names() & self.stages.keys():
                self._known(name)
        return {name: self._cache[name] for name in self.stages if name in self._cache}

    def interrupt(self, reason: str) -> None:
        """File the stage that was running as interrupted, unless its record came in meanwhile."""
        running = self.ledger.running()
        if running is None or running["stage"] not in self.stages or self._known(running["stage"]) is not None:
            return
        spec = self.stages[running["stage"]]
        self.ledger.write(
            self._record(spec, Outcome.INTERRUPTED, reason, running["started"], time.time() - running["started"])
        )

    def _known(self, name: str) -> StageRecord | None:
        if name not in self._cache and (record := self.ledger.read(name)) is not None:
            self._cache[name] = record
        return self._cache.get(name)

    def _decide(self, spec: StageSpec, on_start: OnStart | None) -> StageRecord:
        now = time.time()
        if (blocker := self._blocker(spec)) is not None:
            return self._record(spec, Outcome.NOT_REACHED, not_reached(blocker), now, 0.0, blocked_by=blocker.name)
        if self.context.run_until is not None and now >= self.context.run_until:
            return self._record(spec, Outcome.NOT_SELECTED, "not begun: the run's deadline had passed", now, 0.0)
        if on_start is not None:
            on_start(spec)
        self.ledger.mark_running(spec.name)
        return self._run(spec, now)  # after KeyboardInterrupt the mark stays, for interrupt()

    def _blocker(self, spec: StageSpec) -> StageRecord | None:
        """The root blocker of SPEC, None when it may run."""
        for parent in spec.after:
            record = self._cache[parent]
            if record.outcome is Outcome.NOT_REACHED and record.blocked_by:
                return self._cache.get(record.blocked_by, record)
            if not record.outcome.lets_others_run:
                return record
        if spec.touches_driver:
            # A second child may make a stuck driver worse, and would only wait for the same lock.
            for record in self.records().values():
                if self.stages[record.name].touches_driver and _hung(record):
                    return record
        return None

    def _run(self, spec: StageSpec, started: float) -> StageRecord:
        if (why := self.context.unasked.get(spec.name)) is not None:
            return self._unasked(spec, why, started)
        prior = {name: self._cache[name] for name in self.stages if name in self._cache}
        deadline = deadline_of(self.context, spec, prior)
        begun = time.monotonic()
        results: dict[str, ChildResult] = {}
        cut = False
        try:
            while (planned := spec.plan(self.context, prior, results)) is not None:
                name, probe = planned
                left = deadline - (time.monotonic() - begun)
                if spec.turns is not None and results and left < probe.deadline_s:
                    break  # less than a whole turn would be called a hang, and is none
                own = min(probe.deadline_s, left)
                shorter = self.context.run_until is not None and self.context.run_until - time.time() < own
                if shorter and self.context.run_until is not None:
                    own = self.context.run_until - time.time()
                results[name] = self._supervise(dataclasses.replace(probe, deadline_s=max(0.05, own)))
                cut = shorter and results[name].ending in HUNG
                if cut:
                    break
                if name not in spec.optional and results[name].ending is not Ending.ANSWERED:
                    break
            if cut:
                # The probe still had time: that it had none left of the run's says nothing about the host.
                text = "cut off by the deadline of the whole run (--gpu-deadline)"
                return self._record(spec, Outcome.INTERRUPTED, text, started, time.monotonic() - begun)
            judgement = self._judged(spec, StageInput(self.context, results, prior, deadline))
        except Exception:
            # Our own defect must be a result, never a traceback that ends the run and never a green.
            trace = traceback.format_exc()
            return self._record(
                spec,
                Outcome.PROBE_ERROR,
                f"the gate's own code failed: {trace.strip().splitlines()[-1]}"[:200],
                started,
                time.monotonic() - begun,
                evidence={"traceback": trace},
            )
        said = conclude(spec, judgement, results, started=started, deadline_s=deadline)
        return dataclasses.replace(
            self._record(spec, said.outcome, said.summary, started, time.monotonic() - begun),
            deadline_s=deadline,
            checks=addressed.to_caller(addressed.to_service(said.checks, self.context.service), self.context.named),
            steps=said.steps,
            facts=said.facts,
            evidence=said.evidence,
        )

    def _judged(self, spec: StageSpec, given: StageInput) -> Judgement:
        """Return what SPEC makes of GIVEN, nothing where it fails for want of an answer: the probe's end says more."""
        try:
            judgement = spec.judge(given)
        except Exception:
            unanswered = (name for name, result in given.results.items() if result.ending is not Ending.ANSWERED)
            if all(name in spec.optional for name in unanswered):
                raise
            judgement = Judgement((), "")
        return self._spoken_for(spec, judgement)

    def _unasked(self, spec: StageSpec, why: str, started: float) -> StageRecord:
        """Return the record of a stage that cannot be asked: every row is open, so the verdict is incomplete."""
        checks = tuple(unknown(row, why) for row in spec.rows) or (unknown("", why),)
        said = conclude(spec, Judgement(checks, why), {}, started=started, deadline_s=0.0)
        record = self._record(spec, said.outcome, why, started, 0.0)
        return dataclasses.replace(record, checks=said.checks, facts=said.facts)

    def _spoken_for(self, spec: StageSpec, judgement: Judgement) -> Judgement:
        """Add what the probes of SPEC did not have of the service: its answer is then open, unless it has failed."""
        reason = self.context.unspoken.get(spec.name)
        if not reason or not judgement.applicable:
            return judgement
        open_check = unknown(spec.rows[0] if spec.rows else "", f"not adopted: {reason}")
        return dataclasses.replace(judgement, checks=(*judgement.checks, open_check))

    def _record(
        self,
        spec: StageSpec,
        outcome: Outcome,
        summary: str,
        started: float,
        duration: float,
        *,
        blocked_by: str | None = None,
        evidence: Any = None,
    ) -> StageRecord:
        return StageRecord(
            name=spec.name,
            subject="host",
            required=spec.name in self.required,
            outcome=outcome,
            summary=summary,
            started=started,
            duration_s=round(duration, 6),
            deadline_s=deadline_for(self.context, spec.name, spec.deadline_s),
            ollama_budget_s=spec.ollama_budget_s,
            blocked_by=blocked_by,
            evidence=evidence,
        )


def _last(stages: Mapping[str, StageSpec]) -> str:
    """Return the stage that a run without --gpu-until aims at."""
    by_number = sorted(stages.values(), key=lambda spec: spec.number)
    return [spec.name for spec in by_number if spec.name != CANDIDATE_STAGE or len(stages) == 1][-1]


def _hung(record: StageRecord) -> bool:
    facts = record.facts if isinstance(record.facts, dict) else {}
    return record.outcome in (Outcome.TIMED_OUT, Outcome.UNKILLABLE) or bool(facts.get("hung_probe"))
