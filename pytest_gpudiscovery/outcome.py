"""From what became of the probes and what was judged to the outcome, the summary and the evidence of a stage. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import (
    SUMMARY_LIMIT,
    Check,
    CheckOutcome,
    Finding,
    Kind,
    Outcome,
    Severity,
    StageRecord,
    Step,
)
from pytest_gpudiscovery.stages.endings import signal_words
from pytest_gpudiscovery.stages.spec import Judgement, StageSpec, found
from pytest_gpudiscovery.supervise.types import ChildResult, Ending

HUNG = (Ending.TIMED_OUT, Ending.UNKILLABLE)
HANG_OUTCOMES = (Outcome.TIMED_OUT, Outcome.UNKILLABLE)
PACES = {"slow": " (slow)", "hung": " (hung)"}  # supervise/activity.py
STDERR_TAIL = 2000  # characters of a child's stderr that a finding carries; the record's evidence has all that was kept


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """What a stage's record says beside its times."""

    outcome: Outcome
    summary: str
    checks: tuple[Check, ...]
    steps: tuple[Step, ...]
    facts: dict[str, Any]
    evidence: dict[str, Any] | None


def not_reached(blocker: StageRecord) -> str:
    """Return why a stage behind BLOCKER did not run."""
    return f"not reached: {blocker.name} {blocker.outcome.value.replace('_', ' ')}: {blocker.summary}"


def conclude(
    spec: StageSpec,
    judgement: Judgement,
    results: Mapping[str, ChildResult],
    *,
    started: float,
    deadline_s: float,
) -> Conclusion:
    """Return what SPEC's record says; STARTED is the stage's begin in Unix time."""
    checks = list(judgement.checks)
    outcome, extra = _of_endings(spec, results, deadline_s)
    if extra is not None and (outcome in HANG_OUTCOMES or not _explained(checks)):
        checks.insert(0, extra)
    if outcome is None:
        outcome = judgement.outcome or _of_checks(judgement, checks)
    if outcome in HANG_OUTCOMES:
        checks = _with_pace(checks, results)
    facts = dict(judgement.facts) if isinstance(judgement.facts, dict) else {}
    hung = any(result.ending in HUNG for result in results.values())
    if hung if judgement.stuck is None else judgement.stuck:
        facts["hung_probe"] = True  # also a second witness: no further child may touch the driver after it
    return Conclusion(
        outcome,
        _summary(outcome, judgement, checks, results),
        tuple(checks),
        tuple(_steps(results, started)),
        facts,
        _evidence(results) or None,
    )


def _with_pace(checks: list[Check], results: Mapping[str, ChildResult]) -> list[Check]:
    """Return CHECKS with "slow" or "hung" in the summary that stands for the stage, as its child was seen to be."""
    worst = _worst(checks)
    if worst is None:
        return checks
    told = worst.evidence if isinstance(worst.evidence, Mapping) else {}
    hung = [result.evidence for result in results.values() if result.ending in HUNG]
    mine = [seen for seen in hung if seen.get("blocked_in", "unknown") == told.get("blocked_in")]
    found_in = (told.get("activity"), *(seen.get("activity") for seen in mine))
    pace = next((one.get("pace") for one in found_in if isinstance(one, Mapping)), None)
    if pace not in PACES:
        return checks
    room = SUMMARY_LIMIT - len(PACES[pace])
    summary = (worst.summary if len(worst.summary) <= room else worst.summary[: room - 1] + "…") + PACES[pace]
    finding = dataclasses.replace(worst, summary=summary)
    return [
        dataclasses.replace(check, finding=finding, reason=summary) if check.finding is worst else check
        for check in checks
    ]


def _explained(checks: list[Check]) -> bool:
    """Whether what was seen before the child ended already names what failed: the nearer finding stands."""
    return any(check.outcome is CheckOutcome.FAILED and check.finding for check in checks)


def _summary(outcome: Outcome, judgement: Judgement, checks: list[Check], results: Mapping[str, ChildResult]) -> str:
    if outcome is Outcome.PROBE_ERROR:
        ended = (result for result in results.values() if result.ending is not Ending.ANSWERED)
        return next((_first_words(result) for result in ended), judgement.summary or "nothing was checked")
    worst = _worst(checks)
    if worst is not None and (outcome is Outcome.WARNED or not outcome.lets_others_run):
        return worst.summary
    if outcome is Outcome.WARNED:  # nothing is wrong, but something could not be looked at
        left_open = [check for check in checks if check.outcome is CheckOutcome.UNKNOWN and check.reason]
        left_open.sort(key=lambda check: check.kind is Kind.OBSERVABILITY)  # those make no stage warn
        return left_open[0].reason if left_open else judgement.summary
    return judgement.summary


