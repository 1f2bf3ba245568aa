"""Write a simulated host down: libraries, sim.conf, host view; and say which environment the probes must get."""

from __future__ import annotations

import base64
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.probes import libraries
from pytest_gpudiscovery.probes.host import LiveView
from pytest_gpudiscovery.simulate import build, fatbin
from pytest_gpudiscovery.simulate.conf import write
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.fault import NO_REAL
from pytest_gpudiscovery.simulate.machines import HOSTS
from pytest_gpudiscovery.simulate.registry import FAULTS
from pytest_gpudiscovery.simulate.spec import SimulationSpec
from pytest_gpudiscovery.simulate.world import File, World

FOLDERS = ("lib", "stubs", "foreign", "tmp", "usr")
HEAD = 4096  # bytes of a library that the view holds: probes read ELF headers through it
MAJOR, CONTROL_MINOR = 195, 255
DRIVER_LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")


@dataclass(frozen=True)
class SimulatedHost:
    """A host that is ready to be probed."""

    view: dict[str, Any]  # for probes/host.py: {"kind": "recorded", "path": FILE}
    env: dict[str, str]  # what the probes' environment must hold, LD_LIBRARY_PATH at least
    describe: dict[str, Any]  # for reports: {"host", "faults", "note"}
    directory: str
    ollama: str | None = None  # the install prefix, for --gpu-ollama


def prepare(spec: SimulationSpec, directory: str) -> SimulatedHost:
    """Build SPEC in DIRECTORY (made if absent, and opened to other users, who may run the probes).

    Raises SimulationError, or OSError for a directory that cannot be written.
    """
    world = HOSTS[spec.host].make()
    needs: list[str] = []
    for name, value in spec.faults:
        FAULTS[name].apply(world, value)
        needs += FAULTS[name].needs
    missing = [need.removeprefix(NO_REAL) for need in needs if need.startswith(NO_REAL)]
    missing += [name for name in DRIVER_LIBRARIES if f"lib/{name}" not in world.files]
    _not_on_this_machine(missing)
    root = Path(directory).resolve()
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    _write_files(world, root)
    _derive(world)
    (root / "sim.conf").write_text(write(world.conf), encoding="utf-8")
    view = root / "view.json"
    entries = {**world.entries, **_library_entries(root)}
    view.write_text(json.dumps({"entries": entries}), encoding="utf-8")
    for file in (root / "sim.conf", view):
        file.chmod(0o644)
    env = {key: value.replace("{dir}", str(root)) for key, value in world.env.items()}
    env["LD_LIBRARY_PATH"] = ":".join(part.replace("{dir}", str(root)) for part in world.library_path)
    note = "; ".join([*world.notes, *_warnings(needs, root)])
    faults = str(spec).partition(":")[2]
    describe = {"host": spec.host, "faults": faults.split(",") if faults else [], "note": note}
    ollama = str(root / world.ollama) if world.ollama else None
    return SimulatedHost({"kind": "recorded", "path": str(view)}, env, describe, str(root), ollama)


def _not_on_this_machine(sonames: list[str]) -> None:
    """Raise SimulationError when ld.so would find a real library where the simulated host has none."""
    for name in sonames:
        found = libraries.find(LiveView(), name, {})
        if found is not None:
            raise SimulationError(
                f"ld.so would find this machine's own {found['path']} in place of the missing {name}: "
                "simulate this on a machine without it"
            )


def _write_files(world: World, root: Path) -> None:
    for folder in FOLDERS:
        shutil.rmtree(root / folder, ignore_errors=True)  # of a host that was written here before
    (root / "lib").mkdir()
    (root / "lib").chmod(0o755)
    wanted = [(file.source, file.hidden) for file in world.files.values() if file.kind == "built"]
    made = build.built(wanted) if wanted else {}
    for name, file in world.files.items():
        path = root / name
        for above in reversed(path.relative_to(root).parents[:-1]):
            (root / above).mkdir(exist_ok=True)
            (root / above).chmod(0o755)  # whatever the umask says
        _write(file, path, made)


def _write(file: File, path: Path, made: dict[build.Wanted, Path]) -> None:
    if file.kind == "link":
        path.symlink_to(file.source)
    elif file.kind == "fifo":
        os.mkfifo(path)
        path.chmod(0o666)
    elif file.kind == "dir":
        path.mkdir(exist_ok=True)
        path.chmod(file.mode)
    else:
        data = made[(file.source, file.hidden)].read_bytes() if file.kind == "built" else file.data
        data = fatbin.fill(data, file.code) if file.code else data
        path.write_bytes(file.mangle(data) if file.mangle else data)
        path.chmod(file.mode)


def _derive(world: World) -> None:
    """Put into sim.conf what the libraries must know of the view: module, uvm, device nodes."""
    version = world.version
    if version is not None:
        world.conf["driver.module"] = version
    devices = str(world.entries.get("/proc/devices", {}).get("text", "")).splitlines()
    uvm = next((int(line.split()[0]) for line in devices if line.split()[1:] == ["nvidia-uvm"]), None)
    world.conf.setdefault("uvm.loaded", "0" if uvm is None else "1")  # a host such as WSL says it otherwise
    expected = {"/dev/nvidiactl": (MAJOR, CONTROL_MINOR), "/dev/nvidia-uvm": (uvm, 0)}
    for gpu in range(world.gpus):
        minor = int(world.conf[f"gpu.{gpu}.minor"])
        expected[f"/dev/nvidia{minor}"] = (MAJOR, minor)
    for path, numbers in expected.items():
        entry = world.entries.get(path)
        if entry is None or entry["type"] != "char" or (entry["major"], entry["minor"]) != numbers:
            continue  # no node, or none that the driver would use: it makes a new one where it may
        world.conf[f"node.{path}"] = f"{entry['mode']:o} {entry['uid']} {entry['gid']} {entry.get('open', '-')}"


def _library_entries(root: Path) -> dict[str, dict[str, Any]]:
    """Return the libraries and the Ollama install as entries of the view: links, sizes, the first bytes of files."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted({*root.rglob("*.so*"), *(root / "usr").rglob("*")}):
        found = path.lstat()
        owner = {"mode": found.st_mode & 0o7777, "uid": found.st_uid, "gid": found.st_gid}
        if path.is_symlink():
            entries[str(path)] = {"type": "link", "target": os.readlink(path)}
        elif path.is_dir():
            entries[str(path)] = {"type": "dir", **owner}
        elif path.is_file():
            head = path.read_bytes()[:HEAD]
            data = base64.b64encode(head).decode()
            entries[str(path)] = {"type": "file", **owner, "size": found.st_size, "b64": data}
        else:
            entries[str(path)] = {"type": "other", **owner, "size": 0}
    return entries


def _warnings(needs: list[str], root: Path) -> list[str]:
    said = []
    if "unprivileged" in needs and os.geteuid() == 0:
        said.append("root is above this fault: it shows for an unprivileged user")
    if "root" in needs and os.geteuid() != 0:
        said.append("this fault needs a path that only root can freeze")
    if os.geteuid() == 0:
        closed = [str(part) for part in root.parents if not part.stat().st_mode & 0o001]
        if closed:
            said.append(f"other users cannot reach {root}: {closed[-1]} is closed to them")
    return said
