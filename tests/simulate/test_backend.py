"""The simulated libggml-cuda: read through the documented structures by a program that does not know the simulator."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import pytest

from pytest_gpudiscovery.simulate.ollama import RELEASE_B, RELEASE_C
from tests.simulate.conftest import Read

UUID = "GPU-00000000-0000-4000-8000-000000000000"
TOTAL, VISIBLE = 85520809984, 85017493504  # bytes: what NVML and what the driver API call the memory of this board
GOOD_B = f"""ggml_cuda_init: GGML_CUDA_FORCE_MMQ:    no
ggml_cuda_init: GGML_CUDA_FORCE_CUBLAS: no
ggml_cuda_init: found 1 CUDA devices:
  Device 0: NVIDIA H100 80GB HBM3, compute capability 9.0, VMM: yes, ID: {UUID}
ggml_backend_cuda_device_get_memory device {UUID} utilizing NVML memory reporting free: N total: {TOTAL}
"""
GOOD_C = """ggml_cuda_init: found 1 CUDA devices (Total VRAM: 81079 MiB):
  Device 0: NVIDIA H100 80GB HBM3, compute capability 9.0, VMM: yes, VRAM: 81079 MiB
"""


def said(read: Read, text: str, *arguments: str, **options: Any) -> dict[str, Any]:
    """Return what the reader said of TEXT."""
    done = read(text, *arguments, **options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("directory", ["cuda_v12", "cuda_v13"])
def test_ollamas_own_layout(read: Read, directory: str) -> None:
    found = said(read, "h100-ollama", directory)
    (device,) = found.pop("devices")
    archs = RELEASE_B.code[directory[-2:]].architectures
    features = {"ARCHS": archs, "USE_GRAPHS": "1", "PEER_MAX_BATCH_SIZE": "128"}
    assert found == {"api_version": 2, "name": "CUDA", "unknown": False, "features": features}
    free, total = device.pop("memory")
    assert (total, 0 < free < total) == (TOTAL, True)
    assert device == {
        "name": "CUDA0",
        "accessor": "CUDA0",
        "description": "NVIDIA H100 80GB HBM3",
        "type": 1,
        "id": UUID,
        "device_id": "0000:00:06.0",
        "library": "CUDA",
        "driver": [13, 0],
        "compute": [9, 0],
        "integrated": 0,
        "props_memory": [0, 0],  # Ollama leaves them empty: asking would cost a context
        "caps": [1, 1, 0, 1],
        "reg": True,
        "accessor_reg": True,
        "nvml": [False, False],  # opened at the question for memory, and closed again
    }


@pytest.mark.parametrize("directory", ["cuda_v12", "cuda_v13"])
def test_llama_cpps_layout(read: Read, directory: str) -> None:
    found = said(read, "h100-ollama-c", directory)
    (device,) = found["devices"]
    assert (found["api_version"], found["name"]) == (2, "CUDA")
    assert found["features"]["ARCHS"] == RELEASE_C.code[directory[-2:]].architectures
    free, total = device["memory"]
    assert (total, 0 < free < total) == (VISIBLE, True)
    assert device["props_memory"] == [free, total]
    assert device["description"] == "NVIDIA H100 80GB HBM3"
    assert (device["device_id"], device["type"]) == ("0000:00:06.0", 1)
    assert (device["reg"], device["accessor_reg"], device["nvml"]) == (True, True, [False, False])


def test_what_it_prints(read: Read) -> None:
    assert re.sub(r"free: \d+", "free: N", read("h100-ollama").stderr) == GOOD_B
    assert read("h100-ollama-c").stderr == GOOD_C
    nothing = read("h100-ollama", env={"CUDA_VISIBLE_DEVICES": ""})
    assert nothing.stderr == "ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected\n"
    assert json.loads(nothing.stdout)["devices"] == []


def test_without_nvml_the_runtime_is_asked(read: Read) -> None:
    for fault in ("nvml.init.999", "nvml.uuid.6", "nvml.lacks=nvmlDeviceGetName"):
        (device,) = said(read, f"h100-ollama:{fault}")["devices"]
        assert device["memory"][1] == VISIBLE, fault


def test_the_second_pass(read: Read) -> None:
    second = {"CUDA_VISIBLE_DEVICES": UUID, "GGML_CUDA_INIT": "1"}
    assert len(said(read, "h100x2-ollama")["devices"]) == 2
    assert [device["id"] for device in said(read, "h100x2-ollama", env=second)["devices"]] == [UUID]
    assert said(read, "h100x2-ollama:backend.second_pass.none", env=second)["devices"] == []
    assert len(said(read, "h100x2-ollama:backend.second_pass.none")["devices"]) == 2


@pytest.mark.parametrize("fault", ["code.sm_80_only", "code.compute_80_only"])
def test_the_second_pass_refuses_what_it_was_not_compiled_for(read: Read, fault: str) -> None:
    assert len(said(read, f"h100-ollama:{fault}")["devices"]) == 1  # the first pass does not look
    done = read(f"h100-ollama:{fault}", env={"GGML_CUDA_INIT": "1"})
    assert done.returncode == -signal.SIGABRT
    assert '"ggml was not compiled with support for this arch") failed' in done.stderr
    assert len(said(read, f"h100-ollama-c:{fault}", env={"GGML_CUDA_INIT": "1"})["devices"]) == 1


def test_another_layout_of_the_same_version(read: Read) -> None:
    plain = said(read, "h100-ollama", "cuda_v13", layout="b")
    wrong = said(read, "h100-ollama:backend.layout", "cuda_v13", layout="c")
    assert (wrong["api_version"], wrong["name"]) == (plain["api_version"], plain["name"])  # nothing refuses it
    assert wrong["devices"][0]["reg"]  # as layout c has it
    assert not wrong["devices"][0]["accessor_reg"]  # libggml-base, which is of layout b, looks 8 bytes further on
    other = said(read, "h100-ollama-c:backend.layout", layout="b")["devices"][0]
    assert (other["id"], other["reg"], other["accessor_reg"]) == (UUID, True, False)


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("backend.init.missing", {"error": "no init"}),
        ("backend.init.null", {"error": "NULL"}),
        ("backend.init.slow=0.1", {"api_version": 2}),
        ("backend.api_version", {"api_version": 1}),
        ("backend.api_version=3", {"api_version": 3}),
        ("backend.devices.none", {"devices": []}),
        ("cublas.unversioned", {"api_version": 2}),
        ("ggml_base.older", {"error": "dlopen"}),
        ("ggml_base.other_soname", {"error": "dlopen"}),
        ("ggml_cuda.undefined_symbol", {"error": "dlopen"}),
        ("ollama_cudart.other_node", {"error": "dlopen"}),
        ("cublaslt.missing", {"error": "dlopen"}),
        ("cublas.other_major", {"error": "dlopen"}),
        ("ollama.stray_toolkit", {"api_version": 2}),
        ("toolkit.foreign_path", {"api_version": 2}),
        ("toolkit.foreign_only", {"api_version": 2}),
        ("toolkit.preloaded", {"error": "dlopen"}),
    ],
)
@pytest.mark.parametrize("host", ["h100-ollama", "h100-ollama-c"])
def test_what_a_fault_leaves(read: Read, host: str, fault: str, answer: dict[str, Any]) -> None:
    found = said(read, f"{host}:{fault}")
    assert {key: found.get(key) for key in answer} == answer


def test_devices_that_differ(read: Read) -> None:
    names = [device["name"] for device in said(read, "h100x2-ollama:backend.devices.reversed")["devices"]]
    assert names == ["CUDA1", "CUDA0"]
    assert len(said(read, "h100x2-ollama:backend.devices.fewer")["devices"]) == 1
    (device,) = said(read, "h100-ollama:backend.description=Tesla T4")["devices"]
    assert (device["description"], device["compute"]) == ("Tesla T4", [9, 0])
    (device,) = said(read, "h100-ollama:backend.memory.zero")["devices"]
    assert device["memory"] == [0, 0]
    (device,) = said(read, "h100-ollama:ollama.stub_inside", env={})["devices"] or [None]
    assert device is None  # cudaGetDeviceCount fails with 34


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        ("ollama_cudart.bare", 127, "Inconsistency detected by ld.so"),
        ("cublas.bare", 127, "Inconsistency detected by ld.so"),
        ("cublaslt.bare", 127, "Inconsistency detected by ld.so"),
        ("backend.init.abort", -signal.SIGABRT, ""),
        ("backend.init.exit0", 0, ""),
        ("backend.memory.segv", -signal.SIGSEGV, ""),
        ("driver.count.many", -signal.SIGABRT, "GGML_CUDA_MAX_DEVICES) failed"),
        ("runtime.properties.999", -signal.SIGABRT, "CUDA error: unknown error"),
    ],
)
def test_what_ends_the_process(read: Read, fault: str, code: int, text: str) -> None:
    done = read(f"h100-ollama:{fault}")
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr
