"""The changes that faults are made of. Each function returns a Change: it alters a World; VALUE is the fault's own.

`{value}` in a text stands for the value that was given on the command line.
"""

from __future__ import annotations

import dataclasses
import posixpath
import struct
from collections.abc import Callable

from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.machines import board, older_driver, several
from pytest_gpudiscovery.simulate.world import PROC, File, World

Change = Callable[[World, str], None]


def conf(**pairs: str) -> Change:
    """Set keys of sim.conf; `__` in a name is a dot."""
    return lambda world, value: world.conf.update(
        {key.replace("__", "."): text.replace("{value}", value) for key, text in pairs.items()}
    )


def unset(*keys: str) -> Change:
    """Remove keys of sim.conf."""

    def change(world: World, _: str) -> None:
        for key in keys:
            world.conf.pop(key, None)

    return change


def act(function: str, actions: str) -> Change:
    """Have FUNCTION carry out ACTIONS (csrc/sim.c) before, or instead of, its own work."""
    return lambda world, value: world.conf.update(
        {f"at.{function}".replace("{value}", value): actions.replace("{value}", value)}
    )


def gpus(layer: str = "", **pairs: str) -> Change:
    """Set properties of every GPU, as LAYER alone (cuda, nvml) tells them or as all do; `__` is a dot."""

    def change(world: World, value: str) -> None:
        for gpu in range(world.gpus):
            for key, text in pairs.items():
                where = f"{layer}.gpu.{gpu}" if layer else f"gpu.{gpu}"
                world.conf[f"{where}.{key.replace('__', '.')}"] = text.replace("{value}", value)

    return change


def env(**pairs: str) -> Change:
    """Set environment variables of the probes; `{dir}` is the simulated host's directory."""
    return lambda world, value: world.env.update({key: text.replace("{value}", value) for key, text in pairs.items()})


def first_uuid(variable: str) -> Change:
    """Set VARIABLE to the UUID of the first GPU."""
    return lambda world, _: world.env.update({variable: world.conf["gpu.0.uuid"]})


def note(text: str) -> Change:
    """Say TEXT in the description of the simulated host."""
    return lambda world, _: world.notes.append(text)


# --- libraries -------------------------------------------------------------------------------------------------------


def _found(world: World, library: str) -> list[str]:
    """Return the real files behind LIBRARY.so.* in the library directory; raises SimulationError without one."""
    found = [
        path
        for path, file in world.files.items()
        if posixpath.basename(path).startswith(f"{library}.so.") and file.kind == "built"
    ]
    if not found:
        raise SimulationError(f"this simulated host has no {library}: choose a host with a driver, such as h100")
    return found


def remove(*libraries: str) -> Change:
    """Remove the libraries whose file names begin so, with their links."""

    def change(world: World, _: str) -> None:
        for library in libraries:
            for path in [path for path in world.files if posixpath.basename(path).startswith(library)]:
                del world.files[path]

    return change


def mangle(library: str, how: Callable[[bytes], bytes]) -> Change:
    """Change the bytes of LIBRARY after it was built."""

    def change(world: World, _: str) -> None:
        for path in _found(world, library):
            world.files[path] = dataclasses.replace(world.files[path], mangle=how)

    return change


def replace(library: str, file: File) -> Change:
    """Put FILE in the place of LIBRARY's real file."""
    return lambda world, _: world.files.update(dict.fromkeys(_found(world, library), file))


def hide(library: str, function: str = "{value}") -> Change:
    """Leave FUNCTION out of LIBRARY."""

    def change(world: World, value: str) -> None:
        hidden = function.replace("{value}", value)
        for path in _found(world, library):
            file = world.files[path]
            world.files[path] = dataclasses.replace(file, hidden=file.hidden | {hidden})

    return change


def foreign(library: str) -> Change:
    """Give LIBRARY the version that is the value: its file name, and what it says of itself."""

    def change(world: World, value: str) -> None:
        for path in _found(world, library):
            world.files[f"lib/{library}.so.{value}"] = world.files.pop(path)
            world.files[f"lib/{library}.so.1"] = File("link", f"{library}.so.{value}")

    return change


