"""The x86 ISA level that an object needs: NT_GNU_PROPERTY_TYPE_0 notes, read as glibc does (sysdeps/x86/dl-prop.h)."""

from __future__ import annotations

from struct import Struct

NOTE = Struct("<III")
PROPERTY = Struct("<II")
NT_GNU_PROPERTY_TYPE_0 = 5
FEATURE_1_AND, NEEDED_1, ISA_1_NEEDED = 0xC0000002, 0xB0008000, 0xC0008002


def isa_needed(notes: bytes) -> int | None:
    """Return the GNU_PROPERTY_X86_ISA_1_NEEDED bits of the first property note, 0 without them, None without a note."""
    at = 0
    while at + NOTE.size < len(notes):
        name_size, size, kind = NOTE.unpack_from(notes, at)
        if name_size == 4 and kind == NT_GNU_PROPERTY_TYPE_0 and notes[at + 12 : at + 16] == b"GNU\0":
            return _level(notes[at + 16 : at + 16 + size]) if size >= 8 and size % 8 == 0 else 0
        at += (NOTE.size + name_size + 7 & -8) + size + 7 & -8
    return None


def _level(data: bytes) -> int:
    """Properties come in ascending order; one that is malformed ends the reading."""
    at = last = 0
    while at + 8 <= len(data):
        kind, size = PROPERTY.unpack_from(data, at)
        if kind < last or at + 8 + size > len(data) or kind > ISA_1_NEEDED:
            return 0
        if kind in (FEATURE_1_AND, NEEDED_1, ISA_1_NEEDED) and size != 4:
            return 0
        if kind == ISA_1_NEEDED:
            return int.from_bytes(data[at + 8 : at + 12], "little")
        last = kind
        at += 8 + (size + 7 & -8)
    return 0
