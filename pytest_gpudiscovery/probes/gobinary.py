"""The version of an Ollama binary, read from its file: nothing is executed.

Three witnesses, the surest first. `ldflags`: the linker's -X setting in Go's build information (absent where -trimpath
was given, as in every release). `symbol`: the string that -X made, by its symbol (absent where -s was given). `data`:
releases lack both, and version.Version is then the only string variable of .data whose value is a version: checked on
0.16.3, 0.24.0 and 0.32.15. Where several would fit, none is taken.
"""

from __future__ import annotations

import re
import struct

from pytest_gpudiscovery.probes.facts import errno_name
from pytest_gpudiscovery.probes.host import HostView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VARIABLE = b"github.com/ollama/ollama/version.Version"
LDFLAG = re.compile(re.escape(VARIABLE.decode()) + r"=v?([0-9][0-9A-Za-z.+-]{0,40})")
VERSION = re.compile(rb"v?[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}(?:[-+][0-9A-Za-z.+-]{1,20})?")
LENGTHS = range(5, 32)  # of such a string
BUILD_INFO = b"\xff Go buildinf:"  # Go, debug/buildinfo
INFO_LIMIT = 1 << 20
SECTION_LIMIT = 96 << 20  # bytes of one table; the largest of 0.32 has 11 MB
SECTIONS_LIMIT = 512
NOBITS = 8
RELATIVE = {62: 8, 183: 1027}  # e_machine -> R_X86_64_RELATIVE, R_AARCH64_RELATIVE
WORD = struct.Struct("<Q")
RELA = struct.Struct("<QQq")
SYMBOL = struct.Struct("<IBBHQQ")


def version(view: HostView, path: str) -> dict[str, Any]:
    """Return {"version", "by": "ldflags" | "symbol" | "data", "go", "module"}; each None where the file does not tell.

    {"errno"} when it cannot be read. Never raises for what the file holds.
    """
    try:
        file = _Elf(view, path)
        go, module, flags = _build_info(file)
        found, by = LDFLAG.findall(flags or ""), "ldflags"
        if not found:
            found, by = _by_symbol(file), "symbol"
        if not found and go is not None:
            found, by = _by_value(file), "data"
    except OSError as error:
        return {"version": None, "by": None, "go": None, "module": None, "errno": errno_name(error)}
    except (struct.error, ValueError, IndexError, OverflowError):
        return {"version": None, "by": None, "go": None, "module": None}
    one = found[0] if len(set(found)) == 1 else None
    return {"version": one, "by": by if one else None, "go": go, "module": module}


class _Section:
    def __init__(self, name: int, kind: int, address: int, offset: int, size: int) -> None:
        self.name, self.kind, self.address, self.offset, self.size = name, kind, address, offset, size


