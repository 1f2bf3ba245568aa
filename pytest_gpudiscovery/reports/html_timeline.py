"""The timeline as a picture: one lane per stage, one bar per step, on the run's own axis of seconds.

Positions are percentages and heights pixels, with no viewBox, so that its text keeps its size on a narrow screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_gpudiscovery.model import Outcome, StageRecord, Step, Verdict
from pytest_gpudiscovery.reports import wording
from pytest_gpudiscovery.reports.html_marks import SYMBOLS, tone
from pytest_gpudiscovery.reports.html_story import label
from pytest_gpudiscovery.reports.html_text import Html, Paper, el, join
from pytest_gpudiscovery.reports.html_values import finite, seconds

LANE, LABEL, BAR, MARK_LABEL = 44, 18, 16, 14  # pixels: a lane's height, its text, its bars, the text below
TICKS = 6
STEPS = 250  # bars in one lane


@dataclass(frozen=True)
class Axis:
    """From seconds after the first stage to percent of the width."""

    length: float

    def at(self, moment: float) -> float:
        """Return MOMENT in percent, inside the picture."""
        return max(0.0, min(100.0, moment / self.length * 100))

    def ticks(self) -> Iterator[float]:
        """Yield round moments, about TICKS of them."""
        rough = self.length / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        for index in range(int(self.length / step) + 1):
            yield index * step


def timeline(verdict: Verdict, paper: Paper) -> Html:
    """Return the section with the picture; nothing when no stage ran."""
    ran = [record for record in verdict.stages if _ran(record)]
    if not ran:
        return Html("")
    kept, cut = paper.rows(ran, 40)
    begin = min(record.started for record in kept)
    length = max(record.started - begin + max(0.0, record.duration_s) for record in kept)
    axis = Axis(max(length, 1e-3) * 1.01)
    height, lanes = 0, []
    for record in kept:
        marks = list(_marks(record, record.started - begin, axis))
        lanes.append(_lane(record, record.started - begin, height, axis, paper, marks))
        height += LANE + MARK_LABEL * bool(marks)
    height += 22  # the axis
    said = "; ".join(f"{label(record.name)} {seconds(record.duration_s)}" for record in kept)
    open_steps = any(_stuck(record, step) for record in kept for step in record.steps)
    return el(
        "section",
        el("h2", "Timeline", id="timeline"),
        el(
            "p",
            "Seconds since the first stage began. Every bar is one timed call",
            "; hatched: it had not returned when its time was up" if open_steps else "",
            ". The numbers are in the stages below.",
            class_="lead",
        ),
        el(
            "svg",
            el("title", "Timeline of stages: ", paper.text(said, 900), id="timeline-title"),
            _hatch(),
            _grid(axis, height),
            join(lanes),
            height=str(height),
            role="img",
            aria_labelledby="timeline-title",
        ),
        cut,
        aria_labelledby="timeline",
    )


def _ran(record: StageRecord) -> bool:
    times = (record.started, record.duration_s)
    ran = record.outcome not in (Outcome.NOT_REACHED, Outcome.NOT_SELECTED)
    return (
        ran
        and all(finite(value) is not None for value in times)
        and 0 < record.started < 1e12
        and record.duration_s < 1e9
    )


def _hatch() -> Html:
    line = el("line", x1="0", y1="0", x2="0", y2="8", class_="hatch")
    attributes = {"patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)"}
    return el("defs", el("pattern", line, id="hatch", width="8", height="8", **attributes))


def _grid(axis: Axis, height: int) -> Html:
    parts = []
    for moment in axis.ticks():
        at = axis.at(moment)
        anchor = "start" if at < 3 else "end" if at > 95 else "middle"
        text = el("text", f"{moment:g} s", x=f"{at:.2f}%", y=str(height - 5), class_="axis", text_anchor=anchor)
        line = el("line", x1=f"{at:.2f}%", x2=f"{at:.2f}%", y1="0", y2=str(height - 20), class_="grid")
        parts.append(join((line, text)))
    return join(parts)


def _marks(record: StageRecord, begun: float, axis: Axis) -> Iterator[tuple[float, str, str]]:
    """Yield (percent, class, words) of the limits that RECORD ran into."""
    budget, deadline = finite(record.ollama_budget_s), finite(record.deadline_s) or 0.0
    if budget is not None and record.duration_s > budget:
        yield axis.at(begun + budget), "budget", f"Ollama's {budget:g} s"
    if record.outcome in wording.HUNG and record.duration_s >= deadline > 0:
        apart = budget is None or abs(deadline - budget) / axis.length > 0.3  # or the words would meet
        yield axis.at(begun + deadline), "limit", f"deadline {deadline:g} s" if apart else ""


def _lane(
    record: StageRecord, begun: float, top: int, axis: Axis, paper: Paper, marks: Sequence[tuple[float, str, str]]
) -> Html:
    bar = top + LABEL + 3
    name = f"{SYMBOLS[tone(record)]} {label(record.name)} {seconds(record.duration_s)}"
    at = axis.at(begun)
    right = at > 60
    text = el(
        "text",
        paper.text(name, 90),
        x=f"{axis.at(begun + max(0.0, record.duration_s)) if right else at:.2f}%",
        y=str(top + LABEL - 2),
        text_anchor="end" if right else "start",
        class_=tone(record),
    )
    end = begun + max(0.0, record.duration_s)
    parts = [text, _rect(begun, end, bar, BAR, axis, "track", None)]
    kept, _ = paper.rows(record.steps, STEPS)
    for step, inner in _nested(kept):
        moment = begun + max(0.0, finite(step.started) or 0.0)
        open_step = _stuck(record, step)
        until = end if step.duration_s is None else moment + max(0.0, finite(step.duration_s) or 0.0)
        title = f"{step.name}: {'did not return' if open_step else seconds(step.duration_s)}"
        name = "late" if open_step else "inner" if inner else "step"
        y, height = (bar + BAR - 5, 5) if inner and not open_step else (bar, BAR)
        parts.append(_rect(moment, max(moment, until), y, height, axis, name, paper.text(title, 120)))
    parts += [_mark(at, bar, name, words) for at, name, words in marks]
    return join(parts)


def _stuck(record: StageRecord, step: Step) -> bool:
    """Whether STEP did not return, or a probe gave up on what it had asked."""
    return step.duration_s is None or (record.outcome in wording.HUNG and step.result == wording.GAVE_UP)


def _nested(steps: Sequence[Step]) -> Iterator[tuple[Step, bool]]:
    """Yield each step, and whether it lies inside an earlier one."""
    covered = -1.0
    for step in steps:
        started, duration = finite(step.started) or 0.0, finite(step.duration_s)
        inner = started < covered and duration is not None
        if duration is not None:
            covered = max(covered, started + duration)
        yield step, inner


def _rect(begun: float, end: float, top: int, height: int, axis: Axis, name: str, title: Html | None) -> Html:
    at = axis.at(begun)
    width = max(0.25, axis.at(end) - at)  # what took microseconds is still there
    return el(
        "rect",
        el("title", title) if title is not None else None,
        x=f"{at:.2f}%",
        y=str(top),
        width=f"{width:.2f}%",
        height=str(height),
        class_=name,
    )


def _mark(at: float, bar: int, name: str, words: str) -> Html:
    line = el("line", x1=f"{at:.2f}%", x2=f"{at:.2f}%", y1=str(bar - 4), y2=str(bar + BAR + 4), class_=name)
    anchor = "start" if at < 30 else "end"
    text = el("text", words, x=f"{at:.2f}%", y=str(bar + BAR + 16), text_anchor=anchor, class_="mark") if words else ""
    return join((line, text))
