"""The verdict over all combinations of records, and the exit code: the ways to a false green are closed here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytest_gpudiscovery
from pytest_gpudiscovery.engine import Engine
from pytest_gpudiscovery.model import (
    Check,
    CheckOutcome,
    Kind,
    Outcome,
    StageRecord,
    State,
    Verdict,
    record_from_json,
    to_json,
)
from pytest_gpudiscovery.reports import verdict_json
from pytest_gpudiscovery.verdict import conclude, exit_code
from tests.fakes import context, hang, record, result, stage

SCHEMA = json.loads((Path(pytest_gpudiscovery.__file__).parent / "schema" / "verdict-1.json").read_text())
TABLE = {
    spec.name: spec
    for spec in (stage(4, "kernel"), stage(5, "nvml", ("kernel",)), stage(6, "driver", ("kernel",)), stage(7, "last"))
}


def verdict_of(directory: Path, records: list[StageRecord], target: str = "driver") -> Verdict:
    engine = Engine(context(target=target), str(directory), TABLE, lambda _: result())
    for item in records:
        engine.ledger.write(dataclasses.replace(item, required=item.name in engine.required))
    return conclude(engine, started=1000.0, selection={})


def check(outcome: CheckOutcome, kind: Kind = Kind.BLOCKING) -> tuple[Check, ...]:
    return (Check("P01", kind, "host", outcome, "why"),)


def test_all_required_passed_is_ready(tmp_path: Path) -> None:
    found = verdict_of(tmp_path, [record(name, Outcome.PASSED) for name in ("kernel", "nvml", "driver")])
    assert found.verdict is State.READY
    assert exit_code(found, pytest_status=0, strict=True) == 0


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("name", ["kernel", "driver"])
def test_no_outcome_of_a_required_stage_but_passed_is_ready(tmp_path: Path, outcome: Outcome, name: str) -> None:
    records = [record(other, Outcome.PASSED) for other in ("kernel", "nvml", "driver") if other != name]
    found = verdict_of(tmp_path, [*records, record(name, outcome)])
    expected = (
        State.READY
        if outcome is Outcome.PASSED or (outcome is Outcome.NOT_APPLICABLE and name == "kernel")
        else State.DEGRADED
        if outcome is Outcome.WARNED
        else State.BLOCKED
        if outcome.blocks
        else State.INCOMPLETE
    )
    assert found.verdict is expected


def test_a_required_stage_that_never_ran_is_incomplete(tmp_path: Path) -> None:
    found = verdict_of(tmp_path, [record("kernel", Outcome.PASSED)])
    assert found.verdict is State.INCOMPLETE
    assert exit_code(found, pytest_status=0, strict=False) == 20
    assert exit_code(found, pytest_status=5, strict=False) == 20


def test_nothing_at_all_is_incomplete(tmp_path: Path) -> None:
    assert verdict_of(tmp_path, []).verdict is State.INCOMPLETE


def test_a_blocking_check_that_nobody_could_make_is_incomplete(tmp_path: Path) -> None:
    unknown = record("driver", Outcome.WARNED, checks=check(CheckOutcome.UNKNOWN))
    assert verdict_of(tmp_path, [record("kernel", Outcome.PASSED), unknown]).verdict is State.INCOMPLETE


def test_a_risk_that_nobody_could_check_is_degraded(tmp_path: Path) -> None:
    unknown = record("driver", Outcome.WARNED, checks=check(CheckOutcome.UNKNOWN, Kind.RISK))
    assert verdict_of(tmp_path, [record("kernel", Outcome.PASSED), unknown]).verdict is State.DEGRADED


def test_a_stage_beside_the_path_degrades_and_does_not_block(tmp_path: Path) -> None:
    records = [record("kernel", Outcome.PASSED), record("driver", Outcome.PASSED), record("nvml", Outcome.FAILED)]
    found = verdict_of(tmp_path, records)
    assert found.verdict is State.DEGRADED
    assert exit_code(found, pytest_status=1, strict=False) == 1
    assert exit_code(found, pytest_status=0, strict=True) == 1


def test_a_required_stage_that_a_hang_beside_the_path_kept_from_running_is_blocked(tmp_path: Path) -> None:
    records = [
        record("kernel", Outcome.PASSED),
        record("nvml", Outcome.TIMED_OUT),
        record("driver", Outcome.NOT_REACHED, blocked_by="nvml"),
    ]
    assert verdict_of(tmp_path, records).verdict is State.BLOCKED


@given(
    outcomes=st.lists(st.sampled_from(list(Outcome)), min_size=3, max_size=3),
    status=st.integers(0, 6),
    strict=st.booleans(),
)
def test_exit_0_needs_an_answer_from_every_required_stage(
    tmp_path_factory: pytest.TempPathFactory, outcomes: list[Outcome], status: int, strict: bool
) -> None:
    names = ("kernel", "nvml", "driver")
    records = [record(name, outcome) for name, outcome in zip(names, outcomes, strict=True)]
    found = verdict_of(tmp_path_factory.mktemp("run"), records)
    code = exit_code(found, pytest_status=status, strict=strict)
    if code == 0:
        assert all(outcome.lets_others_run for name, outcome in zip(names, outcomes, strict=True) if name != "nvml")
        assert status in (0, 5)
    if status in (2, 3, 4, 6):
        assert code == status


def test_the_verdict_of_a_real_run_fits_the_schema(tmp_path: Path) -> None:
    children = {"kernel": result(), "driver": hang(evidence={"blocked_in": "ioctl"})}
    engine = Engine(context(target="last"), str(tmp_path), TABLE, lambda probe: children.get(probe.module, result()))
    engine.complete()
    found = conclude(engine, started=1000.0, selection={"items": 3}, notes=("said once",))
    jsonschema.validate(to_json(found), SCHEMA)
    assert found.blockers[0].cause == "engine.probe.hang"
    verdict_json.begin(str(tmp_path / "report"), found)
    jsonschema.validate(json.loads((tmp_path / "report" / "verdict.json").read_text()), SCHEMA)


def test_the_older_verdict_is_moved_aside_before_the_first_probe(tmp_path: Path) -> None:
    ready = verdict_of(tmp_path / "a", [record(name, Outcome.PASSED) for name in ("kernel", "driver")])
    empty = verdict_of(tmp_path / "b", [])
    verdict_json.begin(str(tmp_path / "report"), ready)
    verdict_json.begin(str(tmp_path / "report"), empty)
    assert json.loads((tmp_path / "report" / "verdict.json").read_text())["verdict"] == "incomplete"
    assert json.loads((tmp_path / "report" / "verdict.previous.json").read_text())["verdict"] == "ready"


def test_what_is_written_between_stages_is_the_verdict_of_that_moment(tmp_path: Path) -> None:
    for outcome in (Outcome.PASSED, Outcome.FAILED):  # another run of the same process: the same names, other records
        done: list[StageRecord] = []
        for name in ("kernel", "nvml", "driver"):
            done.append(record(name, outcome))
            found = verdict_of(tmp_path / "run", done)
            verdict_json.write(str(tmp_path / "report"), found, so_far=True)
            assert json.loads((tmp_path / "report" / "verdict.json").read_text()) == to_json(found)


def test_a_verdict_that_cannot_be_written_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    empty = verdict_of(tmp_path / "a", [])
    verdict_json.begin(str(tmp_path / "report"), empty)
    target = tmp_path / "report" / "verdict.json"
    target.unlink()
    target.mkdir()  # os.replace onto a directory fails, also for root
    with pytest.raises(OSError):  # noqa: PT011  the errno differs between file systems
        verdict_json.write(str(tmp_path / "report"), empty)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["verdict.json"]


def test_records_survive_the_way_through_json(tmp_path: Path) -> None:
    engine = Engine(context(), str(tmp_path), TABLE, lambda _: hang())
    original = engine.ensure("driver")
    assert record_from_json(json.loads(json.dumps(to_json(original)))) == original


def test_a_target_without_an_answer_is_no_green(tmp_path: Path) -> None:
    records = [record("kernel", Outcome.PASSED), record("driver", Outcome.NOT_APPLICABLE)]
    assert verdict_of(tmp_path, records).verdict is State.INCOMPLETE


def test_probing_as_somebody_else_than_the_service_is_incomplete(tmp_path: Path) -> None:
    engine = Engine(context(target="driver", not_adopted="why"), str(tmp_path), TABLE, lambda _: result())
    engine.complete()
    assert conclude(engine, started=1000.0, selection={}).verdict is State.INCOMPLETE


def test_a_profile_makes_enumeration_required(tmp_path: Path) -> None:
    table = {**TABLE, "enumeration": stage(7, "enumeration", ("driver",)), "runtime": stage(8, "runtime", ("kernel",))}
    for profile, required in (({"profile": "any"}, False), ({"profile": "eight", "count": [8, 8]}, True)):
        engine = Engine(context(target="runtime", profile=profile), str(tmp_path), table, lambda _: result())
        assert ("enumeration" in engine.required) is required
