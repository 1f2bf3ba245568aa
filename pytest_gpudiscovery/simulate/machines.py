"""The simulated hosts. One was recorded on a real machine (hosts/h100.json); the others are derived from it.

Derived boards: names, PCI ids and SM counts from NVIDIA's data sheets and the PCI ID repository (pci-ids.ucw.cz);
memory as `nvidia-smi` prints it for that board. What else an H100 SXM says of itself, they say too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pytest_gpudiscovery.simulate.ollama import release_b, release_c
from pytest_gpudiscovery.simulate.world import PCI, PROC, ROOT, File, World

DATA = Path(__file__).parent / "hosts"
MIB = 1 << 20
FIRST_SLOT = 6  # the recorded GPU is 0000:00:06.0; further ones follow it
RUNTIMES = {"12": "12.8.90", "13": "13.0.96"}


@dataclass(frozen=True)
class Host:
    """One host that `--gpu-simulate NAME` can ask for."""

    name: str
    text: str
    make: Callable[[], World]


@functools.cache
def _recording(name: str) -> World:
    data = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return World(conf=dict(data["conf"]), entries=dict(data["entries"]))


def h100() -> World:
    """The recorded machine: one NVIDIA H100 80GB HBM3 (SXM5) in a virtual machine, driver 580.159.04."""
    world = _recording("h100").copy()
    install(world, str(world.version))
    return world


def install(world: World, version: str) -> None:
    """Put the driver's user space of VERSION and both CUDA runtimes into the library directory."""
    for source in ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler"):
        world.files[f"lib/{source}.so.{version}"] = File("built", source)
        world.files[f"lib/{source}.so.1"] = File("link", f"{source}.so.{version}")
        world.files[f"lib/{source}.so"] = File("link", f"{source}.so.1")
    for major, full in RUNTIMES.items():
        world.files[f"lib/libcudart.so.{full}"] = File("built", f"libcudart.{major}")
        world.files[f"lib/libcudart.so.{major}"] = File("link", f"libcudart.so.{full}")
        world.conf[f"runtime.{major}"] = str(int(full.split(".")[0]) * 1000 + int(full.split(".")[1]) * 10)


# Function -> the CUDA version whose driver first had it (release notes of the driver API and of NVML)
SINCE = {
    "libcuda": {
        "cuCtxCreate_v4": 12050,
        "cuGetProcAddress_v2": 12000,
        "cuCtxCreate_v3": 11040,
        "cuDeviceGetUuid_v2": 11040,
        "cuGetProcAddress": 11030,
    },
    "libnvidia-ml": {"nvmlDeviceGetGpuFabricInfoV": 12030, "nvmlDeviceGetGpuFabricInfo": 12000},
}


def several(count: int, base: Callable[[], World] = h100) -> World:
    """COUNT GPUs like the first one of BASE, in neighbouring PCI slots."""
    world = base()
    for gpu in range(1, count):
        _add(world, gpu)
    world.conf["gpu.count"] = str(count)
    return world


def _add(world: World, gpu: int) -> None:
    first, uuid = world.pci(0), world.conf["gpu.0.uuid"]
    pci = f"0000:00:{FIRST_SLOT + gpu:02x}.0"
    own_uuid = f"{uuid[:-12]}{gpu:012x}"
    for key, value in list(world.conf.items()):
        if key.startswith("gpu.0."):
            world.conf[f"gpu.{gpu}.{key[6:]}"] = value
    world.conf |= {f"gpu.{gpu}.pci": pci, f"gpu.{gpu}.uuid": own_uuid, f"gpu.{gpu}.minor": str(gpu)}
    world.conf[f"gpu.{gpu}.attr.34"] = str(FIRST_SLOT + gpu)  # CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID
    for path in [p for p in world.entries if first in p]:
        entry = dict(world.entries[path])
        for key in ("text", "target"):
            if key in entry:
                entry[key] = entry[key].replace(first, pci).replace(uuid, own_uuid)
                entry[key] = entry[key].replace("Device Minor: \t 0", f"Device Minor: \t {gpu}")
        world.entries[path.replace(first, pci)] = entry
    world.entries[f"/dev/nvidia{gpu}"] = {**world.entries["/dev/nvidia0"], "minor": gpu}
    world.entries[f"{PROC}/capabilities/gpu{gpu}/mig"] = {"type": "dir", "mode": 0o555, **ROOT}


