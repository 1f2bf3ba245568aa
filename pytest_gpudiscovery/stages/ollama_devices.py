"""The devices that Ollama's children show, which of them Ollama keeps, and whether those are this host's GPUs. Pure.

The filter over directories is Ollama's own, with its peculiarities (v0.16.3:discover/runner.go:366-413, the same text
up to v0.32.15).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.model import CheckOutcome
from pytest_gpudiscovery.stages import identity, visible
from pytest_gpudiscovery.stages.identity import integer, objects, string
from pytest_gpudiscovery.stages.spec import StageInput

Facts = Mapping[str, Any]
# ggml-cuda.cu: "%04x:%02x:%02x.0"; Hyper-V and VMD have domains of more than 16 bits.
PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")
CUDA = "CUDA"
SHOWN = 64  # devices of one answer
UNSEEN = "enumeration.gpu_missing"


@dataclass(frozen=True)
class Device:
    """One device of one directory, as Ollama has it. `id` is a UUID in era B, an index in era C."""

    directory: str
    id: str
    library: str
    name: str
    description: str
    pci: str
    total: int
    free: int
    compute: tuple[int, int]
    driver: tuple[int, int]

    @property
    def is_cuda(self) -> bool:
        """Whether its backend is CUDA."""
        return self.library == CUDA

    def to_json(self) -> dict[str, Any]:
        """Return what the verdict keeps of it."""
        return {
            "name": self.description,
            "id": self.id,
            "library": self.library,
            "device": self.name,
            "libdir": self.directory,
            "pci": self.pci,
            "compute": list(self.compute),
            "driver": list(self.driver),
            "total_memory": self.total,
            "free_memory": self.free,
        }


def of_info(directory: str, answer: Any) -> list[Device]:
    """Return the devices in the JSON that a runner answered (ml.DeviceInfo; v0.12.4 to v0.24.0 have the same keys)."""
    return [
        Device(
            directory,
            str(entry.get("id") or ""),
            str(entry.get("backend") or ""),
            str(entry.get("name") or ""),
            str(entry.get("description") or ""),
            str(entry.get("pci_id") or ""),
            integer(entry.get("total_memory")) or 0,
            integer(entry.get("free_memory")) or 0,
            (integer(entry.get("ComputeMajor")) or 0, integer(entry.get("ComputeMinor")) or 0),
            (integer(entry.get("driver_major")) or 0, integer(entry.get("driver_minor")) or 0),
        )
        for entry in objects(answer)[:SHOWN]
    ]


def kept(devices: Sequence[Device], validated: Iterable[int]) -> list[Device]:
    """Return what Ollama keeps of DEVICES; VALIDATED are the indices that need no second pass, or came through it."""
    good = sorted(set(validated))
    dropped = set(range(len(devices))) - set(good)
    for library in dict.fromkeys(devices[index].library for index in good):
        by_directory: dict[str, dict[str, int]] = {}
        for index in good:
            if devices[index].library == library:
                by_directory.setdefault(devices[index].directory, {})[devices[index].id] = index
        dropped |= _overlapped(by_directory)
    left = [device for index, device in enumerate(devices) if index not in dropped]
    found: list[Device] = []
    for device in left:
        same = next((other for other in found if _same(other, device)), None)
        if same is None:
            found.append(device)
        elif not same.is_cuda and device.is_cuda:
            found[found.index(same)] = device  # CUDA is preferred over Vulkan for the same GPU
    return found


def _overlapped(by_directory: Mapping[str, Mapping[str, int]]) -> set[int]:
    """Return the indices that filterOverlapByLibrary marks: `missing` stays set once it is, as there."""
    names = sorted(by_directory, reverse=True)
    missing, newest = False, ""
    for newest in names:
        mine = by_directory[newest]
        for other in names:
            if other != newest and set(mine) != set(by_directory[other]):
                missing = True
                break
        if not missing:
            break
    chosen = by_directory.get(newest, {})
    return {index for name in names if name != newest for id_, index in by_directory[name].items() if id_ in chosen}


def _same(one: Device, other: Device) -> bool:
    if one.pci != other.pci:
        return False
    return bool(one.pci) or (one.id, one.library) == (other.id, other.library)


def problem(device: Device) -> str | None:
    """Return "compute" or "pci" where what DEVICE says of itself is none of a GPU's, None where it is sound."""
    if device.is_cuda and identity.capability(list(device.compute)) is None:
        return "compute"
    if device.pci and not PCI.fullmatch(device.pci.lower()):
        return "pci"
    return None


