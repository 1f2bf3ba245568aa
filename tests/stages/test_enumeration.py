"""Stage 07 judged over the views of the stages before: who is seen by whom, and what is sane."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.model import CheckOutcome, Outcome
from tests.stages.enumeration_views import (
    MIG_UUID,
    NAME,
    TOTAL,
    causes,
    change,
    judged,
    mig_views,
    outcome,
    slot,
    uuid,
    views,
)
from tests.stages.hostile import ANYTHING, is_sound, mutated


@pytest.mark.parametrize("count", [1, 2, 8])
def test_views_that_agree(count: int) -> None:
    judgement = judged(views(count), "h100-sxm")
    assert causes(judgement) == {}
    assert outcome(judgement) is Outcome.PASSED
    assert judgement.summary == f"{count} x {NAME}, CC 9.0, 79.2 GiB (sysfs, NVML, CUDA agree)"
    gpus = judgement.facts["gpus"]
    assert [gpu["pci"] for gpu in gpus] == [slot(index) for index in range(count)]
    assert all(set(gpu["views"]) == {"sysfs", "nvml", "cuda", "pynvml", "cuda_python"} for gpu in gpus)
    assert "calls" not in gpus[0]["views"]["cuda"]  # identity, not the whole of a probe


DISAGREEMENTS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    (
        "PCI address as a wrong layout gives it",
        {"where": "driver", "pci": "99fff950:99fff9:0.0"},
        {"enumeration.pci_garbage": "failed"},
    ),
    ("PCI address of another slot", {"where": "driver", "pci": "0000:65:00.0"}, {"enumeration.pci_differs": "failed"}),
    ("no UUID", {"where": "driver", "uuid": None}, {"enumeration.uuid_garbage": "failed"}),
    (
        "a UUID of zeros",
        {"where": "driver", "uuid": "GPU-" + uuid(0)[4:].translate(str.maketrans("12345", "00000"))},
        {"enumeration.uuid_garbage": "failed", "enumeration.uuid_differs": "failed"},
    ),
    ("another UUID", {"where": "driver", "uuid": uuid(9)}, {"enumeration.uuid_differs": "failed"}),
    ("compute capability 0.0", {"where": "driver", "cc": [0, 0]}, {"enumeration.cc_garbage": "failed"}),
    ("another compute capability", {"where": "nvml", "cc": [8, 0]}, {"enumeration.cc_differs": "failed"}),
    ("no memory", {"where": "driver", "total_memory": 0}, {"enumeration.memory_garbage": "failed"}),
    ("half the memory", {"where": "driver", "total_memory": TOTAL // 2}, {"enumeration.memory_differs": "warned"}),
    ("another name", {"where": "driver", "name": "NVIDIA Graphics Device"}, {"enumeration.name_differs": "warned"}),
]


@pytest.mark.parametrize(("fault", "expected"), [d[1:] for d in DISAGREEMENTS], ids=[d[0] for d in DISAGREEMENTS])
def test_views_that_disagree(fault: dict[str, Any], expected: dict[str, str]) -> None:
    fields = {key: value for key, value in fault.items() if key != "where"}
    seen = change(views(), fault["where"], 0, **fields)
    for witness in ("pynvml", "cuda_python"):  # they repeat what the gate's own calls saw
        seen.pop(witness)
    assert causes(judged(seen)) == expected


def test_a_gpu_that_cuda_does_not_show_is_named_by_its_address() -> None:
    seen = views(2)
    del seen["driver"]["gpus"][1], seen["cuda_python"]["gpus"][1]
    judgement = judged(seen)
    assert causes(judgement) == {"enumeration.gpu_missing": "failed"}
    (check,) = [check for check in judgement.checks if check.finding]
    assert check.subject == f"gpu:{slot(1)}"
    assert check.reason.startswith(f"{slot(1)} ({NAME})")


def test_a_gpu_that_nvml_does_not_show_is_a_warning() -> None:
    seen = views(2)
    del seen["nvml"]["gpus"][1], seen["pynvml"]["gpus"][1]
    assert causes(judged(seen)) == {"enumeration.not_in_nvml": "warned"}


def test_without_nvml_sysfs_and_cuda_are_compared() -> None:
    seen = views(2)
    seen["nvml"] = {"init": None, "gpus": []}
    seen.pop("pynvml")
    judgement = judged(seen)
    assert causes(judgement) == {}
    assert judgement.summary.endswith("(sysfs, CUDA agree)")


@pytest.mark.parametrize("hidden", ["sysfs", "both"])
def test_a_masked_sys_is_no_fault(hidden: str) -> None:
    seen = views()
    seen["kernel"] = {"gpus": [], "nodes": {}}
    if hidden == "both":
        seen["nvml"] = {"gpus": []}
        seen.pop("pynvml")
    assert causes(judged(seen)) == {}


def test_two_devices_that_claim_to_be_one() -> None:
    seen = change(views(2), "driver", 1, uuid=uuid(0), pci=slot(0))
    assert causes(judged(seen))["enumeration.duplicate"] == "failed"


def test_no_gpu_at_all() -> None:
    judgement = judged({"kernel": {"gpus": []}, "nvml": {"gpus": []}, "driver": {"gpus": []}})
    assert causes(judgement) == {"enumeration.no_gpu": "failed"}


# --- GPUs that are on the bus and not ours ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "state", "expected"),
    [
        ({"driver": "vfio-pci"}, "missing", None),
        ({}, "missing", None),  # a container that was given some of the GPUs
        ({}, "cgroup", None),
        ({}, "ok", "enumeration.only_in_sysfs"),
        ({"minor": None}, "ok", None),  # bound, and taken out of /proc/driver/nvidia/gpus: a container
        ({"minor": None, "driver": None}, "ok", "enumeration.only_in_sysfs"),  # no module knows it
    ],
)
def test_a_gpu_that_only_sysfs_shows(fields: dict[str, Any], state: str, expected: str | None) -> None:
    seen = views(2)
    for view in ("nvml", "driver", "pynvml", "cuda_python"):
        del seen[view]["gpus"][1]
    seen = change(seen, "kernel", 1, **fields)
    seen["kernel"]["nodes"]["/dev/nvidia1"] = state
    judgement = judged(seen)
    assert set(causes(judgement)) == ({expected} if expected else set())
    (check,) = [check for check in judgement.checks if check.subject == f"gpu:{slot(1)}"]
    assert check.outcome is (CheckOutcome.WARNED if expected else CheckOutcome.NOT_APPLICABLE)
    assert check.reason


# --- CUDA_VISIBLE_DEVICES and MIG ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown", "missing"),
    [
        ("1", [1], []),
        ("1,0", [0, 1], []),
        ("0,7,1", [0], []),  # the list ends at the index that is not there
        (uuid(1), [1], []),
        (uuid(1)[:12], [1], []),  # as short as it is unique
        ("0,1", [0], [1]),
        (uuid(1), [0], [1]),
    ],
)
def test_what_cuda_visible_devices_hides_is_not_missing(value: str, shown: list[int], missing: list[int]) -> None:
    seen = views(2)
    for view in ("driver", "cuda_python"):
        seen[view]["gpus"] = [seen[view]["gpus"][index] for index in shown]
    judgement = judged(seen, env={"CUDA_VISIBLE_DEVICES": value})
    found = [check for check in judgement.checks if check.finding]
    assert [(check.subject, check.finding and check.finding.cause) for check in found] == [
        (f"gpu:{slot(index)}", "enumeration.gpu_missing") for index in missing
    ]
    hidden = {check.subject for check in judgement.checks if check.outcome is CheckOutcome.NOT_APPLICABLE}
    assert hidden == {f"gpu:{slot(i)}" for i in (0, 1) if i not in shown and i not in missing}


def test_a_mig_instance_is_compared_with_its_instance_and_not_with_the_board() -> None:
    judgement = judged(mig_views(), "h100-sxm")
    assert causes(judgement) == {}
    (gpu,) = judgement.facts["gpus"]
    assert gpu["mig"] is True
    assert gpu["uuid"] == "GPU-" + MIG_UUID[4:]


def test_a_mig_instance_that_nvml_does_not_have() -> None:
    seen = mig_views()
    seen["driver"]["gpus"][0]["uuid"] = uuid(7)
    assert causes(judged(seen))["enumeration.uuid_differs"] == "failed"


def test_instances_that_nvml_may_not_list_say_nothing_of_a_uuid() -> None:
    seen = mig_views()
    for gpu in seen["nvml"]["gpus"]:
        gpu["instances"] = []
    assert "enumeration.uuid_differs" not in causes(judged(seen))


def test_further_gpus_in_mig_mode_are_not_missing() -> None:
    seen = mig_views()
    more = change(views(2), "nvml", 1, mig=True, instances=[{"uuid": "MIG-" + uuid(6)[4:]}])
    for view in ("kernel", "nvml", "pynvml"):
        seen[view]["gpus"].append(more[view]["gpus"][1])
    judgement = judged(seen)
    assert causes(judgement) == {}
    assert any("one instance at most" in check.reason for check in judgement.checks)


# --- hostile input ---------------------------------------------------------------------------------------------------


@settings(deadline=None)  # a loaded machine is no failure
@given(mutated(views(2)), st.sampled_from(["any", "h100-sxm"]), st.none() | st.text(max_size=12))
def test_hostile_views_never_raise(seen: dict[str, Any], profile: str, hidden: str | None) -> None:
    judgement = judged(seen, profile, {} if hidden is None else {"CUDA_VISIBLE_DEVICES": hidden})
    is_sound(judgement)
    assert all(set(gpu) == {"pci", "uuid", "mig", "views"} for gpu in judgement.facts["gpus"])


@settings(deadline=None)  # a loaded machine is no failure
@given(st.dictionaries(st.sampled_from(["kernel", "nvml", "driver", "pynvml", "cuda_python"]), ANYTHING))
def test_any_object_at_all_never_raises(seen: dict[str, Any]) -> None:
    is_sound(judged(seen))
