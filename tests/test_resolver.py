"""One primary cause, the same for any order of findings; consequences under their cause, independent ones beside it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery import stages
from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.diagnosis.resolver import resolve
from pytest_gpudiscovery.model import Check, CheckOutcome, Kind, Outcome, Severity, StageRecord
from pytest_gpudiscovery.stages.spec import found, unknown
from tests.fakes import record

SUBJECTS = ("host", "gpu:0000:00:06.0", "dir:cuda_v12", "dir:cuda_v13")
SURE = 0.9
NUMBERS = {
    "service": 2,
    "kernel": 4,
    "nvml": 5,
    "driver": 6,
    "enumeration": 7,
    "runtime": 8,
    "closure": 9,
    "bootstrap": 12,
    "serve": 13,
}


def failed(name: str, *causes: str, **changes: Any) -> StageRecord:
    return record(name, Outcome.FAILED, checks=tuple(found(cause) for cause in causes), **changes)


def warned(name: str, *causes: str) -> StageRecord:
    checks = tuple(found(cause, severity=Severity.WARNING) for cause in causes)
    return record(name, Outcome.WARNED, checks=checks)


def test_a_single_failure_is_primary_and_explains_what_was_not_reached() -> None:
    later = record("runtime", Outcome.NOT_REACHED, blocked_by="driver")
    (blocker,) = resolve([failed("driver", "driver.cuinit.802"), later], NUMBERS)
    assert (blocker.stage, blocker.cause, blocker.explains) == ("driver", "driver.cuinit.802", ("runtime",))


def test_a_warning_of_an_earlier_stage_explains_the_failure_and_becomes_the_cause() -> None:
    (blocker,) = resolve([warned("kernel", "kernel.xid.fatal"), failed("driver", "driver.cuinit.hang")], NUMBERS)
    assert (blocker.stage, blocker.cause, blocker.consequences) == (
        "driver",
        "kernel.xid.fatal",
        ("driver.cuinit.hang",),
    )


@pytest.mark.parametrize("cause", ["kernel.pci.none", "kernel.module.not_loaded", "kernel.container.no_devices"])
def test_a_missing_libcuda_is_a_consequence_also_where_the_kernels_stage_is_not_required(cause: str) -> None:
    closure = failed("closure", "closure.libcuda.missing", required=True)
    (blocker,) = resolve([failed("kernel", cause, required=False), closure], NUMBERS)
    assert (blocker.stage, blocker.cause, blocker.consequences) == ("kernel", cause, ("closure.libcuda.missing",))


def test_independent_failures_are_both_listed_the_earlier_stage_first() -> None:
    blockers = resolve([failed("driver", "driver.copy.wrong"), failed("nvml", "nvml.mig.no_instances")], NUMBERS)
    assert [blocker.stage for blocker in blockers] == ["nvml", "driver"]


def test_warnings_alone_block_nothing() -> None:
    assert resolve([warned("driver", "driver.cuinit.slow")], NUMBERS) == ()


@given(data=st.data())
def test_the_order_of_records_and_checks_changes_nothing(data: st.DataObject) -> None:
    causes = sorted(cause for cause in catalogue.causes() if cause.split(".")[0] in NUMBERS)
    chosen = data.draw(st.lists(st.sampled_from(causes), min_size=1, max_size=8, unique=True))
    by_stage: dict[str, list[str]] = {}
    for cause in chosen:
        by_stage.setdefault(catalogue.causes()[cause].stages[0], []).append(cause)
    records = [failed(name, *names) for name, names in by_stage.items()]
    shuffled = [failed(name, *data.draw(st.permutations(names))) for name, names in by_stage.items()]
    assert resolve(records, NUMBERS) == resolve(data.draw(st.permutations(shuffled)), NUMBERS)
    blocking = [cause for cause in chosen if found(cause).outcome.value == "failed"]
    assert bool(resolve(records, NUMBERS)) == bool(blocking)


def test_what_ollamas_children_meet_is_the_consequence_of_what_failed_before() -> None:
    (blocker,) = resolve(
        [
            failed("bootstrap", "bootstrap.gpus.none"),
            failed("driver", "driver.cuinit.802"),
            failed("serve", "serve.cpu"),
        ],
        NUMBERS,
    )
    assert (blocker.stage, blocker.cause) == ("driver", "driver.cuinit.802")
    assert set(blocker.consequences) == {"bootstrap.gpus.none", "serve.cpu"}


def test_what_only_warned_before_explains_nothing_that_its_own_entry_does_not_name() -> None:
    (blocker,) = resolve([warned("driver", "driver.cuinit.slow"), failed("bootstrap", "bootstrap.gpus.none")], NUMBERS)
    assert (blocker.stage, blocker.cause) == ("bootstrap", "bootstrap.gpus.none")


def test_where_ollama_sees_every_gpu_that_comes_first_and_the_failures_before_stand_under_it() -> None:
    before = failed("driver", "driver.cuinit.802", required=False)
    (blocker,) = resolve([before, warned("bootstrap", "gate.disagrees")], NUMBERS)
    assert (blocker.stage, blocker.cause) == ("bootstrap", "gate.disagrees")
    assert blocker.consequences == ("driver.cuinit.802",)


def test_ollama_overrules_no_stage_that_is_required_and_none_that_comes_later() -> None:
    before, later = failed("driver", "driver.cuinit.802"), failed("serve", "serve.cpu_alone", required=False)
    blockers = resolve([before, warned("bootstrap", "gate.disagrees"), later], NUMBERS)
    assert blockers[0].cause == "driver.cuinit.802"
    assert "gate.disagrees" not in [blocker.cause for blocker in blockers]


ALL = {name: number for number, name in enumerate(stages.NAMES, 1)}


@given(data=st.data())
def test_any_subset_of_the_catalogue_in_any_order_gives_one_answer(data: st.DataObject) -> None:
    chosen = data.draw(
        st.lists(st.tuples(st.sampled_from(sorted(catalogue.causes())), st.sampled_from(SUBJECTS)), max_size=12)
    )
    by_stage: dict[str, list[Check]] = {}
    for number, (cause, subject) in enumerate(chosen):
        check = found(cause, {"step": f"step {number}", "short": f"text {number}"}, subject=subject)
        by_stage.setdefault(catalogue.causes()[cause].stages[0], []).append(check)
    records = [record(name, Outcome.FAILED, checks=tuple(checks)) for name, checks in by_stage.items()]
    records += [
        record(name, Outcome.NOT_REACHED, blocked_by=next(iter(by_stage), None)) for name in ALL if name not in by_stage
    ]
    shuffled = [
        dataclasses.replace(one, checks=tuple(data.draw(st.permutations(one.checks)))) if one.checks else one
        for one in records
    ]
    blockers = resolve(records, ALL)
    assert resolve(data.draw(st.permutations(shuffled)), ALL) == blockers
    failures = {check.finding.cause for one in records for check in one.checks if check.finding and _failed(check)}
    told = {blocker.cause for blocker in blockers} | {cause for one in blockers for cause in one.consequences}
    assert failures <= told
    assert len({(blocker.stage, blocker.subject, blocker.cause) for blocker in blockers}) == len(blockers)
    for blocker in blockers:
        assert blocker.confidence is not None
        assert 0 < blocker.confidence <= 1
        assert bool(blocker.surer) == (blocker.confidence < SURE)


def _failed(check: Check) -> bool:
    return check.outcome is CheckOutcome.FAILED


def test_a_hang_is_less_certain_while_nobody_could_read_the_kernel_log() -> None:
    open_log = record("kernel", Outcome.WARNED, checks=(unknown("P86", "dmesg is restricted", Kind.OBSERVABILITY),))
    (seen,) = resolve([failed("driver", "driver.cuinit.hang")], NUMBERS)
    (blind,) = resolve([failed("driver", "driver.cuinit.hang"), open_log], NUMBERS)
    assert (seen.confidence, seen.surer) == (0.9, "")
    assert blind.confidence == 0.75
    assert "kernel log" in blind.surer


def test_what_the_kernel_log_cannot_explain_is_as_certain_without_it() -> None:
    open_log = record("kernel", Outcome.WARNED, checks=(unknown("P86", "dmesg is restricted", Kind.OBSERVABILITY),))
    (blocker,) = resolve([failed("service", "service.env.ollama_llm_library"), open_log], NUMBERS)
    assert (blocker.confidence, blocker.surer) == (catalogue.causes()["service.env.ollama_llm_library"].confidence, "")


def test_what_stops_a_required_stage_comes_before_what_merely_failed() -> None:
    beside = failed("nvml", "nvml.mig.no_instances", required=False)
    blockers = resolve([beside, failed("driver", "driver.copy.wrong")], NUMBERS)
    assert [blocker.stage for blocker in blockers] == ["driver", "nvml"]


def test_a_risk_of_another_stage_explains_only_what_names_it() -> None:
    full = warned("driver", "driver.memory.full")
    (blocker,) = resolve([full, failed("enumeration", "enumeration.gpu_missing")], NUMBERS)
    assert blocker.cause == "enumeration.gpu_missing"
