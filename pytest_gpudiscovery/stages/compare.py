"""The part of stage 07 that judges one device as CUDA shows it: is it sane, and do sysfs and NVML say the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check
from pytest_gpudiscovery.stages.identity import capability, integer, is_null_uuid, mapping, objects, pci, string, uuid
from pytest_gpudiscovery.stages.spec import found, passed
from pytest_gpudiscovery.stages.views import Row, instance_uuids

MIB = 1 << 20
MEMORY_LEAST = 0.85  # of NVML's total; CUDA's is what the driver leaves (H100: 0.994, measured; less with a vGPU)
MEMORY_MOST = 1.001
# What Ollama prints and compares (P59): CUDA's form, function 0.
CUDA_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.0", re.IGNORECASE)


def judge_device(row: Row, rows: list[Row]) -> list[Check]:
    """Return the checks of P59 (who is it) and P78 (what is told of it) for the device of ROW that CUDA shows."""
    who = _identity(row, rows)
    what = _plausibility(row)
    sources = "sysfs, NVML and CUDA" if {"sysfs", "nvml"} <= row.views.keys() else " and ".join(_named(row))
    if not who:
        reason = f"{sources} agree on address and UUID" if len(row.views) > 1 else "address and UUID are sane"
        who = [passed("P59", subject=row.subject, reason=reason, observed=[row.pci, row.uuid])]
    if not what:
        what = [passed("P78", subject=row.subject, reason="compute capability, memory and name are plausible")]
    return who + what


def _named(row: Row) -> list[str]:
    names = {"sysfs": "sysfs", "nvml": "NVML", "cuda": "CUDA"}
    return [text for source, text in names.items() if source in row.views]


def _identity(row: Row, rows: list[Row]) -> list[Check]:
    cuda, nvml = row.views["cuda"], mapping(row.views.get("nvml"))
    facts: dict[str, Any] = {
        "ordinal": cuda.get("ordinal"),
        "pci": cuda.get("pci"),
        "uuid": cuda.get("uuid"),
        "nvml_uuid": nvml.get("uuid"),
    }
    checks = []

    def complain(cause: str, expected: Any, observed: Any) -> None:
        checks.append(found(f"enumeration.{cause}", facts, subject=row.subject, expected=expected, observed=observed))

    if not CUDA_PCI.fullmatch(str(cuda.get("pci"))):
        complain("pci_garbage", "0000:00:00.0", cuda.get("pci"))
    digits = uuid(cuda.get("uuid"))
    if digits is None or is_null_uuid(cuda.get("uuid")):
        complain("uuid_garbage", "GPU-xxxxxxxx-...", cuda.get("uuid"))
    twin = next((other for other in rows if other is not row and _is_twin(row, other)), None)
    if twin is not None:
        facts["other"] = twin.views["cuda"].get("ordinal")
        complain("duplicate", "one device per GPU", [facts["other"], facts["ordinal"]])
    elsewhere = [
        other for other in rows if digits and other is not row and "cuda" not in other.views and _has(other, digits)
    ]
    if elsewhere and row.pci is not None:
        facts["other_pci"] = elsewhere[0].pci
        complain("pci_differs", elsewhere[0].pci, cuda.get("pci"))
    elif twin is None and row.pci is not None:
        for source, cause in (("nvml", "not_in_nvml"), ("sysfs", "not_in_sysfs")):
            addresses = {other.pci for other in rows if source in other.views}
            if addresses and row.pci not in addresses:  # further MIG instances share their GPU's address
                complain(cause, "the same GPUs", sorted(row.views))
    theirs = {uuid(nvml.get("uuid")), *instance_uuids(nvml)}
    untold = row.mig and len(theirs) == 1  # a user who may not list the instances is told nothing of their UUIDs
    if digits and nvml and not untold and uuid(nvml.get("uuid")) and digits not in theirs:
        complain("uuid_differs", nvml.get("uuid"), cuda.get("uuid"))
    return checks


def _is_twin(row: Row, other: Row) -> bool:
    """Whether both are devices of CUDA with one address and one UUID; two MIG instances differ in the UUID."""
    if "cuda" not in other.views:
        return False
    a, b = row.views["cuda"], other.views["cuda"]
    same_place = pci(a.get("pci")) is not None and pci(a.get("pci")) == pci(b.get("pci"))
    same_uuid = uuid(a.get("uuid")) is not None and uuid(a.get("uuid")) == uuid(b.get("uuid"))
    return same_uuid or (same_place and not row.mig and not other.mig)


def _has(row: Row, digits: str) -> bool:
    return any(uuid(view.get("uuid")) == digits for view in row.views.values())


def _plausibility(row: Row) -> list[Check]:
    cuda, nvml = row.views["cuda"], mapping(row.views.get("nvml"))
    total, cc = integer(cuda.get("total_memory")), capability(cuda.get("cc"))
    facts: dict[str, Any] = {"ordinal": cuda.get("ordinal"), "total": total, "cc": cuda.get("cc"), "seen_cc": cc}
    checks = []

    def complain(cause: str, expected: Any, observed: Any) -> None:
        checks.append(found(f"enumeration.{cause}", facts, subject=row.subject, expected=expected, observed=observed))

    if cc is None:
        complain("cc_garbage", ">= 1.0", cuda.get("cc"))
    if total is None or total <= 0:
        complain("memory_garbage", "> 0", total)
    if not nvml:
        return checks
    facts["nvml_cc"] = capability(nvml.get("cc"))
    if cc is not None and facts["nvml_cc"] is not None and cc != facts["nvml_cc"]:
        complain("cc_differs", facts["nvml_cc"], cc)
    theirs = _nvml_total(cuda, nvml, row.mig)
    if theirs and total and not theirs * MEMORY_LEAST <= total <= theirs * MEMORY_MOST:
        facts.update(cuda_mib=total // MIB, nvml_mib=theirs // MIB)
        complain("memory_differs", theirs, total)
    name, other = cuda.get("name"), string(nvml.get("name"))
    if isinstance(name, str) and other and name.partition(" MIG ")[0] != other:
        facts.update(cuda_name=name, nvml_name=other)
        complain("name_differs", other, name)
    return checks


def _nvml_total(cuda: Mapping[str, Any], nvml: Mapping[str, Any], mig: bool) -> int | None:
    """NVML's total in bytes for what CUDA shows: the GPU, or the MIG instance with CUDA's UUID."""
    if not mig:
        return integer(mapping(nvml.get("memory")).get("total"))
    for part in objects(nvml.get("instances")):
        if uuid(part.get("uuid")) == uuid(cuda.get("uuid")):
            return integer(mapping(part.get("memory")).get("total"))
    return None
