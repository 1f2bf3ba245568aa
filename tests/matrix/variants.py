"""The healthy half of the matrix: every variant of tests/healthy, run as there, in the form of the matrix's results."""

from __future__ import annotations

import concurrent.futures
import subprocess
from collections.abc import Iterator
from typing import Any

from pytest_gpudiscovery import simulate
from tests.healthy import checks
from tests.healthy.rows import LIMIT_S, Row, gate, rows


def faults() -> set[str]:
    """Return the names of the registry that the variants inject."""
    return {name for row in rows() for name, _ in simulate.parse(row.host.replace("{folder}", "/x")).faults}


def measure(jobs: int) -> Iterator[dict[str, Any]]:
    """Yield {name, host, context, expected, seen, right, false_block, time} of each variant; `skipped` says why not."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
        yield from pool.map(_one, list(rows()))


def _one(row: Row) -> dict[str, Any]:
    expected = " ".join((row.verdict, *sorted(row.warnings)))
    found = {"name": row.name, "host": row.host, "context": f"{row.how} {row.context}".strip(), "expected": expected}
    if not row.runs_here:
        return {**found, "skipped": "needs root"}
    try:
        seen = gate(row)
    except subprocess.TimeoutExpired:
        late = f"no end within {LIMIT_S:g} s"
        return {**found, "seen": late, "right": False, "false_block": True, "time": LIMIT_S}
    if seen.verdict == "no verdict" and (refused := checks.REFUSED.search(seen.output)):
        return {**found, "skipped": refused[0]}
    right = (seen.verdict, seen.blockers, seen.exit_code, seen.warnings) == (row.verdict, (), 0, row.warnings)
    said = " ".join((seen.verdict, *seen.blockers, *sorted(seen.warnings)))
    blocks = seen.exit_code != 0 or bool(seen.blockers)
    return {**found, "seen": said, "right": right, "false_block": blocks, "time": round(seen.seconds, 2)}
