"""What the profile expects of each GPU against what CUDA and NVML show."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from pytest_gpudiscovery.model import Check
from pytest_gpudiscovery.stages.identity import capability, integer, mapping, sequence
from pytest_gpudiscovery.stages.spec import found, passed, unknown
from pytest_gpudiscovery.stages.views import Row

MIB = 1 << 20
# CUDA's total leaves out what the driver keeps for itself (H100: 480 MiB of 81559, measured); with a vGPU or
# confidential computing it is more.
CUDA_SHARE = 0.9


def judge_profile(profile: Mapping[str, Any], rows: list[Row]) -> list[Check]:
    """Return a check for the count and one per GPU that CUDA shows; [] for a profile that expects nothing."""
    seen = [row for row in rows if "cuda" in row.views]
    name = str(profile.get("profile") or "?")
    checks = []
    count = sequence(profile.get("count"))
    if count:
        facts = {"profile": name, "count": len(seen), "expected": _range(count)}
        inside = count[0] <= len(seen) <= count[1]
        checks.append(
            passed("P59", reason=f"{len(seen)} GPUs, as profile {name} expects", observed=len(seen))
            if inside
            else found("enumeration.profile.count", facts, expected=_range(count), observed=len(seen))
        )
    for row in seen:
        mismatches = [check for check in _gpu(profile, name, row) if check is not None]
        if not mismatches and any(profile.get(key) for key in ("name", "cc", "memory_mib", "sm_count")):
            mismatches = [passed("P78", subject=row.subject, reason=f"as profile {name} expects")]
        checks += mismatches
    return checks


def _gpu(profile: Mapping[str, Any], name: str, row: Row) -> list[Check | None]:
    cuda, nvml = mapping(row.views.get("cuda")), mapping(row.views.get("nvml"))

    def differs(what: str, expected: Any, seen: Any) -> Check:
        facts = {"profile": name, "subject": row.pci or row.subject, "expected": expected, "seen": seen}
        return found(f"enumeration.profile.{what}", facts, subject=row.subject, expected=expected, observed=seen)

    checks: list[Check | None] = []
    patterns = [str(pattern) for pattern in sequence(profile.get("name"))]
    model = str(cuda.get("name") or "").partition(" MIG ")[0]
    if patterns and not any(fnmatchcase(model, pattern) for pattern in patterns):
        checks.append(differs("name", " or ".join(patterns), cuda.get("name")))
    wanted = sequence(profile.get("cc"))
    if wanted and capability(cuda.get("cc")) not in wanted:
        checks.append(differs("cc", " or ".join(str(value) for value in wanted), capability(cuda.get("cc"))))
    if not row.mig:  # an instance has a share of its GPU's memory and SMs
        checks += [_memory(profile, cuda, nvml, differs), _sm_count(profile, cuda, differs)]
        if sequence(profile.get("memory_mib")) and _total(cuda, nvml) is None:
            checks.append(_unread(row, name, "a memory size"))
        if sequence(profile.get("sm_count")) and integer(cuda.get("sm_count")) is None:
            checks.append(_unread(row, name, "a number of SMs"))
    if profile.get("ecc") in ("on", "off") and nvml.get("ecc") is None:
        checks.append(_unread(row, name, f"ECC {profile['ecc']}"))
    for what, has in (("mig", row.mig), ("ecc", nvml.get("ecc"))):
        if profile.get(what) in ("on", "off") and has is not None and has is not (profile[what] == "on"):
            checks.append(differs(what, profile[what], "on" if has else "off"))
    return checks


def _unread(row: Row, name: str, what: str) -> Check:
    """What the profile asks for and nobody told: neither right nor wrong."""
    return unknown("P78", f"profile {name} expects {what}, and no library told it", subject=row.subject)


def _total(cuda: Mapping[str, Any], nvml: Mapping[str, Any]) -> int | None:
    told = integer(mapping(nvml.get("memory")).get("total"))
    return integer(cuda.get("total_memory")) if told is None else told


def _memory(profile: Mapping[str, Any], cuda: Mapping[str, Any], nvml: Mapping[str, Any], differs: Any) -> Check | None:
    limits = sequence(profile.get("memory_mib"))
    if not limits:
        return None
    total = integer(mapping(nvml.get("memory")).get("total"))
    lowest = limits[0]
    if total is None:  # NVML's number is the one that data sheets and nvidia-smi agree on; else CUDA's, which is less
        total, lowest = integer(cuda.get("total_memory")), int(limits[0] * CUDA_SHARE)
    if total is None or lowest <= total // MIB <= limits[1]:
        return None
    seen: Check = differs("memory", f"{_range(limits)} MiB", f"{total // MIB} MiB")
    return seen


def _sm_count(profile: Mapping[str, Any], cuda: Mapping[str, Any], differs: Any) -> Check | None:
    wanted, count = sequence(profile.get("sm_count")), integer(cuda.get("sm_count"))
    if not wanted or count is None or count in wanted:
        return None
    seen: Check = differs("sm_count", " or ".join(str(value) for value in wanted), count)
    return seen


def _range(limits: Any) -> str:
    return str(limits[0]) if limits[0] == limits[1] else f"{limits[0]} to {limits[1]}"
