"""Record where the driver's libraries are and which functions they export; their contents stay where they are."""

from __future__ import annotations

import glob
import os
import re
import struct
from collections.abc import Iterable
from typing import Any

from pytest_gpudiscovery.simulate.record_view import ViewRecorder

LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1", "libcudart.so.12", "libcudart.so.13", "libnvidia-ptxjitcompiler.so.1")


def cache_paths() -> dict[str, list[str]]:
    """Return soname → paths of the driver's libraries in /etc/ld.so.cache (format glibc-ld.so.cache1.1)."""
    with open("/etc/ld.so.cache", "rb") as file:
        data = file.read()
    start = data.find(b"glibc-ld.so.cache1.1")
    if start < 0:
        return {}
    base = data[start:]
    (count,) = struct.unpack_from("<I", base, 20)
    found: dict[str, list[str]] = {}
    for index in range(count):
        _, key, value = struct.unpack_from("<iII", base, 48 + 24 * index)
        name, path = (base[at : base.index(b"\0", at)].decode() for at in (key, value))
        if re.match(r"lib(cuda|nvidia|cudart)", name):
            found.setdefault(name, []).append(path)
    return found


def library_paths() -> dict[str, list[str]]:
    """Return library name → the files that provide it, in the order in which ld.so would find them."""
    cached = cache_paths()
    folders = [part for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    folders += sorted(glob.glob("/usr/local/cuda*/targets/*/lib")) + sorted(glob.glob("/usr/local/cuda*/lib64"))
    folders += sorted(glob.glob("/usr/*/python3*/*-packages/nvidia/*/lib")) + sorted(
        glob.glob("/usr/local/lib/python3*/*-packages/nvidia/*/lib")
    )
    folders += sorted(glob.glob("/opt/*/lib/python3*/site-packages/nvidia/*/lib"))
    found: dict[str, list[str]] = {}
    for name in LIBRARIES:
        paths = [*(f"{folder}/{name}" for folder in folders), *cached.get(name, [])]
        found[name] = list(dict.fromkeys(path for path in paths if os.path.exists(path)))
    return found


def record_libraries() -> dict[str, Any]:
    """Return where the libraries are, what lies beside them (names, links, sizes) and which symbols they export."""
    paths = library_paths()
    view = ViewRecorder()
    symbols: dict[str, Any] = {}
    for name, files in paths.items():
        for file in files:
            for beside in sorted(glob.glob(f"{os.path.dirname(file)}/lib*")):
                if re.match(r"lib(cuda|nvidia|nvcuvid|cudart)", os.path.basename(beside)):
                    view.add(beside, content=False)
        if files:
            symbols[name] = sorted(exported(files[0]))
    sizes = {path: entry.get("size") for path, entry in view.entries.items() if entry["type"] == "file"}
    return {
        "paths": paths,
        "cache": cache_paths(),
        "entries": view.entries,
        "sizes": sizes,
        "symbols": symbols,
        "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH"),
    }


def exported(path: str) -> Iterable[str]:
    """Yield the defined dynamic symbols of the 64-bit little-endian ELF file PATH."""
    with open(path, "rb") as file:

        def at(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        header = at(0, 64)
        if header[:6] != b"\x7fELF\x02\x01":
            return
        (table,) = struct.unpack_from("<Q", header, 40)
        size, count = struct.unpack_from("<HH", header, 58)
        sections = [struct.unpack_from("<IIQQQQIIQQ", at(table + size * index, 64)) for index in range(count)]
        for section in sections:
            if section[1] == 11:  # SHT_DYNSYM
                strings = at(sections[section[6]][4], sections[section[6]][5])
                symbols = at(section[4], section[5])
                for offset in range(0, len(symbols) - 23, 24):
                    name, info, _, index, _, _ = struct.unpack_from("<IBBHQQ", symbols, offset)
                    if index and info & 15 in (1, 2, 10):
                        yield strings[name : strings.index(b"\0", name)].decode(errors="replace")
