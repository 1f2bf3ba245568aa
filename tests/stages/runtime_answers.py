"""What the probe of stage 08 sees of libcudart, the facts of the stages before, and the judgement over them."""

from __future__ import annotations

import struct
from typing import Any

from pytest_gpudiscovery.model import Outcome
from pytest_gpudiscovery.outcome import conclude
from pytest_gpudiscovery.stages import runtime
from pytest_gpudiscovery.stages.device_prop import LAYOUTS
from pytest_gpudiscovery.stages.spec import Judgement, StageInput
from pytest_gpudiscovery.supervise.types import ChildResult
from tests.fakes import context, record, result

UUID = "GPU-11111111-2222-3333-4444-555555555555"
LIB = "/usr/local/lib/ollama"
DEVICE: dict[str, Any] = {
    "ordinal": 0,
    "name": "NVIDIA H100 80GB HBM3",
    "uuid": UUID,
    "pci": "0000:00:06.0",
    "total_memory": 85017624576,
    "cc": [9, 0],
    "sm_count": 132,
}
DRIVER = {"gpus": [DEVICE], "driver_version_cuda": 13000}


def packed(major: int, device: dict[str, Any] = DEVICE) -> bytes:
    """Return what a libcudart of CUDA MAJOR writes for DEVICE: struct cudaDeviceProp, reserved fields zero."""
    layout = LAYOUTS[major]
    raw = bytearray(layout.size)
    domain, bus, slot = device["pci"].partition(".")[0].split(":")
    struct.pack_into("256s16s", raw, 0, device["name"].encode(), bytes.fromhex(device["uuid"][4:].replace("-", "")))
    struct.pack_into("<Q", raw, 288, device["total_memory"])
    struct.pack_into("<ii", raw, 360, *device["cc"])
    struct.pack_into("<i", raw, layout.sm_count, device["sm_count"])
    for offset, text in ((layout.pci_domain, domain), (layout.pci_bus, bus), (layout.pci_device, slot)):
        struct.pack_into("<i", raw, offset, int(text, 16))
    return bytes(raw)


def library(major: int = 13, written: bytes | None = None, **changes: Any) -> dict[str, Any]:
    """Return what the probe sees of a healthy libcudart of MAJOR that writes WRITTEN; CHANGES replace parts."""
    symbol = "cudaGetDeviceProperties" + ("_v2" if major == 12 else "")
    raw = packed(major) if written is None else written
    return {
        "errors": {},
        "library": {"asked": f"{LIB}/cuda_v{major}/libcudart.so.{major}", "path": f"{LIB}/libcudart.so.{major}.0.1"},
        "cudaRuntimeGetVersion": {"rc": 0},
        "runtime_version": {13: 13000, 12: 12080, 11: 11040}[major],
        "cudaDriverGetVersion": {"rc": 0},
        "driver_version": 13000,
        "cudaGetDeviceCount": {"rc": 0},
        "count": 1,
        "symbols": [symbol],
        "devices": [{"ordinal": 0, "symbol": symbol, "rc": 0, "raw": raw.hex()}],
        **changes,
    }


def directory(name: str, **changes: Any) -> dict[str, Any]:
    """Return stage 01's entry of GPU directory NAME."""
    major = name[-2:]
    path = f"{LIB}/{name}"
    entry = {"name": name, "path": path, "backend": f"{path}/libggml-cuda.so", "cudart": f"{path}/libcudart.so.{major}"}
    return {**entry, **changes}


def package(*names: str) -> dict[str, Any]:
    """Return stage 01's facts of an Ollama with GPU directories NAMES."""
    return {"lib_dir": LIB, "gpu_dirs": [directory(name) for name in names]}


def judged(
    answers: dict[str, Any], install: dict[str, Any] | None = None, driver: dict[str, Any] | None = None
) -> Judgement:
    """Return the judgement over ANSWERS (directory -> what its probe saw, or what became of the child)."""
    prior = {
        "package": record("package", Outcome.PASSED, facts=package(*answers) if install is None else install),
        "driver": record("driver", Outcome.PASSED, facts=DRIVER if driver is None else driver),
    }
    results = {n: a if isinstance(a, ChildResult) else result(answer=a) for n, a in answers.items()}
    return runtime.judge(StageInput(context(), results, prior, 20.0))


def causes(judgement: Judgement) -> dict[str, str]:
    """Return cause -> outcome of what was found."""
    return {check.finding.cause: check.outcome.value for check in judgement.checks if check.finding}


def outcome(judgement: Judgement) -> Outcome:
    """Return what the engine makes of JUDGEMENT's checks."""
    return conclude(runtime.SPEC, judgement, {}, started=0.0, deadline_s=20.0).outcome


def plan(
    install: dict[str, Any], env: dict[str, str] | None = None, answers: dict[str, Any] | None = None, cuda: int = 13000
) -> list[tuple[str, Any, str]]:
    """Return (name, request, LD_LIBRARY_PATH) of every probe that the stage runs; ANSWERS by name, else healthy."""
    prior = {
        "package": record("package", Outcome.PASSED, facts=install),
        "driver": record("driver", Outcome.PASSED, facts={**DRIVER, "driver_version_cuda": cuda}),
    }
    results: dict[str, ChildResult] = {}
    asked = []
    while (planned := runtime.plan(context(env=env or {}), prior, results)) is not None:
        name, probe = planned
        asked.append((name, probe.request, probe.env.get("LD_LIBRARY_PATH", "")))
        answer = (answers or {}).get(name, library())
        results[name] = answer if isinstance(answer, ChildResult) else result(answer=answer)
        assert len(asked) < 10
    return asked
