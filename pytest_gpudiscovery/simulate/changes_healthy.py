"""Changes that leave a host healthy: other hardware beside the GPU, masked trees, containers, other library layouts."""

from __future__ import annotations

import base64
import os
import posixpath
import re
import struct
from pathlib import Path

from pytest_gpudiscovery.probes.libraries import CACHE_MAGIC, MACHINES
from pytest_gpudiscovery.simulate import build
from pytest_gpudiscovery.simulate.changes import Change, number
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.world import PCI, PROC, ROOT, Entry, File, World

BRIDGE = "/sys/devices/pci0000:80"  # a root port of its own for what stands beside the GPUs


E_MACHINE = MACHINES.get(os.uname().machine, (0, 62))[1]
ELF_HEADER = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, E_MACHINE) + bytes(44)

# --- on the bus ------------------------------------------------------------------------------------------------------


def function(address: str, *, vendor: int, device: int, kind: int, driver: str, parent: str = "") -> Change:
    """Add PCI function ADDRESS of VENDOR:DEVICE and class KIND, bound to kernel driver DRIVER ("" for none).

    PARENT is the address of the physical function of which it is a virtual one.
    """

    def change(world: World, _: str) -> None:
        where = f"{BRIDGE}/{address}"
        texts = {"vendor": f"0x{vendor:04x}", "device": f"0x{device:04x}", "class": f"0x{kind:06x}"}
        texts |= {"subsystem_vendor": texts["vendor"], "subsystem_device": "0x0000", "numa_node": "0"}
        for name, text in texts.items():
            world.text(f"{where}/{name}", text + "\n")
        if driver:
            world.entries[f"/sys/bus/pci/drivers/{driver}"] = {"type": "dir", "mode": 0o755, **ROOT}
            world.entries[f"{where}/driver"] = {"type": "link", "target": f"../../../bus/pci/drivers/{driver}"}
        if parent:
            world.entries[f"{where}/physfn"] = {"type": "link", "target": f"../{parent}"}
        world.entries[f"{PCI}/{address}"] = {"type": "link", "target": f"../../../devices/pci0000:80/{address}"}

    return change