class _Elf:
    """The sections of a 64-bit little-endian ELF file; none where it is anything else."""

    def __init__(self, view: HostView, path: str) -> None:
        self._view, self._path = view, path
        self.sections: dict[str, _Section] = {}
        head = view.read_at(path, 0, 64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            self.machine = 0
            return
        (self.machine,) = struct.unpack_from("<H", head, 18)
        (table,) = WORD.unpack_from(head, 40)
        size, count, names = struct.unpack_from("<HHH", head, 58)
        raw = view.read_at(path, table, size * count) if size == 64 and count <= SECTIONS_LIMIT else b""
        found = []
        for at in range(0, len(raw) - 63, 64):
            name, kind, _, address, offset, length = struct.unpack_from("<IIQQQQ", raw, at)
            found.append(_Section(name, kind, address, offset, 0 if kind == NOBITS else length))
        texts = self.read(found[names]) if names < len(found) else b""
        for section in found:
            end = texts.find(b"\0", section.name)
            self.sections[texts[section.name : end].decode("latin-1")] = section

    def read(self, section: _Section) -> bytes:
        """Return the bytes of SECTION, b"" for one that is too large to be read."""
        if not 0 < section.size <= SECTION_LIMIT:
            return b""
        return self._view.read_at(self._path, section.offset, section.size)

    def named(self, name: str) -> bytes:
        """Return the bytes of the section called NAME, b"" where there is none."""
        return self.read(self.sections[name]) if name in self.sections else b""

    def holds(self, address: int) -> tuple[str, int] | None:
        """Return (section, offset in it) of ADDRESS, None when no section of the file holds it."""
        for name, section in self.sections.items():
            if section.address and section.address <= address < section.address + section.size:
                return name, address - section.address
        return None


def _build_info(file: _Elf) -> tuple[str | None, str | None, str | None]:
    """Return (Go version, main module, -ldflags) of Go's build information (since Go 1.18: inline strings)."""
    raw = file.named(".go.buildinfo")[:INFO_LIMIT]
    if not raw.startswith(BUILD_INFO) or len(raw) < 33 or not raw[15] & 2:
        return None, None, None
    go, at = _string(raw, 32)
    text, _ = _string(raw, at)
    lines = text[16:-16].decode("utf-8", "replace").splitlines()  # between two sentinels of 16 bytes
    module = next((line.split("\t")[1] for line in lines if line.startswith("path\t")), None)
    flags = next((line for line in lines if line.startswith("build\t-ldflags=")), None)
    return go.decode("utf-8", "replace"), module, flags


def _string(raw: bytes, at: int) -> tuple[bytes, int]:
    """Return the string behind the varint at AT, and where it ends."""
    length = shift = 0
    for _ in range(5):
        byte = raw[at]
        at += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return raw[at : at + length], at + length


def _by_symbol(file: _Elf) -> list[str]:
    names = file.named(".strtab")
    at = names.find(b"\0" + VARIABLE + b".str\0") + 1
    if at == 0:
        return []
    table = file.named(".symtab")
    for name, _, _, _, address, size in SYMBOL.iter_unpack(table[: len(table) // 24 * 24]):
        if name == at and size - 1 in LENGTHS and (place := file.holds(address)) is not None:
            text = file.named(place[0])[place[1] : place[1] + size - 1]  # the linker ends it with a NUL
            return [text.removeprefix(b"v").decode("ascii")] if VERSION.fullmatch(text) else []
    return []


def _by_value(file: _Elf) -> list[str]:
    """Return the values of all string variables in .data that are versions.

    A Go string is (pointer, length); in a position-independent binary the pointer is a relocation's addend.
    """
    data, section = file.named(".data"), file.sections.get(".data")
    if section is None or not data:
        return []
    begin, end = section.address, section.address + len(data) - 15
    relocations = file.named(".rela.dyn")
    pointers: list[tuple[int, int]] = []
    relative = RELATIVE.get(file.machine)
    for place, kind, addend in RELA.iter_unpack(relocations[: len(relocations) // 24 * 24]):
        if begin <= place < end and kind == relative:
            pointers.append((place - begin, addend))
    if not pointers:  # linked to a fixed address
        words = data[: len(data) // 8 * 8]
        pointers = [(8 * index, value) for index, (value,) in enumerate(WORD.iter_unpack(words[:-8]))]
    texts: dict[str, bytes] = {}
    found = []
    low, high = _span(file)
    for at, pointer in pointers:
        if not low <= pointer < high:
            continue
        (length,) = WORD.unpack_from(data, at + 8)
        if length not in LENGTHS or (place_of := file.holds(pointer)) is None:
            continue
        name, offset = place_of
        if name not in texts:
            texts[name] = file.named(name)
        text = texts[name][offset : offset + length]
        if len(text) == length and VERSION.fullmatch(text):
            found.append(text.removeprefix(b"v").decode("ascii"))
    return found


def _span(file: _Elf) -> tuple[int, int]:
    places = [
        (section.address, section.address + section.size) for section in file.sections.values() if section.address
    ]
    return min((low for low, _ in places), default=0), max((high for _, high in places), default=0)
