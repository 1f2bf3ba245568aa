"""The numbers of a run of the matrix, and how they are shown: a table, JSON and Markdown with the confusion table."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.matrix.judge import Judged, judge
from tests.matrix.rows import NOTHING, correction

CAUSE_AT_LEAST = 0.98
HELD_OUT = "held-out"
GIVEN_BY = {
    "author": "written by who knows the catalogue",
    "blind": "written from the mechanism by somebody who had not seen the catalogue",
    "pair": "two faults at once",
    "blind-pair": "two faults at once, written by somebody who had not seen the catalogue",
    "reach": "rows that reach what the others do not",
    "healthy": "healthy hosts",
    "held-out": "written last, run once",
}


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many of `rows` are right in what way; a row that was corrected counts as corrected, and as a miss before."""

    rows: int = 0
    faults: int = 0
    stage: int = 0
    cause: int = 0
    exit: int = 0
    in_time: int = 0
    clean: int = 0
    false_green: int = 0
    false_block: int = 0

    @property
    def broken(self) -> list[str]:
        """What of the promised numbers is not reached."""
        limits = (
            (self.rows == 0, "nothing was run"),
            (self.stage < self.rows, f"stage right: {self.stage} of {self.rows}, promised all"),
            (
                self.cause < CAUSE_AT_LEAST * self.rows,
                f"cause right first: {self.cause} of {self.rows}, promised {CAUSE_AT_LEAST:.0%}",
            ),
            (self.exit < self.rows, f"exit code right: {self.exit} of {self.rows}, promised all"),
            (self.in_time < self.rows, f"in time: {self.in_time} of {self.rows}, promised all"),
            (self.clean < self.rows, f"no traceback, nothing left: {self.clean} of {self.rows}, promised all"),
            (self.false_green > 0, f"false green: {self.false_green}"),
            (self.false_block > 0, f"false block: {self.false_block}"),
        )
        return [text for is_broken, text in limits if is_broken]


def count(judged: Iterable[Judged]) -> Counts:
    """Return the counts over JUDGED."""
    rows = list(judged)
    faults = {name for one in rows for name in one.row.injection.each}
    sums = {
        field: sum(getattr(one, field) for one in rows)
        for field in ("stage", "cause", "exit", "in_time", "clean", "false_green", "false_block")
    }
    return Counts(rows=len(rows), faults=len(faults), **sums)


def corrected(judged: Iterable[Judged]) -> list[Judged]:
    """Return JUDGED with the rows that carry a correction judged by it."""
    return [judge(correction(one.row), one.seen) if one.row.corrected else one for one in judged]


def confusion(judged: Iterable[Judged]) -> dict[str, Counter[str]]:
    """Return how often which stage was named, by the stage that was expected; "-": nothing blocks, nothing found."""
    table: dict[str, Counter[str]] = {}
    for one in judged:
        named = one.seen.primary.get("stage", NOTHING)
        if one.stage or (named == NOTHING and one.row.stage in {found["stage"] for found in one.seen.findings}):
            named = one.row.stage  # also where a finding that blocks nothing, or an alternative, is what is right
        table.setdefault(one.row.stage, Counter())[named] += 1
    return table


def show(one: Judged) -> str:
    """Return one line about one row."""
    wrong = [name for name in ("stage", "cause", "exit", "in_time", "clean") if not getattr(one, name)]
    mark = "ok   " if not wrong else "WRONG"
    first = one.seen.primary
    said = f"{first['stage']} {first['outcome']} {first['cause']}" if first else ", ".join(_causes(one))
    line = f"{mark} {one.row.origin:<10} {one.row.name:<64} {one.seen.verdict:<10}{one.seen.seconds:6.1f} s  {said}"
    return line + (f"   [{', '.join(wrong)}]" if wrong else "")


def reached(judged: Iterable[Judged]) -> dict[str, dict[str, str]]:
    """Return cause -> {"row", "by", "as"}: the first run that named it, as what blocks (primary) or beside it."""
    found: dict[str, dict[str, str]] = {}
    for one in judged:
        first = one.seen.primary.get("cause")
        for cause, row in one.seen.reached.items():
            how = "primary" if cause == first else "finding"
            if cause not in found or (found[cause]["as"], how) == ("finding", "primary"):
                found[cause] = {"row": row, "by": one.row.name, "as": how}
    return dict(sorted(found.items()))


def _causes(one: Judged) -> list[str]:
    return list(dict.fromkeys(found["cause"] for found in one.seen.findings))


def record(one: Judged) -> dict[str, Any]:
    """Return one row for the JSON."""
    row, seen = one.row, one.seen
    expected: dict[str, Any] = {"verdict": row.verdict, "stage": row.stage, "outcome": row.outcome}
    expected |= {"cause": row.cause} if row.cause else {"rows": list(row.rows), "says": row.says}
    if row.alternatives:
        expected["alternatives"] = ["/".join(words) for words in row.alternatives]
    first = {key: seen.primary.get(key, "") for key in ("stage", "outcome", "cause", "row")}
    found = {
        "origin": row.origin,
        "name": row.name,
        "expected": expected,
        "seen": {"verdict": seen.verdict, "exit": seen.exit, **first, "findings": _causes(one)},
        "right": one.right,
        "wrong": [name for name in ("stage", "cause", "exit", "in_time", "clean") if not getattr(one, name)],
        "seconds": seen.seconds,
        "bound_s": seen.bound_s,
    }
    if row.corrected:
        after = judge(correction(row), seen)
        found["corrected"] = {"expected": row.corrected, "why": row.why, "right": after.right}
    if not one.right:
        found["why"] = row.why
        summary = seen.primary.get("text", "").partition("\n")[0]
        found |= {"summary": summary, "late": seen.late, "left": seen.left, "traceback": seen.traceback}
    return found


def summary(
    judged: Sequence[Judged],
    left_out: Mapping[str, str],
    real: Sequence[Mapping[str, Any]],
    variants: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return everything that is written down: counts, confusion, rows.

    LEFT_OUT: row -> reason; REAL: rows of real GPUs; VARIANTS: healthy variants of a host. Held-out rows are counted
    apart: they were written last, and nothing may be fitted to them.
    """
    counted = [one for one in judged if one.row.origin != HELD_OUT]
    final = corrected(counted)
    by = {origin: [one for one in judged if one.row.origin == origin] for origin in GIVEN_BY}
    return {
        "counts": dataclasses.asdict(count(counted)),
        "counts_after_corrections": dataclasses.asdict(count(final)),
        "by_origin": {
            origin: {
                "what": GIVEN_BY[origin],
                "as_written": dataclasses.asdict(count(rows)),
                "after_corrections": dataclasses.asdict(count(corrected(rows))),
                "corrections": sum(bool(one.row.corrected) for one in rows),
            }
            for origin, rows in by.items()
            if rows
        },
        "confusion": {stage: dict(named) for stage, named in sorted(confusion(final).items())},
        "left_out": dict(left_out),
        "reached": reached(counted),
        "rows": [record(one) for one in judged],
        "real": list(real),
        "variants": list(variants),
    }
