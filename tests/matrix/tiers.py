"""Which rows the tests run, and which faults have no row at all.

The choice is deterministic. In the order of the files, `author` before `reach` before `healthy`, the first row for each
cause that a row expects; one row more for each way in which a stage ends (stage, outcome) and for each kind of user;
and every pair of `pair`. So every cause, and with it every prerequisite row, that any of them reaches is reached by the
tests, but for what SLOW alone reaches: the full tier runs that. Of the blind rows the tests run those whose injection
is chosen so: one run answers for both.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.matrix.rows import NOTHING, Injection, Row

# Faults without a row, each with the reason.
NOT_RUN: dict[str, str] = {}
SLOW = (
    "driver.cuinit.too_slow",
    "runner.slow",
    "backend.init.slow",
    "ctor.ggml_cuda.slow",
    "load.slow",
    "ctor.cublas.slow",
    "persistence.off_slow",
    "driver.cuinit.slow",
)  # slow by what they are
CHOSEN = ("author", "reach", "healthy")


def ci(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of ROWS that the tests run."""
    rows = [row for row in rows if not any(name in SLOW for name in row.injection.each)]
    seen: set[tuple[str, ...]] = set()
    chosen: set[Injection] = {row.injection for row in rows if row.origin == "pair"}
    for row in sorted((row for row in rows if row.origin in CHOSEN), key=lambda row: CHOSEN.index(row.origin)):
        what = {("cause", row.cause), ("ends", row.stage, row.outcome), ("user", row.as_user)}
        if row.cause in ("", NOTHING):
            what -= {("cause", row.cause)}
            what |= {("ready", row.host, row.target)}
        if what - seen:
            chosen.add(row.injection)
            seen |= what
    return [row for row in rows if row.injection in chosen]
