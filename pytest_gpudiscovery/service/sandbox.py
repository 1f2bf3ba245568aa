"""What a unit's sandbox and resource settings mean for discovery: facts for stage 02, and what only systemd can apply.

Pure functions over a Unit. Names and meanings are those of systemd.exec(5) and systemd.resource-control(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pytest_gpudiscovery.service.who import EVERY, NATIVE, Missing
from pytest_gpudiscovery.supervise.transient import capabilities
from pytest_gpudiscovery.unit_files import Unit
from pytest_gpudiscovery.unit_values import boolean, size, words

# Settings that a transient unit takes over. Not among them: what creates or removes directories of the running service
# (RuntimeDirectory= is removed at the end of a unit), what reads secrets, and the program itself.
EXECUTION = """
User Group SupplementaryGroups DynamicUser UMask Nice OOMScoreAdjust CPUAffinity NUMAPolicy NUMAMask
CPUSchedulingPolicy CPUSchedulingPriority IOSchedulingClass RootDirectory MountAPIVFS PrivateTmp PrivateDevices
PrivateNetwork PrivateUsers PrivateMounts PrivateIPC NetworkNamespacePath IPCNamespacePath ProtectSystem ProtectHome
ProtectProc ProcSubset ProtectKernelTunables ProtectKernelModules ProtectKernelLogs ProtectControlGroups
ProtectClock ProtectHostname BindPaths BindReadOnlyPaths ReadWritePaths ReadOnlyPaths InaccessiblePaths ExecPaths
NoExecPaths TemporaryFileSystem CapabilityBoundingSet AmbientCapabilities SecureBits SystemCallFilter
SystemCallArchitectures SystemCallErrorNumber RestrictAddressFamilies RestrictNamespaces RestrictRealtime
RestrictSUIDSGID RestrictFileSystems MemoryDenyWriteExecute LockPersonality SELinuxContext AppArmorProfile
SmackProcessLabel KeyringMode Personality
""".split()  # noqa: SIM905 - a table reads better in rows
RESOURCES = """
MemoryMax MemoryHigh MemorySwapMax MemoryLimit TasksMax CPUQuota CPUQuotaPeriodSec AllowedCPUs AllowedMemoryNodes
DevicePolicy DeviceAllow IPAddressAllow IPAddressDeny SocketBindAllow SocketBindDeny RestrictNetworkInterfaces Slice
""".split()  # noqa: SIM905 - a table reads better in rows
LIMITS = re.compile(
    r"Limit(AS|CORE|CPU|DATA|FSIZE|LOCKS|MEMLOCK|MSGQUEUE|NICE|NOFILE|NPROC|RSS|RTPRIO|RTTIME|SIGPENDING|STACK)"
)
CAPABILITIES = ("CapabilityBoundingSet", "AmbientCapabilities")
# What decides an answer and can be had through systemd only: (settings, stages).
ONLY_SYSTEMD = (
    (("SystemCallFilter", "MemoryDenyWriteExecute", "SystemCallArchitectures", "RestrictNamespaces"), NATIVE),
    (("SELinuxContext", "AppArmorProfile", "SmackProcessLabel"), ("kernel", *NATIVE)),
    (("RootImage", "RootDirectory"), EVERY),
    (("InaccessiblePaths", "NoExecPaths", "TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths"), EVERY),
    (("NetworkNamespacePath", "RestrictNetworkInterfaces", "SocketBindDeny"), ("loopback", "bootstrap", "serve")),
    (("PrivateUsers",), NATIVE),
)
# Said as not adopted, without an influence on an answer that stage 02 does not judge itself.
SAID = (
    "PrivateDevices",
    "DevicePolicy",
    "DeviceAllow",
    "PrivateTmp",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProcSubset",
    "ProtectHome",
    "ProtectSystem",
    "RestrictAddressFamilies",
    "IPAddressDeny",
    "PrivateNetwork",
    "CapabilityBoundingSet",
    "AmbientCapabilities",
    "MemoryMax",
    "MemoryHigh",
    "MemoryLimit",
    "TasksMax",
    "CPUQuota",
    "CPUAffinity",
)


def transient(unit: Unit) -> tuple[str, ...]:
    """Return the NAME=VALUE assignments of UNIT that a transient unit takes over, in their order.

    What follows from the whole of an answer's environment (variables, working directory) is the probe's own work.
    """
    names = {*EXECUTION, *RESOURCES}
    kept = [(key, value) for key, value in unit.assignments if key in names or LIMITS.fullmatch(key)]
    found = [f"{key}={value}" for key, value in kept if key not in CAPABILITIES]
    for name in CAPABILITIES:
        merged = capabilities([value for key, value in kept if key == name])
        found += [] if merged is None else [f"{name}={merged}"]
    if boolean(unit.last("DynamicUser")) is True and not unit.last("User"):
        found.append(f"User={unit.name.partition('.')[0]}")  # the name that systemd gives to the service's own
    return tuple(found)


def missing(unit: Unit) -> tuple[Missing, ...]:
    """Return what of UNIT's sandbox probes lack that were not started by systemd."""
    found = []
    for names, stages in ONLY_SYSTEMD:
        if named := [name for name in names if _set(unit, name)]:
            found.append(Missing(", ".join(named), "only systemd can apply it", stages))
    if named := [name for name in SAID if _set(unit, name)]:
        found.append(Missing(", ".join(named), "judged by its setting, not applied: only systemd can"))
    return tuple(found)


