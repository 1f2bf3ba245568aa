"""The catalogue as data: every entry fits its schema, is reachable and has a remedy; texts survive any facts."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytest_gpudiscovery
from pytest_gpudiscovery import stages
from pytest_gpudiscovery.diagnosis import catalogue, certainty, ollama_says, patterns
from pytest_gpudiscovery.diagnosis.resolver import EVERYTHING
from pytest_gpudiscovery.model import SUMMARY_LIMIT, Kind, Severity

PACKAGE = Path(pytest_gpudiscovery.__file__).parent
ROWS = {row["id"]: row for row in json.loads((catalogue.DATA / "prerequisites.json").read_text())}
# What has no address: measured by us (with the file of docs/ where it is kept), or known by name.
SOURCE = re.compile(
    r"measured[ ,]|checked on |docs/(evidence|decisions|architecture)|v\d+\.\d+\.\d+ |ggml|glibc |man |systemd"
)
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
    assert len(re.sub(r"\{[^}]*\}", "", cause.summary)) <= SUMMARY_LIMIT
    if not cause.id.startswith("engine."):
        assert ROWS[cause.prerequisite]["stage"] in cause.stages
    known = set(catalogue.causes())
    for pattern in cause.explained_by:
        matches = (other == pattern or (pattern.endswith(".") and other.startswith(pattern)) for other in known)
        assert pattern == EVERYTHING or any(matches), pattern
        assert pattern != cause.id


def test_every_file_fits_the_schema_that_is_shipped() -> None:
    schema = json.loads((PACKAGE / "schema" / "cause-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in (catalogue.DATA / "causes").glob("*.json"):
        found = [f"{path.name} {list(error.path)}: {error.message}" for error in validator.iter_errors(_read(path))]
        assert found == []


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_cause_has_sources_that_can_be_looked_up() -> None:
    for cause in catalogue.causes().values():
        told = catalogue.sources(cause)
        assert told or cause.id.startswith("engine."), f"{cause.id}: give it or {cause.prerequisite} a source"
        for source in told:
            assert catalogue.link(source) or SOURCE.match(source), (cause.id, source)


def test_every_row_says_which_eras_it_touches_and_where_that_is_from() -> None:
    for row in ROWS.values():
        assert row.get("eras"), f"{row['id']} of prerequisites.json needs eras: which of {ollama_says.ERAS} it touches"
        assert set(row["eras"]) <= set(ollama_says.ERAS), row
        assert row.get("sources"), f"{row['id']} of prerequisites.json needs sources"
        assert all(catalogue.link(source) or SOURCE.match(source) for source in row["sources"]), row


def test_every_cause_says_what_ollama_logs() -> None:
    for cause in catalogue.causes().values():
        family = ollama_says.of(cause.id)
        assert family is not None, f"{cause.id} has no family: add a pattern to data/ollama_says.json"
        assert ollama_says.eras(cause.id)
    for family in ollama_says.families().values():
        assert family.info
        assert family.debug
        assert family.trace
        assert catalogue.link(family.source) or SOURCE.match(family.source), family
    used = {ollama_says.of(cause) for cause in catalogue.causes()}
    assert used == set(ollama_says.families().values())


def test_what_is_said_of_ollama_fits_what_the_cause_is() -> None:
    """A hang never has the family of a quick failure, and what blocks is never said to go unnoticed."""
    for cause in catalogue.causes().values():
        family = ollama_says.of(cause.id)
        assert family is not None
        if cause.id.endswith(".hang") and family.name not in ("gate", "context", "first_use", "serve", "native"):
            assert "30 s" in family.info, (cause.id, family.name)
        if cause.severity is Severity.BLOCKER and cause.kind is Kind.BLOCKING:
            assert family.name != "unnoticed" or cause.id.startswith("enumeration.profile."), cause.id


def test_a_pattern_names_something() -> None:
    for table in (ollama_says.patterns(), _read(catalogue.DATA / "certainty.json")["surer"]):
        for pattern in table:
            assert any(patterns.matches(cause, (pattern,)) for cause in catalogue.causes()), pattern


def test_every_cause_that_is_not_certain_says_what_would_make_it_so() -> None:
    for cause in catalogue.causes():
        assert certainty.sentence(cause).endswith("."), f"{cause}: add a pattern to data/certainty.json"
        assert len(certainty.sentence(cause)) <= 160


def test_no_cause_explains_itself_by_way_of_others() -> None:
    edges = {
        cause.id: {other for other in catalogue.causes() if patterns.matches(other, cause.explained_by)}
        for cause in catalogue.causes().values()
    }
    for begin, first in edges.items():
        seen: set[str] = set()
        todo = list(first)
        while todo:
            current = todo.pop()
            if current not in seen:
                seen.add(current)
                todo.extend(edges[current])
        assert begin not in seen, begin


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


OTHER_WORDS = {  # rows that a check asserts, and whose failure shows under another row's cause
    "P65": "era A only: what fails there is driver.context.error",
    "P74": "a transport that does not answer shows as a hang below driver.shim.present",
    "P75": "a lock that is held shows as a hang below driver.shim.present",
    "P77": "no shim that needs one is known on this host",
    "P86": "says only whether the gate could look",
    "P87": "says only whether the gate could look",
}


def test_every_row_is_reachable_by_a_cause() -> None:
    reached = {cause.prerequisite for cause in catalogue.causes().values()}
    assert set(ROWS) - reached == set(OTHER_WORDS)


def test_every_route_to_ollamas_timeout_is_reachable_by_causes_of_several_stages() -> None:
    routes = _read(catalogue.DATA / "routes.json")["routes"]
    told = [route["id"] for route in _read(PACKAGE / "ollama" / "data" / "routes.json")["routes"]]
    assert list(routes) == [route for route in told if route != "R27"]  # of Windows
    assert {int(re.sub(r"\D", "", route)) for route in routes} == set(range(1, 27))
    for route, names in routes.items():
        for pattern in names:
            assert any(patterns.matches(cause, (pattern,)) for cause in catalogue.causes()), (route, pattern)
        assert any(pattern.startswith(("bootstrap.", "load.", "nvml.", "driver.")) for pattern in names), route
