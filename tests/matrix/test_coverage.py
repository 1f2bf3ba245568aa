"""What the matrix reaches, by the recorded run (docs/evidence/fault-matrix.json): rows, routes, causes; remedies."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.simulate.registry import FAULTS
from tests.matrix import rows, tiers, variants

ROOT = Path(__file__).resolve().parents[2]
RECORDED: dict[str, Any] = json.loads((ROOT / "docs/evidence/fault-matrix.json").read_text(encoding="utf-8"))
REACHED: dict[str, dict[str, str]] = RECORDED["reached"]
PREREQUISITES = [f"P{number:02}" for number in range(1, 81)]
ROUTES = [f"R{number}" for number in range(1, 27)]
Entry = dict[str, str]


def entries() -> dict[str, Entry]:
    """Return coverage.tsv by its first column."""
    with (rows.DATA / "coverage.tsv").open(encoding="utf-8", newline="") as file:
        lines = (line for line in file if not line.startswith("#"))
        return {line["what"]: line for line in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)}


COVERAGE = entries()


def named_by(run: str) -> set[str]:
    """Return the causes that the recorded run named RUN gave."""
    return {
        cause
        for row in RECORDED["rows"]
        if row["name"] == run
        for cause in (row["seen"]["cause"], *row["seen"]["findings"])
    }


def shown(what: str) -> str:
    """Return "" where coverage.tsv says by which run WHAT is reached and the run does, or why none does; else why."""
    entry = COVERAGE.get(what)
    if entry is None:
        return f"{what}: no run reaches it, and coverage.tsv does not say why"
    if entry["by"] == "-":
        return "" if entry["why"].strip() else f"{what}: no reason"
    if entry["cause"] not in named_by(entry["by"]):
        return f"{what}: {entry['by']} named {named_by(entry['by']) or 'nothing'}, not {entry['cause']}"
    return ""


@pytest.mark.parametrize("row", PREREQUISITES)
def test_every_prerequisite_row_is_hit_or_says_why_not(row: str) -> None:
    hit = any(found["row"] == row for found in REACHED.values())
    assert hit or not shown(row), shown(row)
    assert not (hit and COVERAGE.get(row, {}).get("by") == "-"), f"{row} is hit: coverage.tsv says that it cannot be"


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_of_a_hang_is_reached_or_says_why_not(route: str) -> None:
    assert not shown(route), shown(route)


def test_every_cause_is_reached_or_says_why_not() -> None:
    missing = [cause for cause in catalogue.causes() if cause not in REACHED and shown(cause)]
    assert missing == []
    stale = [what for what, entry in COVERAGE.items() if what in REACHED and entry["by"] == "-"]
    assert stale == [], "a run names them: coverage.tsv says that none does"
    gone = [what for what in COVERAGE if "." in what and what not in catalogue.causes()]
    assert gone == []


def test_every_cause_has_a_next_command() -> None:
    assert [cause.id for cause in catalogue.causes().values() if not cause.next.strip()] == []


def test_every_fault_has_a_row_or_a_reason() -> None:
    used = {name for row in rows.read() for name in row.injection.each} | variants.faults()
    assert used <= set(FAULTS)
    assert set(FAULTS) - used - set(tiers.NOT_RUN) == set()


def test_the_recorded_run_reaches_what_is_promised() -> None:
    assert RECORDED["counts_after_corrections"]["faults"] >= 150
    for number in ("false_green", "false_block"):
        assert RECORDED["counts_after_corrections"][number] == 0
    real = {row["fault"] for row in RECORDED["real"] if row["fault"]}
    assert len(real) >= 40
