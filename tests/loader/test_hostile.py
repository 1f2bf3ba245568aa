"""Files that are made to cost: small on disk, large when read. Each is an answer, in a process of 64 MB."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2]
MOST = 64 << 10  # kilobytes
NEEDED, HASH, STRTAB, SYMTAB, RELA, RELASZ, RELAENT, RUNPATH = 1, 4, 5, 6, 7, 8, 9, 29
VERNEED, VERSYM, GNU_HASH = 0x6FFFFFFE, 0x6FFFFFF0, 0x6FFFFEF5
ASK = """
import sys; sys.path.insert(0, sys.argv[1])
import pytest_gpudiscovery.loader as l
from pytest_gpudiscovery.loader.render import closure_text, images_text
closure = l.predict(sys.argv[2], env={})
closure_text(closure)
images_text(l.read_images(sys.argv[2]))
l.read_architectures(sys.argv[2])
print(closure.outcome, open("/proc/self/status").read().partition("VmHWM:")[2].split()[0], closure.message[:200])
"""


def elf(tables: dict[int, bytes], entries: list[tuple[int, int]], segments: int = 0, notes: int = 0) -> bytes:
    """Return a library of one segment: TABLES by dynamic tag, ENTRIES with their values, then more headers.

    SEGMENTS more PT_LOADs map the whole file again; NOTES are as many PT_NOTEs.
    """
    count = 3 + segments + notes
    at = 64 + 56 * count
    body = b""
    dynamic = list(entries)
    for tag, content in tables.items():
        dynamic.append((tag, at + len(body)))
        body += content + bytes(-len(content) % 8)
    start = at + len(body)
    body += b"".join(struct.pack("<qQ", tag, value) for tag, value in [*dynamic, (0, 0)])
    size = at + len(body)
    headers = [(1, 6, 0, 0, 0, size, size, 4096), (2, 6, start, start, start, size - start, size - start, 8)]
    headers.append((0x6474E551, 6, 0, 0, 0, 0, 0, 16))
    headers += [(1, 4, 0, 0, 0, size, size, 4096)] * segments
    headers += [(4, 4, at, at, at, min(size - at, 60000), min(size - at, 60000), 8)] * notes
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 3, 62, 1, 0, 64, 0, 0, 64, 56, count, 64, 0, 0)
    return head + b"".join(struct.pack("<IIQQQQQQ", *header) for header in headers) + body


def _relocations(symbols: int) -> tuple[bytes, list[tuple[int, int]]]:
    table = b"".join(struct.pack("<QQq", 0, symbol << 32 | 6, 0) for symbol in range(1, symbols))
    return table, [(RELASZ, len(table)), (RELAENT, 24)]


def many_undefined_symbols() -> bytes:
    """As many as are accepted, each with a name of its own."""
    symbols = 1 << 17
    names = b"\0" + b"".join(b"s%06d\0" % number for number in range(symbols))
    table = b"".join(struct.pack("<IBBHQQ", 1 + 8 * number, 16, 0, 0, 0, 0) for number in range(symbols))
    relocations, sizes = _relocations(symbols)
    return elf({STRTAB: names, SYMTAB: table, RELA: relocations}, sizes)


def overlapping_symbol_names() -> bytes:
    """Every name is the rest of the same 60,000 characters."""
    symbols = 50_000
    table = b"".join(struct.pack("<IBBHQQ", number, 16, 0, 0, 0, 0) for number in range(symbols))
    relocations, sizes = _relocations(symbols)
    return elf({STRTAB: b"x" * 60_000 + b"\0", SYMTAB: table, RELA: relocations}, sizes)


def overlapping_needed_names() -> bytes:
    return elf({STRTAB: b"x" * 60_000 + b"\0"}, [(NEEDED, number) for number in range(16_000)])


def endless_dynamic_section() -> bytes:
    return elf({STRTAB: b"\0x\0"}, [(NEEDED, 1)] * 100_000)


def many_places_for_many_names() -> bytes:
    """Thousands of names, each looked for in thousands of directories."""
    names = b"".join(b"n%04d\0" % number for number in range(8000))
    paths = b":".join(b"/nowhere/%04d" % number for number in range(4096)) + b"\0"
    entries = [(NEEDED, 6 * number) for number in range(8000)]
    return elf({STRTAB: names + paths}, [*entries, (RUNPATH, len(names))])


def version_records_without_end() -> bytes:
    record = struct.pack("<HHIII", 1, 1, 0, 16, 32) + struct.pack("<IHHII", 0, 0, 2, 0, 0)
    return elf({STRTAB: b"x" * 60_000 + b"\0", VERNEED: record * 40_000, VERSYM: bytes(8)}, [])


def hash_chain_through_the_file() -> bytes:
    """Each of many lookups walks a chain of a million words, none of which ends it."""
    symbols = 4000
    names = b"".join(b"s%04d\0" % number for number in range(symbols))
    table = b"".join(struct.pack("<IBBHQQ", 6 * number, 16, 0, 0, 0, 0) for number in range(symbols))
    hashes = struct.pack("<IIIIQI", 1, 1, 1, 0, (1 << 64) - 1, 1) + bytes(4 << 20)
    relocations, sizes = _relocations(symbols)
    return elf({STRTAB: names, SYMTAB: table, RELA: relocations, GNU_HASH: hashes}, sizes)


def segments_that_cover_each_other() -> bytes:
    return elf({STRTAB: bytes(8 << 20)}, [], segments=60_000)


def notes_without_end() -> bytes:
    return elf({STRTAB: bytes(1 << 20)}, [], notes=60_000)


def containers_that_are_empty() -> bytes:
    container = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 0)
    return elf({STRTAB: container * (1 << 20)}, [], segments=1)


CASES = (
    many_undefined_symbols,
    overlapping_symbol_names,
    overlapping_needed_names,
    endless_dynamic_section,
    many_places_for_many_names,
    version_records_without_end,
    hash_chain_through_the_file,
    segments_that_cover_each_other,
    notes_without_end,
    containers_that_are_empty,
)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_an_answer_in_little_memory(make: Callable[[], bytes], tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(make())
    words = [sys.executable, "-I", "-S", "-c", ASK, str(PACKAGE), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    outcome, peak = done.stdout.split()[:2]
    assert outcome
    assert int(peak) <= MOST, done.stdout
