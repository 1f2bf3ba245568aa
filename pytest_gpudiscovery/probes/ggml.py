"""ggml's backend interface through ctypes: the accessors of libggml-base where they exist, and layouts that are proven.

A library of another version answers with another layout. So nothing is followed before it was looked at: the registry's
function pointers must lead into executable memory, and the properties are read only in a layout that has a PCI address
where it should have one. (Their memory is no help: Ollama leaves it 0, to make no context.)

Sources: ggml/src/ggml-backend-impl.h and ggml/include/ggml-backend.h of Ollama v0.12.4 to v0.24.0 (interface version 2,
`id` between memory_free and memory_total) and of llama.cpp (interface version 2, no `id`; discover/native_probe.go of
Ollama v0.32.15 reads the same).
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REG_POINTERS = ("get_name", "get_device_count", "get_device")  # of struct ggml_backend_reg, at offsets 8, 16 and 24
DEVICE_POINTERS = ("get_name", "get_description", "get_memory", "get_type", "get_props")  # at 0, 8, 16, 24 and 32
PROPS = 512  # bytes; struct ggml_backend_dev_props has 56 to 120
TEXT = 256  # bytes of a C string that are looked at
# Byte offsets in struct ggml_backend_dev_props. `id` is Ollama's: the UUID. `device_id` is the PCI address.
LAYOUTS: dict[str, dict[str, int]] = {
    "ollama": {"id": 24, "device_id": 48, "compute_major": 68, "compute_minor": 72},
    "llama.cpp": {"device_id": 40},
}


def executable() -> list[tuple[int, int]]:
    """Return the (start, end) of every executable mapping of this process."""
    return _mappings("x")


def readable() -> list[tuple[int, int]]:
    """Return the (start, end) of every mapping of this process that can be read."""
    return _mappings("r")


def _mappings(right: str) -> list[tuple[int, int]]:
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        fields = [line.split(None, 2) for line in file]
    spans = [field[0].partition("-") for field in fields if right in field[1]]
    return joined([(int(start, 16), int(end, 16)) for start, _, end in spans])


def joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return SPANS, in ascending order, with those in one that touch: a struct in .bss may begin in the file's page."""
    found: list[tuple[int, int]] = []
    for start, end in spans:
        touches = bool(found) and found[-1][1] == start
        found.append((found.pop()[0] if touches else start, end))
    return found


def inside(spans: list[tuple[int, int]], address: int, size: int = 1) -> bool:
    """Return whether SIZE bytes at ADDRESS lie in one of SPANS."""
    return any(start <= address and address + size <= end for start, end in spans)


def look_at_registry(address: int) -> dict[str, Any]:
    """Return {"api_version", "layout": True | False} of the struct ggml_backend_reg at ADDRESS.

    `layout`: the pointers that every version has here lead to code. Nothing outside of readable memory is touched.
    """
    if not inside(readable(), address, 48):
        return {"api_version": None, "layout": False}
    version = ctypes.c_int.from_address(address).value
    return {"api_version": version, "layout": _lead_to_code(address + 8, len(REG_POINTERS))}


def device_is_sound(address: int) -> bool:
    """Return whether the struct ggml_backend_device at ADDRESS begins with pointers to code."""
    return inside(readable(), address, 8 * len(DEVICE_POINTERS)) and _lead_to_code(address, len(DEVICE_POINTERS))


def _lead_to_code(address: int, count: int) -> bool:
    spans = executable()
    pointers = (ctypes.c_void_p * count).from_address(address)
    return all(pointer is not None and inside(spans, pointer) for pointer in pointers)


def text_at(address: int | None) -> str | None:
    """Return the C string at ADDRESS, None when there is none that can be read."""
    if not address:
        return None
    spans = [(start, end) for start, end in readable() if start <= address < end]
    if not spans:
        return None
    size = min(TEXT, spans[0][1] - address)
    raw = ctypes.string_at(address, size).split(b"\0", 1)[0]
    return raw.decode("utf-8", "backslashreplace")


def properties(raw: bytes) -> dict[str, Any]:
    """Return what RAW, a filled struct ggml_backend_dev_props, says; `layout` names the one that it has.

    `layout` None: no known layout has a PCI address where it should be, so nothing is read.
    """
    for name, offsets in LAYOUTS.items():
        found: dict[str, Any] = {"layout": name}
        for key in ("id", "device_id"):
            if key in offsets:
                found[key] = text_at(int.from_bytes(raw[offsets[key] : offsets[key] + 8], "little"))
        if not is_pci_address(found["device_id"]) or found.get("id", "-") is None:
            continue
        if "compute_major" in offsets:
            words = [raw[offsets[key] : offsets[key] + 4] for key in ("compute_major", "compute_minor")]
            found["cc"] = [int.from_bytes(word, "little", signed=True) for word in words]
        return found
    return {"layout": None}


def is_pci_address(text: str | None) -> bool:
    """Return whether TEXT is a PCI address such as 0000:00:06.0 or 00000000:00:06.0."""
    parts = (text or "").replace(".", ":").split(":")
    digits = "0123456789abcdefABCDEF"
    return len(parts) == 4 and all(part and all(letter in digits for letter in part) for part in parts)


class Functions:
    """The functions of an open backend library and of the libggml-base that it brought (dlsym looks through both)."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def get(self, name: str, result: Any, *arguments: Any) -> Any:
        """Return function NAME with its types set, None where there is none."""
        try:
            function = self._library[name]
        except AttributeError:
            return None
        function.restype, function.argtypes = result, arguments
        return function


def visible(variables: dict[str, str]) -> None:
    """Put VARIABLES into the environment that libraries read (getenv), before any of them is opened."""
    for name, value in variables.items():
        os.environ[name] = value  # calls putenv
