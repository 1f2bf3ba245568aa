"""What the two halves of the table share: which rows run here, and what the gate must say of one."""

from __future__ import annotations

import os
import re

import pytest

from tests.healthy.rows import Row, gate, rows

REFUSED = re.compile(r"^(?:unshare|mount|setpriv|ip): .*(?:not permitted|denied|not supported).*$", re.MULTILINE)


def due(how: str) -> list[Row]:
    """Return the rows of kind HOW that this user can run; those of tier `full` with GPU_HEALTHY=full only."""
    everything = os.environ.get("GPU_HEALTHY") == "full"
    return [row for row in rows() if row.how == how and row.runs_here and (everything or row.tier == "ci")]


def is_left_alone(row: Row) -> None:
    """Run the gate of ROW, and assert that it neither blocks nor warns of anything but what the row allows."""
    seen = gate(row)
    if seen.verdict == "no verdict" and (refused := REFUSED.search(seen.output)):
        pytest.skip(f"this machine does not let even root make the context: {refused[0]}")
    assert (seen.verdict, seen.blockers, seen.exit_code) == (row.verdict, (), 0), seen.output
    assert seen.warnings == row.warnings, seen.output
