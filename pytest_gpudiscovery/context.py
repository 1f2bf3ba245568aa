"""From the options to the context in which probes run: whose identity, which environment, which view of the host.

The order of identities is the contract's: what `--gpu-as` says, else the Ollama service that this host has, else the
caller; never silently somebody else. Nothing here touches a driver, a network or another process' memory.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.supervise.types import Identity, Setup

UNIT_DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
)
CAP_SYS_ADMIN, CAP_MKNOD = 21, 27
# Python's, pytest's and coverage's own settings steer our interpreter, never the driver.
OURS = ("PYTHON", "PYTEST_", "GPU_DISCOVERY_", "COVERAGE", "VIRTUAL_ENV", "ALLURE_", "_PYTEST")


@dataclass(frozen=True)
class Who:
    """The identity that probes get, and what is said about it in the verdict."""

    identity: Identity | None
    source: str
    not_adopted: tuple[Mapping[str, str], ...] = ()


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ENVIRON without the variables that only steer Python and pytest."""
    return {name: value for name, value in environ.items() if not name.startswith(OURS)}


def read_env_file(path: str) -> dict[str, str]:
    """Return the NAME=VALUE lines of PATH (systemd EnvironmentFile form); raises OSError or ValueError with a line."""
    found = {}
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, raw in enumerate(file, 1):
            line = raw.strip()
            if not line or line[0] in "#;":
                continue
            name, equals, value = line.partition("=")
            name = name.removeprefix("export ").strip()
            if not equals or not name or not name.replace("_", "a").isalnum():
                raise ValueError(f"{path}:{number}: expected NAME=VALUE, got {line[:40]!r}")
            value = value.strip()
            if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            found[name] = value
    return found


def service_identity(unit: str = "ollama.service", directories: tuple[str, ...] = UNIT_DIRECTORIES) -> Who | None:
    """Return who systemd unit UNIT runs as by its files, None when this host has no such unit.

    Drop-ins are read after the unit, as systemd does. A dynamic or unknown user cannot be adopted and is said.
    """
    settings: dict[str, str] = {}
    where = next((d for d in directories if os.path.isfile(os.path.join(d, unit))), None)
    if where is None:
        return None
    files = [os.path.join(where, unit)]
    for directory in reversed(directories):
        dropins = os.path.join(directory, unit + ".d")
        if os.path.isdir(dropins):
            files += [os.path.join(dropins, name) for name in sorted(os.listdir(dropins)) if name.endswith(".conf")]
    for path in files:
        settings.update(_service_section(path))
    user = settings.get("User", "root") or "root"
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        return Who(None, "caller", ({"what": f"user {user} of {unit}", "why": "this host has no such user"},))
    group = settings.get("Group", "")
    try:
        gid = (int(group) if group.isdigit() else grp.getgrnam(group).gr_gid) if group else entry.pw_gid
        extra = {_group_id(name) for name in settings.get("SupplementaryGroups", "").split()}
    except KeyError as error:
        return Who(None, "caller", ({"what": f"group {error} of {unit}", "why": "this host has no such group"},))
    groups = tuple(sorted({*os.getgrouplist(entry.pw_name, gid), *extra}))
    return Who(Identity(entry.pw_uid, gid, groups, entry.pw_name), f"systemd unit {unit}")


def _group_id(name: str) -> int:
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid


def _service_section(path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    section = ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 20).splitlines()
    except OSError:
        return found
    for line in (raw.strip() for raw in lines):
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and line[0] not in "#;":
            name, _, value = line.partition("=")
            found[name.strip()] = value.strip()
    return found


def capabilities() -> int:
    """Return the effective capability set of this process as a bit mask; 0 where /proc cannot be read."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    except (OSError, ValueError):
        return 0


def setup_for(who: Who, euid: int, effective: int) -> Setup:
    """Return how probes are set up for WHO when the caller has EUID and the capability mask EFFECTIVE.

    Root's driver user space creates missing device nodes (measured), so root's probes get a private copy of /dev; a
    root that may not mount gives up CAP_MKNOD instead. Somebody else's could only be healed by a setuid
    nvidia-modprobe: inside a private /dev that may happen, outside of it PR_SET_NO_NEW_PRIVS keeps it from happening.
    """
    root = euid == 0
    may_mount = root and bool(effective >> CAP_SYS_ADMIN & 1) and bool(effective >> CAP_MKNOD & 1)
    return Setup(
        identity=who.identity if root and who.identity is not None and who.identity.uid != 0 else None,
        private_dev=may_mount,
        no_new_privs=True,
        drop_mknod=root and not may_mount,
    )


def describe(who: Who, setup: Setup, effective: int) -> dict[str, Any]:
    """Return the verdict's `context` object: who probes, what was adopted and what could not be."""
    identity = setup.identity
    not_adopted = [dict(item) for item in who.not_adopted]
    if who.identity is not None and identity is None and who.identity.uid != os.geteuid():
        not_adopted.append({"what": f"user {who.identity.name}", "why": "only root can probe as another user"})
    return {
        "as": who.source,
        "uid": identity.uid if identity else os.geteuid(),
        "gid": identity.gid if identity else os.getegid(),
        "groups": list(identity.groups) if identity else sorted(os.getgroups()),
        "capabilities": f"{effective:016x}",
        "private_dev": setup.private_dev,
        "adopted": ["user", "groups"] if identity else [],
        "not_adopted": not_adopted,
    }
