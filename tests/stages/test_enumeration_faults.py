"""07 enumeration on simulated hosts with real children, the second witnesses among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpudiscovery.stages import driver, enumeration, kernel, nvml
from tests.stages import chain

pytest.importorskip("pynvml")
pytest.importorskip("cuda.bindings.driver")

FAULTS = [
    ("h100", "h100-sxm", "passed", set()),
    ("h100x8", "h100", "passed", set()),
    ("h100-pcie", "h100-pcie", "passed", set()),
    ("h100-nvl", "h100-nvl", "passed", set()),
    ("h200", "h200", "passed", set()),
    ("h100-mig", "h100-sxm", "passed", set()),
    ("h100-cuda12", "h100", "passed", set()),
    ("h100:driver.r470", "any", "passed", set()),
    ("h100:nvml.missing", "any", "passed", set()),
    ("h100:env.cuda_visible_devices.right", "any", "passed", set()),
    ("h100x2:env.cuda_visible_devices=1", "h100", "passed", set()),
    ("h100:nvml.handle.15", "any", "passed", set()),
    ("h100x2:views.count", "any", "failed", {"enumeration.gpu_missing"}),
    ("h100x2:views.count_nvml", "any", "warned", {"enumeration.not_in_nvml"}),
    ("h100:views.uuid", "any", "failed", {"enumeration.uuid_differs"}),
    ("h100:views.pci", "any", "failed", {"enumeration.pci_garbage"}),
    ("h100:views.pci_other", "any", "failed", {"enumeration.pci_differs"}),
    ("h100:views.cc_nvml", "any", "failed", {"enumeration.cc_differs"}),
    ("h100:views.memory", "any", "warned", {"enumeration.memory_differs"}),
    ("h100:views.name", "any", "warned", {"enumeration.name_differs"}),
    ("h100:gpu.sms", "h100-sxm", "failed", {"enumeration.profile.sm_count"}),
    ("h100:gpu.memory", "h100-sxm", "failed", {"enumeration.profile.memory"}),
    ("h100:ecc.off", "h100-sxm", "warned", {"enumeration.profile.ecc"}),
]


@pytest.mark.parametrize(("text", "profile", "outcome", "causes"), FAULTS, ids=[f"{f[0]} {f[1]}" for f in FAULTS])
def test_a_fault_ends_in_its_outcome_and_cause(
    text: str, profile: str, outcome: str, causes: set[str], tmp_path: Path
) -> None:
    records = chain.run(text, tmp_path, kernel, nvml, driver, enumeration, profile=profile)
    record = records["enumeration"]
    assert chain.causes(record) == causes
    assert record.outcome.value == outcome


def test_the_views_of_a_gpu_stand_side_by_side(tmp_path: Path) -> None:
    record = chain.run("h100x2", tmp_path, kernel, nvml, driver, enumeration)["enumeration"]
    assert [gpu["pci"] for gpu in record.facts["gpus"]] == ["0000:00:06.0", "0000:00:07.0"]
    for gpu in record.facts["gpus"]:
        assert set(gpu["views"]) == {"sysfs", "nvml", "cuda", "pynvml", "cuda_python"}
        assert gpu["uuid"] == gpu["views"]["nvml"]["uuid"]