def moved(world: World, value: str) -> None:
    """Have the first GPU at PCI address VALUE, which is written as sysfs writes it."""
    found = re.fullmatch(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.0", value)
    if found is None:
        raise SimulationError(f"{value!r} is no PCI address such as 0001:00:00.0")
    old = world.pci(0)
    world.conf = {key: text.replace(old, value) for key, text in world.conf.items()}
    for attribute, digits in zip((50, 33, 34), found.groups(), strict=True):  # domain, bus, device
        world.conf[f"gpu.0.attr.{attribute}"] = str(int(digits, 16))
    for path, entry in list(world.entries.items()):
        changed = {k: v.replace(old, value) if k in ("text", "target") else v for k, v in entry.items()}
        del world.entries[path]
        world.entries[path.replace(old, value)] = changed


def display_gpu(world: World, _: str) -> None:
    """Add a small display GPU that the same driver serves, behind the others in every order."""
    last = world.gpus
    for key, value in list(world.conf.items()):
        if key.startswith("gpu.0."):
            world.conf[f"gpu.{last}.{key[6:]}"] = value
    pci, name, uuid = "0000:81:00.0", "NVIDIA T400 4GB", "GPU-00000000-0000-4000-8000-0000000000aa"
    device, total, reserved = 0x1FF2, 4096 << 20, 300 << 20
    values: dict[str, object] = {
        "pci": pci,
        "uuid": uuid,
        "minor": last,
        "name": name,
        "cores": 384,
        "brand": 12,
        "architecture": 6,
        "attr.33": 0x81,
        "attr.34": 0,
        "attr.50": 0,
        "attr.16": 6,
        "attr.75": 7,
        "attr.76": 5,
        "attr.37": 64,
        "pci.device_id": device << 16 | 0x10DE,
        "attr.139": device << 16 | 0x10DE,
        "memory.total": total,
        "memory.reserved": reserved,
        "memory.cuda": total - reserved,
    }
    world.conf |= {f"gpu.{last}.{key}": str(value) for key, value in values.items()}
    world.conf["gpu.count"] = str(last + 1)
    function(pci, vendor=0x10DE, device=device, kind=0x030000, driver="nvidia")(world, "")
    world.entries[f"/dev/nvidia{last}"] = {**world.entries["/dev/nvidia0"], "minor": last}
    text = str(world.entries[f"{PROC}/gpus/{world.pci(0)}/information"]["text"])
    text = text.replace(world.conf["gpu.0.name"], name).replace(world.conf["gpu.0.uuid"], uuid)
    world.text(f"{PROC}/gpus/{pci}/information", text.replace("Device Minor: \t 0", f"Device Minor: \t {last}"))


# --- containers and masks --------------------------------------------------------------------------------------------


def given(*, masked: bool) -> Change:
    """Show a container only the GPU whose minor is the value; sysfs still lists all of the host's.

    MASKED: NVIDIA's container library also hides the others in /proc/driver/nvidia (libnvidia-container,
    src/nvc_mount.c, mount_procfs_gpu); CDI and a device plugin that passes nodes do not.
    """

    def change(world: World, value: str) -> None:
        chosen = number(value, 0, world.gpus - 1)
        mine, hidden = world.pci(chosen), [world.pci(gpu) for gpu in range(world.gpus) if gpu != chosen]
        minors = [world.conf[f"gpu.{gpu}.minor"] for gpu in range(world.gpus) if gpu != chosen]
        own = {key.partition(f"gpu.{chosen}.")[2]: text for key, text in world.conf.items() if f"gpu.{chosen}." in key}
        world.conf = {key: text for key, text in world.conf.items() if not key.startswith("gpu.")}
        world.conf |= {f"gpu.0.{key}": text for key, text in own.items() if key} | {"gpu.count": "1"}
        world.drop(*[f"/dev/nvidia{minor}" for minor in minors])
        if masked:
            world.drop(*[f"{PROC}/gpus/{pci}" for pci in hidden], f"{PROC}/capabilities")
        if f"{PROC}/gpus/{mine}" not in world.entries:
            raise SimulationError(f"this simulated host has no GPU at {mine}")
        world.text("/.dockerenv", "")

    return change


def masked(*paths: str) -> Change:
    """Hide PATHS with everything below them, as a runtime that mounts an empty directory over each does."""

    def change(world: World, _: str) -> None:
        if world.version is not None:
            world.conf["driver.module"] = world.version  # it is loaded all the same
        for path in paths:
            world.drop(path)
            world.entries[path] = {"type": "dir", "mode": 0o755, **ROOT}

    return change


def absent(*paths: str) -> Change:
    """Remove PATHS with everything below them."""
    return lambda world, _: world.drop(*paths)


def text(path: str, words: str) -> Change:
    """Put WORDS into file PATH."""
    return lambda world, _: world.text(path, words)


def replaced(path: str, old: str, new: str) -> Change:
    """Replace OLD by NEW in file PATH, at the end of it where OLD is empty."""

    def change(world: World, value: str) -> None:
        there = str(world.entries[world.resolve(path)]["text"])
        wanted = new.replace("{value}", value)
        world.text(path, there.replace(old, wanted) if old else there + wanted)

    return change


def character(path: str, major: int, minor: int, mode: int = 0o666) -> Change:
    """Add device node PATH."""
    entry: Entry = {"type": "char", "mode": mode, **ROOT, "major": major, "minor": minor}
    return lambda world, _: world.entries.update({path: entry})


def bystander(pid: int, comm: str, state: str, wchan: str = "0") -> Change:
    """Add a process that has nothing of the driver open."""

    def change(world: World, _: str) -> None:
        stat = f"{pid} ({comm}) {state} 1 {pid} {pid} 0 -1 4194560 0 0 0 0 7 3 0 0 20 0 1 0 12345 0 0 " + "0 " * 29
        world.text(f"/proc/{pid}/stat", stat.rstrip() + "\n")
        world.text(f"/proc/{pid}/wchan", wchan)
        world.entries[f"/proc/{pid}/fd"] = {"type": "dir", "mode": 0o555, **ROOT}

    return change


# --- where the driver's libraries lie --------------------------------------------------------------------------------


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
