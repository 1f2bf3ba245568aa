"""The libraries of a simulated host, really loaded and called, answer what the recorded machine answered."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.simulate import convert, record
from pytest_gpudiscovery.simulate.machines import DATA, HOSTS
from tests.simulate.conftest import Make, ask

# sha256 of the 784 bytes that cudaGetDeviceProperties of the real libcudart.so.13.0.96 wrote on the recorded machine
PROPERTIES_13 = "a4efddb59bade7b1177ddf520ca52b1dbdbb441b2f10b9080b89480db32e9559"

DRIVER = """
cuda = ctypes.CDLL("libcuda.so.1")
said = {"cuInit": cuda.cuInit(0)}
count = ctypes.c_int(-1)
said["countCode"] = cuda.cuDeviceGetCount(ctypes.byref(count))
said["count"] = count.value
said["devices"] = []
for ordinal in range(max(count.value, 0)):
    name, pci, uuid = (ctypes.create_string_buffer(size) for size in (256, 64, 16))
    total, value = ctypes.c_size_t(), ctypes.c_int()
    cuda.cuDeviceGetName(name, 256, ordinal)
    cuda.cuDeviceGetPCIBusId(pci, 64, ordinal)
    cuda.cuDeviceGetUuid_v2(uuid, ordinal)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), ordinal)
    attributes = []
    for attribute in (16, 75, 76):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, ordinal)
        attributes.append(value.value)
    said["devices"].append([name.value.decode(), pci.value.decode(), uuid.raw.hex(), total.value, *attributes])
