"""What CUDA_VISIBLE_DEVICES leaves of the GPUs, by the rules of the CUDA driver.

The list ends at the first element that is no index of a GPU and no UUID; -1 and an empty value hide everything; a
UUID may be cut short as long as it is unique (CUDA C++ Programming Guide, section "CUDA Environment Variables").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.stages.identity import mapping, objects, string

NAME = "CUDA_VISIBLE_DEVICES"
ELEMENTS_LIMIT = 256


@dataclass(frozen=True)
class Visible:
    """A parsed CUDA_VISIBLE_DEVICES. `value` is None when the variable is not set: nothing is hidden."""

    value: str | None
    indices: tuple[int, ...] = ()
    uuids: tuple[str, ...] = ()  # lower case, with their GPU- or MIG- prefix
    ended_at: str | None = None  # the element that ended the list

    @property
    def hides_nothing(self) -> bool:
        """Whether every GPU is visible."""
        return self.value is None

    @property
    def hides_everything(self) -> bool:
        """Whether no GPU can be visible."""
        return self.value is not None and not self.indices and not self.uuids


def parse(env: Mapping[str, str]) -> Visible:
    """Return what CUDA_VISIBLE_DEVICES in ENV says."""
    value = env.get(NAME)
    if value is None:
        return Visible(None)
    indices: list[int] = []
    uuids: list[str] = []
    for element in value.split(",")[:ELEMENTS_LIMIT]:
        word = element.strip()
        if word.isascii() and word.isdigit() and len(word) < 6:
            indices.append(int(word))
        elif word.lower().startswith(("gpu-", "mig-")):
            uuids.append(word.lower())
        else:
            return Visible(value, tuple(indices), tuple(uuids), word if value else None)
    return Visible(value, tuple(indices), tuple(uuids))


def left(visible: Visible, gpus: Sequence[Mapping[str, Any]], env: Mapping[str, str]) -> set[str] | None:
    """Return the PCI addresses of GPUS (NVML facts) that VISIBLE leaves, None when it cannot be told.

    An index counts in CUDA's order, which is known when CUDA_DEVICE_ORDER is PCI_BUS_ID or all GPUs are of one model;
    with MIG it counts instances.
    """
    addresses = sorted(str(gpu["pci"]) for gpu in gpus if gpu.get("pci"))
    if visible.hides_nothing:
        return set(addresses)
    found = {str(gpu["pci"]) for gpu in gpus if gpu.get("pci") and any(_names(name, gpu) for name in visible.uuids)}
    if visible.indices:
        names = {gpu.get("name") for gpu in gpus}
        ordered = env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(names) <= 1
        if not ordered or any(gpu.get("mig") for gpu in gpus):
            return None
        for index in visible.indices:
            if index >= len(addresses):
                break  # the list ends there
            found.add(addresses[index])
    return found


def _names(wanted: str, gpu: Mapping[str, Any]) -> bool:
    """Whether WANTED is the beginning of the UUID of GPU or of one of its MIG instances."""
    own = [string(gpu.get("uuid"))] + [string(mapping(part).get("uuid")) for part in objects(gpu.get("instances"))]
    return any(uuid.lower().startswith(wanted) for uuid in own if uuid)
