"""Judges the PCI devices, the kernel modules and the version of the driver's libraries (P31, P32, P34, P37, P85)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.diagnosis.xid import KernelLog
from pytest_gpudiscovery.model import Check, Kind, Severity
from pytest_gpudiscovery.probes.kernel import loaded
from pytest_gpudiscovery.stages.spec import found, not_applicable, passed, unknown

Seen = Mapping[str, Any]
FOREIGN = ("nouveau", "nova", "nova_core", "nova-core")  # the kernel's own drivers for NVIDIA GPUs
# Drivers that hold a device so that another kernel or process can have it (Documentation/driver-api/vfio.rst)
GIVEN_AWAY = ("vfio-pci", "pci-stub", "xen-pciback")
COMPUTE = frozenset({"compute", "all", "not set", ""})  # NVIDIA_DRIVER_CAPABILITIES: each of these brings libcuda
HEALED = {
    "root": "Root's driver would heal it at the first use; the gate does not.",
    "nvidia-modprobe": "A setuid nvidia-modprobe would heal it at the first use.",
}


def gpus(seen: Seen) -> list[dict[str, Any]]:
    """Return the GPUs that sysfs and the module know, joined by PCI address; what one of them lacks is None."""
    known = {gpu["pci"].lower(): gpu for gpu in (seen.get("proc_gpus") or {}).get("gpus", [])}
    listed = {gpu["pci"].lower(): gpu for gpu in _functions(seen)}
    return [
        {
            "pci": pci,
            **{key: listed.get(pci, {}).get(key) for key in ("device_id", "subsystem", "driver", "numa")},
            **{key: known.get(pci, {}).get(key) for key in ("minor", "uuid", "model", "firmware", "excluded")},
        }
        for pci in sorted({*known, *listed})
    ]


def _functions(seen: Seen) -> list[Mapping[str, Any]]:
    """Return the display functions; virtual functions count only where their physical one is not to be seen."""
    functions = (seen.get("pci") or {}).get("gpus", [])
    physical = [gpu for gpu in functions if not gpu.get("vf")]
    return physical or functions


def module_version(seen: Seen) -> str | None:
    """Return the module's version from /proc/driver/nvidia/version, else from /sys/module/nvidia/version."""
    said = (seen.get("version") or {}).get("version")
    loaded = (seen.get("modules") or {}).get("nvidia") or {}
    version: str | None = said or loaded.get("version")
    return version


def uvm_loaded(seen: Seen, opened: Seen) -> bool | None:
    """Return whether nvidia_uvm is loaded, None when nothing that would show it can be read."""
    if "nvidia_uvm" in (seen.get("modules") or {}) or (seen.get("devices") or {}).get("uvm") is not None:
        return True
    if any(node["path"] == "/dev/nvidia-uvm" and node.get("open") == "ok" for node in opened.get("nodes") or []):
        return True
    return None if (seen.get("devices") or {}).get("nvidia") is None else False


def judge_devices(seen: Seen, log: KernelLog) -> list[Check]:
    """Judge P85 (the bus) and P31 (the module)."""
    functions, platform = _functions(seen), seen.get("platform") or {}
    bound = (seen.get("proc_gpus") or {}).get("gpus", [])
    present, errno = loaded(seen), (seen.get("pci") or {}).get("errno")
    module = _module(seen, log, functions, present, platform)
    if platform.get("wsl") or platform.get("tegra"):
        where = "WSL" if platform.get("wsl") else "a Tegra board"
        return [not_applicable("P85", f"{where} has its GPU on no PCI bus"), *module]
    if not functions:
        if bound:
            return [passed("P85", reason="sysfs shows no GPU, the module has bound some", observed=bound), *module]
        if errno not in (None, "ENOENT"):
            return [unknown("P85", f"/sys/bus/pci/devices cannot be listed: {errno}"), *module]
        if present and errno == "ENOENT":
            return [unknown("P85", "sysfs is hidden, the module is loaded", Kind.OBSERVABILITY), *module]
        facts = {"devices": (seen.get("pci") or {}).get("devices", 0)}
        return [found("kernel.pci.none", facts, expected="a device of vendor 10de, class 0300 or 0302"), *module]
    return _binding(seen, log, functions) + module


def _binding(seen: Seen, log: KernelLog, functions: list[Mapping[str, Any]]) -> list[Check]:
    ours = [gpu for gpu in functions if gpu["driver"] == "nvidia"]
    checks = (
        [passed("P85", reason=f"{len(ours)} bound to nvidia", observed=[gpu["pci"] for gpu in ours])] if ours else []
    )
    if not ours and all(gpu["driver"] == "vfio-pci" for gpu in functions):
        return [found("kernel.pci.vfio", {"pci": functions[0]["pci"]}, observed=functions)]
    if not ours and (seen.get("proc_gpus") or {}).get("gpus"):
        return [passed("P85", reason="the module has bound a GPU whose driver link sysfs does not show")]
    for gpu in functions:
        if gpu["driver"] == "nvidia":
            continue
        if ours and gpu["driver"] in GIVEN_AWAY:
            reason = f"bound to {gpu['driver']}: it is meant for somebody else, such as a virtual machine"
            checks.append(not_applicable("P85", reason, subject=f"gpu:{gpu['pci']}"))
            continue
        facts = {**gpu, "driver": gpu["driver"] or "none", "log": _log_words(log)}
        lower = Severity.WARNING if ours else None
        subject = f"gpu:{gpu['pci']}"
        if gpu["driver"] in FOREIGN:
            checks.append(found("kernel.module.nouveau", facts, subject=subject, severity=lower))
        checks.append(found("kernel.pci.unbound", facts, subject=subject, severity=lower, observed=gpu["driver"]))
    return checks


