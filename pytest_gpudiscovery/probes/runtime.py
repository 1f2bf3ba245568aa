"""Probe of one CUDA runtime library: its versions, the devices it counts, and the raw bytes of their properties.

None of these calls makes a context. The properties go into a poisoned buffer that is larger than any version's
struct cudaDeviceProp; which bytes came back is the answer, their meaning depends on the major version of whoever was
compiled against it and is the judgement's business.
"""

from __future__ import annotations

import ctypes

from pytest_gpudiscovery.probes import ffi
from pytest_gpudiscovery.probes.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs every probe 10 ms
    from typing import Any

BUFFER = 4096  # bytes; sizeof(struct cudaDeviceProp) is 728, 1032 and 1008 in CUDA 11, 12 and 13
POISON = b"\xee"
DEVICE_LIMIT = 16  # GGML_CUDA_MAX_DEVICES
SYMBOLS = ("cudaGetDeviceProperties", "cudaGetDeviceProperties_v2")


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Load the first of REQUEST's `libraries` (paths, or names for ld.so's search) that loads, and ask it.

    `properties` names the function to call; without it the one that programs of the library's own major call.
    """
    errors: dict[str, str] = {}
    lib = None
    for name in request["libraries"]:
        try:
            lib = ffi.load(journal, name)
            break
        except OSError as error:
            errors[name] = str(error)
    answer: dict[str, Any] = {"errors": errors}
    if lib is None:
        return answer
    path = ffi.loaded_path("libcudart.so") or name
    answer["library"] = {"asked": name, "path": path, "version": ffi.version_of(path)}
    journal.observe("library", answer["library"])
    for key, symbol in (("runtime_version", "cudaRuntimeGetVersion"), ("driver_version", "cudaDriverGetVersion")):
        value = ctypes.c_int()
        answer[symbol] = ffi.call(journal, lib, symbol, ctypes.byref(value))
        answer[key] = value.value if answer[symbol].get("rc") == 0 else None
        journal.observe(key, answer[key])
    count = ctypes.c_int()
    answer["cudaGetDeviceCount"] = ffi.call(journal, lib, "cudaGetDeviceCount", ctypes.byref(count))
    answer["count"] = count.value if answer["cudaGetDeviceCount"].get("rc") == 0 else None
    journal.observe("cudaGetDeviceCount", answer["cudaGetDeviceCount"])
    journal.observe("count", answer["count"])
    answer["symbols"] = [symbol for symbol in SYMBOLS if ffi.find(lib, symbol) is not None]
    symbol = request.get("properties") or _symbol(answer["runtime_version"])
    devices = []
    for ordinal in range(max(0, min(answer["count"] or 0, DEVICE_LIMIT))):
        devices.append(_properties(lib, journal, symbol, ordinal))
        journal.observe("devices", devices)
    answer["devices"] = devices
    return answer


def _symbol(version: int | None) -> str:
    """CUDA 12's header renames the call to _v2 (cuda_runtime_api.h); 11 and 13 have the plain name."""
    return SYMBOLS[1] if (version or 0) // 1000 == 12 else SYMBOLS[0]


def _properties(lib: ffi.Library, journal: Journal, symbol: str, ordinal: int) -> dict[str, Any]:
    buffer = ctypes.create_string_buffer(POISON * BUFFER, BUFFER)
    answer = ffi.call(journal, lib, symbol, buffer, ctypes.c_int(ordinal), step=f"{symbol}({ordinal})")
    return {"ordinal": ordinal, "symbol": symbol, **answer, "raw": buffer.raw.rstrip(POISON).hex()}
