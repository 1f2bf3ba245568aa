"""struct cudaDeviceProp of each CUDA major, decoded from raw bytes: so a wrong layout is told from a right one.

Offsets by offsetof() over driver_types.h of these packages (PyPI, x86-64 Linux): nvidia-cuda-runtime-cu11 11.8.89,
nvidia-cuda-runtime-cu12 12.0.146 and 12.9.79 (equal), nvidia-cuda-runtime 13.0.96 and 13.5.37 (equal).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

NAME, UUID, TOTAL, MAJOR, MINOR = (0, 256), (256, 16), 288, 360, 364  # the same in all three


@dataclass(frozen=True)
class Layout:
    """Where the fields lie that differ between majors; `size` is sizeof(struct cudaDeviceProp)."""

    size: int
    sm_count: int
    pci_bus: int
    pci_device: int
    pci_domain: int


LAYOUTS = {
    11: Layout(size=728, sm_count=388, pci_bus=584, pci_device=588, pci_domain=592),
    12: Layout(size=1032, sm_count=388, pci_bus=584, pci_device=588, pci_domain=592),
    13: Layout(size=1008, sm_count=384, pci_bus=568, pci_device=572, pci_domain=576),
}
POISON = 0xEE


def decode(raw: bytes, major: int) -> dict[str, Any] | None:
    """Return what a program compiled for CUDA MAJOR reads in RAW; None for a major without a known layout.

    {"name", "uuid", "pci", "cc": [major, minor], "total_memory", "sm_count", "written", "overflow"}: `written` is the
    number of bytes that came back, `overflow` how many lie behind the end of that program's struct.
    """
    layout = LAYOUTS.get(major)
    if layout is None:
        return None
    whole = raw + bytes([POISON]) * max(0, layout.size - len(raw))

    def integer(offset: int) -> int:
        return int(struct.unpack_from("<i", whole, offset)[0])

    digits = whole[UUID[0] : UUID[0] + UUID[1]].hex()
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    domain, bus, device = integer(layout.pci_domain), integer(layout.pci_bus), integer(layout.pci_device)
    return {
        "name": whole[NAME[0] : NAME[1]].split(b"\0", 1)[0].decode("utf-8", "backslashreplace"),
        "uuid": "GPU-" + "-".join(parts),
        "pci": f"{domain & 0xFFFFFFFF:04x}:{bus & 0xFFFFFFFF:02x}:{device & 0xFFFFFFFF:02x}.0",  # as ggml prints it
        "cc": [integer(MAJOR), integer(MINOR)],
        "total_memory": int(struct.unpack_from("<Q", whole, TOTAL)[0]),
        "sm_count": integer(layout.sm_count),
        "written": len(raw),
        "overflow": max(0, len(raw) - layout.size),
    }