def board(
    world: World,
    name: str,
    *,
    device: int,
    subsystem: int,
    sms: int,
    memory_mib: int,
    bus_bits: int,
    cc: tuple[int, int],
) -> World:
    """Make every GPU of WORLD a board called NAME (PCI device id, SMs, memory as nvidia-smi prints it)."""
    old = world.conf["gpu.0.name"]
    total = memory_mib * MIB
    reserved = int(world.conf["gpu.0.memory.reserved"])
    values: dict[str, object] = {
        "name": name,
        "pci.device_id": device << 16 | 0x10DE,
        "pci.subsystem_id": subsystem << 16 | 0x10DE,
        "attr.139": device << 16 | 0x10DE,
        "attr.140": subsystem << 16 | 0x10DE,
        "attr.16": sms,
        "cores": sms * 128,
        "attr.37": bus_bits,
        "attr.75": cc[0],
        "attr.76": cc[1],
        "memory.total": total,
        "memory.cuda": total - reserved,
    }
    for key, value in values.items():
        world.set_gpus(key, value)
    for gpu in range(world.gpus):
        where = f"{PCI}/{world.pci(gpu)}"
        world.text(f"{where}/device", f"0x{device:04x}\n")
        world.text(f"{where}/subsystem_device", f"0x{subsystem:04x}\n")
        information = f"{PROC}/gpus/{world.pci(gpu)}/information"
        world.text(information, str(world.entries[information]["text"]).replace(old, name))
    return world


def older_driver(world: World, version: str, cuda: int, ptx: int) -> World:
    """Replace the driver of WORLD, kernel module and user space, by VERSION that speaks CUDA API version CUDA."""
    old = str(world.version)
    for entry in world.entries.values():
        if old in str(entry.get("text", "")):
            entry["text"] = entry["text"].replace(old, version)
    for path in [path for path in world.files if path.endswith(old)]:
        del world.files[path]
    install(world, version)
    for library, functions in SINCE.items():
        path = f"lib/{library}.so.{version}"
        hidden = frozenset(name for name, since in functions.items() if since > cuda)
        world.files[path] = dataclasses.replace(world.files[path], hidden=hidden)
    world.conf |= {"driver.cuda": str(cuda), "driver.ptx": str(ptx)}
    world.set_gpus("gsp.version", version)
    return world


def _mig() -> World:
    """MIG on, the GPU cut into two 3g.40gb instances."""
    world = h100()
    conf = world.conf
    conf |= {"gpu.0.mig.current": "1", "gpu.0.mig.pending": "1", "gpu.0.mig.max": "7", "gpu.0.mig.count": "2"}
    for index in range(2):
        mine = f"gpu.0.mig.{index}"
        conf |= {
            f"{mine}.uuid": f"MIG-00000000-0000-4000-9000-{index:012x}",
            f"{mine}.name": f"{conf['gpu.0.name']} MIG 3g.40gb",
            f"{mine}.attr.16": "60",
            f"{mine}.cores": str(60 * 128),
            f"{mine}.memory.total": str(40448 * MIB),
            f"{mine}.memory.cuda": str(40320 * MIB),
            f"{mine}.memory.reserved": str(128 * MIB),
            f"{mine}.slices": "3",
            f"{mine}.gpu_instance": str(index + 1),
            f"{mine}.compute_instance": "0",
        }
        minors = {f"gi{index + 1}/access": 12 + 9 * index, f"gi{index + 1}/ci0/access": 13 + 9 * index}
        for name, minor in minors.items():
            text = f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n"
            world.text(f"{PROC}/capabilities/gpu0/mig/{name}", text)
            world.entries[f"/dev/nvidia-caps/nvidia-cap{minor}"] = {
                "type": "char", "mode": 0o444, **ROOT, "major": 241, "minor": minor
            }  # fmt: skip
    return world


def no_driver() -> World:
    """The GPU is on the bus; no NVIDIA kernel module is loaded and no user space is installed."""
    world = h100()
    unload(world)
    world.files = {path: file for path, file in world.files.items() if "cudart" in path}
    return world


