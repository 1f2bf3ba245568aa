"""Probe of the CUDA driver API: the calls that libggml-cuda.so and libcudart make at discovery, each timed.

Then, on every GPU that nobody uses, what discovery itself never tries: the primary context, a copy there and back, a
kernel from PTX and one page of managed memory. Device memory taken: 256 KiB and what the context needs, given back.
"""

from __future__ import annotations

import ctypes

from pytest_gpudiscovery.probes import ffi
from pytest_gpudiscovery.probes.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# CUdevice_attribute values (cuda.h). 102 is what ggml-cuda asks before cuMemGetAllocationGranularity.
ATTRIBUTES = {
    "compute_capability_major": 75,
    "compute_capability_minor": 76,
    "sm_count": 16,
    "pci_bus": 33,
    "pci_device": 34,
    "pci_domain": 50,
    "compute_mode": 20,
    "ecc": 32,
    "integrated": 18,
    "unified_addressing": 41,
    "managed_memory": 83,
    "virtual_memory_management": 102,
}
WORDS = 1 << 16  # 256 KiB of 32-bit words, copied there and back
THREADS = 256
MANAGED_BYTES = 1 << 16
ATTACH_GLOBAL = 1  # CU_MEM_ATTACH_GLOBAL
PTX_NEEDS_CC = (7, 5)

PTX = """.version {version}
.target {target}
.address_size 64
.visible .entry gate_kernel(.param .u64 out, .param .u32 n)
{{
  .reg .pred %p<2>;
  .reg .b32 %r<7>;
  .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [out];
  ld.param.u32 %r1, [n];
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %ntid.x;
  mov.u32 %r4, %tid.x;
  mad.lo.s32 %r5, %r2, %r3, %r4;
  setp.ge.u32 %p1, %r5, %r1;
  @%p1 bra DONE;
  cvta.to.global.u64 %rd2, %rd1;
  mul.wide.u32 %rd3, %r5, 4;
  add.s64 %rd4, %rd2, %rd3;
  mad.lo.u32 %r6, %r5, 3, 1;
  st.global.u32 [%rd4], %r6;
DONE:
  ret;
}}
"""


class _AllocationProp(ctypes.Structure):
    """CUmemAllocationProp of cuda.h: pinned memory on one device, everything else zero."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location_id", ctypes.c_int),
        ("metadata", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class _Stop(Exception):
    """A call that everything after it needs has failed; what was seen so far is the answer."""


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Call the driver API; REQUEST has `busy`: PCI address -> PIDs that use the GPU, whose contexts are left alone."""
    try:
        lib = ffi.load(journal, "libcuda.so.1")
    except OSError as error:
        return {"dlopen": {"error": str(error)}}
    path = ffi.loaded_path("libcuda.so")
    journal.observe(
        "library", {"path": path, "version": ffi.version_of(path), "cuinit_in": ffi.provider(lib, "cuInit")}
    )
    journal.observe("missing", [name for name in ("cuCtxCreate_v3",) if ffi.find(lib, name) is None])
    answer: dict[str, Any] = {"dlopen": {"rc": 0}}
    try:
        _discover(lib, journal, answer, request)
    except _Stop:
        pass  # the failed call is in the answer
    return answer


def _discover(lib: ffi.Library, journal: Journal, answer: dict[str, Any], request: dict[str, Any]) -> None:
    answer["cuInit"] = _keep(journal, "cuInit", ffi.call(journal, lib, "cuInit", ctypes.c_uint(0), step="cuInit(0)"))
    version = ctypes.c_int()
    answer["cuDriverGetVersion"] = ffi.call(journal, lib, "cuDriverGetVersion", ctypes.byref(version))
    journal.observe("driver_version_cuda", version.value or None)  # answers also before cuInit succeeded
    _need(answer["cuInit"])
    count = ctypes.c_int(-1)
    answer["cuDeviceGetCount"] = {
        **ffi.call(journal, lib, "cuDeviceGetCount", ctypes.byref(count)),
        "count": count.value,
    }
    _keep(journal, "cuDeviceGetCount", answer["cuDeviceGetCount"])
    _need(answer["cuDeviceGetCount"])
    devices = []
    for ordinal in range(min(count.value, 64)):  # a count beyond that is garbage; the judgement says so
        device = _identity(lib, journal, ordinal)
        devices.append(device)
        journal.observe("gpus", devices)
    for device in devices:
        device["granularity"] = _granularity(lib, journal, device)
        pids = request.get("busy", {}).get(device["pci"])
        if pids:
            device["in_use_by"] = pids
        elif device.get("handle") is not None:
            device["work"] = {}
            try:
                _work(lib, journal, device)
            except _Stop:
                pass  # the failed call is in device["work"]
        journal.observe("gpus", devices)
    answer["gpus"] = devices


