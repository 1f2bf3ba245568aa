"""probes/nvml.py in real children: on simulated drivers, on libraries that lack functions, and on nothing at all."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.probes import nvml_structs
from pytest_gpudiscovery.supervise.types import Ending
from tests.probes.native import child, host, library, steps

pynvml = pytest.importorskip("pynvml")

PAIRS = [
    (nvml_structs.PciInfo, pynvml.nvmlPciInfo_t),
    (nvml_structs.Memory, pynvml.c_nvmlMemory_t),
    (nvml_structs.ConfComputeState, pynvml.c_nvmlConfComputeSystemState_t),
    (nvml_structs.FabricInfo, pynvml.c_nvmlGpuFabricInfo_t),
    (nvml_structs.FabricInfoV2, pynvml.c_nvmlGpuFabricInfo_v2_t),
    (nvml_structs.ProcessInfo, pynvml.c_nvmlProcessInfo_v2_t),
    (nvml_structs.MigAttributes, pynvml.c_nvmlDeviceAttributes),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda kind: kind.__name__)
def test_structures_are_laid_out_as_in_nvidias_own_binding(ours: Any, theirs: Any) -> None:
    assert ctypes.sizeof(ours) == ctypes.sizeof(theirs)


def test_every_fact_of_a_healthy_gpu(tmp_path: Path) -> None:
    made = host("h100", tmp_path)
    result = child("nvml", {"view": made.view}, made.env)
    assert result.ending is Ending.ANSWERED, result.stderr
    answer = {**result.observed, **result.answer}
    assert answer["nvmlInit_v2"] == {"rc": 0}
    assert answer["missing"] == []
    assert answer["library"]["version"] == answer["system"]["driver_version"] == "580.159.04"
    assert answer["system"]["cuda_driver"] == 13000
    assert answer["count"] == {"rc": 0, "count": 1}
    assert answer["shutdown"] == {"rc": 0}
    (gpu,) = answer["gpus"]
    assert gpu["name"] == "NVIDIA H100 80GB HBM3"
    assert gpu["pci"] == "00000000:00:06.0"
    assert gpu["cc"] == [9, 0]
    assert gpu["minor"] == 0
    assert gpu["memory"] == gpu["memory_by_uuid"]
    assert gpu["memory"]["total"] == 81559 << 20
    assert (gpu["persistence"], gpu["compute_mode"], gpu["mig_mode"]) == (1, 0, [0, 0])
    assert gpu["ecc_mode"] == [1, 1]
    assert gpu["remapped_rows"]["failed"] == 0
    assert gpu["processes"] == []
    assert "instances" not in gpu
    names = list(steps(result))
    assert names[:4] == ["dlopen libnvidia-ml.so.1", "nvmlInit_v2", "system", "nvmlDeviceGetCount_v2"]
    assert names[-1] == "nvmlShutdown"


def test_mig_instances_and_who_computes_are_named(tmp_path: Path) -> None:
    made = host("h100-mig", tmp_path / "mig")
    (gpu,) = child("nvml", {"view": made.view}, made.env).answer["gpus"]
    assert gpu["mig_mode"][0] == 1
    assert len({instance["uuid"] for instance in gpu["instances"]}) == len(gpu["instances"]) == 2
    assert all(instance["uuid"].startswith("MIG-") and instance["sm_count"] for instance in gpu["instances"])
    busy = host("h100:gpu.busy_ollama", tmp_path / "busy")
    (gpu,) = child("nvml", {"view": busy.view}, busy.env).answer["gpus"]
    assert [process["name"] for process in gpu["processes"]] == ["ollama"]


def test_functions_that_are_missing_are_facts(tmp_path: Path) -> None:
    made = host("h100:nvml.lacks=nvmlDeviceGetHandleByUUID", tmp_path)
    result = child("nvml", {"view": made.view}, made.env)
    assert result.observed["missing"] == ["nvmlDeviceGetHandleByUUID"]
    (gpu,) = result.answer["gpus"]
    assert gpu["calls"]["nvmlDeviceGetHandleByUUID"] == {"missing": "nvmlDeviceGetHandleByUUID"}
    assert gpu["memory_by_uuid"] is None
    assert gpu["memory"]["total"] > 0


def test_a_library_that_is_no_nvml_at_all(tmp_path: Path) -> None:
    library(tmp_path / "libnvidia-ml.so.1", "int nvmlInit_v2(void) { return 0; }\n", "libnvidia-ml.so.1")
    result = child("nvml", {}, {"LD_LIBRARY_PATH": str(tmp_path)})
    assert result.ending is Ending.ANSWERED, result.stderr
    assert result.answer["count"] == {"missing": "nvmlDeviceGetCount_v2", "count": 0}
    assert result.answer["gpus"] == []
    assert result.observed["missing"] == ["nvmlShutdown", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMemoryInfo"]


def test_an_nvml_of_another_file_format_is_the_loaders_text(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    result = child("nvml", {}, {"LD_LIBRARY_PATH": str(tmp_path)})
    assert result.answer == {"dlopen": {"error": f"{tmp_path}/libnvidia-ml.so.1: file too short"}}


def _no_nvml_here() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1", mode=os.RTLD_NOLOAD)
    except OSError:
        pass
    return not any(Path(where, "libnvidia-ml.so.1").exists() for where in ("/usr/lib64", "/usr/lib/x86_64-linux-gnu"))


@pytest.mark.skipif(not _no_nvml_here(), reason="this machine has NVIDIA's driver")
def test_nothing_installed_is_said_at_once() -> None:
    result = child("nvml", {}, {})
    assert result.ending is Ending.ANSWERED
    assert result.answer["dlopen"]["error"].startswith("libnvidia-ml.so.1: cannot open shared object file")


def test_what_was_seen_survives_a_hang_in_a_later_call(tmp_path: Path) -> None:
    made = host("h100x2:hang.nvmlmemory.sleep", tmp_path)
    result = child("nvml", {"view": made.view}, made.env, deadline_s=1.5)
    assert result.ending is Ending.TIMED_OUT
    assert result.open_step is not None
    assert result.open_step.name == "memory of GPU 0"
    assert result.observed["count"]["count"] == 2
    assert result.answer is None


@pytest.mark.parametrize("version", ["535.183.01", "470.256.02"])
def test_an_older_driver_only_lacks_answers(tmp_path: Path, version: str) -> None:
    made = host("h100:driver.r535" if version.startswith("535") else "h100:driver.r470", tmp_path)
    result = child("nvml", {"view": made.view}, made.env)
    assert result.ending is Ending.ANSWERED, result.stderr
    assert result.answer["system"]["driver_version"] == version
    assert result.answer["gpus"][0]["memory_by_uuid"]["total"] > 0
