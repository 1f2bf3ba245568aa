"""What systemd's files say about a service: user, groups and environment. Read, never asked of systemd.

A broken host's systemd may not answer, and a container has none; the files are there in both.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_gpudiscovery.supervise.types import Identity

UNIT_DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
)
FILE_LIMIT = 1 << 20  # bytes of one unit file
# What systemd gives a system service beside its own Environment= (systemd.exec(5), variables in spawned processes).
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Who:
    """The identity and environment that probes get, and what is said about them in the verdict."""

    identity: Identity | None
    source: str
    env: Mapping[str, str] | None = None  # None: the caller's
    cwd: str | None = None
    not_adopted: tuple[Mapping[str, str], ...] = field(default_factory=tuple)
    refused: str = ""  # why a service that was found cannot be probed as

    @property
    def identity_name(self) -> str:
        """The user's name, or the number where it has none."""
        return (self.identity.name or str(self.identity.uid)) if self.identity else "nobody in particular"


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


def service(unit: str = "ollama.service", directories: tuple[str, ...] = UNIT_DIRECTORIES) -> Who | None:
    """Return who systemd unit UNIT runs as by its files, None when this host has no such unit.

    Drop-ins are read after the unit, as systemd does. A user or group that this host lacks cannot be adopted: then the
    caller's identity stands, and the reason is in `not_adopted`.
    """
    where = next((d for d in directories if os.path.isfile(os.path.join(d, unit))), None)
    if where is None:
        return None
    path, source = os.path.join(where, unit), f"systemd unit {unit}"
    if not os.access(path, os.R_OK):
        return _refused(source, f"{path} may not be read")
    settings = _settings([path, *_dropins(unit, directories)])
    if _last(settings, "DynamicUser").lower() in ("yes", "true", "1", "on") and not _last(settings, "User"):
        return _refused(f"DynamicUser of {unit}", "systemd makes that user anew at each start")
    user = _last(settings, "User") or "root"
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        return _refused(f"user {user} of {unit}", "no such user here")
    try:
        group = _last(settings, "Group")
        gid = _group_id(group) if group else entry.pw_gid
        extra = {_group_id(name) for line in settings.get("SupplementaryGroups", []) for name in line.split()}
    except KeyError as error:
        return _refused(f"group {error} of {unit}", "no such group here")
    identity = Identity(entry.pw_uid, gid, tuple(sorted({*os.getgrouplist(entry.pw_name, gid), *extra})), entry.pw_name)
    env, problems = _environment(settings, entry)
    kept = ({"what": f"limits, cgroup and sandbox of {unit}", "why": "not read in this version"},)
    return Who(identity, source, env, _last(settings, "WorkingDirectory") or "/", (*problems, *kept))


def _refused(what: str, why: str) -> Who:
    return Who(None, "caller", not_adopted=({"what": what, "why": why},), refused=f"{what} cannot be adopted ({why})")


def _dropins(unit: str, directories: tuple[str, ...]) -> list[str]:
    found: dict[str, str] = {}
    for directory in reversed(directories):  # a file of the same name in a stronger directory replaces a weaker one
        folder = os.path.join(directory, unit + ".d")
        if os.path.isdir(folder):
            found.update({name: os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".conf")})
    return [found[name] for name in sorted(found)]


def _settings(paths: list[str]) -> dict[str, list[str]]:
    """The [Service] assignments of PATHS in order; an empty one resets the list, as systemd does."""
    found: dict[str, list[str]] = {}
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read(FILE_LIMIT)
        except OSError:
            continue  # the unit's other files still say something
        section = ""
        for line in (raw.strip() for raw in text.replace("\\\n", " ").splitlines()):
            if line.startswith("["):
                section = line
            elif section == "[Service]" and "=" in line and line[0] not in "#;":
                name, _, value = (part.strip() for part in line.partition("="))
                found[name] = [*found.get(name, []), value] if value else []
    return found


def _last(settings: Mapping[str, list[str]], name: str) -> str:
    return (settings.get(name) or [""])[-1]


def _group_id(name: str) -> int:
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid


def _environment(
    settings: Mapping[str, list[str]], entry: pwd.struct_passwd
) -> tuple[dict[str, str], list[Mapping[str, str]]]:
    env = {
        "PATH": DEFAULT_PATH,
        "LANG": "C.UTF-8",
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "HOME": entry.pw_dir,
    }
    problems: list[Mapping[str, str]] = []
    for line in settings.get("Environment", []):
        try:
            words = shlex.split(line)
        except ValueError as error:
            problems.append({"what": "an Environment= line", "why": str(error)})
            continue
        env.update({name: value for name, equals, value in (word.partition("=") for word in words) if equals})
    for name in settings.get("EnvironmentFile", []):
        try:
            env.update(read_env_file(name.removeprefix("-")))
        except (OSError, ValueError) as error:
            if not name.startswith("-"):
                problems.append({"what": f"EnvironmentFile={name}", "why": str(error)})
    return env, problems
