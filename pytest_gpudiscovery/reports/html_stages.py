"""Every stage with all that is known of it: findings, checks, steps, and the evidence folded."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_gpudiscovery.model import Check, CheckOutcome, Finding, Kind, Severity, StageRecord, Verdict
from pytest_gpudiscovery.reports import wording
from pytest_gpudiscovery.reports.html_first import command
from pytest_gpudiscovery.reports.html_ladder import STAGES, detailed
from pytest_gpudiscovery.reports.html_marks import BAD, OPEN, WARN, check_mark, edge, mark, stage_edge, stage_mark, tone
from pytest_gpudiscovery.reports.html_story import ACTIONS, NUMBERS, Story, label
from pytest_gpudiscovery.reports.html_text import Html, Paper, el, join
from pytest_gpudiscovery.reports.html_values import clock, seconds

CHECKS, FINDINGS, STEPS, THREADS = 300, 40, 300, 64
STREAMS = ("stderr", "stdout")
HEADS = ("Row", "Outcome", "About", "What was found", "Expected", "Observed")
KINDS = {Kind.BLOCKING: "can block", Kind.RISK: "a risk only", Kind.OBSERVABILITY: "for information"}


def stages(verdict: Verdict, story: Story, paper: Paper) -> Html:
    """Return the section with one folded part per stage; those that need attention are open."""
    kept, cut = paper.rows(verdict.stages, STAGES)
    parts = [_stage(index, record, verdict, story, paper) for index, record in enumerate(kept, 1) if detailed(record)]
    if not parts:
        return Html("")
    return el(
        "section",
        el("h2", "Checks and evidence", id="checks"),
        el("p", "What was checked is a row, also when it passed. Stages that need attention are open.", class_="lead"),
        join(parts),
        cut,
        aria_labelledby="checks",
    )


def _stage(index: int, record: StageRecord, verdict: Verdict, story: Story, paper: Paper) -> Html:
    name = el("h3", paper.text(label(record.name), 60))
    counted = f" · {len(record.checks)} {'check' if len(record.checks) == 1 else 'checks'}" if record.checks else ""
    shown = tone(record) in (BAD, OPEN, WARN) or record is story.where
    findings, cut = paper.rows([pair for pair in record.findings if _worth(pair[1])], FINDINGS)
    return el(
        "details",
        el("summary", name, " ", stage_mark(record), f"{counted} · {seconds(record.duration_s)}"),
        el(
            "div",
            el("p", paper.text(record.summary, 600), class_="v"),
            el("p", _meta(record), class_="note"),
            join(_finding(check, finding, paper) for check, finding in findings),
            cut,
            _checks(record, paper),
            _steps(record, paper),
            _evidence(record, paper),
            _ticket(record, verdict, paper) if tone(record) == BAD else None,
            class_="in",
        ),
        id=f"stage-{index}",
        open=shown,
        class_=stage_edge(record),
    )


def _worth(finding: Finding) -> bool:
    return finding.severity is not Severity.NOTE


def _meta(record: StageRecord) -> str:
    words = ["required" if record.required else "not required", f"deadline {record.deadline_s:g} s"]
    begun = clock(record.started)
    if begun:
        words.append(f"begun {begun}")
    if record.ollama_budget_s is not None:
        words.append(f"Ollama's budget {record.ollama_budget_s:g} s")
    return "; ".join(words)


def _finding(check: Check, finding: Finding, paper: Paper) -> Html:
    name = BAD if check.outcome is CheckOutcome.FAILED else WARN if check.outcome is CheckOutcome.WARNED else OPEN
    about = join((paper.text(finding.cause, 120), "; ", f"confidence {finding.confidence:.0%}"))
    evidence = None
    if finding.evidence not in (None, {}, []):
        evidence = _folded("Evidence of this finding", el("pre", paper.block(finding.evidence, 8_000), tabindex="0"))
    return el(
        "div",
        el("p", mark(name, finding.severity.value), " ", el("strong", paper.text(finding.summary, 400), class_="v")),
        el("p", paper.text(finding.detail, 4_000), class_="v"),
        command(finding.next, finding.action.value, ACTIONS[finding.action], paper) if finding.next else None,
        el("p", about, class_="note"),
        evidence,
        class_=f"finding {edge(name)}",
    )


def _checks(record: StageRecord, paper: Paper) -> Html:
    if not record.checks:
        return Html("")
    kept, cut = paper.rows(record.checks, CHECKS)
    rows = [_check(check, paper) for check in kept]
    head = el("thead", el("tr", join(el("th", text, scope="col") for text in HEADS)))
    caption = el("caption", f"{len(record.checks)} {'check' if len(record.checks) == 1 else 'checks'}")
    table = el("table", caption, head, el("tbody", join(rows)), class_="fixed checks")
    return join((table, cut or Html("")))


def _check(check: Check, paper: Paper) -> Html:
    said = check.reason or (check.finding.summary if check.finding else "")
    cells = (paper.text(said), paper.text(check.expected), paper.text(check.observed, 600))
    return el(
        "tr",
        el("td", el("b", paper.text(check.prerequisite, 20)), " ", el("span", KINDS[check.kind], class_="note")),
        el("td", check_mark(check.outcome), class_="row"),
        el("td", paper.text(check.subject, 120), data_label=HEADS[2]),
        join(_cell(cell, head) for cell, head in zip(cells, HEADS[3:], strict=True)),
    )


def _cell(content: Html, head: str) -> Html:
    return el("td", el("span", content, class_="v"), data_label=head, class_=None if content else "empty")


def _steps(record: StageRecord, paper: Paper) -> Html:
    if not record.steps:
        return Html("")
    kept, cut = paper.rows(record.steps, STEPS)
    rows = [
        el(
            "tr",
            el("td", el("span", paper.text(step.name, 200), class_="v code")),
            el("td", f"{step.started:.4f} s", data_label="Begun", class_="row"),
            el("td", _lasted(step.duration_s), data_label="Took", class_="row"),
            _cell(paper.text(step.result, 200), "Result"),
        )
        for step in kept
    ]
    heads = ("Call", "Begun, after the stage", "Took", "Result")
    table = el(
        "table", el("thead", el("tr", join(el("th", text, scope="col") for text in heads))), el("tbody", join(rows))
    )
    return _folded(f"{len(record.steps)} timed {'step' if len(record.steps) == 1 else 'steps'}", table, cut)


def _lasted(duration: float | None) -> Html:
    return mark(BAD, "did not return") if duration is None else Html(seconds(duration))


def _evidence(record: StageRecord, paper: Paper) -> Html:
    if not isinstance(record.evidence, Mapping) or not record.evidence:
        return Html("")
    kept, cut = paper.rows(list(record.evidence.items()), 20)
    return join((*(_probe(str(name), value, paper) for name, value in kept), cut or Html("")))


def _probe(name: str, value: object, paper: Paper) -> Html:
    """The evidence of one probe: its threads as a table, its streams as they were, everything else as an outline."""
    title = join(("Evidence: ", paper.text(name, 60)))
    if not isinstance(value, Mapping):
        return _folded(title, el("pre", paper.block(value), tabindex="0"))
    snapshot = value.get("at_deadline")
    threads = snapshot.get("threads") if isinstance(snapshot, Mapping) else None
    rest = {key: item for key, item in value.items() if key not in STREAMS and item not in (None, "", [], {})}
    streams = [
        join((el("p", el("b", stream)), el("pre", paper.block(value[stream]), tabindex="0", aria_label=stream)))
        for stream in STREAMS
        if value.get(stream)
    ]
    return _folded(
        title,
        _threads(threads, paper) if isinstance(threads, list) and threads else None,
        join(streams),
        el("pre", paper.block(rest), tabindex="0", aria_label="everything else that was seen"),
    )


def _threads(threads: list[object], paper: Paper) -> Html:
    kept, cut = paper.rows([thread for thread in threads if isinstance(thread, Mapping)], THREADS)
    rows = [
        el(
            "tr",
            el("td", "thread ", paper.text(thread.get("tid"), 20), " ", paper.text(thread.get("name"), 40)),
            el("td", paper.text(thread.get("state"), 20), data_label="State"),
            _cell(paper.text(thread.get("wchan"), 80), "Waits in"),
            _cell(paper.text(_syscall(thread.get("syscall")), 120), "System call"),
            _cell(paper.text(thread.get("stack"), 600), "Kernel stack"),
        )
        for thread in kept
    ]
    heads = ("Thread", "State", "Waits in", "System call", "Kernel stack")
    head = el("thead", el("tr", join(el("th", text, scope="col") for text in heads)))
    return join((el("table", el("caption", "At the deadline"), head, el("tbody", join(rows))), cut or Html("")))


def _syscall(value: object) -> object:
    return value.get("name") if isinstance(value, Mapping) else value


def _ticket(record: StageRecord, verdict: Verdict, paper: Paper) -> Html:
    """The block that the terminal shows, to be pasted elsewhere."""
    lost = [other.name for other in verdict.stages if other.blocked_by == record.name]
    text = wording.failure_block(record, NUMBERS, lost, verdict)
    return _folded("As text, for a ticket", el("pre", paper.block(text, 6_000), tabindex="0"))


def _folded(title: str, *content: Html | None) -> Html:
    return el("details", el("summary", title), el("div", *content, class_="in"))
