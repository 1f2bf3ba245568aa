"""Probe of NVML: opened and asked as Ollama does it (ggml's mem_nvml.cpp), then everything that can stop CUDA itself.

Only queries; nothing is set. A function that this driver's NVML lacks, or a question that this board does not answer,
is an entry in `calls`: {"rc": nvmlReturn_t} or {"missing": name}. Calls that succeeded are not listed.
"""

from __future__ import annotations

import ctypes
import os

from pytest_gpudiscovery.probes import ffi
from pytest_gpudiscovery.probes import nvml_structs as c
from pytest_gpudiscovery.probes.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs every probe 10 ms
    from typing import Any

WSL_LIBRARY = "/usr/lib/wsl/lib/libnvidia-ml.so.1"  # mem_nvml.cpp tries it first
LIBRARY = "libnvidia-ml.so.1"
# The four functions without which ggml falls back to cudaMemGetInfo.
OLLAMA_FUNCTIONS = ("nvmlInit_v2", "nvmlShutdown", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMemoryInfo")
GPU_LIMIT = 64  # a count beyond that is garbage; the judgement says so
MIG_LIMIT = 16
PROCESS_LIMIT = 1024  # contexts on one GPU


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return the library, the return codes of its first calls, the system's versions and every GPU's state.

    REQUEST: {"view"}, for the names of the processes that compute on a GPU.
    """
    answer: dict[str, Any] = {}
    name = WSL_LIBRARY if os.path.exists(WSL_LIBRARY) else LIBRARY
    try:
        lib = ffi.load(journal, name, linked=False)
    except OSError as error:
        return {"dlopen": {"error": str(error)}}
    answer["dlopen"] = {"rc": 0}
    path = ffi.loaded_path("libnvidia-ml.so")
    provider = ffi.provider(lib, "nvmlInit_v2")
    journal.observe("library", {"path": path or provider, "version": ffi.version_of(path), "nvmlinit_in": provider})
    journal.observe("missing", [symbol for symbol in OLLAMA_FUNCTIONS if ffi.find(lib, symbol) is None])
    answer["nvmlInit_v2"] = ffi.call(journal, lib, "nvmlInit_v2")
    journal.observe("nvmlInit_v2", answer["nvmlInit_v2"])
    if answer["nvmlInit_v2"].get("rc") != 0:
        return answer
    asked = Asked(lib)
    with journal.step("system") as step:
        answer["system"] = step.result = _system(asked)
    journal.observe("system", answer["system"])
    count = ctypes.c_uint()
    answer["count"] = ffi.call(journal, lib, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    answer["count"]["count"] = count.value
    journal.observe("count", answer["count"])
    gpus: list[dict[str, Any]] = []
    for index in range(min(count.value, GPU_LIMIT) if answer["count"].get("rc") == 0 else 0):
        gpus.append(_gpu(lib, journal, index))
        _name_processes(gpus[-1], request)
        journal.observe("gpus", gpus)
    answer["gpus"] = gpus
    answer["shutdown"] = ffi.call(journal, lib, "nvmlShutdown")
    return answer


class Asked:
    """Calls one library and keeps what did not answer 0."""

    def __init__(self, lib: ffi.Library) -> None:
        self.lib = lib
        self.calls: dict[str, Any] = {}

    def ask(self, symbol: str, *args: Any) -> bool:
        """Call SYMBOL; whether it answered 0."""
        answer = ffi.invoke(self.lib, symbol, *args)
        if answer.get("rc") != 0:
            self.calls[symbol] = answer
        return answer.get("rc") == 0

    def number(self, symbol: str, *args: Any, kind: Any = ctypes.c_uint) -> int | None:
        """Call SYMBOL(*ARGS, &number) and return the number, None when it was not answered."""
        value = kind()
        return int(value.value) if self.ask(symbol, *args, ctypes.byref(value)) else None

    def numbers(self, symbol: str, *args: Any, count: int) -> list[int] | None:
        """Call SYMBOL(*ARGS, &number, ...) with COUNT numbers and return them, None when it was not answered."""
        values = [ctypes.c_uint() for _ in range(count)]
        return [value.value for value in values] if self.ask(symbol, *args, *map(ctypes.byref, values)) else None

    def text(self, symbol: str, *args: Any, size: int, sized: bool = True) -> str | None:
        """Call SYMBOL(*ARGS, buffer[, size]) and return the string, None when it was not answered."""
        buffer = ctypes.create_string_buffer(size)
        rest = (ctypes.c_uint(size),) if sized else ()
        return ffi.text(buffer.raw) if self.ask(symbol, *args, buffer, *rest) else None


def _system(asked: Asked) -> dict[str, Any]:
    found: dict[str, Any] = {
        "driver_version": asked.text("nvmlSystemGetDriverVersion", size=80),
        "cuda_driver": asked.number("nvmlSystemGetCudaDriverVersion_v2", kind=ctypes.c_int),
        "conf_compute": None,
        "conf_compute_ready": None,
    }
    state = c.ConfComputeState()
    if asked.ask("nvmlSystemGetConfComputeState", ctypes.byref(state)):
        found["conf_compute"] = {name: getattr(state, name) for name, _ in state._fields_}
        if state.cc_feature:
            found["conf_compute_ready"] = asked.number("nvmlSystemGetConfComputeGpusReadyState")
    return {**found, "calls": asked.calls}


def _gpu(lib: ffi.Library, journal: Journal, index: int) -> dict[str, Any]:
    handle = ctypes.c_void_p()
    got = ffi.call(
        journal,
        lib,
        "nvmlDeviceGetHandleByIndex_v2",
        ctypes.c_uint(index),
        ctypes.byref(handle),
        step=f"nvmlDeviceGetHandleByIndex_v2({index})",
    )
    gpu: dict[str, Any] = {"index": index, "handle": got, "calls": {}}
    if got.get("rc") != 0:
        return gpu
    for part, collect in (
        ("identity", _identity),
        ("memory", _memory),
        ("modes", _modes),
        ("health", _health),
        ("fabric", _fabric),
        ("processes", _processes),
    ):
        asked = Asked(lib)
        with journal.step(f"{part} of GPU {index}"):
            gpu.update(collect(asked, handle, gpu))
        gpu["calls"].update(asked.calls)
    if (gpu.get("mig_mode") or [0])[0] == 1:
        asked = Asked(lib)
        with journal.step(f"MIG instances of GPU {index}"):
            gpu["instances"] = _instances(asked, handle)
        gpu["calls"].update(asked.calls)
    return gpu


def _identity(asked: Asked, handle: ctypes.c_void_p, _: dict[str, Any]) -> dict[str, Any]:
    pci = c.PciInfo()
    known = asked.ask("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(pci))
    return {
        "name": asked.text("nvmlDeviceGetName", handle, size=96),
        "uuid": asked.text("nvmlDeviceGetUUID", handle, size=96),
        "pci": ffi.text(bytes(pci.bus_id)) if known else None,
        "pci_device": f"{pci.pci_device_id:08x}" if known else None,  # device id, then vendor id
        "minor": asked.number("nvmlDeviceGetMinorNumber", handle),
        "cc": asked.numbers("nvmlDeviceGetCudaComputeCapability", handle, count=2),
        "cores": asked.number("nvmlDeviceGetNumGpuCores", handle),
    }


def _memory(asked: Asked, handle: ctypes.c_void_p, gpu: dict[str, Any]) -> dict[str, Any]:
    """The query by UUID is the one that Ollama makes; by index is what a monitoring tool sees."""
    found: dict[str, Any] = {"memory": _memory_of(asked, handle), "memory_by_uuid": None}
    if gpu.get("uuid"):
        by_uuid = ctypes.c_void_p()
        name = ctypes.c_char_p(gpu["uuid"].encode())
        if asked.ask("nvmlDeviceGetHandleByUUID", name, ctypes.byref(by_uuid)):
            found["memory_by_uuid"] = _memory_of(asked, by_uuid)
    return found


def _memory_of(asked: Asked, handle: ctypes.c_void_p) -> dict[str, int] | None:
    memory = c.Memory()
    if not asked.ask("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory)):
        return None
    return {"total": memory.total, "free": memory.free, "used": memory.used}


def _modes(asked: Asked, handle: ctypes.c_void_p, _: dict[str, Any]) -> dict[str, Any]:
    return {
        "persistence": asked.number("nvmlDeviceGetPersistenceMode", handle),
        "compute_mode": asked.number("nvmlDeviceGetComputeMode", handle),
        "mig_mode": asked.numbers("nvmlDeviceGetMigMode", handle, count=2),  # current, pending
        "virtualization": asked.number("nvmlDeviceGetVirtualizationMode", handle),
        "gsp_firmware": asked.text("nvmlDeviceGetGspFirmwareVersion", handle, size=64, sized=False),
    }


def _health(asked: Asked, handle: ctypes.c_void_p, _: dict[str, Any]) -> dict[str, Any]:
    uncorrectable = ctypes.c_ulonglong()
    kinds = (ctypes.c_uint(c.ERROR_UNCORRECTED), ctypes.c_uint(c.COUNTER_VOLATILE))
    counted = asked.ask("nvmlDeviceGetTotalEccErrors", handle, *kinds, ctypes.byref(uncorrectable))
    if not counted:
        # Deprecated in CUDA 13 in favour of the counter of one location.
        place = ctypes.c_uint(c.LOCATION_DEVICE_MEMORY)
        counted = asked.ask("nvmlDeviceGetMemoryErrorCounter", handle, *kinds, place, ctypes.byref(uncorrectable))
    rows = asked.numbers("nvmlDeviceGetRemappedRows", handle, count=4)
    return {
        "ecc_mode": asked.numbers("nvmlDeviceGetEccMode", handle, count=2),  # current, pending
        "ecc_uncorrectable": uncorrectable.value if counted else None,
        "remapped_rows": rows and dict(zip(("correctable", "uncorrectable", "pending", "failed"), rows, strict=True)),
    }


def _fabric(asked: Asked, handle: ctypes.c_void_p, _: dict[str, Any]) -> dict[str, Any]:
    info = c.FabricInfoV2(version=c.FABRIC_INFO_V2)
    if asked.ask("nvmlDeviceGetGpuFabricInfoV", handle, ctypes.byref(info)):
        return {"fabric": {"state": info.state, "status": info.status, "health_mask": info.health_mask}}
    old = c.FabricInfo()
    if asked.ask("nvmlDeviceGetGpuFabricInfo", handle, ctypes.byref(old)):
        asked.calls.pop("nvmlDeviceGetGpuFabricInfoV")
        return {"fabric": {"state": old.state, "status": old.status, "health_mask": None}}
    return {"fabric": None}


def _processes(asked: Asked, handle: ctypes.c_void_p, _: dict[str, Any]) -> dict[str, Any]:
    """Who computes on the GPU: [{"pid", "memory"}]; the PID of a process of another PID namespace may be 0."""
    count = ctypes.c_uint(PROCESS_LIMIT)
    for symbol, kind in (
        ("nvmlDeviceGetComputeRunningProcesses_v3", c.ProcessInfo),
        ("nvmlDeviceGetComputeRunningProcesses_v2", c.ProcessInfo),
        ("nvmlDeviceGetComputeRunningProcesses", c.ProcessInfoV1),
    ):
        table = (kind * PROCESS_LIMIT)()
        count.value = PROCESS_LIMIT
        if asked.ask(symbol, handle, ctypes.byref(count), table):
            for older in [name for name in asked.calls if name.startswith("nvmlDeviceGetComputeRunningProcesses")]:
                del asked.calls[older]
            return {"processes": [_process(table[i]) for i in range(min(count.value, PROCESS_LIMIT))]}
        if "missing" not in asked.calls[symbol]:
            break
    return {"processes": None}


def _process(entry: Any) -> dict[str, Any]:
    known = entry.used_memory != c.NOT_AVAILABLE
    return {"pid": entry.pid, "memory": entry.used_memory if known else None}


def _name_processes(gpu: dict[str, Any], request: dict[str, Any]) -> None:
    """Add the `name` of each process in GPU: /proc/PID/comm, None where it cannot be read."""
    if not gpu.get("processes"):
        return
    from pytest_gpudiscovery.probes.host import open_view  # noqa: PLC0415 - costs 5 ms, and most GPUs are idle

    view = open_view(request.get("view") or {"kind": "live"})
    for process in gpu["processes"]:
        try:
            process["name"] = ffi.text(view.read(f"/proc/{process['pid']}/comm", 64)).strip()
        except OSError:
            process["name"] = None


def _instances(asked: Asked, handle: ctypes.c_void_p) -> list[dict[str, Any]] | None:
    most = asked.number("nvmlDeviceGetMaxMigDeviceCount", handle)
    if most is None:
        return None
    found = []
    for index in range(min(most, MIG_LIMIT)):
        part = ctypes.c_void_p()
        got = ffi.invoke(
            asked.lib, "nvmlDeviceGetMigDeviceHandleByIndex", handle, ctypes.c_uint(index), ctypes.byref(part)
        )
        if got.get("rc") == c.NOT_FOUND:
            continue  # an empty place; the places are not filled in order
        if got.get("rc") != 0:
            asked.calls["nvmlDeviceGetMigDeviceHandleByIndex"] = got
            continue
        attributes = c.MigAttributes()
        known = asked.ask("nvmlDeviceGetAttributes_v2", part, ctypes.byref(attributes))
        found.append(
            {
                "uuid": asked.text("nvmlDeviceGetUUID", part, size=96),
                "name": asked.text("nvmlDeviceGetName", part, size=96),
                "gpu_instance": asked.number("nvmlDeviceGetGpuInstanceId", part),
                "compute_instance": asked.number("nvmlDeviceGetComputeInstanceId", part),
                "memory": _memory_of(asked, part),
                "sm_count": attributes.sm_count if known else None,
            }
        )
    return found