def _identity(lib: ffi.Library, journal: Journal, ordinal: int) -> dict[str, Any]:
    with journal.step(f"identity of device {ordinal}") as step:
        handle = ctypes.c_int()
        got = ffi.invoke(lib, "cuDeviceGet", ctypes.byref(handle), ctypes.c_int(ordinal))
        found: dict[str, Any] = {"ordinal": ordinal, "pci": None, "calls": {"cuDeviceGet": got}}
        step.result = got.get("rc", got)
        if got.get("rc") != 0:
            return found
        found["handle"] = handle.value
        name = ctypes.create_string_buffer(256)
        found["calls"]["cuDeviceGetName"] = ffi.invoke(lib, "cuDeviceGetName", name, ctypes.c_int(256), handle)
        found["name"] = ffi.text(name.raw)
        raw = (ctypes.c_ubyte * 16)()
        for symbol in ("cuDeviceGetUuid_v2", "cuDeviceGetUuid"):  # _v2 (CUDA 11.4) tells a MIG instance from its GPU
            found["calls"][symbol] = ffi.invoke(lib, symbol, ctypes.byref(raw), handle)
            if found["calls"][symbol].get("rc") == 0:
                found["uuid"] = ffi.uuid_text(bytes(raw))
                break
        bus = ctypes.create_string_buffer(32)
        found["calls"]["cuDeviceGetPCIBusId"] = ffi.invoke(lib, "cuDeviceGetPCIBusId", bus, ctypes.c_int(32), handle)
        found["pci"] = ffi.text(bus.raw).lower() or None
        total = ctypes.c_size_t()
        found["calls"]["cuDeviceTotalMem_v2"] = ffi.invoke(lib, "cuDeviceTotalMem_v2", ctypes.byref(total), handle)
        found["total_memory"] = total.value
        value = ctypes.c_int()
        attributes = {}
        for key, number in ATTRIBUTES.items():
            rc = ffi.invoke(lib, "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), handle)
            attributes[key] = value.value if rc.get("rc") == 0 else None
            if rc.get("rc") != 0:
                found["calls"][f"cuDeviceGetAttribute({number})"] = rc
        found["attributes"] = attributes
        found["cc"] = [attributes["compute_capability_major"], attributes["compute_capability_minor"]]
        found["sm_count"] = attributes["sm_count"]
    return found


def _granularity(lib: ffi.Library, journal: Journal, device: dict[str, Any]) -> dict[str, Any]:
    if not device.get("attributes", {}).get("virtual_memory_management"):
        return {"supported": False}
    prop = _AllocationProp(type=1, location_type=1, location_id=device["handle"])  # pinned, on a device
    size = ctypes.c_size_t()
    # RECOMMENDED (1), as ggml-cuda asks; a failure here aborts Ollama's child (CU_CHECK).
    arguments = (ctypes.byref(size), ctypes.byref(prop), ctypes.c_int(1))
    step = f"cuMemGetAllocationGranularity({device['ordinal']})"
    return {**ffi.call(journal, lib, "cuMemGetAllocationGranularity", *arguments, step=step), "bytes": size.value}


def _work(lib: ffi.Library, journal: Journal, device: dict[str, Any]) -> None:
    """Create the primary context, copy, run one kernel, touch managed memory; give everything back."""
    work, ordinal = device["work"], device["ordinal"]

    def do(symbol: str, *args: Any, needed: bool = True) -> dict[str, Any]:
        work[symbol] = ffi.call(journal, lib, symbol, *args, step=f"{symbol}({ordinal})")
        if needed:
            _need(work[symbol])
        return dict(work[symbol])

    handle, context = ctypes.c_int(device["handle"]), ctypes.c_void_p()
    do("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    try:
        do("cuCtxSetCurrent", context)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        do("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        device["memory"] = {"free": free.value, "total": total.value}
        pointer = ctypes.c_uint64()
        do("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(WORDS * 4))
        try:
            _copy(do, pointer, work)
            _kernel(do, pointer, device)
        finally:
            do("cuMemFree_v2", pointer, needed=False)
        _managed(do, work)
    finally:
        ffi.call(journal, lib, "cuDevicePrimaryCtxRelease_v2", handle, step=f"cuDevicePrimaryCtxRelease({ordinal})")


def _copy(do: Any, pointer: ctypes.c_uint64, work: dict[str, Any]) -> None:
    sent = (ctypes.c_uint32 * WORDS)(*range(0, WORDS * 7, 7))
    back = (ctypes.c_uint32 * WORDS)()
    do("cuMemcpyHtoD_v2", pointer, sent, ctypes.c_size_t(WORDS * 4))
    do("cuMemcpyDtoH_v2", back, pointer, ctypes.c_size_t(WORDS * 4))
    work["copy_right"] = bytes(sent) == bytes(back)


def _kernel(do: Any, pointer: ctypes.c_uint64, device: dict[str, Any]) -> None:
    # PTX of the oldest kind that every driver since 418 compiles; GPUs before Turing need their own target.
    modern = all(part is not None for part in device["cc"]) and tuple(device["cc"]) >= PTX_NEEDS_CC
    version, target = ("6.3", "sm_75") if modern else ("5.0", "sm_50")
    image = ctypes.create_string_buffer(PTX.format(version=version, target=target).encode())
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    do("cuModuleLoadData", ctypes.byref(module), image)
    try:
        do("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"gate_kernel"))
        number = ctypes.c_uint32(WORDS)
        parameters = (ctypes.c_void_p * 2)(ctypes.addressof(pointer), ctypes.addressof(number))
        shape = [ctypes.c_uint(value) for value in (WORDS // THREADS, 1, 1, THREADS, 1, 1, 0)]
        do("cuLaunchKernel", function, *shape, ctypes.c_void_p(), parameters, ctypes.c_void_p())
        do("cuCtxSynchronize")
        back = (ctypes.c_uint32 * WORDS)()
        do("cuMemcpyDtoH_v2", back, pointer, ctypes.c_size_t(WORDS * 4))
        expected = (ctypes.c_uint32 * WORDS)(*range(1, WORDS * 3 + 1, 3))
        device["work"]["kernel_right"] = bytes(back) == bytes(expected)
    finally:
        do("cuModuleUnload", module, needed=False)


def _managed(do: Any, work: dict[str, Any]) -> None:
    """One small managed allocation, written by the CPU: UVM and HMM must serve the page fault."""
    pointer = ctypes.c_uint64()
    size, flags = ctypes.c_size_t(MANAGED_BYTES), ctypes.c_uint(ATTACH_GLOBAL)
    if do("cuMemAllocManaged", ctypes.byref(pointer), size, flags, needed=False).get("rc") == 0:
        ctypes.memset(pointer.value or 0, 0x5A, MANAGED_BYTES)
        work["managed_right"] = ctypes.string_at(pointer.value or 0, 16) == b"\x5a" * 16
        work["managed_free"] = do("cuMemFree_v2", pointer, needed=False)


def _keep(journal: Journal, key: str, value: dict[str, Any]) -> dict[str, Any]:
    journal.observe(key, value)
    return value


def _need(answer: dict[str, Any]) -> None:
    if answer.get("rc") != 0:
        raise _Stop
