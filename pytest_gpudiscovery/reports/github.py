"""GitHub Actions: annotations (workflow commands on standard output) and the job's summary. Functions of the verdict.

A workflow command is one line, `::error title=T::MESSAGE`; what would end the line or a property is percent-escaped
(actions/toolkit `packages/core/src/command.ts`). The summary is Markdown that GitHub renders: it is written as HTML
blocks without a blank line in them, so that nothing inside is read as Markdown, and everything inside is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from pytest_gpudiscovery.model import CheckOutcome, Outcome, StageRecord, State, Verdict
from pytest_gpudiscovery.reports import wording
from pytest_gpudiscovery.reports.html_first import gpu_kinds
from pytest_gpudiscovery.reports.html_marks import mark_of
from pytest_gpudiscovery.reports.html_story import NUMBERS, label, tell
from pytest_gpudiscovery.reports.html_text import Html, Paper, el, join, visible
from pytest_gpudiscovery.reports.html_values import clip, seconds

ON, SUMMARY = "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"  # set by the runner; the second is a file to append to
MOST = 10  # annotations of one level in one step; GitHub drops what is more
MESSAGE, ROOM = 4_000, 200_000  # characters of a message, bytes of the summary (GitHub takes 1 MiB per step)
LEVELS = {State.BLOCKED: "error", State.INCOMPLETE: "error", State.DEGRADED: "warning"}


def commands(verdict: Verdict) -> Iterator[str]:
    """Yield workflow commands: what keeps the host from being ready, then its warnings; none for a plain ready."""
    word = ("SIMULATED " if verdict.simulated is not None else "") + verdict.verdict.value.upper()
    said, roots = 0, {blocker.stage for blocker in verdict.blockers}
    for record in verdict.stages:
        if said < MOST and (record.outcome.blocks or record.outcome is Outcome.PROBE_ERROR):
            said += 1
            level = "error" if record.required or record.name in roots else "warning"
            yield _command(level, f"{word}: {label(record.name)}", _block(record, verdict))
    if not said and verdict.verdict in LEVELS:
        said = 1
        yield _command(LEVELS[verdict.verdict], word, wording.last_line(verdict, NUMBERS, None))
    warned = 0
    for record in verdict.stages:
        for check, finding in record.findings:
            if check.outcome is CheckOutcome.WARNED and warned < MOST:
                warned += 1
                yield _command("warning", f"{label(record.name)}: {finding.summary}", finding.detail)


def _block(record: StageRecord, verdict: Verdict) -> str:
    lost = [other.name for other in verdict.stages if other.blocked_by == record.name]
    return wording.failure_block(record, NUMBERS, lost, verdict)


def _command(level: str, title: str, message: str) -> str:
    name = _data(wording.one_line(clip(title, 200))).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={name}::{_data(visible(clip(message, MESSAGE)))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def summarize(verdict: Verdict, environ: Mapping[str, str]) -> None:
    """Append the summary to the file that ENVIRON names, if it names one; raises OSError."""
    path = environ.get(SUMMARY)
    if not path:
        return
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    with open(fd, "wb") as file:
        file.write(summary(verdict).encode())


def summary(verdict: Verdict) -> str:
    """Return the summary of the job: the verdict, the next command, the stages, and the failure blocks folded."""
    paper, story = Paper(ROOM), tell(verdict)
    word = ("SIMULATED " if verdict.simulated is not None else "") + verdict.verdict.value.upper()
    host = verdict.host.get("name") if isinstance(verdict.host, dict) else None
    parts = [el("h2", f"GPU discovery: {word}"), el("p", el("code", _line(paper, story.headline, 400)))]
    if story.command:
        parts.append(el("p", f"Next ({story.action.value}): ", el("code", _line(paper, story.command, 1_000))))
    kept, cut = paper.rows([r for r in verdict.stages if r.outcome is not Outcome.NOT_SELECTED or r.required], 60)
    rows = [_row(record, paper) for record in kept]
    head = el("tr", join(el("th", text) for text in ("Stage", "Outcome", "Time", "What was found")))
    parts += [el("table", head, join(rows)), cut or Html("")]
    versions = verdict.versions if isinstance(verdict.versions, dict) else {}
    about = [
        str(host or "this host"),
        gpu_kinds(verdict),
        *(f"{key} {value}" for key, value in versions.items() if value is not None),
    ]
    parts.append(el("p", el("code", _line(paper, " · ".join(about), 600))))
    for record in kept:
        if record.outcome.blocks or record.outcome is Outcome.PROBE_ERROR:
            text = Html(paper.block(_block(record, verdict), 6_000))
            parts.append(el("details", el("summary", el("code", _line(paper, _title(record), 200))), el("pre", text)))
    return "\n\n".join(part for part in parts if part) + "\n\n"


def _row(record: StageRecord, paper: Paper) -> Html:
    ran = record.outcome not in (Outcome.NOT_REACHED, Outcome.NOT_SELECTED)
    text = record.summary
    if record.outcome is Outcome.NOT_REACHED and record.blocked_by:
        text = f"because of {label(record.blocked_by)}"
    return el(
        "tr",
        el("td", el("code", _line(paper, label(record.name), 60))),
        el("td", f"{mark_of(record)} {wording.words(record.outcome)}"),
        el("td", f"{seconds(record.duration_s)} of {record.deadline_s:g} s" if ran else ""),
        el("td", el("code", _line(paper, text, 300)) if text else ""),
    )


def _title(record: StageRecord) -> str:
    return f"{label(record.name)}: {record.summary}"


def _line(paper: Paper, text: str, limit: int) -> Html:
    """Return TEXT on one line: a blank line would end the HTML block, and Markdown would begin."""
    return paper.text(" ".join(clip(text, limit).split()), limit)
