"""The prerequisite rows: each belongs to one stage, in the ranges that the design gives them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.model import Kind
from pytest_gpudiscovery.stages import kernel, loopback, package, service
from pytest_gpudiscovery.stages.spec import StageSpec

# The design's table: stage -> rows, and what the measurements on an H100 added from P81 on.
RANGES = {
    "package": "1-9",
    "service": "10-16 77 80 81-83",
    "loopback": "17-21",
    "kernel": "31-39 62 84-87",
    "nvml": "40 41 43 44 51 61",
    "driver": "42 45 47 48 50 52-54 63-65 74-76",
    "enumeration": "59 78",
    "runtime": "46 49",
    "closure": "22 24-26 55 57 71-73 79",
    "load": "23 28 29",
    "backend": "27 30 56 58 60",
    "bootstrap": "66-70",
}
ROWS: list[dict[str, Any]] = json.loads((catalogue.DATA / "prerequisites.json").read_text(encoding="utf-8"))
MINE = (package.SPEC, service.SPEC, loopback.SPEC, kernel.SPEC)


def numbers(text: str) -> set[str]:
    """Return the row ids of TEXT ("10-16 77")."""
    found = set()
    for part in text.split():
        first, _, last = part.partition("-")
        found |= {f"P{number:02}" for number in range(int(first), int(last or first) + 1)}
    return found


@pytest.mark.parametrize("stage", list(RANGES))
def test_a_stage_has_the_rows_of_the_design(stage: str) -> None:
    assert {row["id"] for row in ROWS if row["stage"] == stage} >= numbers(RANGES[stage])


def test_every_row_is_there_once_and_complete() -> None:
    ids = [row["id"] for row in ROWS]
    assert len(set(ids)) == len(ids)
    assert numbers("1-87") <= set(ids)
    for row in ROWS:
        assert set(row) == {"id", "stage", "kind", "title", "eras", "sources"}
        assert row["title"].strip()
        assert Kind(row["kind"])


@pytest.mark.parametrize("spec", MINE, ids=lambda spec: spec.name)
def test_a_stage_judges_the_rows_that_are_its_own(spec: StageSpec) -> None:
    assert set(spec.rows) == {row["id"] for row in ROWS if row["stage"] == spec.name}


@pytest.mark.parametrize("spec", MINE, ids=lambda spec: spec.name)
def test_only_blocking_rows_have_blocking_causes(spec: StageSpec) -> None:
    kinds = {row["id"]: Kind(row["kind"]) for row in ROWS}
    for cause in catalogue.causes().values():
        if cause.prerequisite in spec.rows and cause.kind is Kind.BLOCKING:
            assert kinds[cause.prerequisite] is Kind.BLOCKING, cause.id
