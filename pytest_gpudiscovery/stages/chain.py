"""Runs several stages over another install, inside one stage: the candidate of an upgrade, or a mix of two versions.

The plan is a function of the results so far, like any other: the stages of the chain are judged anew each time, which
is pure and cheap, and the next probe of the first one that still has something to ask is handed out under its name.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from pytest_gpudiscovery.model import Outcome, StageRecord
from pytest_gpudiscovery.outcome import conclude, not_reached
from pytest_gpudiscovery.stages.spec import RunContext, StageInput, StageSpec, deadline_of
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

Records = dict[str, StageRecord]


def walk(
    name: str,
    specs: Sequence[StageSpec],
    context: RunContext,
    shared: Mapping[str, StageRecord],
    results: Mapping[str, ChildResult],
) -> tuple[Records, tuple[str, Probe] | None]:
    """Return the records of SPECS over CONTEXT so far, and the next probe, None when all of them were asked.

    SHARED are records of stages that do not depend on the install. Probes are called "NAME STAGE: PROBE".
    """
    records: Records = {}
    for spec in specs:
        known = {**shared, **records}
        if (blocker := _blocker(spec, known)) is not None:
            records[spec.name] = _record(spec, Outcome.NOT_REACHED, not_reached(blocker), blocked_by=blocker.name)
            continue
        prefix = f"{name} {spec.name}: "
        mine = {key.removeprefix(prefix): result for key, result in results.items() if key.startswith(prefix)}
        ended = any(result.ending is not Ending.ANSWERED and key not in spec.optional for key, result in mine.items())
        planned = None if ended else spec.plan(context, known, mine)
        if planned is not None:
            return records, (prefix + planned[0], planned[1])
        records[spec.name] = _judged(spec, context, known, mine)
    return records, None


def _blocker(spec: StageSpec, known: Mapping[str, StageRecord]) -> StageRecord | None:
    for parent in spec.after:
        record = known.get(parent)
        if record is None:
            continue  # a stage that this chain leaves out
        if record.outcome is Outcome.NOT_REACHED and record.blocked_by:
            return known.get(record.blocked_by, record)
        if not record.outcome.lets_others_run:
            return record
    if not spec.touches_driver:
        return None
    return next((record for record in known.values() if touched(record)), None)


def touched(record: StageRecord) -> bool:
    """Whether the driver must be left alone because of RECORD."""
    facts = record.facts if isinstance(record.facts, dict) else {}
    return bool(facts.get("hung_probe"))


def _judged(
    spec: StageSpec, context: RunContext, known: Mapping[str, StageRecord], mine: Mapping[str, ChildResult]
) -> StageRecord:
    deadline = deadline_of(context, spec, known)
    judgement = spec.judge(StageInput(context, mine, known, deadline))
    started = min((result.started for result in mine.values()), default=0.0)
    said = conclude(spec, judgement, mine, started=started, deadline_s=deadline)
    return dataclasses.replace(
        _record(spec, said.outcome, said.summary),
        started=started,
        duration_s=round(sum(result.duration_s for result in mine.values()), 6),
        deadline_s=deadline,
        checks=said.checks,
        facts=said.facts,
    )


def _record(spec: StageSpec, outcome: Outcome, summary: str, *, blocked_by: str | None = None) -> StageRecord:
    return StageRecord(
        name=spec.name,
        subject="candidate",
        required=True,
        outcome=outcome,
        summary=summary,
        started=time.time(),
        duration_s=0.0,
        deadline_s=0.0,
        blocked_by=blocked_by,
    )
