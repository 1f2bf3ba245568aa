"""The rows of the fault matrix that run with every test run (tiers.py): the gate as a process, one row a test.

A row's run starts beside those of the next rows, because most of a hang is waiting; a test waits for its own.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator

import pytest

from tests.matrix import rows, tally, tiers
from tests.matrix.inject import Seen, run
from tests.matrix.judge import judge
from tests.privileges import MAY_MOUNT

JOBS = 2
ROWS = [row for row in tiers.ci(rows.read()) if row.injection.runs_here]
Runs = dict[rows.Injection, "concurrent.futures.Future[Seen]"]


@pytest.fixture(name="runs", scope="module")
def _runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """Start the runs of the tests that were chosen, JOBS at a time, in their order."""
    chosen = [row for item in request.session.items if (row := _row(item)) is not None]
    with concurrent.futures.ThreadPoolExecutor(max_workers=JOBS) as pool:
        yield {injection: pool.submit(run, injection) for injection in rows.injections(chosen)}
        pool.shutdown(cancel_futures=True)


def _row(item: pytest.Item) -> rows.Row | None:
    found = getattr(getattr(item, "callspec", None), "params", {}).get("row")
    return found if isinstance(found, rows.Row) else None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.origin}-{row.name}")
def test_a_fault_is_named(row: rows.Row, runs: Runs) -> None:
    judged = tally.corrected([judge(row, runs[row.injection].result())])[0]
    seen = judged.seen
    assert judged.right, f"{tally.show(judged)}\n{seen.late}\n{seen.left}\n{seen.traceback or seen.tail}"
    assert not judged.false_green
    assert not judged.false_block


def test_the_choice_covers_what_it_claims() -> None:
    every, chosen = rows.read(), tiers.ci(rows.read())
    assert len({name for row in chosen for name in row.injection.each}) >= 150
    assert sum(len(row.injection.each) > 1 for row in chosen) >= 30
    fast = [row for row in every if not set(row.injection.each) & set(tiers.SLOW)]
    assert {row.cause for row in chosen} == {row.cause for row in fast}
    left_out = [row for row in chosen if not row.injection.runs_here]
    assert not (MAY_MOUNT and left_out)
