"""What the fuzzer starts from: the files of the crafted cases, this system's cache, containers of device code."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pytest_gpudiscovery.loader.fatbin import CONTAINER, ENTRY
from tests.loader.oracle import Builder, Loader, build_probe
from tests.loader.test_agreement import ALL

SEED_BYTES = 1 << 15
HEAD_BYTES = 1 << 14  # of a given file
CACHE_BYTES = 1 << 16
SYSTEM_LIBRARIES = 12
LIBC = """
GLIBC_2.2.5 { global: printf; malloc; __cxa_finalize; __stack_chk_fail; local: *; };
GLIBC_2.34 { global: __libc_start_main; };
"""


def build(directory: Path, files: list[str]) -> dict[str, list[bytes]]:
    """Return the seeds by kind, and leave the small system `root` in DIRECTORY; FILES are CUDA libraries to read."""
    root = directory / "root"
    (root / "lib64").mkdir(parents=True)
    interpreter = os.path.realpath("/lib64/ld-linux-x86-64.so.2")
    shutil.copy(interpreter, root / "lib64/ld-linux-x86-64.so.2")
    (directory / "libc.map").write_text(LIBC)
    names = ("printf", "malloc", "__cxa_finalize", "__stack_chk_fail", "__libc_start_main")
    (directory / "libc.c").write_text("".join(f"int {name}() {{ return 0; }}\n" for name in names))
    words = ["cc", "-w", "-fno-builtin", "-shared", "-nostdlib", "-fPIC", "-Wl,-soname,libc.so.6"]
    words += [f"-Wl,--version-script={directory / 'libc.map'}", "-o", str(root / "lib64/libc.so.6")]
    subprocess.run([*words, str(directory / "libc.c")], check=True, timeout=60)
    crafted = _crafted(directory / "cases", root / "lib64")
    elf = [data for data in crafted if data[:4] == b"\x7fELF"]
    caches = [data for data in crafted if data[:5] in (b"glibc", b"ld.so")]
    caches += _caches(directory)
    old = b"ld.so-1.7.0\0" + struct.pack("<I", 1) + bytes(12)
    caches += [(old + bytes(-len(old) & 7)) + data for data in caches[:2]]
    heads = [_head(path) for path in files]
    carved = [fatbin(entries) for path in files if (entries := carve(path))]
    return {
        "elf": elf + _system() + heads,
        "dlopen": elf,
        "cache": caches,
        "fatbin": [fatbin(), fatbin(sections=True), *carved, *(heads[:2])],
    }


def _crafted(directory: Path, libraries: Path) -> list[bytes]:
    """Build every crafted case; return the small files, and put the first library of each name into LIBRARIES."""
    directory.mkdir()
    probe = build_probe(directory, Loader("host", ""))
    (libraries.parent / "bin").mkdir()
    shutil.copy(probe, libraries.parent / "bin/program")
    found: dict[bytes, bytes] = {}
    for case in ALL:
        place = directory / case.__name__
        place.mkdir()
        case(Builder(place, probe))
        for path in sorted(place.rglob("*")):
            if path.is_file() and not path.is_symlink() and 64 <= path.stat().st_size <= SEED_BYTES:
                data = path.read_bytes()
                found.setdefault(hashlib.sha256(data).digest(), data)
                if ".so" in path.name and not (libraries / path.name).exists():
                    shutil.copy(path, libraries / path.name)
    return list(found.values())


def _caches(directory: Path) -> list[bytes]:
    """Return this system's cache and two small ones, with numbers in names and with capability subdirectories."""
    builder = Builder(directory, "")
    found = []
    for case in ("cache_with_numbers_in_names", "cache_with_hwcaps"):
        (directory / f"{case}.conf").write_text(f"{directory / 'cases' / case / 'conf'}\n")
        builder.ldconfig(f"{case}.conf", f"{case}.cache")
        found.append((directory / f"{case}.cache").read_bytes())
    system = Path("/etc/ld.so.cache")
    if system.exists() and system.stat().st_size <= CACHE_BYTES:
        found.append(system.read_bytes())
    return found


def _system() -> list[bytes]:
    """Return some small libraries of this system."""
    found = []
    for directory in ("/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64"):
        for path in sorted(Path(directory).glob("lib*.so.*")):
            if not path.is_symlink() and path.stat().st_size <= SEED_BYTES:
                found.append(path.read_bytes())
    return found[:: max(1, len(found) // SYSTEM_LIBRARIES)]


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)


def carve(path: str, containers: int = 6) -> list[bytes]:
    """Return the entry headers of the first containers in the library at PATH, as they are."""
    found: list[bytes] = []
    with open(path, "rb") as file:
        data = file.read(1 << 24)
        at = data.find(b"\x50\xed\x55\xba\1\0\x10\0")
        while at >= 0 and len(found) < 4 * containers:
            entry = at + CONTAINER.size
            file.seek(entry)
            header = file.read(ENTRY.size)
            if len(header) == ENTRY.size:
                found.append(header)
            at = data.find(b"\x50\xed\x55\xba\1\0\x10\0", at + 8)
    return found


def fatbin(headers: list[bytes] | None = None, sections: bool = False) -> bytes:
    """Return a small ELF file whose only segment holds containers of entries with 32 bytes of payload each.

    HEADERS: entry headers to use instead of made ones, their sizes changed; SECTIONS: with section headers.
    """
    form = "<HHIQIIHHIIIQQQ"
    if headers is None:
        made = ((2, 90, 0), (2, 90, 0x100000), (1, 80, 0x8000), (2, 120, 0x202000))
        headers = [struct.pack(form, k, 1, 64, 32, 0, 0, 4, 8, sm, 0, 0, flags, 0, 64) for k, sm, flags in made]
    entries = b"".join(header[:4] + struct.pack("<IQ", 64, 32) + header[16:64] + bytes(32) for header in headers)
    container = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries
    body = (container + bytes(8)) * 3
    names = b"\0.nv_fatbin\0.rodata\0.shstrtab\0"
    constants = b"\x00500,610,700\0"
    at = 64 + 56 + len(body)
    table = at + len(names) + len(constants) + 7 & -8
    start, count, size = (table, 4, 64) if sections else (0, 0, 0)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1" + bytes(9),
        3,
        62,
        1,
        0,
        64,
        start,
        0,
        64,
        56,
        1,
        size,
        count,
        3 * sections,
    )
    segment = struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, at, at, 4096)
    if not sections:
        return header + segment + body
    rows = [(0,) * 10, (1, 1, 2, 120, 120, len(body), 0, 0, 8, 0)]
    rows.append((12, 1, 2, at + len(names), at + len(names), len(constants), 0, 0, 1, 0))
    rows.append((20, 3, 0, 0, at, len(names), 0, 0, 1, 0))
    headers_bytes = b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in rows)
    return (header + segment + body + names + constants).ljust(table, b"\0") + headers_bytes
