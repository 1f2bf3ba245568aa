"""Allure results (`--alluredir`): one result for the verdict, one per stage, made from the verdict alone.

A host is green in Allure only when it is ready. Allure counts results, so the stages that passed before the one that
blocks would paint most of its donut green; on such a host they are steps of the verdict's result and no results.
A stage that could not be reached is broken, never skipped: skipped reads as "fine".

The files are written as Allure 2 and 3 read them (`UUID-result.json`; allure-framework/allure2,
plugins/model `Allure2Plugin`; Allure 3 takes the same). Allure 2 takes `historyId` as it stands, Allure 3 makes its own
of `testCaseId` and the parameters: both are the same on every run of one host, and differ between hosts.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from pytest_gpudiscovery.model import CheckOutcome, Kind, Outcome, StageRecord, State, Verdict, to_json
from pytest_gpudiscovery.reports import allure_files, evidence, html, wording
from pytest_gpudiscovery.reports.allure_steps import milliseconds, span, steps
from pytest_gpudiscovery.reports.atomic import replace
from pytest_gpudiscovery.reports.html_story import NUMBERS, label, tell
from pytest_gpudiscovery.reports.html_text import visible
from pytest_gpudiscovery.reports.html_values import clip, inline

TITLE, MESSAGE = 200, 6_000  # characters
WHOLE = 5_000_000  # characters of verdict.json as an attachment
GREEN = (State.READY, State.DEGRADED)
VERDICTS = {State.READY: "passed", State.DEGRADED: "passed", State.BLOCKED: "failed", State.INCOMPLETE: "broken"}
STATUS: Mapping[Outcome, str] = {
    Outcome.PASSED: "passed",
    Outcome.WARNED: "passed",
    Outcome.FAILED: "failed",
    Outcome.TIMED_OUT: "failed",
    Outcome.CRASHED: "failed",
    Outcome.UNKILLABLE: "failed",
    Outcome.NOT_REACHED: "broken",
    Outcome.NOT_APPLICABLE: "skipped",
    Outcome.NOT_SELECTED: "broken",  # only where it was required: nobody knows
    Outcome.INTERRUPTED: "broken",
    Outcome.PROBE_ERROR: "broken",
}
_SAID = {"Why": "because"}  # what stands in the verdict's message as in a failure block, besides what leads
Attachments = list[dict[str, str]]


def write(directory: str, verdict: Verdict, environ: Mapping[str, str]) -> None:
    """Add VERDICT's results to DIRECTORY, which may hold those of other hosts and of other tests; raises OSError.

    What an earlier run of the same host left there is replaced. ENVIRON is where a CI system says which job this is;
    only the names in `allure_files.EXECUTORS` are read.
    """
    os.makedirs(directory, exist_ok=True)
    files: list[str] = []
    for result in _results(directory, verdict):
        name = f"{result['uuid']}-result.json"
        files += [name, *(item["source"] for item in result["attachments"])]
        replace(directory, name, json.dumps(result).encode("utf-8", "backslashreplace"))
    allure_files.write(directory, verdict, host_of(verdict), files, environ)


def host_of(verdict: Verdict) -> str:
    """Return the name under which the results of one host stand, in every run of it."""
    name = str(verdict.host.get("name") or "host") if isinstance(verdict.host, dict) else "host"
    simulated = verdict.simulated is not None and not name.startswith("simulated")
    return _text(f"simulated {name}" if simulated else name, 100)


def _results(directory: str, verdict: Verdict) -> Iterator[dict[str, Any]]:
    files = dict(evidence.texts(verdict))
    begins = _begins(verdict)
    yield _verdict(directory, verdict, begins)
    for record, begin in zip(verdict.stages, begins, strict=True):
        if not _stands(record, verdict):
            continue
        attachments: Attachments = []
        if record.checks:
            attachments.append(_attach(directory, "Checks", _checks(record), "text/csv", "csv"))
        for name, text in files.items():
            if name.startswith(f"{evidence.stem(record.name)}-"):
                attachments.append(_attach(directory, f"Evidence {name}", text, "text/plain", "txt"))
        yield _stage(record, verdict, begin, attachments)


def _begins(verdict: Verdict) -> list[int]:
    """Return when each stage began, in milliseconds; Allure 3 sorts by it.

    A stage that did not run has no time of its own: it stands a millisecond after the one before it.
    """
    last, begins = _started(verdict), []
    for record in verdict.stages:
        ran = record.outcome not in (Outcome.NOT_REACHED, Outcome.NOT_SELECTED)
        last = (milliseconds(record.started) if ran else 0) or last + 1
        begins.append(last)
    return begins


def _stands(record: StageRecord, verdict: Verdict) -> bool:
    """Whether RECORD is a result of its own: asked for, and not green beside a verdict that is not."""
    if record.outcome is Outcome.NOT_SELECTED and not record.required:
        return False
    return verdict.verdict in GREEN or not record.outcome.lets_others_run


def _verdict(directory: str, verdict: Verdict, begins: list[int]) -> dict[str, Any]:
    """The verdict as a result whose steps are the stages, in order."""
    story = tell(verdict)
    word = ("SIMULATED " if verdict.simulated is not None else "") + verdict.verdict.value.upper()
    lines = [wording.last_line(verdict, NUMBERS, None)]
    lines += [
        f"   {_SAID.get(fact.label, fact.label[:1].lower() + fact.label[1:]):<10}: {inline(fact.value, 600)}"
        for fact in story.facts
        if fact.lead or fact.label in _SAID
    ]
    lines += [f"   next      : {story.command}   ({story.action.value})"] if story.command else []
    lines.append(f"   outcome   : verdict {verdict.verdict.value}")
    headline = f" {story.headline}" if story.headline.startswith("at ") else f": {story.headline}"
    asked = [
        (record, begin)
        for record, begin in zip(verdict.stages, begins, strict=True)
        if record.outcome is not Outcome.NOT_SELECTED or record.required
    ]
    text = json.dumps(to_json(verdict), default=str)
    if len(text) > WHOLE:
        text = json.dumps({"cut": f"{len(text)} characters: see verdict.json in the report directory"})
    return {
        **_identity(verdict, "verdict", f"00 {word}{headline}", VERDICTS[verdict.verdict], "\n".join(lines)),
        **span(_started(verdict), verdict.duration_s),
        "labels": _labels(verdict, "blocker", [item.cause for item in verdict.blockers]),
        "steps": [
            {
                "name": _text(_title(record), TITLE),
                "status": STATUS[record.outcome],
                "stage": "finished",
                **span(begin, record.duration_s),
                "steps": steps(record),
            }
            for record, begin in asked
        ],
        "attachments": [
            _attach(directory, "report.html", html.render(verdict), "text/html", "html"),
            _attach(directory, "verdict.json", text, "application/json", "json"),
        ],
    }


def _stage(record: StageRecord, verdict: Verdict, begin: int, attachments: Attachments) -> dict[str, Any]:
    status = STATUS[record.outcome]
    _, finding = wording.worst(record)
    severity = "critical" if record.required else "normal"
    if any(blocker.stage == record.name for blocker in verdict.blockers):
        severity = "blocker"
    return {
        **_identity(
            verdict, record.name, _title(record), status, _message(record, verdict, finding.cause if finding else None)
        ),
        **span(begin, record.duration_s),
        "labels": _labels(verdict, severity, [finding.cause] if finding else []),
        "steps": steps(record),
        "attachments": attachments,
    }


def _identity(verdict: Verdict, name: str, title: str, status: str, message: str) -> dict[str, Any]:
    host = host_of(verdict)
    full = f"gpu-discovery/{_text(name, 100)}"
    found = {"message": _text(message, MESSAGE)} if message else {}
    return {
        "uuid": str(uuid.uuid4()),
        "historyId": _md5(f"{full}@{host}"),
        "testCaseId": _md5(full),
        "fullName": full,
        "titlePath": [host],
        "name": _text(title, TITLE),
        "status": status,
        "statusDetails": found,
        "stage": "finished",
        "parameters": [{"name": "host", "value": host}],
    }


def _labels(verdict: Verdict, severity: str, tags: list[str]) -> list[dict[str, str]]:
    host = host_of(verdict)
    if verdict.simulated is not None:
        tags = [*tags, "SIMULATED"]
    pairs = [
        ("suite", host),
        ("host", host),
        ("severity", severity),
        ("framework", "pytest-gpudiscovery"),
        ("language", "python"),
        *(("tag", _text(tag, 100)) for tag in dict.fromkeys(tags)),
    ]
    return [{"name": name, "value": value} for name, value in pairs]


def _title(record: StageRecord) -> str:
    """Return "06 driver timed out: cuInit(0) did not return within 45 s": Allure 2 sorts by it."""
    if record.outcome is Outcome.NOT_REACHED and record.blocked_by:
        return f"{label(record.name)} not reached: because of {label(record.blocked_by)}"
    return f"{label(record.name)} {wording.words(record.outcome)}: {record.summary}"


def _message(record: StageRecord, verdict: Verdict, cause: str | None) -> str:
    """Return the failure block, and at its end what `allure_files.CATEGORIES` recognize; "" for a plain pass."""
    if record.outcome is Outcome.PASSED:
        return ""
    lost = [other.name for other in verdict.stages if other.blocked_by == record.name]
    text = f"{label(record.name)}: {wording.one_line(record.summary)}"
    if not record.outcome.lets_others_run and record.outcome is not Outcome.NOT_REACHED:
        text = wording.failure_block(record, NUMBERS, lost, verdict)
    named = f", cause {cause}" if cause else ""
    return f"{text}\n   outcome   : {wording.words(record.outcome)}{named}"


def _checks(record: StageRecord) -> str:
    """Return the checks as CSV, which Allure shows as a table."""
    rows = [("row", "outcome", "can block", "about", "what was found", "expected", "observed")]
    for check in record.checks[:1000]:
        said = check.reason or (check.finding.summary if check.finding else "")
        blocks = "yes" if check.kind is Kind.BLOCKING else "no"
        outcome = check.outcome.value.replace("_", " ")
        if check.outcome is CheckOutcome.FAILED:
            outcome = outcome.upper()
        values = (inline(check.expected, 600), inline(check.observed, 600))
        rows.append((check.prerequisite, outcome, blocks, check.subject, said, *values))
    return "".join(",".join(_csv(cell) for cell in row) + "\n" for row in rows)


def _csv(value: str) -> str:
    text = _text(value, 1_000).replace("\n", " ").replace('"', '""')
    return f'"{chr(39) if text[:1] in ("=", "+", "-", "@") else ""}{text}"'  # no formula in a spreadsheet


def _attach(directory: str, name: str, text: str, kind: str, ending: str) -> dict[str, str]:
    source = f"{uuid.uuid4()}-attachment.{ending}"
    replace(directory, source, text.encode("utf-8", "backslashreplace"))
    return {"name": _text(name, 100), "source": source, "type": kind}


def _started(verdict: Verdict) -> int:
    try:
        return round(datetime.fromisoformat(verdict.started).timestamp() * 1000)
    except (ValueError, OverflowError):
        return min((milliseconds(record.started) for record in verdict.stages if record.started), default=0)


def _text(value: str, limit: int) -> str:
    return visible(clip(value, limit))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode("utf-8", "backslashreplace"), usedforsecurity=False).hexdigest()
