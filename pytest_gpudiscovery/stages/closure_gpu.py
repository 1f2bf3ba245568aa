"""Which GPUs and which driver the backend must serve, from the nearest witness that answered.

The PCI id and the module's version are enough, so the stage answers also where the driver hangs.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.stages.identity import integer, objects, sequence, string

Pair = tuple[int, int]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What device code has to run on. Each `source` names the witness; () and None are unknown."""

    ccs: tuple[Pair, ...] = ()
    cc_source: str = ""
    driver_cuda: Pair | None = None
    cuda_source: str = ""
    driver: Pair | None = None  # (580, 159)


@functools.cache
def _data() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((catalogue.DATA / "gpus.json").read_text(encoding="utf-8"))
    return loaded


def cc_of_device(device_id: Any) -> Pair | None:
    """Return the compute capability of PCI device DEVICE_ID ("2330"), None for one that the table lacks."""
    if not isinstance(device_id, str) or not re.fullmatch(r"(0x)?[0-9a-fA-F]{4}", device_id):
        return None
    number = int(device_id, 16)
    for row in _data()["cc_by_device_id"]:
        if int(row["from"], 16) <= number <= int(row["to"], 16):
            return row["cc"][0], row["cc"][1]
    return None


def cuda_of_driver(version: Any) -> Pair | None:
    """Return the CUDA version of driver VERSION ("580.159.04"), None for branches older or newer than the table."""
    numbers = driver_numbers(version)
    branches = _data()["cuda_by_driver"]["branches"]
    if numbers is None or not branches[0][0] <= numbers[0] < branches[-1][0] + 10:
        return None
    best = max((row for row in branches if row[0] <= numbers[0]), key=lambda row: int(row[0]))
    return best[1], best[2]


def driver_numbers(version: Any) -> Pair | None:
    """Return (580, 159) for "580.159.04"."""
    match = re.match(r"([0-9]{3,4})\.([0-9]{1,4})", version) if isinstance(version, str) else None
    return (int(match[1]), int(match[2])) if match else None


def wanted(kernel: Facts, nvml: Facts, driver: Facts, profile: Facts) -> Wanted:
    """Return what is known of GPUs and driver: the driver API's word, NVML's, the PCI id's, then the profile's."""
    ccs: tuple[Pair, ...] = ()
    cc_source = ""
    for source, values in (
        ("cuDeviceGetAttribute", [_capability(gpu.get("cc")) for gpu in objects(driver.get("gpus"))]),
        ("NVML", [_capability(gpu.get("cc")) for gpu in objects(nvml.get("gpus"))]),
        ("the PCI device id", [cc_of_device(gpu.get("device_id")) for gpu in objects(kernel.get("gpus"))]),
        ("the profile", [_capability(value) for value in sequence(profile.get("cc"))[:1]]),
    ):
        known = tuple(sorted({value for value in values if value is not None}))
        if known:
            ccs, cc_source = known, source
            break
    module = string(kernel.get("module_version")) or string(nvml.get("driver_version"))
    for source, cuda in (
        ("cuDriverGetVersion", _version(driver.get("driver_version_cuda"))),
        ("NVML", _version(nvml.get("cuda_driver"))),
        (f"the module's version {module}", cuda_of_driver(module)),
    ):
        if cuda is not None:
            return Wanted(ccs, cc_source, cuda, source, driver_numbers(module))
    return Wanted(ccs, cc_source, None, "", driver_numbers(module))


def from_sysfs(read: Any, names: Any) -> Wanted:
    """Return what sysfs alone says; READ(path) gives text ("" for none), NAMES(path) the entries of a directory."""
    place = "/sys/bus/pci/devices"
    gpus = [
        {"device_id": read(f"{place}/{name}/device").strip()}
        for name in names(place)
        if read(f"{place}/{name}/vendor").strip() == "0x10de"
    ]
    return wanted({"gpus": gpus, "module_version": read("/sys/module/nvidia/version").strip()}, {}, {}, {})


def _capability(value: Any) -> Pair | None:
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,2})\.([0-9])", value)
        return (int(match[1]), int(match[2])) if match else None
    numbers = [integer(item) for item in sequence(value)]
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        return None
    return (numbers[0], numbers[1]) if 0 < numbers[0] < 100 and 0 <= numbers[1] < 10 else None


def _version(value: Any) -> Pair | None:
    number = integer(value)
    return (number // 1000, number % 1000 // 10) if number is not None and 1000 <= number < 100000 else None


def facts(found: Wanted) -> dict[str, Any]:
    """Return FOUND for the record."""
    return {
        "ccs": [list(cc) for cc in found.ccs],
        "cc_source": found.cc_source,
        "driver_cuda": list(found.driver_cuda) if found.driver_cuda else None,
        "cuda_source": found.cuda_source,
    }


def words(cc: Any) -> str:
    """Return [9, 0] as "9.0"."""
    return ".".join(str(part) for part in cc) if isinstance(cc, (list, tuple)) else "unknown"
