"""The catalogue as data: every entry fits its schema, is reachable and has a remedy; texts survive any facts."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytest_gpudiscovery
from pytest_gpudiscovery import stages
from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.diagnosis.resolver import EVERYTHING
from pytest_gpudiscovery.model import SUMMARY_LIMIT, Kind

PACKAGE = Path(pytest_gpudiscovery.__file__).parent
ROWS = {row["id"]: row for row in json.loads((catalogue.DATA / "prerequisites.json").read_text())}
JUDGES = ("stages", "diagnosis", PACKAGE.name)
SOURCES = (
    "\n".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.parent.name in JUDGES)
    + (catalogue.DATA / "errors.json").read_text()
)


@pytest.mark.parametrize("cause", list(catalogue.causes().values()), ids=lambda cause: cause.id)
def test_an_entry_is_complete(cause: catalogue.Cause) -> None:
    assert re.fullmatch(r"[a-z]+(\.[a-z0-9_]+)+", cause.id)
    assert cause.next.strip()
    assert cause.explanation.strip()
    assert set(cause.stages) <= set(stages.NAMES)
    assert 0 < cause.confidence <= 1
    if not cause.id.startswith("engine."):
        assert ROWS[cause.prerequisite]["stage"] in cause.stages
    known = set(catalogue.causes())
    for pattern in cause.explained_by:
        matches = (other == pattern or (pattern.endswith(".") and other.startswith(pattern)) for other in known)
        assert pattern == EVERYTHING or any(matches), pattern
        assert pattern != cause.id


@pytest.mark.parametrize("cause", list(catalogue.causes().values()), ids=lambda cause: cause.id)
def test_an_entry_is_reachable_from_the_code(cause: catalogue.Cause) -> None:
    # By its whole id, or by the last part where a judgement composes it ("driver.libcuda." + kind).
    assert cause.id in SOURCES or re.search(rf"[\"'.]{re.escape(cause.id.rpartition('.')[2])}[\"']", SOURCES)


@given(facts=st.dictionaries(st.sampled_from(["step", "deadline_s", "seconds", "code", "path"]), st.none() | st.text()))
def test_facts_of_any_type_never_raise(facts: dict[str, Any]) -> None:
    for cause in catalogue.causes():
        found = catalogue.finding(cause, facts)
        assert 0 < len(found.summary) <= SUMMARY_LIMIT


def test_every_row_belongs_to_one_stage_and_has_a_kind() -> None:
    assert {f"P{number:02}" for number in range(1, 81)} <= set(ROWS)
    assert all(row["kind"] in {kind.value for kind in Kind} and row["stage"] in stages.NAMES for row in ROWS.values())
    owners = Counter(row for spec in stages.table().values() for row in spec.rows)
    assert [row for row, count in owners.items() if count > 1] == []
    for spec in stages.table().values():
        for row in spec.rows:
            assert ROWS[row]["stage"] == spec.name, row


def test_the_hang_and_crash_causes_of_every_stage_exist() -> None:
    for spec in stages.table().values():
        for cause in (*spec.hang_causes.values(), *spec.crash_causes.values()):
            assert cause in catalogue.causes(), (spec.name, cause)


def test_a_summary_that_is_only_a_fact_still_says_something_without_it() -> None:
    for cause in catalogue.causes().values():
        empty = dict.fromkeys(re.findall(r"\{(\w+)", cause.summary + cause.explanation), "")
        found = catalogue.finding(cause.id, empty)
        assert found.summary.strip()
        assert found.detail.strip()


def test_a_summary_is_one_line_and_a_fact_one_word_of_the_command() -> None:
    path = "/opt/it's; rm -rf x\n/lib.so"
    found = catalogue.finding("load.cpu.ends", {"path": path, "step": "dlopen a\nb", "how": "x"})
    assert found.summary == r"dlopen a\nb x"
    assert shlex.split(found.next)[2] == path.replace("\n", r"\n") + ";"
    bare = catalogue.finding("package.stray.library", {"path": path, "name": "$(id)"})
    assert shlex.split(bare.next)[2] == path.replace("\n", r"\n") + "/$(id)"


@pytest.mark.parametrize("cause", list(catalogue.causes().values()), ids=lambda cause: cause.id)
def test_a_command_has_no_placeholder_left(cause: catalogue.Cause) -> None:
    assert not re.search(r"(?<![A-Za-z_])LIBRARY(?![A-Za-z_])", cause.next)
    assert "--time-sort" not in cause.next  # no option of ls
