"""pytest-html (`--html`): the verdict above its table, one row per stage in order, with the reason and the evidence.

pytest-html would list every item of the suites, the failed ones first. Its "Result" knows pytest's outcomes only, so
the reason begins with the stage's own: a stage that was not reached says so beside pytest's "Skipped". Its hooks are
given plain strings of markup, so everything is escaped here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pytest_gpudiscovery.model import StageRecord, Verdict
from pytest_gpudiscovery.reports import evidence, html, junit, wording
from pytest_gpudiscovery.reports.html_story import NUMBERS, label, tell
from pytest_gpudiscovery.reports.html_text import Html, Paper, el, join
from pytest_gpudiscovery.reports.html_values import seconds

COLOURS = {"ready": "#17662d", "degraded": "#8a5600", "blocked": "#b3261e", "incomplete": "#464a96"}
REASON = 2  # the place of our column: behind the result and the test


class Rows:
    """The hooks of pytest-html that a gated run answers; see `adapters.html_rows`."""

    def __init__(
        self, records: Callable[[], Mapping[str, StageRecord]], verdict: Callable[[], Verdict | None], directory: str
    ) -> None:
        self._records, self._verdict, self._directory = records, verdict, directory
        self._shown: set[str] = set()
        self._html: dict[int, str] = {}  # id of a report -> what its row unfolds to

    def pytest_html_report_title(self, report: Any) -> None:
        """Name the report, and keep the order of the stages."""
        report.title = "GPU discovery"
        report.set_data("initialSort", "original")

    def pytest_html_results_summary(self, prefix: list[str]) -> None:
        """Say the verdict first."""
        verdict = self._verdict()
        if verdict is None:
            return
        paper, story = Paper(20_000), tell(verdict)
        word = ("SIMULATED " if verdict.simulated is not None else "") + verdict.verdict.value.upper()
        colour = COLOURS[verdict.verdict.value]
        lines = [el("p", el("b", f"{word} ", style=f"color:{colour};font-size:1.6em"), paper.text(story.headline, 400))]
        lines += [
            el("p", f"{fact.label}: ", el("code", paper.text(fact.value, 600))) for fact in story.facts if fact.lead
        ]
        if story.command:
            lines.append(
                el("p", f"Next command ({story.action.value}): ", el("code", paper.text(story.command, 1_000)))
            )
        place = os.path.join(self._directory, html.NAME)
        lines.append(
            el("p", "The whole report, with timeline, GPUs and libraries: ", el("code", paper.text(place, 400)))
        )
        prefix.append(join(lines))

    def pytest_html_results_table_header(self, cells: list[str]) -> None:
        """Add our column."""
        cells.insert(REASON, el("th", "Reason"))

    def pytest_html_results_table_row(self, report: pytest.TestReport, cells: list[str]) -> None:
        """Make the first row of a stage the stage's, and drop the others; users' tests keep theirs."""
        record = self._record(report)
        if record is None:
            cells.insert(REASON, el("td", ""))
            return
        unexplained = report.failed and record.outcome.lets_others_run
        if unexplained:  # a defect of ours: it must be seen
            cells.insert(REASON, el("td", "failed although its stage did not"))
            return
        if record.name in self._shown or (report.when != "call" and report.passed):
            del cells[:]
            return
        self._shown.add(record.name)
        paper = Paper(200_000)
        # cells[0] stays: pytest-html filters by it, and its script stops at a result that it does not know.
        cells[1] = el("td", paper.text(label(record.name), 80), class_="col-testId")
        took = seconds(record.duration_s) if record.blocked_by is None else ""  # it did not run: not 0.0 ms
        cells[2] = el("td", took, class_="col-duration")
        cells.insert(REASON, el("td", paper.text(self._reason(record), 300)))
        self._html[id(report)] = self._unfolded(record, paper)

    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        """Show what is behind a stage's row: the failure block, every check, what was captured of a stuck probe."""
        text = self._html.pop(id(report), None)
        if text is not None:
            data[:] = [text]

    def _record(self, report: pytest.TestReport) -> StageRecord | None:
        wanted = junit.PREFIX + "stage"
        name = next((str(value) for key, value in getattr(report, "user_properties", ()) if key == wanted), "")
        return self._records().get(name)

    def _reason(self, record: StageRecord) -> str:
        words = wording.words(record.outcome)
        if record.blocked_by is not None:
            return f"{words}, because of {label(record.blocked_by)}"
        return f"{words}: {record.summary}"

    def _unfolded(self, record: StageRecord, paper: Paper) -> Html:
        parts = [] if record.checks else [paper.text(wording.one_line(record.summary), 400)]
        if not record.outcome.lets_others_run and record.blocked_by is None:
            parts.append(paper.block(wording.failure_block(record, NUMBERS), 6_000))
        for check in record.checks[:200]:
            said = check.reason or (check.finding.summary if check.finding else "")
            line = f"{check.prerequisite} {check.outcome.value.replace('_', ' ')} {check.subject}{said and f': {said}'}"
            parts.append(paper.text(wording.one_line(line), 400))
        for text in evidence.of_record(record):
            parts.append(paper.block(text, 20_000))
        return Html("\n".join(parts))
