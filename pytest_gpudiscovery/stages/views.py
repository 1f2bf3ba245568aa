"""The GPUs side by side: what sysfs, NVML, CUDA and the second witnesses say, joined by PCI address, else by UUID."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_gpudiscovery.stages import identity
from pytest_gpudiscovery.stages.identity import mapping, objects, pci

Facts = Mapping[str, Any]
SOURCES = ("sysfs", "nvml", "cuda", "pynvml", "cuda_python")
CUDA_KEYS = ("ordinal", "name", "uuid", "pci", "total_memory", "cc", "sm_count")
NVML_KEYS = ("index", "name", "uuid", "pci", "minor", "cc", "memory", "mig", "instances", "ecc", "compute_mode")


@dataclass
class Row:
    """One GPU, or one MIG instance that CUDA shows. `views` has an entry for each source that knows it."""

    pci: str | None
    views: dict[str, Facts] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """How checks name this GPU."""
        return f"gpu:{self.pci or mapping(self.views.get('cuda')).get('ordinal')}"

    @property
    def uuid(self) -> str | None:
        """The UUID as the first source that has a sane one spells it; CUDA's for a MIG instance."""
        order = ("cuda", "nvml", "sysfs") if self.mig else ("nvml", "cuda", "sysfs")
        uuids = [mapping(self.views.get(source)).get("uuid") for source in order]
        return next((str(value) for value in uuids if identity.uuid(value)), None)

    @property
    def mig(self) -> bool:
        """Whether NVML says that this GPU is in MIG mode."""
        return mapping(self.views.get("nvml")).get("mig") is True

    def to_json(self) -> dict[str, Any]:
        """The entry of verdict.json."""
        return {"pci": self.pci, "uuid": self.uuid, "mig": self.mig, "views": dict(self.views)}


def join(sources: Mapping[str, Any]) -> list[Row]:
    """Return one row per GPU of SOURCES (source name -> list of objects with `pci` and `uuid`), by PCI address.

    What has no sane PCI address joins a row that has its UUID; else it stands in a row of its own. A second device
    of one source at the same place (a duplicate) stands in a row of its own too.
    """
    rows: list[Row] = []
    for source in SOURCES:
        for item in objects(sources.get(source)):
            row = _place(rows, source, item)
            row.views[source] = item
            row.pci = row.pci or pci(item.get("pci"))
    return sorted(rows, key=lambda row: (row.pci is None, row.pci or ""))


def _place(rows: list[Row], source: str, item: Facts) -> Row:
    address, digits = pci(item.get("pci")), identity.uuid(item.get("uuid"))
    free = [row for row in rows if source not in row.views]
    for row in free:
        if address is not None and row.pci == address:
            return row
    for row in free if digits and address is None else ():
        if digits in _uuids(row):
            return row
    row = Row(address)
    rows.append(row)
    return row


def _uuids(row: Row) -> set[str]:
    found = set()
    for view in row.views.values():
        found.add(identity.uuid(view.get("uuid")))
        found |= {identity.uuid(part.get("uuid")) for part in objects(view.get("instances"))}
    return {digits for digits in found if digits}


def only(item: Facts, keys: Iterable[str]) -> dict[str, Any]:
    """Return ITEM with KEYS alone: what the verdict keeps of a view."""
    return {key: item[key] for key in keys if key in item}


def instance_uuids(view: Facts) -> set[str]:
    """Return the digits of the UUIDs of the MIG instances in NVML's VIEW."""
    return {digits for part in objects(view.get("instances")) if (digits := identity.uuid(part.get("uuid")))}