def _worst(checks: list[Check]) -> Finding | None:
    weight = {CheckOutcome.FAILED: 0, CheckOutcome.WARNED: 1}
    pairs = [(weight.get(check.outcome, 2), check.finding) for check in checks if check.finding]
    pairs = [pair for pair in pairs if pair[1].severity is not Severity.NOTE]
    return min(pairs, key=lambda pair: pair[0])[1] if pairs else None


def _steps(results: Mapping[str, ChildResult], started: float) -> list[Step]:
    return [
        dataclasses.replace(
            step,
            name=step.name if len(results) == 1 else f"{name}: {step.name}",
            started=round(step.started + result.started - started, 6),
        )
        for name, result in results.items()
        for step in result.steps
    ]


def _evidence(results: Mapping[str, ChildResult]) -> dict[str, Any]:
    return {
        name: {
            "ending": result.ending.value,
            "exit_code": result.exit_code,
            "signal": result.signal,
            "stdout": result.stdout,
            "stderr": result.stderr,
            "notes": list(result.notes),
            **_open(result),
            **dict(result.evidence),
        }
        for name, result in results.items()
        if result.ending is not Ending.ANSWERED or result.notes
    }


def _open(result: ChildResult) -> dict[str, Any]:
    """Return which step had not ended, and for how many seconds, when the deadline of a child that hung came."""
    step, deadline = result.open_step, result.evidence.get("deadline_s")
    if step is None or not isinstance(deadline, (int, float)):
        return {}
    return {"open_step": step.name, "open_for_s": round(max(0.0, deadline - step.started), 3)}


def _of_checks(judgement: Judgement, checks: list[Check]) -> Outcome:
    if not judgement.applicable:
        return Outcome.NOT_APPLICABLE
    if any(check.outcome is CheckOutcome.FAILED and check.kind is Kind.BLOCKING for check in checks):
        return Outcome.FAILED
    if any(check.outcome in (CheckOutcome.WARNED, CheckOutcome.FAILED) for check in checks):
        return Outcome.WARNED
    if any(check.outcome is CheckOutcome.UNKNOWN and check.kind is not Kind.OBSERVABILITY for check in checks):
        return Outcome.WARNED
    return Outcome.PASSED if checks else Outcome.PROBE_ERROR  # a stage that checked nothing proves nothing


def _of_endings(
    spec: StageSpec, results: Mapping[str, ChildResult], deadline: float
) -> tuple[Outcome | None, Check | None]:
    """Return the outcome that a probe without an answer forces and the check that says so; (None, None) for none."""
    for name, result in results.items():
        if name in spec.optional or result.ending is Ending.ANSWERED:
            continue
        step = result.open_step.name if result.open_step else f"the {name} probe"
        facts = {
            "stage": spec.name,
            "step": step,
            "deadline_s": round(deadline, 3),
            "blocked_in": result.evidence.get("blocked_in", "unknown"),
            "ending": _ending_words(result),
        }
        if result.ending in HUNG:
            outcome = Outcome.UNKILLABLE if result.ending is Ending.UNKILLABLE else Outcome.TIMED_OUT
            return outcome, _engine_check(spec, spec.hang_causes, "engine.probe.hang", step, facts, result)
        if result.ending is Ending.NO_ANSWER:
            return Outcome.CRASHED, _engine_check(spec, {}, "engine.probe.no_answer", step, facts, result)
        if result.ending is Ending.SIGNALLED or (result.ending is Ending.EXITED and not result.python_failed):
            return Outcome.CRASHED, _engine_check(spec, spec.crash_causes, "engine.probe.crash", step, facts, result)
        return Outcome.PROBE_ERROR, None
    return None, None


def _engine_check(
    spec: StageSpec, causes: Mapping[str, str], fallback: str, step: str, facts: Mapping[str, Any], result: ChildResult
) -> Check:
    prefixes = sorted((prefix for prefix in causes if step.startswith(prefix)), key=len, reverse=True)
    cause = causes[prefixes[0]] if prefixes else fallback
    check = found(
        cause, facts, evidence={"step": step, "blocked_in": facts["blocked_in"], "stderr": result.stderr[-2000:]}
    )
    # The fallback causes belong to no row of their own: the stage's first row stands for it.
    return dataclasses.replace(check, prerequisite=spec.rows[0]) if cause == fallback else check


def _ending_words(result: ChildResult) -> str:
    if result.ending is Ending.SIGNALLED and result.signal is not None:
        return signal_words(result.signal)
    if result.ending is Ending.EXITED:
        return f"exit code {result.exit_code}"
    return str(result.ending.value).replace("_", " ")


def _first_words(result: ChildResult) -> str:
    lines = [line for line in result.stderr.strip().splitlines() if line.strip()]
    last = (lines or list(result.notes) or ["no output"])[-1]
    return f"the probe ended ({_ending_words(result)}): {last}"[:200]
