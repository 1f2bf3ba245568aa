"""Compare what was seen with what a row expects. A pure function; what counts as right is written here alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.matrix.inject import Seen
from tests.matrix.rows import NOTHING, Row

EXITS = {"ready": 0, "degraded": 0, "blocked": 1, "incomplete": 20}
GREEN = ("ready", "degraded")
GIVEN_ROWS = {f"P{number:02}" for number in range(1, 81)}


@dataclass(frozen=True)
class Judged:
    """One row beside what was seen. Every field but `row` and `seen` is an answer: right or not."""

    row: Row
    seen: Seen
    stage: bool  # verdict, stage and outcome
    cause: bool  # the cause that is named first
    exit: bool
    in_time: bool
    clean: bool  # no traceback, nothing left behind
    false_green: bool
    false_block: bool

    @property
    def right(self) -> bool:
        """Whether everything is as it must be."""
        return self.stage and self.cause and self.exit and self.in_time and self.clean


def judge(row: Row, seen: Seen) -> Judged:
    """Return SEEN judged by ROW."""
    stage = any(_answers(one, row, seen) for one in ((row.verdict, row.stage, row.outcome), *row.alternatives))
    wanted = {row.verdict, *(verdict for verdict, _, _ in row.alternatives)}
    return Judged(
        row=row,
        seen=seen,
        stage=stage,
        cause=_cause(row, seen),
        exit=seen.exit == EXITS.get(seen.verdict),
        in_time=seen.in_time,
        clean=not seen.traceback and not seen.left,
        false_green=seen.exit == 0 and (not wanted.intersection((*GREEN, "*")) or _silent(wanted, seen)),
        false_block=seen.exit != 0 and wanted <= set(GREEN),
    )


def _silent(wanted: set[str], seen: Seen) -> bool:
    """Whether nothing at all is said of a fault that must be said something of."""
    return seen.verdict == "ready" and not wanted.intersection(("ready", "*"))


def _answers(expected: tuple[str, str, str], row: Row, seen: Seen) -> bool:
    verdict, stage, outcome = expected
    if verdict not in ("*", seen.verdict):
        return False
    if verdict != "ready" and stage == NOTHING and not row.cause:
        return True  # not compared: what is found is told by rows and words, the verdict alone says that nothing blocks
    named = (seen.primary.get("stage", NOTHING), seen.primary.get("outcome", NOTHING))
    if _fits((stage, outcome), named):
        return True
    # A finding that blocks nothing is named by the stage that shows it, with the outcome of its check.
    shown = {(one["stage"], one["outcome"]) for one in seen.findings if row.cause in ("", NOTHING, one["cause"])}
    return seen.verdict == "degraded" and any(_fits((stage, outcome), one) for one in shown)


def _fits(expected: tuple[str, str], named: tuple[str, str]) -> bool:
    return all(wanted in ("*", one) for wanted, one in zip(expected, named, strict=True))


def _cause(row: Row, seen: Seen) -> bool:
    """Whether the primary cause is the row's; where nothing blocks, whether one of the findings is."""
    if seen.primary:
        candidates = [seen.primary]
        if row.stage == NOTHING:  # what is expected blocks nothing: it stands beside what is named first
            candidates += seen.findings
    else:
        candidates = seen.findings
    if row.cause:
        return row.cause == NOTHING or any(one["cause"] == row.cause for one in candidates)
    if not row.rows and not row.says:
        return True
    if not seen.primary:
        candidates = [*candidates, *seen.left_open]
    if not candidates or (seen.verdict == "ready" and not seen.findings):
        return seen.verdict == "ready" and "ready" in (row.verdict, *(verdict for verdict, _, _ in row.alternatives))
    return any(_says(row, one) for one in candidates)


def _says(row: Row, finding: dict[str, str]) -> bool:
    # Rows after P80 were added for what real hosts showed; who wrote the expectation had no list of them.
    if row.rows and finding["row"] in GIVEN_ROWS and finding["row"] not in row.rows:
        return False
    return not row.says or re.search(row.says, finding["text"], re.IGNORECASE) is not None