say(said)
"""
KERNEL = """
cuda = ctypes.CDLL("libcuda.so.1")
PTX = b'''.version 6.3
.target sm_75
.address_size 64
.visible .entry gate_kernel(.param .u64 out, .param .u32 n)
{ ret; }
'''
context, pointer, module, function = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_void_p(), ctypes.c_void_p()
n = ctypes.c_uint32(256)
back = (ctypes.c_uint32 * 256)()
codes = [
    cuda.cuInit(0),
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
    cuda.cuCtxSetCurrent(context),
    cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(1024)),
    cuda.cuModuleLoadData(ctypes.byref(module), PTX),
    cuda.cuModuleGetFunction(ctypes.byref(function), module, b"gate_kernel"),
]
parameters = (ctypes.c_void_p * 2)(ctypes.addressof(pointer), ctypes.addressof(n))
codes.append(cuda.cuLaunchKernel(function, 2, 1, 1, 128, 1, 1, 0, None, parameters, None))
codes += [cuda.cuCtxSynchronize(), cuda.cuMemcpyDtoH_v2(back, pointer, ctypes.c_size_t(1024))]
codes += [cuda.cuMemcpyDtoH_v2(back, ctypes.c_uint64(8), ctypes.c_size_t(4)), cuda.cuMemFree_v2(pointer)]
say({"codes": codes, "right": list(back) == [i * 3 + 1 for i in range(256)]})
"""
CUDA_PYTHON = """
from cuda.bindings import driver
code, = driver.cuInit(0)
said = [int(code), driver.cuDriverGetVersion()[1], driver.cuDeviceGetCount()[1]]
device = driver.cuDeviceGet(0)[1]
major = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
said += [driver.cuDeviceGetName(64, device)[1].split(b"\\0")[0].decode(), driver.cuDeviceGetUuid(device)[1].bytes.hex()]
said += [driver.cuDeviceTotalMem(device)[1], driver.cuDeviceGetAttribute(major, device)[1]]
say(said)
"""
PYNVML = """
import pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
said = [pynvml.nvmlDeviceGetCount(), pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)]
said += [pynvml.nvmlDeviceGetPciInfo(handle).busId, memory.total, memory.free]
said += [pynvml.nvmlDeviceGetComputeRunningProcesses(handle), pynvml.nvmlSystemGetDriverVersion()]
pynvml.nvmlShutdown()
say(said)
"""
UUID = "00000000000040008000" + "0" * 12


@pytest.fixture(scope="module")
def recorded() -> dict[str, str]:
    """sim.conf of the recorded machine."""
    conf: dict[str, str] = json.loads((DATA / "h100.json").read_text())["conf"]
    return conf


def recording_of(env: dict[str, str], directory: Path) -> dict[str, Any]:
    """Record the machine that ENV shows, as the recorder does on a real one."""
    out = directory / "recording.json"
    subprocess.run(
        [sys.executable, record.__file__, out],
        env={"PATH": os.environ["PATH"], **env},
        check=True,
        timeout=120,
        stdout=subprocess.DEVNULL,
    )
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_recording_the_simulated_host_gives_the_recorded_one(
    make: Make, recorded: dict[str, str], tmp_path: Path
) -> None:
    found = recording_of(make("h100").env, tmp_path)
    assert found["problems"] == {}
    assert convert.configuration(found["answers"]) == recorded
    (properties,) = (
        bytes.fromhex(call["result"])
        for call in found["answers"]["libcudart.so.13"]
        if call["call"] == "cudaGetDeviceProperties 0"
    )
    assert len(properties) == 784
    assert hashlib.sha256(properties).hexdigest() == PROPERTIES_13


@pytest.mark.parametrize(
    ("host", "devices"),
    [
        ("h100", [["NVIDIA H100 80GB HBM3", "0000:00:06.0", UUID, 85017493504, 132, 9, 0]]),
        (
            "h100x2",
            [
                ["NVIDIA H100 80GB HBM3", "0000:00:06.0", UUID, 85017493504, 132, 9, 0],
                ["NVIDIA H100 80GB HBM3", "0000:00:07.0", UUID[:-1] + "1", 85017493504, 132, 9, 0],
            ],
        ),
        ("h100-pcie", [["NVIDIA H100 PCIe", "0000:00:06.0", UUID, 85017493504, 114, 9, 0]]),
        ("h200", [["NVIDIA H200", "0000:00:06.0", UUID, 150251503616, 132, 9, 0]]),
        (
            "h100-mig",
            [
                [
                    "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
                    "0000:00:06.0",
                    "00000000000040009000" + "0" * 12,
                    42278584320,
                    60,
                    9,
                    0,
                ]
            ],
        ),
    ],
)
def test_devices_of_each_host(make: Make, host: str, devices: list[list[Any]]) -> None:
    assert ask(make(host), DRIVER) == {"cuInit": 0, "countCode": 0, "count": len(devices), "devices": devices}


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_every_host_can_be_made(make: Make, name: str) -> None:
    host = make(name)
    assert host.describe["host"] == name
    libraries = sorted(Path(host.directory, "lib").glob("libcuda.so*"))
    assert bool(libraries) == (name not in ("none", "no-driver"))
    if libraries:
        assert ask(host, DRIVER)["cuInit"] == 0


def test_visible_mig_instance(make: Make) -> None:
    host = make("h100-mig")
    second = "MIG-00000000-0000-4000-9000-000000000001"
    assert ask(host, DRIVER, env={"CUDA_VISIBLE_DEVICES": second})["devices"][0][2].endswith("1")
    parent = "GPU-00000000-0000-4000-8000-000000000000"
    assert ask(host, DRIVER, env={"CUDA_VISIBLE_DEVICES": parent})["cuInit"] == 100


def test_copy_and_kernel(make: Make) -> None:
    said = ask(make("h100"), KERNEL)
    assert said == {"codes": [0] * 9 + [1, 0], "right": True}  # a read outside an allocation is 1


def test_cuda_python(make: Make) -> None:
    expected = [0, 13000, 1, "NVIDIA H100 80GB HBM3", UUID, 85017493504, 9]
    assert ask(make("h100"), CUDA_PYTHON, packages=True) == expected


def test_cuda_python_on_the_older_driver(make: Make) -> None:
    assert ask(make("h100-cuda12"), CUDA_PYTHON, packages=True)[:3] == [0, 12020, 1]


def test_pynvml(make: Make) -> None:
    expected = [1, "NVIDIA H100 80GB HBM3", f"GPU-{UUID[:8]}-{UUID[8:12]}-{UUID[12:16]}-{UUID[16:20]}-{UUID[20:]}"]
    expected += ["00000000:00:06.0", 85520809984, 85017493504, [], "580.159.04"]
    assert ask(make("h100"), PYNVML, packages=True) == expected