def _set(unit: Unit, name: str) -> bool:
    """Whether setting NAME is there and does not say no."""
    value = unit.all(name)
    return bool(value) and boolean(value[-1]) is not False


def facts(unit: Unit) -> dict[str, Any]:
    """Return what stage 02 judges: plain values, None where a setting says nothing or cannot be told."""
    return {
        "unit": unit.name,
        "files": list(unit.files),
        "private_devices": _yes(unit, "PrivateDevices"),
        "device_policy": unit.last("DevicePolicy") or "auto",
        "device_allow": unit.all("DeviceAllow"),
        "private_users": _yes(unit, "PrivateUsers"),
        "families": families(unit.all("RestrictAddressFamilies")),
        "ip_deny": _list(unit.all("IPAddressDeny")),
        "ip_allow": _list(unit.all("IPAddressAllow")),
        "proc_subset": unit.last("ProcSubset") or "all",
        "protect_kernel_tunables": _yes(unit, "ProtectKernelTunables"),
        "protect_home": unit.last("ProtectHome") or "no",
        "memory_max": _size(unit, "MemoryMax", "MemoryLimit"),
        "tasks_max": _size(unit, "TasksMax"),
        "cpus": _quota(unit.last("CPUQuota")),
    }


def _yes(unit: Unit, name: str) -> bool:
    return boolean(unit.last(name)) is True


def _list(values: Iterable[str]) -> list[str]:
    found: list[str] = []
    for value in values:
        try:
            found += words(value)
        except ValueError:
            found.append(value)
    return found


def _size(unit: Unit, *names: str) -> int | None:
    """Return the first limit of NAMES that is set, in bytes or tasks; None for none, for infinity and a percentage."""
    value = next((text for name in names if (text := unit.last(name))), "")
    found = size(value) if value else None
    return found if found is not None and found >= 0 else None


def _quota(text: str) -> float | None:
    match = re.fullmatch(r"([0-9]{1,6})(?:\.([0-9]{1,3}))?%", text.strip())
    return float(f"{match[1]}.{match[2] or 0}") / 100 if match else None


def families(values: Iterable[str]) -> dict[str, Any] | None:
    """Return {"allowed": bool, "names": [...]}: whether the names are those that may be used, or those that may not.

    None: every address family may be used. The first assignment decides which of the two it is; a later one of the
    other kind takes its names out again.
    """
    inverted: bool | None = None
    names: list[str] = []
    for value in values:
        tilde, entries = value.startswith("~"), value.removeprefix("~").split()
        if inverted is None:
            inverted = tilde
        if tilde is inverted:
            names += [entry for entry in entries if entry != "none" and entry not in names]
        else:
            names = [name for name in names if name not in entries]
    return None if inverted is None else {"allowed": not inverted, "names": names}