def unload(world: World) -> None:
    """Take the kernel module away: /proc, /sys/module, /proc/devices, nodes, the log of its load."""
    world.drop(
        PROC, *[path for path in world.entries if path.startswith(("/proc/driver/nvidia", "/sys/module/nvidia"))]
    )
    world.drop(*[path for path in world.entries if path.startswith(("/dev/nvidia", "/sys/bus/pci/drivers/nvidia"))])
    for gpu in range(world.gpus):
        world.drop(world.resolve(f"{PCI}/{world.pci(gpu)}") + "/driver")
    lines = str(world.entries["/proc/devices"]["text"]).splitlines(keepends=True)
    world.text("/proc/devices", "".join(line for line in lines if "nvidia" not in line))
    world.text("/proc/modules", "")
    world.text("/dev/kmsg", "")


def none() -> World:
    """No NVIDIA GPU and no driver."""
    world = no_driver()
    for gpu in range(world.gpus):
        where = f"{PCI}/{world.pci(gpu)}"
        world.drop(world.resolve(where), where)
    world.entries[PCI] = {"type": "dir", "mode": 0o755, **ROOT}
    world.conf["gpu.count"] = "0"
    world.files = {}
    return world


def _fabric() -> World:
    """Eight GPUs of an HGX board, NVLink on, the fabric manager has done its work."""
    world = several(8)
    world.set_gpus("fabric.state", 3)  # NVML_GPU_FABRIC_STATE_COMPLETED
    params = str(world.entries[f"{PROC}/params"]["text"])
    world.text(f"{PROC}/params", params.replace("NvLinkDisable: 1", "NvLinkDisable: 0"))
    return world


def _pcie() -> World:
    values = {"device": 0x2331, "subsystem": 0x1626, "sms": 114, "memory_mib": 81559, "bus_bits": 5120}
    return board(h100(), "NVIDIA H100 PCIe", cc=(9, 0), **values)


def _nvl() -> World:
    values = {"device": 0x2321, "subsystem": 0x1839, "sms": 132, "memory_mib": 95830, "bus_bits": 6016}
    return board(h100(), "NVIDIA H100 NVL", cc=(9, 0), **values)


def _h200() -> World:
    values = {"device": 0x2335, "subsystem": 0x18BE, "sms": 132, "memory_mib": 143771, "bus_bits": 6144}
    return board(h100(), "NVIDIA H200", cc=(9, 0), **values)


def _server() -> World:
    return release_c(h100())


HOSTS: dict[str, Host] = {
    host.name: host
    for host in (
        Host("h100", "the recorded machine: one H100 80GB HBM3 (SXM5) in a VM, driver 580.159.04, CUDA 13.0", h100),
        Host("h100x2", "two of them", lambda: several(2)),
        Host("h100x8", "eight of them with NVLink on and the fabric ready", _fabric),
        Host("h100-pcie", "one H100 PCIe: 114 SMs", _pcie),
        Host("h100-nvl", "one H100 NVL: 94 GB", _nvl),
        Host("h200", "one H200: 141 GB", _h200),
        Host("h200x2", "two H200", lambda: several(2, _h200)),
        Host("h100-mig", "one H100 in MIG mode with two 3g.40gb instances", _mig),
        Host(
            "h100-cuda12",
            "one H100 with driver 535.183.01, CUDA 12.2",
            lambda: older_driver(h100(), "535.183.01", 12020, 82),
        ),
        Host("h100-ollama", "one H100 with Ollama 0.16.3 (runner, libggml of Ollama's own)", lambda: release_b(h100())),
        Host("h100-ollama-c", "one H100 with Ollama 0.32.15 (llama-server, llama.cpp's libggml)", _server),
        Host("h100x2-ollama", "two H100 with Ollama 0.16.3", lambda: release_b(several(2))),
        Host("h100x8-ollama", "eight H100 with NVLink on and Ollama 0.16.3", lambda: release_b(_fabric())),
        Host("no-driver", "an H100 on the bus, no NVIDIA kernel module, no user space", no_driver),
        Host("none", "no NVIDIA GPU, no driver, no CUDA library", none),
    )
}
