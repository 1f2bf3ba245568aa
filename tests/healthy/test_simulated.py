"""No false alarm: hosts that are healthy in unusual ways, simulated; the gate runs as a process for each."""

from __future__ import annotations

import pytest

from tests.healthy.checks import due, is_left_alone
from tests.healthy.rows import Row, rows


@pytest.mark.parametrize("row", due("simulated"), ids=lambda row: row.name)
def test_a_healthy_host_raises_no_alarm(row: Row) -> None:
    is_left_alone(row)


def test_the_table_is_as_large_as_it_claims() -> None:
    table = list(rows())
    assert len({row.name for row in table}) == len(table) >= 140
    assert sum(row.tier == "ci" for row in table) >= 100
    for row in table:
        assert row.how in ("simulated", "real")
        assert row.verdict == ("degraded" if row.warnings else "ready")
