"""Which rows the tests run, and which faults have no row at all.

The choice is deterministic: rows in the order of the files, of every origin the first row for each

1. answer of an author's row: (verdict, stage, outcome, cause);
2. fault family that 1 did not reach: the fault's name up to its last part;
3. every row of `pair`, `reach` and `healthy` except those marked slow.

So each cause and each prerequisite row that any row reaches is reached by the tests too. Of the blind rows the tests
run those whose injection is chosen by the rules above: one run answers for both.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.matrix.rows import Injection, Row

# Faults without a row, each with the reason.
NOT_RUN: dict[str, str] = {}
SLOW = ("driver.cuinit.too_slow",)  # takes more than half a minute by what it is


def ci(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of ROWS that the tests run."""
    rows = [row for row in rows if not any(name in SLOW for name in row.injection.each)]
    answers: set[tuple[str, ...]] = set()
    families: set[str] = set()
    chosen: set[Injection] = set()
    for row in rows:
        answer = (row.verdict, row.stage, row.outcome, row.cause)
        family = {name.rpartition(".")[0] for name in row.injection.each} - families
        if row.origin in ("pair", "reach", "healthy") or (row.origin == "author" and (answer not in answers or family)):
            chosen.add(row.injection)
            answers.add(answer)
            families |= family
    return [row for row in rows if row.injection in chosen]
