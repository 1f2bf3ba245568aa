"""The ladder of stages: how each ended, what it saw, its time against its deadline and against Ollama's budget."""

from __future__ import annotations

from pytest_gpudiscovery.model import Outcome, StageRecord, Verdict
from pytest_gpudiscovery.reports import wording
from pytest_gpudiscovery.reports.html_marks import BAD, WARN, stage_edge, stage_mark
from pytest_gpudiscovery.reports.html_story import label
from pytest_gpudiscovery.reports.html_text import Html, Paper, el, join
from pytest_gpudiscovery.reports.html_values import finite, seconds

NOTHING_RAN = (Outcome.NOT_REACHED, Outcome.NOT_SELECTED)
STAGES = 60  # rows: the contract names 14, other plugins may add some


def ladder(verdict: Verdict, paper: Paper) -> Html:
    """Return the section with one row per stage, in the order in which a person reads them."""
    kept, cut = paper.rows(verdict.stages, STAGES)
    roots = {blocker.stage for blocker in verdict.blockers}
    rows = [_row(index, record, roots, paper) for index, record in enumerate(kept, 1)]
    return el(
        "section",
        el("h2", "Stages", id="stages"),
        el(
            "p",
            "Each stage needs the ones before it. The bar is the time against the stage's own deadline; ",
            "the dashed mark is where Ollama itself gives up.",
            class_="lead",
        ),
        el("ol", join(rows), class_="ladder"),
        cut,
        aria_labelledby="stages",
    )


def detailed(record: StageRecord) -> bool:
    """Whether there is more to say about RECORD than its row."""
    return bool(record.checks or record.steps or record.evidence)


def _row(index: int, record: StageRecord, roots: set[str], paper: Paper) -> Html:
    name: Html = paper.text(label(record.name), 60)
    if detailed(record):
        name = el("a", name, href=f"#stage-{index}")
    return el(
        "li",
        el("b", name),
        " ",
        stage_mark(record),
        " ",
        el("span", _saw(record, roots, paper), class_="saw v"),
        " ",
        _time(record),
        class_=stage_edge(record),
    )


def _saw(record: StageRecord, roots: set[str], paper: Paper) -> Html:
    if record.outcome is Outcome.NOT_REACHED and record.blocked_by:
        return join(("because of ", paper.text(label(record.blocked_by), 60)))
    # Why a red row does not block; beside a green one it would only be noise, beside the root cause wrong.
    idle = record.outcome.blocks and not record.required and record.name not in roots
    note = " (not required)" if idle else ""
    return join((paper.text(record.summary, 400), note))


def _time(record: StageRecord) -> Html:
    taken, deadline = finite(record.duration_s) or 0.0, finite(record.deadline_s) or 0.0
    if record.outcome in NOTHING_RAN:
        return el("span", "", class_="time")
    budget = finite(record.ollama_budget_s)
    words = [f"{seconds(record.duration_s)} of {deadline:g} s"]
    if budget is not None:
        over = "over " if taken > budget else ""
        words.append(f"; {over}Ollama's {budget:g} s")
    return el("span", _bar(record, taken, deadline, budget), "".join(words), class_="time")


def _bar(record: StageRecord, taken: float, deadline: float, budget: float | None) -> Html:
    whole = max(deadline, taken, budget or 0.0)
    if whole <= 0:
        return Html("")
    hung = record.outcome in wording.HUNG
    late = BAD if hung or record.outcome.blocks else WARN if budget is not None and taken > budget else ""
    filled = max(0.6, min(taken, whole) / whole * 100)
    parts = [
        el("rect", x="0", y="3", width="100%", height="8", class_="track"),
        el("rect", x="0", y="3", width=f"{filled:.1f}%", height="8", class_=f"fill {late}".strip()),
    ]
    for value, name in ((budget, "budget"), (deadline if deadline < whole else None, "limit")):
        if value is not None and value > 0:
            at = f"{min(99.6, value / whole * 100):.1f}%"
            parts.append(el("line", x1=at, x2=at, y1="0", y2="14", class_=name))
    return el("svg", join(parts), height="14", aria_hidden="true")
