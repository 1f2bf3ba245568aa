"""Device code for simulated libraries: containers with real headers, written into the room that csrc/fatbin.h leaves.

A payload is 8 bytes: nothing runs it, but everything that lists or judges device code reads what a real library has
(loader/fatbin.py names the format and its source).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pytest_gpudiscovery.simulate.errors import SimulationError

LABEL = b"SIM.NV_FATBIN\0\0\0"
ARCHITECTURES = b"\0SIM.ARCHITECTURES\0"
ARCHITECTURES_ROOM = 256  # bytes
KINDS = {"compute": 1, "sm": 2}
SUFFIXES = {"": 0, "a": 0x100000, "f": 0x200000}
COMPRESSIONS = {"": 0, "lz4": 0x2000, "zstd": 0x8000}
PAYLOAD = bytes(8)
MODULES = (
    125  # PTX modules of libggml-cuda.so as built from Ollama v0.17.0 for compute_90; nvcc makes one per source file
)


@dataclass(frozen=True)
class Code:
    """The device code of one library.

    `targets` as nvcc calls them: sm_90a, compute_90. `ptx_isa` is that of the toolkit, 8.7 for CUDA 12.8 and 9.0 for
    13.0. `modules` containers hold one image per target each. `architectures` is what ggml was told it is compiled for
    ("500,520"), "" for a library that says nothing.
    """

    targets: tuple[str, ...]
    ptx_isa: tuple[int, int]
    compression: str = ""
    modules: int = MODULES
    architectures: str = ""


def preset(text: str, ptx_isa: tuple[int, int], compression: str = "") -> Code:
    """Return what CMAKE_CUDA_ARCHITECTURES=TEXT makes: `90` is machine code and PTX, `90-virtual` PTX alone."""
    targets, numbers = [], set()
    for name in text.split(";"):
        number, _, kind = name.partition("-")
        numbers.add(int(number.rstrip("af")))
        targets += [f"compute_{number}"] if kind == "virtual" else [f"sm_{number}", f"compute_{number}"]
    listed = ",".join(str(number * 10) for number in sorted(numbers))
    return Code(tuple(targets), ptx_isa, compression, architectures=listed)


def container(code: Code) -> bytes:
    """Return one container with an image per target of CODE."""
    entries = b""
    for target in code.targets:
        kind, _, name = target.partition("_")
        number = name.rstrip("af")
        major, minor = code.ptx_isa if kind == "compute" else (0, 0)
        flags = SUFFIXES[name[len(number) :]] | COMPRESSIONS[code.compression]
        entries += struct.pack(
            "<HHIQIIHHIIIQQQ", KINDS[kind], 0x101, 64, len(PAYLOAD), 0, 0, minor, major, int(number), 0, 0, flags, 0, 0
        )
        entries += PAYLOAD
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def fill(data: bytes, code: Code) -> bytes:
    """Return library DATA with CODE in it; raises SimulationError for a library without room for it."""
    at = data.find(LABEL)
    whole = container(code) * code.modules
    room = struct.unpack_from("<Q", data, at + len(LABEL))[0] if at >= 0 else 0
    if len(whole) > room:
        raise SimulationError(f"{len(whole)} bytes of device code do not fit into {room}")
    # The label goes too: what is left before the first container is 24 bytes of nothing.
    data = data[:at] + bytes(24) + whole.ljust(room, b"\0") + data[at + 24 + room :]
    at = data.find(ARCHITECTURES)
    if at < 0:
        return data
    listed = b"\0" + code.architectures.encode()
    return data[:at] + listed.ljust(ARCHITECTURES_ROOM, b"\0") + data[at + ARCHITECTURES_ROOM :]
