"""Changes that leave a host healthy: other hardware beside the GPU, other addresses, containers, masked trees."""

from __future__ import annotations

import re

from pytest_gpudiscovery.simulate.changes import Change, number
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.machines import unload
from pytest_gpudiscovery.simulate.world import PCI, PROC, ROOT, Entry, World

BRIDGE = "/sys/devices/pci0000:80"  # a root port of its own for what stands beside the GPUs


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


def wsl(world: World, _: str) -> None:
    """Make the host a WSL machine: nothing of the driver in /proc, /sys and /dev, its libraries without a version."""
    module = str(world.version)
    unload(world)
    where = f"{PCI}/{world.pci(0)}"
    world.drop(world.resolve(where), where)
    world.entries["/dev/dxg"] = {"type": "char", "mode": 0o666, **ROOT, "major": 10, "minor": 125}
    world.conf |= {"driver.module": module, "uvm.loaded": "1"}
    world.conf |= {f"node./dev/{name}": "666 0 0 -" for name in ("nvidiactl", "nvidia-uvm", "nvidia0")}
    for path in [path for path in world.files if path.endswith(f".so.{module}")]:
        world.files[f"{path.rpartition('.so.')[0]}.so.1"] = world.files.pop(path)


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
