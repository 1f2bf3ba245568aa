"""Stage 05 judged over what its probe can see; nothing that NVML answers makes it raise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.diagnosis import catalogue, errors
from pytest_gpudiscovery.model import CheckOutcome, Kind, Outcome, Step
from pytest_gpudiscovery.outcome import conclude
from pytest_gpudiscovery.stages import nvml
from pytest_gpudiscovery.stages.spec import Judgement, StageInput
from tests.fakes import context, record, result
from tests.stages.hostile import ANYTHING, is_sound, mutated

UUID = "GPU-11111111-2222-3333-4444-555555555555"
OTHER = "GPU-66666666-2222-3333-4444-555555555555"


def gpu(index: int = 0, **changes: Any) -> dict[str, Any]:
    """Return one healthy GPU as the probe describes it; CHANGES replace parts."""
    return {
        "index": index,
        "handle": {"rc": 0},
        "calls": {"nvmlDeviceGetGpuFabricInfoV": {"rc": 3}, "nvmlDeviceGetGpuFabricInfo": {"rc": 3}},
        "name": "NVIDIA H100 80GB HBM3",
        "uuid": UUID if index == 0 else OTHER,
        "pci": f"00000000:00:{6 + index:02x}.0",
        "minor": index,
        "cc": [9, 0],
        "cores": 16896,
        "memory": {"total": 85520809984, "free": 85014085632, "used": 506724352},
        "memory_by_uuid": {"total": 85520809984, "free": 85014085632, "used": 506724352},
        "persistence": 1,
        "compute_mode": 0,
        "mig_mode": [0, 0],
        "virtualization": 1,
        "gsp_firmware": "580.159.04",
        "ecc_mode": [1, 1],
        "ecc_uncorrectable": 0,
        "remapped_rows": {"correctable": 0, "uncorrectable": 0, "pending": 0, "failed": 0},
        "fabric": None,
        "processes": [],
        **changes,
    }


def healthy(*gpus: dict[str, Any]) -> dict[str, Any]:
    """Return what the probe sees on a healthy host with GPUS, else one."""
    members = list(gpus) or [gpu()]
    return {
        "dlopen": {"rc": 0},
        "library": {"path": "/usr/lib/libnvidia-ml.so.580.159.04", "version": "580.159.04"},
        "missing": [],
        "nvmlInit_v2": {"rc": 0},
        "system": {"driver_version": "580.159.04", "cuda_driver": 13000, "conf_compute": None, "calls": {}},
        "count": {"rc": 0, "count": len(members)},
        "gpus": members,
        "shutdown": {"rc": 0},
    }


def judged(seen: dict[str, Any], init_s: float = 0.013) -> Judgement:
    """Return the judgement over an answered probe whose nvmlInit_v2 took INIT_S."""
    steps = (Step("dlopen libnvidia-ml.so.1", 0.01, 0.002), Step("nvmlInit_v2", 0.02, init_s, 0))
    prior = {"kernel": record("kernel", Outcome.PASSED, facts={"module_version": "580.159.04"})}
    return nvml.judge(StageInput(context(), {"nvml": result(answer=seen, steps=steps)}, prior, 45.0))


def causes(judgement: Judgement) -> dict[str, str]:
    """Return cause -> outcome of what was found."""
    return {check.finding.cause: check.outcome.value for check in judgement.checks if check.finding}


def outcome(judgement: Judgement) -> Outcome:
    """Return what the engine makes of JUDGEMENT."""
    return conclude(nvml.SPEC, judgement, {}, started=0.0, deadline_s=45.0).outcome


def test_a_healthy_host_passes_every_row_and_leaves_the_facts() -> None:
    judgement = judged(healthy(gpu(0), gpu(1, processes=[{"pid": 4711, "memory": 1 << 30, "name": "python3"}])))
    assert causes(judgement) == {}
    assert outcome(judgement) is Outcome.PASSED
    assert {check.prerequisite for check in judgement.checks} == set(nvml.SPEC.rows)
    assert judgement.summary == "nvmlInit 13 ms, driver 580.159.04, 2 x NVIDIA H100 80GB HBM3"
    facts = judgement.facts
    assert (facts["driver_version"], facts["cuda_driver"]) == ("580.159.04", 13000)
    assert [item["pci"] for item in facts["gpus"]] == ["0000:00:06.0", "0000:00:07.0"]  # as sysfs spells it
    assert facts["in_use"] == {"0000:00:07.0": [4711]}
    assert facts["gpus"][0]["mig"] is False
    assert facts["gpus"][0]["ecc"] is True


LIBRARY = [
    ("libnvidia-ml.so.1: cannot open shared object file: No such file or directory", "nvml.missing"),
    ("/usr/lib/libnvidia-ml.so.1: file too short", "nvml.unloadable"),
    ("libfoo.so: cannot open shared object file: No such file or directory", "nvml.unloadable"),
]


@pytest.mark.parametrize(("error", "cause"), LIBRARY)
def test_no_nvml_is_a_warning_because_ollama_works_without_it(error: str, cause: str) -> None:
    judgement = judged({"dlopen": {"error": error}})
    assert causes(judgement) == {cause: "warned"}
    assert outcome(judgement) is Outcome.WARNED
    assert judgement.facts["gpus"] == []
    unknown = [check for check in judgement.checks if check.outcome is CheckOutcome.UNKNOWN]
    assert {check.prerequisite for check in unknown} == set(nvml.STATE_ROWS)  # said, and no reason to block


@pytest.mark.parametrize("entry", [code for code in errors.codes("nvml") if code.code != 0], ids=lambda code: code.name)
@pytest.mark.parametrize("call", ["nvmlInit_v2", "count", "handle"])
def test_every_error_code_is_named_wherever_it_comes(entry: errors.Code, call: str) -> None:
    seen = healthy()
    if call == "handle":
        seen["gpus"][0] = {"index": 0, "handle": {"rc": entry.code}, "calls": {}}
    else:
        seen[call] = {"rc": entry.code}
    judgement = judged(seen)
    assert causes(judgement) == {entry.cause or "nvml.error": "warned"}
    finding = next(check.finding for check in judgement.checks if check.finding)
    assert "?" not in finding.summary
    assert "{" not in finding.summary + finding.detail + finding.next
    assert outcome(judgement) is Outcome.WARNED


GPU_FAULTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("prohibited", {"compute_mode": 2}, "nvml.compute_mode.prohibited", "failed"),
    (
        "exclusive, held",
        {"compute_mode": 3, "processes": [{"pid": 9, "name": "python3"}]},
        "nvml.compute_mode.held",
        "failed",
    ),
    ("MIG without instances", {"mig_mode": [1, 1], "instances": []}, "nvml.mig.no_instances", "failed"),
    ("MIG at the next reset", {"mig_mode": [0, 1]}, "nvml.mig.pending", "warned"),
    ("no memory", {"memory_by_uuid": {"total": 0}}, "nvml.memory.zero", "warned"),
    ("no UUID", {"uuid": None}, "nvml.memory.no_uuid", "warned"),
    (
        "unknown by UUID",
        {"memory_by_uuid": None, "calls": {"nvmlDeviceGetHandleByUUID": {"rc": 6}}},
        "nvml.memory.by_uuid",
        "warned",
    ),
    ("ECC", {"ecc_uncorrectable": 3}, "nvml.ecc.uncorrectable", "warned"),
    ("row pending", {"remapped_rows": {"pending": 1, "failed": 0}}, "nvml.rows.pending", "warned"),
    ("row failed", {"remapped_rows": {"pending": 1, "failed": 1}}, "nvml.rows.failed", "warned"),
    ("fabric", {"fabric": {"state": 1, "status": 0, "health_mask": 0}}, "nvml.fabric.not_ready", "failed"),
    ("fabric busy", {"fabric": {"state": 2, "status": 0, "health_mask": 0}}, "nvml.fabric.not_ready", "failed"),
    ("fabric refused", {"fabric": {"state": 3, "status": 999, "health_mask": 0}}, "nvml.fabric.failed", "failed"),
    ("fabric degraded", {"fabric": {"state": 3, "status": 0, "health_mask": 0x1}}, "nvml.fabric.degraded", "warned"),
    ("fabric set wrong", {"fabric": {"state": 3, "status": 0, "health_mask": 0x300}}, "nvml.fabric.degraded", "warned"),
]


@pytest.mark.parametrize(
    ("changes", "cause", "state"), [fault[1:] for fault in GPU_FAULTS], ids=[f[0] for f in GPU_FAULTS]
)
def test_the_state_of_a_gpu(changes: dict[str, Any], cause: str, state: str) -> None:
    assert causes(judged(healthy(gpu(**changes)))) == {cause: state}


GPU_WELL: list[tuple[str, dict[str, Any]]] = [
    ("exclusive and free", {"compute_mode": 3}),
    ("exclusive, held by Ollama", {"compute_mode": 3, "processes": [{"pid": 9, "name": "ollama"}]}),
    ("exclusive, held by its runner", {"compute_mode": 3, "processes": [{"pid": 9, "name": "llama-server"}]}),
    ("exclusive, held by MPS", {"compute_mode": 3, "processes": [{"pid": 9, "name": "nvidia-cuda-mps"}]}),
    ("a fabric that is well", {"fabric": {"state": 3, "status": 0, "health_mask": 0x1AA}}),
    ("a board outside of any fabric", {"fabric": {"state": 0, "status": 3, "health_mask": 0}}),
    ("MIG with an instance", {"mig_mode": [1, 1], "instances": [{"uuid": "MIG-" + UUID[4:]}]}),
    ("no MIG on this board", {"mig_mode": None}),
    ("no ECC on this board", {"ecc_mode": None, "ecc_uncorrectable": None, "remapped_rows": None}),
    ("persistence off, but quick", {"persistence": 0}),
]


@pytest.mark.parametrize("changes", [case[1] for case in GPU_WELL], ids=[case[0] for case in GPU_WELL])
def test_what_is_no_fault(changes: dict[str, Any]) -> None:
    judgement = judged(healthy(gpu(**changes)))
    assert causes(judgement) == {}
    assert outcome(judgement) is Outcome.PASSED


def test_not_allowed_to_list_mig_instances_is_unknown_never_a_fault() -> None:
    call = {"nvmlDeviceGetMigDeviceHandleByIndex": {"rc": 4}}
    judgement = judged(healthy(gpu(mig_mode=[1, 1], instances=[], calls=call)))
    (check,) = [check for check in judgement.checks if check.prerequisite == "P61"]
    assert (check.outcome, check.kind, check.finding) == (CheckOutcome.UNKNOWN, Kind.BLOCKING, None)


def test_a_fault_of_one_gpu_is_a_warning_while_another_is_left() -> None:
    mixed = judged(healthy(gpu(0, compute_mode=2), gpu(1)))
    assert causes(mixed) == {"nvml.compute_mode.prohibited": "warned"}
    none_left = judged(healthy(gpu(0, compute_mode=2), gpu(1, mig_mode=[1, 1], instances=[])))
    assert set(causes(none_left).values()) == {"failed"}


def test_a_fabric_that_is_not_ready_is_one_finding_for_all_gpus() -> None:
    fabric = {"state": 2, "status": 0, "health_mask": 0}
    judgement = judged(healthy(*(gpu(index, fabric=fabric) for index in range(8))))
    found = [check for check in judgement.checks if check.finding]
    assert [(check.subject, check.outcome) for check in found] == [("host", CheckOutcome.FAILED)]
    assert found[0].finding is not None
    assert found[0].finding.summary.startswith("GPU 0, 1, 2, 3, 4, 5, 6, 7: NVSwitch fabric in progress")


@pytest.mark.parametrize(
    ("persistence", "seconds", "expected"),
    [
        (0, 3.5, {"nvml.persistence.slow": "warned"}),
        (1, 3.5, {"nvml.init.slow": "warned"}),
        (0, 2.9, {}),
        (None, 0.1, {}),
    ],
)
def test_a_slow_start_is_said_with_its_reason(
    persistence: int | None, seconds: float, expected: dict[str, str]
) -> None:
    assert causes(judged(healthy(gpu(persistence=persistence)), seconds)) == expected


@pytest.mark.parametrize(("ready", "expected"), [(0, {"nvml.conf.not_ready": "failed"}), (1, {}), (None, {})])
def test_confidential_computing(ready: int | None, expected: dict[str, str]) -> None:
    seen = healthy()
    seen["system"] |= {"conf_compute": {"environment": 2, "cc_feature": 1}, "conf_compute_ready": ready}
    judgement = judged(seen)
    assert causes(judgement) == expected
    (check,) = [check for check in judgement.checks if check.prerequisite == "P44"]
    assert (check.outcome is CheckOutcome.UNKNOWN) == (ready is None)


def test_missing_functions_are_named_once() -> None:
    seen = healthy(
        gpu(memory_by_uuid=None, calls={"nvmlDeviceGetHandleByUUID": {"missing": "nvmlDeviceGetHandleByUUID"}})
    )
    seen["missing"] = ["nvmlDeviceGetHandleByUUID"]
    assert causes(judged(seen)) == {"nvml.function_missing": "warned"}


@pytest.mark.parametrize("cut", ["nvmlInit_v2", "count", "gpus"])
def test_what_a_child_had_seen_before_it_hung_is_judged_and_no_more(cut: str) -> None:
    seen = healthy()
    order = ["dlopen", "library", "missing", "nvmlInit_v2", "system", "count", "gpus"]
    observed = {key: seen[key] for key in order[: order.index(cut)]}
    given_ = StageInput(context(), {"nvml": result(answer=None, observed=observed)}, {}, 45.0)
    judgement = nvml.judge(given_)
    assert causes(judgement) == {}
    assert not any(check.outcome is CheckOutcome.FAILED for check in judgement.checks)


def test_hang_and_crash_causes_exist_and_cover_every_step() -> None:
    for table in (nvml.SPEC.hang_causes, nvml.SPEC.crash_causes):
        assert "" in table  # the rest
        assert set(table.values()) <= set(catalogue.causes())


@settings(deadline=None)  # a loaded machine is no failure
@given(
    mutated(healthy(gpu(0), gpu(1, mig_mode=[1, 1], instances=[{"uuid": "MIG-1"}], fabric={"state": 3, "status": 0})))
)
def test_hostile_observations_never_raise(seen: dict[str, Any]) -> None:
    judgement = judged(copy.deepcopy(seen))
    is_sound(judgement)
    for item in judgement.facts["gpus"]:
        assert isinstance(item["pids"], list)


@settings(deadline=None)  # a loaded machine is no failure
@given(st.dictionaries(st.sampled_from(sorted(healthy())), ANYTHING))
def test_any_object_at_all_never_raises(seen: dict[str, Any]) -> None:
    is_sound(judged(seen))
