"""Ask NVML, the driver API and libcudart everything that the stages may ask, and note every code, time and result."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import struct
import time
from collections.abc import Callable
from typing import Any


class Caller:
    """Calls functions of one library and streams every code, time and result to the parent."""

    stream = -1  # the pipe to the parent; set in the child

    def __init__(self, path: str, label: str) -> None:
        started = time.monotonic()
        self.library = ctypes.CDLL(path)
        self._note(f"dlopen {label}", 0, started, None)

    def _note(self, name: str, code: int | None, started: float, result: Any) -> None:
        self.note(name, code, result, round((time.monotonic() - started) * 1000, 3))

    def note(self, name: str, code: int | None, result: Any, ms: float = 0) -> None:
        """Send one answer to the parent."""
        send(self.stream, {"call": {"call": name, "rc": code, "ms": ms, "result": result}})

    def __call__(
        self, name: str, *arguments: Any, out: Callable[[], Any] = lambda: None, label: str = ""
    ) -> int | None:
        """Call NAME and note its code; OUT reads the results when the code is 0. Return the code, None if absent."""
        function = getattr(self.library, name, None)
        started = time.monotonic()
        if function is None:
            self._note(name + label, None, started, "absent")
            return None
        function.restype = ctypes.c_int
        code = int(function(*arguments))
        self._note(name + label, code, started, out() if code == 0 else None)
        return code

    def numbers(
        self, name: str, *before: Any, count: int = 1, kind: Any = ctypes.c_uint, label: str = ""
    ) -> list[int] | None:
        """Call NAME(*BEFORE, &out1, ... &outCOUNT) and return the outs, None when it failed."""
        outs = [kind() for _ in range(count)]
        code = self(
            name, *before, *(ctypes.byref(one) for one in outs), out=lambda: [one.value for one in outs], label=label
        )
        return [one.value for one in outs] if code == 0 else None

    def text(self, name: str, *before: Any, label: str = "") -> str | None:
        """Call NAME(*BEFORE, buffer, 256) and return the string, None when it failed."""
        buffer = ctypes.create_string_buffer(256)
        code = self(name, *before, buffer, 256, out=lambda: buffer.value.decode(errors="replace"), label=label)
        return buffer.value.decode(errors="replace") if code == 0 else None

    def record(self, name: str, *before: Any, layout: str, version: int = 0, label: str = "") -> None:
        """Call NAME(*BEFORE, &struct) and note the fields of LAYOUT; VERSION goes into its first word, NVML's way."""
        buffer = ctypes.create_string_buffer(4096)
        if version:
            struct.pack_into("<I", buffer, 0, struct.calcsize(layout) | version << 24)
        self(
            name,
            *before,
            buffer,
            out=lambda: [
                field.split(b"\0")[0].decode(errors="replace") if isinstance(field, bytes) else field
                for field in struct.unpack_from(layout, buffer)
            ],
            label=label,
        )


def ask_nvml() -> None:
    """Return every NVML call that the nvml and enumeration stages may make, for each GPU and MIG instance."""
    ask = Caller("libnvidia-ml.so.1", "libnvidia-ml.so.1")
    ask.library.nvmlErrorString.restype = ctypes.c_char_p
    strings = {code: (ask.library.nvmlErrorString(code) or b"").decode() for code in [*range(31), 999]}
    ask.note("nvmlErrorString", 0, strings)
    if ask("nvmlInit_v2") != 0:
        return
    ask.text("nvmlSystemGetDriverVersion")
    ask.text("nvmlSystemGetNVMLVersion")
    ask.numbers("nvmlSystemGetCudaDriverVersion", kind=ctypes.c_int)
    ask.numbers("nvmlSystemGetCudaDriverVersion_v2", kind=ctypes.c_int)
    ask.record("nvmlSystemGetConfComputeState", layout="<3I")
    ask.numbers("nvmlSystemGetConfComputeGpusReadyState")
    count = (ask.numbers("nvmlDeviceGetCount_v2") or [0])[0]
    for index in range(count):
        handle = ctypes.c_void_p()
        if ask("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle), label=f" {index}") == 0:
            ask_nvml_device(ask, handle, f" {index}")
            for instance in range((ask.numbers("nvmlDeviceGetMaxMigDeviceCount", handle, label=f" {index}") or [0])[0]):
                mig = ctypes.c_void_p()
                where = f" {index}/{instance}"
                if ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, instance, ctypes.byref(mig), label=where) == 0:
                    ask_nvml_device(ask, mig, where)
                    ask.numbers("nvmlDeviceGetGpuInstanceId", mig, label=where)
                    ask.numbers("nvmlDeviceGetComputeInstanceId", mig, label=where)
    handle = ctypes.c_void_p()
    ask("nvmlDeviceGetHandleByIndex_v2", count, ctypes.byref(handle), label=" out of range")
    ask(
        "nvmlDeviceGetHandleByUUID", b"GPU-00000000-0000-0000-0000-0000000000ff", ctypes.byref(handle), label=" unknown"
    )
    ask("nvmlDeviceGetHandleByPciBusId_v2", b"0000:ff:1f.0", ctypes.byref(handle), label=" unknown")
    ask("nvmlShutdown")
    return