def _module(
    seen: Seen, log: KernelLog, functions: list[Mapping[str, Any]], present: bool, platform: Mapping[str, Any]
) -> list[Check]:
    if present:
        version = module_version(seen)
        if version is None:
            return [unknown("P31", "the module is loaded, its version cannot be read", Kind.OBSERVABILITY)]
        return [passed("P31", observed={"version": version, "open": (seen.get("version") or {}).get("open")})]
    if platform.get("wsl") or platform.get("tegra"):
        return [not_applicable("P31", "the driver of this platform is no PCI module")]
    if not functions:
        return [not_applicable("P31", "there is no NVIDIA GPU to load it for")]
    if any(gpu["driver"] in FOREIGN for gpu in functions):
        return []  # judged with the bus: the other driver is the nearer cause
    facts = {"count": len(functions), "log": _log_words(log)}
    return [found("kernel.module.not_loaded", facts, expected="/proc/driver/nvidia/version", evidence=log.load_errors)]


def _log_words(log: KernelLog) -> str:
    lines = [*log.load_errors, *(str(entry["text"]) for entry in log.init_failed)]
    return lines[-1][:300] if lines else "nothing about it (or not readable)"


def judge_uvm(seen: Seen, opened: Seen, healing: str | None) -> list[Check]:
    """Judge P34: nvidia_uvm is loaded before anybody needs it."""
    loaded = uvm_loaded(seen, opened)
    if loaded:
        return [passed("P34", observed={"major": (seen.get("devices") or {}).get("uvm")})]
    if loaded is None:
        return [unknown("P34", "/proc/devices cannot be read; the nodes' open() decides", Kind.OBSERVABILITY)]
    facts = {"healing": HEALED.get(healing or "", "")}
    return [
        found(
            "kernel.uvm.not_loaded",
            facts,
            expected="nvidia-uvm in /proc/devices",
            severity=Severity.WARNING if healing else None,
            confidence=0.6 if healing else None,
        )
    ]


def judge_libraries(seen: Seen, libraries: list[Mapping[str, Any]], env: Mapping[str, str]) -> list[Check]:
    """Judge P37 (the user-space half is there) and P32 (it is of the module's version)."""
    by_name = {library["name"]: library for library in libraries}
    cuda, nvml = by_name.get("libcuda.so.1", {}), by_name.get("libnvidia-ml.so.1", {})
    capabilities = env.get("NVIDIA_DRIVER_CAPABILITIES", "not set")
    facts = {
        "library": "libcuda.so.1",
        "module_version": module_version(seen),
        "elsewhere": cuda.get("elsewhere"),
        "capabilities": capabilities,
    }
    checks = []
    if cuda.get("path"):
        checks.append(passed("P37", reason=f"{cuda['path']} ({cuda['rule']})", observed=[dict(cuda), dict(nvml)]))
        if not nvml.get("path"):
            passed_over = nvml.get("passed_over") or []
            state = f"cannot be used ({passed_over[0]['why']})" if passed_over else "is missing"
            checks.append(found("kernel.user_space.no_nvml", {"state": state}, observed=passed_over or None))
    elif cuda.get("passed_over"):
        first = cuda["passed_over"][0]
        checks.append(found("kernel.user_space.unusable", {**facts, **first}, observed=cuda["passed_over"]))
    elif cuda.get("unlinked"):
        facts["file"] = cuda["unlinked"]
        checks.append(found("kernel.user_space.unlinked", facts, expected="libcuda.so.1", observed=cuda["unlinked"]))
    elif cuda.get("elsewhere"):
        checks.append(found("kernel.user_space.out_of_sight", facts, observed=cuda["elsewhere"]))
    elif nvml.get("path") and not COMPUTE & {word.strip().lower() for word in capabilities.split(",")}:
        checks.append(found("kernel.user_space.capability", facts, observed=facts["capabilities"]))
    else:
        checks.append(found("kernel.user_space.missing", facts, expected="libcuda.so.1"))
    return checks + _versions(seen, cuda, nvml)


def _versions(seen: Seen, cuda: Mapping[str, Any], nvml: Mapping[str, Any]) -> list[Check]:
    module = module_version(seen)
    if module is None or not cuda.get("version"):
        reason = "the module's version is unknown" if module is None else "libcuda's file name carries no version"
        text = f"{reason}; the driver stage asks the library itself"
        return [unknown("P32", text, Kind.OBSERVABILITY), unknown("P116", text, Kind.OBSERVABILITY)]
    checks = []
    if not _compat(cuda) or cuda["version"] == module:
        checks.append(passed("P116", Kind.RISK, reason="libcuda is the driver's own", observed=cuda["version"]))
    for library, cause in ((cuda, "kernel.version.mismatch"), (nvml, "kernel.version.nvml_mismatch")):
        version = library.get("version")
        if not version or version == module:
            continue
        compat = library is cuda and _compat(cuda)
        checks.append(
            found(
                "kernel.version.compat" if compat else cause,
                {**library, "library": library["name"], "library_version": version, "module_version": module},
                expected=module,
                observed=version,
            )
        )
    if any(check.prerequisite == "P32" for check in checks):
        return checks
    if any(check.finding for check in checks):
        return [*checks, not_applicable("P32", "libcuda is a forward-compatibility package: see P116")]
    observed = {"module": module, "libcuda": cuda["version"], "nvml": nvml.get("version")}
    return [*checks, passed("P32", observed=observed)]


def _compat(cuda: Mapping[str, Any]) -> bool:
    return "/compat/" in f"{cuda['realpath']} {cuda['path']}"
