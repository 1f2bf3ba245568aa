"""How an outcome looks: a symbol, a word and a tone. Colour never says anything that the other two do not."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_gpudiscovery.model import CheckOutcome, Outcome, StageRecord
from pytest_gpudiscovery.reports import wording
from pytest_gpudiscovery.reports.html_text import Html, el

BAD, WARN, OPEN, PASSED, NONE = "bad", "warn", "open", "passed", "none"  # classes of html_style
SYMBOLS = {BAD: "✕", WARN: "!", OPEN: "?", PASSED: "✓", NONE: "·"}
STAGE_TONES: Mapping[Outcome, str] = {
    Outcome.PASSED: PASSED,
    Outcome.WARNED: WARN,
    Outcome.FAILED: BAD,
    Outcome.TIMED_OUT: BAD,
    Outcome.CRASHED: BAD,
    Outcome.UNKILLABLE: BAD,
    Outcome.NOT_REACHED: OPEN,
    Outcome.NOT_APPLICABLE: NONE,
    Outcome.NOT_SELECTED: NONE,
    Outcome.INTERRUPTED: OPEN,
    Outcome.PROBE_ERROR: OPEN,
}
CHECK_TONES: Mapping[CheckOutcome, str] = {
    CheckOutcome.PASSED: PASSED,
    CheckOutcome.WARNED: WARN,
    CheckOutcome.FAILED: BAD,
    CheckOutcome.UNKNOWN: OPEN,
    CheckOutcome.NOT_APPLICABLE: NONE,
}


def tone(record: StageRecord) -> str:
    """Return the tone of a stage."""
    if record.outcome is Outcome.NOT_SELECTED and record.required:
        return OPEN  # nobody asked, and the verdict needs the answer
    return STAGE_TONES[record.outcome]


def stage_edge(record: StageRecord) -> str | None:
    """Return the edge of a stage; none for one that was only kept from running: its blocker has one."""
    return None if record.outcome is Outcome.NOT_REACHED else edge(tone(record))


def edge(name: str) -> str | None:
    """Return the class that draws an edge in tone NAME; none for what needs no attention."""
    return f"edge-{name}" if name in (BAD, WARN, OPEN) else None


def mark_of(record: StageRecord) -> str:
    """Return the symbol of a stage's outcome."""
    return "○" if record.outcome is Outcome.NOT_REACHED else SYMBOLS[tone(record)]


def stage_mark(record: StageRecord) -> Html:
    """Return the symbol and the word of a stage's outcome."""
    return mark(tone(record), wording.words(record.outcome), mark_of(record))


def check_mark(outcome: CheckOutcome) -> Html:
    """Return the symbol and the word of a check's outcome."""
    return mark(CHECK_TONES[outcome], outcome.value.replace("_", " "))


def mark(name: str, word: str, symbol: str | None = None) -> Html:
    """Return WORD in the colour of tone NAME, after SYMBOL (default: the tone's)."""
    return el("span", el("span", symbol or SYMBOLS[name], aria_hidden="true"), " " + word, class_=f"word {name}")
