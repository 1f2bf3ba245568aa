"""The part of stage 08 that judges one libcudart as the probe saw it."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.diagnosis import errors
from pytest_gpudiscovery.model import Check
from pytest_gpudiscovery.stages.device_prop import LAYOUTS, decode
from pytest_gpudiscovery.stages.identity import (
    capability,
    code_of,
    integer,
    mapping,
    objects,
    pci,
    sequence,
    string,
    uuid,
)
from pytest_gpudiscovery.stages.spec import found, passed

Facts = Mapping[str, Any]


def judge_library(
    seen: Facts, major: int | None, devices: list[Facts], driver_version: int | None, subject: str
) -> list[Check]:
    """Return the checks of P46 and P49 for one library.

    MAJOR is the CUDA major of the backend that uses it (None: its own), DEVICES and DRIVER_VERSION (13000 for 13.0)
    are what the driver API told. What the probe did not reach is left out: its ending says why.
    """
    problems = mapping(seen.get("errors"))
    library = mapping(seen.get("library"))
    if not library:
        if not problems:
            return []
        name, error = next(iter(problems.items()))
        facts = {
            "library": name,
            "file": posixpath.basename(str(name)),
            "error": error,
            "short_error": str(error).rpartition(": ")[2],
        }
        return [found("runtime.unloadable", facts, subject=subject, expected="it loads", observed=problems)]
    version = integer(seen.get("runtime_version"))
    driver = driver_version or integer(seen.get("driver_version"))
    facts = {
        "library": library.get("path") or library.get("asked"),
        "file": posixpath.basename(str(library.get("asked"))),
        "runtime": words(version),
        "driver": words(driver),
        "major": major if major is not None else (version or 0) // 1000,
        "count": seen.get("count"),
        "devices": len(devices),
    }
    checks = _versions(seen, facts, version, driver, subject)
    if any(check.finding is not None and check.finding.cause == "runtime.driver_too_old" for check in checks):
        return checks  # every later call says the same
    if major is not None and version is not None and version // 1000 != major:
        checks.append(found("runtime.wrong_major", facts, subject=subject, expected=major, observed=version))
    checks += _count(seen, facts, devices, subject)
    for device in objects(seen.get("devices")):
        checks += _properties(device, facts, devices, subject)
    return checks


def _versions(seen: Facts, facts: Facts, version: int | None, driver: int | None, subject: str) -> list[Check]:
    """P46: a driver serves every runtime of its own major and of older ones (CUDA compatibility)."""
    too_old = code_of(seen.get("cudaGetDeviceCount")) == errors.INSUFFICIENT_DRIVER
    if too_old or (version is not None and driver is not None and driver // 1000 < version // 1000):
        expected = f"driver for CUDA {words(version)}"
        return [found("runtime.driver_too_old", facts, subject=subject, expected=expected, observed=words(driver))]
    if version is None or driver is None:
        answer = mapping(seen.get("cudaRuntimeGetVersion"))
        if version is None and answer:
            return [found("runtime.function_missing", {**facts, "call": "cudaRuntimeGetVersion"}, subject=subject)]
        return []
    if version > driver:
        return [found("runtime.minor_newer", facts, subject=subject, observed=[version, driver])]
    return [
        passed("P46", subject=subject, reason=f"runtime {words(version)}, driver {words(driver)}", observed=version)
    ]


def _count(seen: Facts, facts: Facts, devices: list[Facts], subject: str) -> list[Check]:
    answer = mapping(seen.get("cudaGetDeviceCount"))
    if not answer:
        return []
    if "missing" in answer:
        return [found("runtime.function_missing", {**facts, "call": "cudaGetDeviceCount"}, subject=subject)]
    code = code_of(answer)
    if code != 0:
        return [_error("cudaGetDeviceCount", code, facts, subject)]
    if integer(seen.get("count")) != len(devices):
        return [
            found("runtime.count_differs", facts, subject=subject, expected=len(devices), observed=seen.get("count"))
        ]
    return []


def _error(call: str, code: int | None, facts: Facts, subject: str) -> Check:
    entry = errors.runtime(code)
    details = {
        **facts,
        "call": call,
        "code": code,
        "name": entry.name,
        "text": entry.text,
        "discovery": entry.discovery,
    }
    return found(entry.cause or "runtime.error", details, subject=subject, expected=0, observed=entry.label)


def _properties(device: Facts, facts: Facts, devices: list[Facts], subject: str) -> list[Check]:
    ordinal, call = integer(device.get("ordinal")), str(device.get("symbol"))
    if "missing" in device:
        return [
            found("runtime.function_missing", {**facts, "call": call}, subject=subject, observed=device.get("missing"))
        ]
    if code_of(device) != 0:
        return [_error(f"{call}({ordinal})", code_of(device), facts, subject)]
    raw = _bytes(device.get("raw"))
    read = decode(raw, integer(facts.get("major")) or 0)
    known = next((other for other in devices if integer(other.get("ordinal")) == ordinal), None)
    if read is None:
        reason = f"no layout of cudaDeviceProp is known for CUDA {facts.get('major')}: not compared"
        return [passed("P49", subject=subject, reason=reason, observed=len(raw))]
    details = {
        **facts,
        "ordinal": ordinal,
        "call": call,
        "written": read["written"],
        "size": len(raw) - read["overflow"],
    }
    if read["overflow"]:
        return [found("runtime.overflow", details, subject=subject, expected=details["size"], observed=read["written"])]
    if known is None:
        return []  # the count says so
    if not raw:
        return [found("runtime.properties_empty", details, subject=subject, expected="> 0 bytes", observed=0)]
    wrong = differences(read, known)
    if not wrong:
        reason = f"properties of device {ordinal} agree with the driver's"
        return [passed("P49", subject=subject, reason=reason, observed={**read, "ordinal": ordinal})]
    other = next(
        (
            m
            for m in sorted(LAYOUTS, reverse=True)
            if m != facts.get("major") and not differences(decode(raw, m) or {}, known)
        ),
        None,
    )
    details.update(differences="; ".join(wrong), other=other)
    cause = "runtime.layout" if other is not None else "runtime.properties_differ"
    return [found(cause, details, subject=subject, expected=dict(known), observed=read)]


def differences(read: Facts, known: Facts) -> list[str]:
    """Return in words where the properties READ are not what the driver API told of the device (KNOWN)."""
    pairs = (
        ("name", string(read.get("name")), string(known.get("name"))),
        ("uuid", uuid(read.get("uuid")), uuid(known.get("uuid"))),
        ("compute capability", _capability(read.get("cc")), capability(known.get("cc"))),
        ("memory", integer(read.get("total_memory")), integer(known.get("total_memory"))),
        ("PCI address", pci(read.get("pci")) or str(read.get("pci")), pci(known.get("pci"))),
        ("SM count", integer(read.get("sm_count")), integer(known.get("sm_count"))),
    )
    return [f"{what} {theirs} instead of {ours}" for what, theirs, ours in pairs if ours is not None and theirs != ours]


def _capability(value: Any) -> str:
    return capability(value) or ".".join(str(part) for part in sequence(value))


def _bytes(value: Any) -> bytes:
    try:
        return bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        return b""


def words(version: int | None) -> str:
    """Return CUDA's version number 12080 as `12.8`."""
    return "?" if version is None else f"{version // 1000}.{version % 1000 // 10}"


def views(answers: Mapping[str, tuple[Facts, int | None]]) -> dict[str, dict[str, Any]]:
    """Return PCI address -> directory -> what its libcudart tells of that GPU, for verdict.json."""
    found_at: dict[str, dict[str, Any]] = {}
    for name, (seen, major) in answers.items():
        for device in objects(seen.get("devices")):
            read = decode(_bytes(device.get("raw")), major or (integer(seen.get("runtime_version")) or 0) // 1000)
            address = pci((read or {}).get("pci"))
            if code_of(device) == 0 and read is not None and address is not None:
                found_at.setdefault(address, {})[name] = {**read, "ordinal": device.get("ordinal")}
    return found_at
