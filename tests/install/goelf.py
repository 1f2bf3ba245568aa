"""A Go binary as far as its version is concerned: build information, a string variable, its relocation, its symbol."""

from __future__ import annotations

import struct

RODATA, DATA = 0x400000, 0x500000
VARIABLE = b"github.com/ollama/ollama/version.Version"
SENTINEL = b"0123456789abcdef"


def varint(number: int) -> bytes:
    """Return NUMBER as Go's binary.PutUvarint writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def build_info(*lines: str, go: str = "go1.24.1") -> bytes:
    """Return section .go.buildinfo with the module lines LINES."""
    text = SENTINEL + "\n".join(lines).encode() + b"\n" + SENTINEL
    return b"\xff Go buildinf:\x08\x02" + bytes(16) + varint(len(go)) + go.encode() + varint(len(text)) + text


def strings(values: list[str], *, pie: bool = True) -> dict[str, bytes]:
    """Return .rodata, .data and (PIE) .rela.dyn of string variables with VALUES."""
    rodata, data, rela = b"\0" * 16, b"\0" * 16, b""
    for value in values:
        pointer, place = RODATA + len(rodata), DATA + len(data)
        rodata += value.encode()
        data += struct.pack("<QQ", 0 if pie else pointer, len(value))
        rela += struct.pack("<QQq", place, 8, pointer)
    return {".rodata": rodata, ".data": data + bytes(16), **({".rela.dyn": rela} if pie else {})}


def symbols(value: str) -> dict[str, bytes]:
    """Return .symtab and .strtab that name VALUE, at the start of .rodata, as what the linker's -X made."""
    table = bytes(24) + struct.pack("<IBBHQQ", 1, 0, 0, 1, RODATA, len(value) + 1)
    return {".rodata": value.encode() + b"\0", ".symtab": table, ".strtab": b"\0" + VARIABLE + b".str\0"}


def elf(sections: dict[str, bytes], *, machine: int = 62) -> bytes:
    """Return a 64-bit ELF file with SECTIONS by name; .rodata and .data have addresses."""
    addresses = {".rodata": RODATA, ".data": DATA, ".go.buildinfo": 0x600000, ".rela.dyn": 0x300000}
    names, body, headers = b"\0", b"", [bytes(64)]
    for name, data in {**sections, ".shstrtab": b""}.items():
        at = len(names)
        names += name.encode() + b"\0"
        content = names if name == ".shstrtab" else data
        offset = 64 + len(body)
        body += content
        headers.append(struct.pack("<IIQQQQIIQQ", at, 1, 2, addresses.get(name, 0), offset, len(content), 0, 0, 1, 0))
    table = 64 + len(body)
    counts = (64, 0, 0, 64, len(headers), len(headers) - 1)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 0, table, 0, *counts)
    return head + body + b"".join(headers)