def ask_nvml_device(ask: Caller, handle: ctypes.c_void_p, label: str) -> None:
    """Ask HANDLE (a GPU or a MIG instance) everything that needs no change of state."""
    ask.text("nvmlDeviceGetName", handle, label=label)
    uuid = ask.text("nvmlDeviceGetUUID", handle, label=label)
    if uuid:
        ask("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(ctypes.c_void_p()), label=label)
    single = (
        "MinorNumber PersistenceMode ComputeMode VirtualizationMode Brand Architecture NumGpuCores Index MultiGpuBoard"
    )
    for name in [*single.split(), "DisplayActive", "CurrPcieLinkGeneration", "CurrPcieLinkWidth", "PowerState"]:
        ask.numbers(f"nvmlDeviceGet{name}", handle, label=label)
    for name in ("CudaComputeCapability", "MigMode", "EccMode", "GspFirmwareMode"):
        ask.numbers(f"nvmlDeviceGet{name}", handle, count=2, label=label)
    ask.text("nvmlDeviceGetGspFirmwareVersion", handle, label=label)
    ask.record("nvmlDeviceGetPciInfo_v3", handle, layout="<16s5I32s", label=label)
    ask.record("nvmlDeviceGetMemoryInfo", handle, layout="<3Q", label=label)
    ask.record("nvmlDeviceGetMemoryInfo_v2", handle, layout="<I4x4Q", version=2, label=label)
    ask.record("nvmlDeviceGetBAR1MemoryInfo", handle, layout="<3Q", label=label)
    for kind in (0, 1):
        for counter in (0, 1):
            ask.numbers(
                "nvmlDeviceGetTotalEccErrors",
                handle,
                kind,
                counter,
                kind=ctypes.c_ulonglong,
                label=f"{label} type {kind} counter {counter}",
            )
    ask.numbers("nvmlDeviceGetRemappedRows", handle, count=4, label=label)
    ask.record("nvmlDeviceGetGpuFabricInfo", handle, layout="<16xIIB3x", label=label)
    ask.record("nvmlDeviceGetGpuFabricInfoV", handle, layout="<I16xIIB3xI", version=2, label=label + " v2")
    ask.record("nvmlDeviceGetGpuFabricInfoV", handle, layout="<I16xIIB3xIB3x", version=3, label=label + " v3")
    ask.record("nvmlDeviceGetAttributes_v2", handle, layout="<8IQ", label=label)
    for name in (
        "ComputeRunningProcesses",
        "ComputeRunningProcesses_v2",
        "ComputeRunningProcesses_v3",
        "MPSComputeRunningProcesses_v3",
        "GraphicsRunningProcesses_v3",
    ):
        number, room = ctypes.c_uint(64), ctypes.create_string_buffer(64 * 24)
        ask(
            f"nvmlDeviceGet{name}",
            handle,
            ctypes.byref(number),
            room,
            out=functools.partial(value_of, number),
            label=label,
        )


def ask_driver() -> None:
    """Return what the driver API answers: identity, every attribute, the primary context, memory, error names."""
    ask = Caller("libcuda.so.1", "libcuda.so.1")
    names: dict[int, list[str]] = {}
    for code in range(1000):
        name, meaning = ctypes.c_char_p(), ctypes.c_char_p()
        if ask.library.cuGetErrorName(code, ctypes.byref(name)) == 0:
            ask.library.cuGetErrorString(code, ctypes.byref(meaning))
            names[code] = [(name.value or b"").decode(), (meaning.value or b"").decode()]
    ask.note("cuGetErrorName", 0, names)
    ask.numbers("cuDriverGetVersion", kind=ctypes.c_int, label=" before cuInit")
    ask.numbers("cuDeviceGetCount", kind=ctypes.c_int, label=" before cuInit")
    if ask("cuInit", 0) != 0:
        return
    ask.numbers("cuDriverGetVersion", kind=ctypes.c_int)
    count = (ask.numbers("cuDeviceGetCount", kind=ctypes.c_int) or [0])[0]
    for index in range(count):
        label = f" {index}"
        device = ctypes.c_int(index)
        ask("cuDeviceGet", ctypes.byref(device), index, out=functools.partial(value_of, device), label=label)
        buffer = ctypes.create_string_buffer(256)
        text = functools.partial(decoded, buffer)
        ask("cuDeviceGetName", buffer, 256, device, out=text, label=label)
        ask("cuDeviceGetPCIBusId", buffer, 256, device, out=text, label=label)
        for function in ("cuDeviceGetUuid", "cuDeviceGetUuid_v2"):
            raw = ctypes.create_string_buffer(16)
            ask(function, raw, device, out=functools.partial(uuid_of, raw), label=label)
        total = ctypes.c_size_t()
        ask("cuDeviceTotalMem_v2", ctypes.byref(total), device, out=functools.partial(value_of, total), label=label)
        attributes: dict[int, Any] = {}
        for attribute in range(1, 151):
            value = ctypes.c_int()
            code = ask.library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            attributes[attribute] = value.value if code == 0 else {"rc": code}
        ask.note(f"cuDeviceGetAttribute{label}", 0, attributes)
        ask_driver_context(ask, device, label)
    return


def ask_driver_context(ask: Caller, device: ctypes.c_int, label: str) -> None:
    """Make DEVICE's primary context, ask about memory in it, and release it."""
    flags, active = ctypes.c_uint(), ctypes.c_int()
    ask(
        "cuDevicePrimaryCtxGetState",
        device,
        ctypes.byref(flags),
        ctypes.byref(active),
        out=lambda: [flags.value, active.value],
        label=label,
    )
    prop = ctypes.create_string_buffer(struct.pack("<4I", 1, 0, 1, device.value), 64)
    for option in (0, 1):
        size = ctypes.c_size_t()
        ask(
            "cuMemGetAllocationGranularity",
            ctypes.byref(size),
            prop,
            option,
            out=functools.partial(value_of, size),
            label=f"{label} option {option}",
        )
    context = ctypes.c_void_p()
    if ask("cuDevicePrimaryCtxRetain", ctypes.byref(context), device, label=label) != 0:
        return
    ask("cuCtxSetCurrent", context, label=label)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ask("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total), out=lambda: [free.value, total.value], label=label)
    pointer = ctypes.c_uint64()
    if ask("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(1 << 20), label=label) == 0:
        ask("cuMemsetD32_v2", pointer, 7, ctypes.c_size_t(1024), label=label)
        ask("cuMemFree_v2", pointer, label=label)
    if ask("cuMemAllocManaged", ctypes.byref(pointer), ctypes.c_size_t(1 << 20), 1, label=label) == 0:
        ask("cuMemFree_v2", pointer, label=label)
    ask("cuCtxSynchronize", label=label)
    ask("cuDevicePrimaryCtxRelease_v2", device, label=label)


def ask_runtime(path: str) -> None:
    """Return what libcudart at PATH answers, with the raw bytes of its device properties (UUID blanked)."""
    ask = Caller(path, path)
    ask.numbers("cudaRuntimeGetVersion", kind=ctypes.c_int)
    ask.numbers("cudaDriverGetVersion", kind=ctypes.c_int)
    count = (ask.numbers("cudaGetDeviceCount", kind=ctypes.c_int) or [0])[0]
    for index in range(count):
        for name in ("cudaGetDeviceProperties", "cudaGetDeviceProperties_v2"):
            raw = ctypes.create_string_buffer(b"\xee" * 4096, 4096)

            ask(name, raw, index, out=functools.partial(properties_of, raw), label=f" {index}")
        buffer = ctypes.create_string_buffer(64)
        ask("cudaDeviceGetPCIBusId", buffer, 64, index, out=functools.partial(decoded, buffer), label=f" {index}")


def decoded(buffer: Any) -> str:
    """Return the C string in BUFFER."""
    return bytes(buffer.value).decode(errors="replace")


def value_of(number: Any) -> Any:
    """Return the value of a ctypes NUMBER."""
    return number.value


def uuid_of(buffer: Any) -> str:
    """Return the 16 bytes of BUFFER as NVML prints a GPU's UUID."""
    text = bytes(buffer.raw).hex()
    return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def properties_of(buffer: Any) -> str:
    """Return what cudaGetDeviceProperties wrote into BUFFER (filled with 0xEE before), the UUID blanked, as hex."""
    data = bytearray(bytes(buffer.raw).rstrip(b"\xee"))
    data[256:272] = bytes(16)  # cudaDeviceProp: char name[256]; cudaUUID_t uuid
    return data.hex()


def send(fd: int, line: dict[str, Any]) -> None:
    """Write LINE as JSON to FD."""
    data = (json.dumps(line, default=str) + "\n").encode()
    while data:
        data = data[os.write(fd, data) :]
