"""Changes to where the driver's libraries lie and how the loader finds them, all of which leave a host healthy."""

from __future__ import annotations

import base64
import os
import posixpath
import struct
from pathlib import Path

from pytest_gpudiscovery.probes.libraries import CACHE_MAGIC, MACHINES
from pytest_gpudiscovery.simulate import build
from pytest_gpudiscovery.simulate.changes import Change
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.world import ROOT, Entry, File, World

E_MACHINE = MACHINES.get(os.uname().machine, (0, 62))[1]
ELF_HEADER = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, E_MACHINE) + bytes(44)


def alternatives(world: World, _: str) -> None:
    """Lay the driver's libraries out as Debian does: links through nvidia/current (update-alternatives, glx)."""
    for path in [path for path in world.files if path.startswith("lib/") and "cudart" not in path]:
        file, name = world.files.pop(path), posixpath.basename(path)
        if file.kind == "built" or name.endswith(".so.1"):
            world.files[f"lib/nvidia/current/{name}"] = file
        if name.endswith(".so.1"):
            world.files[path] = File("link", f"nvidia/current/{name}")


def second_copy(world: World, _: str) -> None:
    """Have LD_LIBRARY_PATH name two directories with the same driver, as images with a driver mount do."""
    for path in [path for path in world.files if path.startswith("lib/libcuda.")]:
        world.files[f"foreign/{posixpath.basename(path)}"] = world.files[path]
    world.library_path.insert(0, "{dir}/foreign")


def cache(*, old: bool) -> Change:
    """Have /etc/ld.so.cache name a second copy of the driver; OLD: as glibc 2.31 writes it, before its own format the
    one of libc5; else as 2.41 does, with entries for glibc-hwcaps and an extension at the end.

    Layouts: glibc, sysdeps/generic/dl-cache.h.
    """

    def change(world: World, _: str) -> None:
        place = "/usr/lib/x86_64-linux-gnu"
        names = sorted(posixpath.basename(path) for path in world.files if path.endswith(".so.1"))
        for name in names:
            target = f"{name[:-2]}.{world.version}"
            world.entries[f"{place}/{name}"] = {"type": "link", "target": target}
            source = world.files[f"lib/{target}"].source
            size = build.built([(source, frozenset())])[(source, frozenset())].stat().st_size
            world.entries[f"{place}/{target}"] = _library(ELF_HEADER, size)
        data = base64.b64encode(_cache(names, place, old=old)).decode()
        world.entries["/etc/ld.so.cache"] = {"type": "file", "mode": 0o644, **ROOT, "b64": data}

    return change


def _library(head: bytes, size: int) -> Entry:
    return {"type": "file", "mode": 0o755, **ROOT, "b64": base64.b64encode(head).decode(), "size": size}


def by_cache(world: World, value: str) -> None:
    """Have the loader find the driver by /etc/ld.so.cache alone; VALUE is a directory with the driver and that cache.

    Nothing is simulated of it: the gate must run where VALUE/ld.so.cache is /etc/ld.so.cache.
    """
    folder = Path(value)
    if not (folder / "ld.so.cache").is_file():
        raise SimulationError(f"expected {folder}/ld.so.cache, and the driver's libraries in {folder}/lib")
    world.library_path.clear()
    for path in sorted((folder / "lib").glob("*")):
        link: Entry | None = {"type": "link", "target": str(path.readlink())} if path.is_symlink() else None
        world.entries[str(path)] = link or _library(path.read_bytes()[:4096], path.stat().st_size)
    data = (folder / "ld.so.cache").read_bytes()
    world.entries["/etc/ld.so.cache"] = _library(data, len(data))


def compatibility(world: World, value: str) -> None:
    """Put a forward-compatibility libcuda of version VALUE (CUDA 12.9) before the driver's (NVIDIA's cuda-compat)."""
    world.files[f"lib/compat/libcuda.so.{value}"] = File("built", "libcuda")
    world.files["lib/compat/libcuda.so.1"] = File("link", f"libcuda.so.{value}")
    world.library_path.insert(0, "{dir}/lib/compat")
    world.conf |= {"driver.compat": value, "driver.cuda": "12090", "driver.ptx": "88"}


def _cache(names: list[str], place: str, *, old: bool) -> bytes:
    machine = os.uname().machine
    native = MACHINES.get(machine, (0x0303, 62))[0]
    rows = [(name, f"{place}/{name}", native, 0) for name in sorted(names, reverse=True)]
    rows += [(name, f"/usr/lib/i386-linux-gnu/{name}", 0x0003, 0) for name in names]  # 32-bit, for games
    if not old:
        rows.insert(0, ("libunrelated.so.1", f"{place}/glibc-hwcaps/x86-64-v3/libunrelated.so.1", native, 1 << 62))
    strings, table = b"", b""
    start = 48 + 24 * len(rows)
    for name, path, flags, hwcap in rows:
        key = start + len(strings)
        strings += name.encode() + b"\0"
        table += struct.pack("<iIIIQ", flags, key, start + len(strings), 0, hwcap)
        strings += path.encode() + b"\0"
    # one extension, the generator's name: magic, count, then tag, flags, offset and size
    extension = struct.pack("<IIIIII9s3x", 0xEAA42174, 1, 0, 0, start + len(strings) + 24, 9, b"ldconfig ")
    extension = b"" if old else extension
    offset = start + len(strings) if extension else 0
    header = CACHE_MAGIC + struct.pack("<IIB3xI12x", len(rows), len(strings), 0 if old else 2, offset)
    before = b"ld.so-1.7.0\0" + struct.pack("<I", len(rows)) + bytes(12 * len(rows)) if old else b""
    return before.ljust(-(-len(before) // 8) * 8, b"\0") + header + table + strings + extension


def without(*paths: str) -> Change:
    """Remove files PATHS of the library directory."""

    def change(world: World, _: str) -> None:
        for path in paths:
            del world.files[path]

    return change


def libraries_at(*names: str, first: bool = True) -> Change:
    """Put directories NAMES, which have no library of the driver, on LD_LIBRARY_PATH."""

    def change(world: World, _: str) -> None:
        at = 0 if first else len(world.library_path)
        world.library_path[at:at] = names

    return change