def unversioned(library: str) -> Change:
    """Make LIBRARY.so.1 a plain file, as shims and copies are."""

    def change(world: World, _: str) -> None:
        for path in _found(world, library):
            world.files[f"lib/{library}.so.1"] = world.files.pop(path)

    return change


def stub_first(world: World, _: str) -> None:
    """Put the toolkit's stub directory before the driver's on LD_LIBRARY_PATH."""
    world.files["stubs/libcuda.so"] = File("built", "stub")
    world.files["stubs/libcuda.so.1"] = File("link", "libcuda.so")
    world.library_path.insert(0, "{dir}/stubs")


def preload(source: str, name: str) -> Change:
    """Put built library SOURCE as NAME into LD_PRELOAD."""

    def change(world: World, _: str) -> None:
        world.files[f"lib/{name}"] = File("built", source)
        entry = f"{{dir}}/lib/{name}"
        others = [other for other in world.env.get("LD_PRELOAD", "").split() if other != entry]
        world.env["LD_PRELOAD"] = " ".join([*others, entry])

    return change


def truncated(data: bytes) -> bytes:
    """Return the first half of an ELF file."""
    return data[: len(data) // 2]


def other_class(data: bytes) -> bytes:
    """Return DATA marked as a 32-bit ELF file for i386."""
    return data[:4] + b"\x01" + data[5:18] + struct.pack("<H", 3) + data[20:]


def other_machine(data: bytes) -> bytes:
    """Return DATA marked as an ELF file for AArch64 (for x86-64 on an AArch64 host)."""
    machine = 62 if data[18:20] == struct.pack("<H", 183) else 183
    return data[:18] + struct.pack("<H", machine) + data[20:]


def driver_of(cuda: int, ptx: int) -> Change:
    """Replace the whole driver, module and user space, by the version that is the value."""

    def change(world: World, value: str) -> None:
        older_driver(world, value, cuda, ptx)

    return change


# --- what fits no other ----------------------------------------------------------------------------------------------


def one_gpu_less(layer: str) -> Change:
    """Have LAYER (cuda, nvml) miss the last GPU."""

    def change(world: World, _: str) -> None:
        if world.gpus < 2:
            raise SimulationError("views.count needs a host with two GPUs: --gpu-simulate h100x2:views.count")
        world.conf[f"{layer}.gpu.count"] = str(world.gpus - 1)

    return change


def many_gpus(world: World, value: str) -> None:
    """Show VALUE GPUs: the first one again and again, with other addresses and UUIDs."""
    wide = several(number(value, 1, 64), world.copy)
    world.conf, world.entries = wide.conf, wide.entries


def leave_free(mib: int) -> Change:
    """Have others use the memory of every GPU but MIB (and, for CUDA, what a context takes)."""

    def change(world: World, _: str) -> None:
        for gpu in range(world.gpus):
            room = int(world.conf[f"gpu.{gpu}.memory.cuda"])
            context = int(world.conf[f"gpu.{gpu}.memory.context"]) if mib else 0
            world.conf[f"gpu.{gpu}.memory.used"] = str(room - context - (mib << 20))

    return change


def memory(world: World, value: str) -> None:
    """Give every GPU VALUE GiB of memory."""
    total = number(value, 1, 1024) << 30
    world.set_gpus("memory.total", total)
    world.set_gpus("memory.cuda", total - int(world.conf["gpu.0.memory.reserved"]))


def renamed(name: str, device: int, **values: object) -> Change:
    """Make every GPU another board (NAME, PCI device id, `board` values of machines.py)."""

    def change(world: World, _: str) -> None:
        board(world, name, device=device, subsystem=0x147F, **values)  # type: ignore[arg-type]

    return change


def named(world: World, value: str) -> None:
    """Call every GPU VALUE, in every view."""
    old = world.conf["gpu.0.name"]
    world.set_gpus("name", value)
    for gpu in range(world.gpus):
        path = f"{PROC}/gpus/{world.pci(gpu)}/information"
        world.text(path, str(world.entries[path]["text"]).replace(old, value))


def number(value: str, least: float, most: float) -> int:
    """Return VALUE as a whole number within LEAST and MOST; raises SimulationError."""
    if not (value.isascii() and value.isdigit() and least <= int(value) <= most):
        raise SimulationError(f"{value!r} is not a whole number from {least:g} to {most:g}")
    return int(value)
