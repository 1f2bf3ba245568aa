"""05 nvml on simulated hosts with real children: every kind of fault ends in its outcome and its cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpudiscovery.stages import nvml
from tests.stages import chain

FAULTS = [
    ("h100", "passed", None),
    ("h100x2", "passed", None),
    ("h100x8", "passed", None),
    ("h100-mig", "passed", None),
    ("h100-cuda12", "passed", None),
    ("h100:fabric.unsupported", "passed", None),
    ("h100:compute.exclusive", "passed", None),
    ("h100:compute.exclusive_ollama", "passed", None),
    ("h100:persistence.off", "passed", None),
    ("h100:nvml.init.4", "warned", "nvml.no_permission"),
    ("h100:nvml.init.9", "warned", "nvml.driver_not_loaded"),
    ("h100:nvml.init.18", "warned", "nvml.version_mismatch"),
    ("h100:nvml.init.999", "warned", "nvml.unknown"),
    ("h100:nvml.count.zero", "warned", "nvml.no_gpu"),
    ("h100:nvml.handle.15", "warned", "nvml.gpu_lost"),
    ("h100:nvml.uuid.6", "warned", "nvml.memory.by_uuid"),
    ("h100:nvml.memory.zero", "warned", "nvml.memory.zero"),
    ("h100:nvml.empty", "warned", "nvml.unloadable"),
    ("h100:nvml.lacks=nvmlDeviceGetMemoryInfo", "warned", "nvml.function_missing"),
    ("h100:nvml.lacks=nvmlInit_v2", "warned", "nvml.function_missing"),
    ("h100:nvml.foreign_version", "warned", "nvml.version_mismatch"),
    ("h100:ecc.uncorrected", "warned", "nvml.ecc.uncorrectable"),
    ("h100:rows.failed", "warned", "nvml.rows.failed"),
    ("h100:mig.pending", "warned", "nvml.mig.pending"),
    ("h100:mig.no_instances", "failed", "nvml.mig.no_instances"),
    ("h100:compute.prohibited", "failed", "nvml.compute_mode.prohibited"),
    ("h100:compute.exclusive_held", "failed", "nvml.compute_mode.held"),
    ("h100x8:fabric.in_progress", "failed", "nvml.fabric.not_ready"),
    ("h100x8:fabric.failed", "failed", "nvml.fabric.failed"),
    ("h100x8:fabric.degraded", "warned", "nvml.fabric.degraded"),
    ("h100:confcompute.not_ready", "failed", "nvml.conf.not_ready"),
    ("h100:crash.nvmlinit.segv", "crashed", "nvml.crash"),
    ("h100:crash.nvmlinit.exit0", "crashed", "engine.probe.no_answer"),
    ("h100:nvml.truncated", "crashed", "nvml.crash"),
]


@pytest.mark.parametrize(("text", "outcome", "cause"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_ends_in_its_outcome_and_cause(text: str, outcome: str, cause: str | None, tmp_path: Path) -> None:
    record = chain.run(text, tmp_path, nvml)["nvml"]
    assert record.outcome.value == outcome
    assert chain.causes(record) == ({cause} if cause else set())


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("h100:hang.nvmlctor.sleep", "nvml.dlopen.hang"),
        ("h100:hang.dlopen.nvml", "nvml.dlopen.hang"),
        ("h100:hang.nvmlinit.futex", "nvml.init.hang"),
        ("h100:hang.nvmlcount.signals", "nvml.hang"),
        ("h100:hang.nvmlmemory.spin", "nvml.hang"),
    ],
)
def test_a_hang_names_the_call(text: str, cause: str, tmp_path: Path) -> None:
    record = chain.run(text, tmp_path, nvml, deadline_s=chain.HANG_S)["nvml"]
    assert record.outcome.value == "timed_out"
    assert chain.causes(record) == {cause}
    assert record.facts["hung_probe"] is True
