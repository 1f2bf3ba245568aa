"""The steps of an Allure result: what the checks found wrong first, then the timed calls of the probes.

Allure draws a green tick at every step that is not failed. A call returned, and its answer is the checks' to judge:
under a stage that did not pass the calls stand folded in one step, below the checks that say what was wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from pytest_gpudiscovery.model import Check, CheckOutcome, Kind, Outcome, StageRecord, Step
from pytest_gpudiscovery.reports import wording
from pytest_gpudiscovery.reports.html_text import visible
from pytest_gpudiscovery.reports.html_values import clip, inline

TITLE, RESULT, VALUE = 200, 80, 600  # characters of a step's title, of a call's result in it, of a parameter
STEPS, CHECKS = 300, 20  # of one stage


def steps(record: StageRecord) -> list[dict[str, Any]]:
    """Return the steps of RECORD; of a stage that did not pass, its failed checks before one step with the calls."""
    calls = [_call(record, step) for step in record.steps[:STEPS]]
    if record.outcome.lets_others_run:
        return calls
    end = milliseconds(record.started + record.duration_s)  # when the checks were judged; Allure 3 writes 0s
    found = [{**_check(check), **span(end, None)} for check in islice(_wrong(record), CHECKS)]
    return [*found, _together(calls)] if calls else found


def milliseconds(unix: float) -> int:
    """Return a Unix time in Allure's milliseconds, 0 for what is no time."""
    return max(0, round(unix * 1000)) if 0 <= unix < 1e11 else 0


def span(begin: int, duration_s: float | None) -> dict[str, int]:
    """Return start and stop whose difference is the duration, rounded once: not one of two rounded moments."""
    return {"start": begin, "stop": begin + max(0, milliseconds(duration_s or 0.0))}


def _call(record: StageRecord, step: Step) -> dict[str, Any]:
    """One call with its true times; one that did not return lasts to the end of the stage."""
    begin = milliseconds(record.started + step.started)
    open_ = step.duration_s is None and not record.outcome.lets_others_run
    gave_up = record.outcome in wording.HUNG and step.result == wording.GAVE_UP
    result = "" if step.result is None else f" = {inline(step.result, RESULT)}"
    return {
        "name": visible(clip(f"{step.name}{result}{' did not return' if open_ else ''}", TITLE)),
        "status": "failed" if open_ or gave_up else "passed",
        "stage": "finished",
        **span(begin, record.duration_s - step.started if step.duration_s is None else step.duration_s),
    }


def _together(calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One step around CALLS: folded by Allure 3 unless one of them is red."""
    open_ = sum(call["status"] == "failed" for call in calls)
    number = f"{len(calls)} timed call{'s' * (len(calls) != 1)} of the probes"
    return {
        "name": f"{number}, {open_} without an answer" if open_ else f"{number}; all returned",
        "status": "failed" if open_ else "passed",
        "stage": "finished",
        "start": min(call["start"] for call in calls),
        "stop": max(call["stop"] for call in calls),
        "steps": list(calls),
    }


def _wrong(record: StageRecord) -> Iterator[Check]:
    """Yield the checks that keep RECORD from passing: those that failed, then those without an answer."""
    if record.outcome in (Outcome.NOT_REACHED, Outcome.NOT_SELECTED):
        return
    for outcome in (CheckOutcome.FAILED, CheckOutcome.UNKNOWN):
        yield from (check for check in record.checks if check.outcome is outcome and check.kind is Kind.BLOCKING)


def _check(check: Check) -> dict[str, Any]:
    failed = check.outcome is CheckOutcome.FAILED
    said = wording.named(check, check.finding) if check.finding else check.reason
    short = check.finding.summary if check.finding else ""
    values = [
        {"name": name, "value": visible(inline(value, VALUE))}
        for name, value in (("expected", wording.expected(check, short)), ("seen", wording.seen(check, short)))
        if failed and value is not None
    ]
    return {
        "name": visible(clip(f"{check.prerequisite} {'failed' if failed else 'unknown'}: {said}", TITLE)),
        "status": "failed" if failed else "broken",
        "stage": "finished",
        "parameters": values,
    }