@dataclass(frozen=True)
class Expected:
    """The GPUs that Ollama should show, and which stage says so; `gpus` is None where nobody knows."""

    gpus: tuple[Facts, ...] | None
    source: str


def expected(given: StageInput) -> Expected:
    """Return what the stages before saw: the driver's own list, else what NVML or sysfs show and nothing hides."""
    driver = objects(given.facts("driver").get("gpus"))
    if driver:
        # What is on the host and CUDA does not show, Ollama cannot show either: it is missed all the same.
        lost = len(objects(given.facts("kernel").get("gpus"))) - len(driver)  # not one that has another address there
        unseen = _unseen(given)[: max(0, lost)]
        return Expected((*driver, *unseen), "enumeration" if unseen else "driver")
    for stage in ("nvml", "kernel"):
        gpus = [
            {
                key: gpu.get(key) if key == "instances" else string(gpu.get(key))
                for key in ("pci", "uuid", "name", "instances")
            }
            for gpu in objects(given.facts(stage).get("gpus"))
        ]
        if gpus:
            shown = visible.addresses(visible.parse(given.context.env), gpus, given.context.env)
            if shown is None:
                return Expected(None, stage)
            return Expected(tuple(gpu for gpu in gpus if str(gpu.get("pci")).lower() in shown), stage)
    return Expected(None, "")


def _unseen(given: StageInput) -> list[Facts]:
    """Return the GPUs that stage `enumeration` misses among those that CUDA shows."""
    record = given.prior.get("enumeration")
    checks = record.checks if record is not None else ()
    lost = [check for check in checks if check.finding is not None and check.finding.cause == UNSEEN]
    return [{"pci": check.subject.partition(":")[2]} for check in lost if check.outcome is CheckOutcome.FAILED]


def missing(wanted: Expected, devices: Iterable[Device]) -> list[Facts]:
    """Return the GPUs of WANTED that are not among DEVICES, by UUID, by PCI address, or where both fail by number."""
    if wanted.gpus is None:
        return []
    left = [device for device in devices if device.is_cuda]
    lost = []
    for gpu in wanted.gpus:
        mine = next((device for device in left if is_gpu(device, gpu)), None)
        if mine is None:
            lost.append(gpu)
        else:
            left.remove(mine)
    # MIG instances and shims have ids that no other view shows: each such device stands for one GPU.
    return lost[len([device for device in left if not _known(device, wanted)]) :]


def _known(device: Device, wanted: Expected) -> bool:
    return any(is_gpu(device, gpu) for gpu in wanted.gpus or ())


def is_gpu(device: Device, gpu: Facts) -> bool:
    """Whether DEVICE is GPU (facts of a stage with `uuid`, `pci`)."""
    uuid, place = identity.uuid(device.id), identity.pci(device.pci)
    if uuid is not None and identity.uuid(gpu.get("uuid")) is not None:
        return uuid == identity.uuid(gpu.get("uuid"))
    return place is not None and place == identity.pci(gpu.get("pci"))


def views(devices: Iterable[Device]) -> dict[str, dict[str, Any]]:
    """Return PCI address -> the device as Ollama shows it, for the GPUs side by side."""
    found = {}
    for device in devices:
        place = identity.pci(device.pci)
        if place is not None:
            found[place] = device.to_json()
    return found


def names(gpus: Iterable[Facts]) -> str:
    """Return the GPUs in one phrase: their PCI addresses."""
    return ", ".join(str(identity.pci(gpu.get("pci")) or string(gpu.get("uuid")) or "?") for gpu in gpus) or "none"


def words(devices: Sequence[Device]) -> str:
    """Return e.g. "2 x NVIDIA H100 80GB HBM3 (cuda_v13)"."""
    counted: dict[tuple[str, str], int] = {}
    for device in devices:
        key = (device.description or device.name, device.directory)
        counted[key] = counted.get(key, 0) + 1
    return ", ".join(f"{count} x {name} ({directory})" for (name, directory), count in counted.items()) or "no GPU"
