"""From a systemd unit to who probes run as: user, groups, environment, limits, working directory, sandbox."""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd
from collections.abc import Mapping

from pytest_gpudiscovery import unit_files, unit_values
from pytest_gpudiscovery.service import sandbox
from pytest_gpudiscovery.service.who import EVERY, NATIVE, Missing, Who, refused
from pytest_gpudiscovery.supervise.types import Identity
from pytest_gpudiscovery.unit_files import Unit, UnitProblem

# What systemd gives a system service beside its own Environment= (systemd.exec(5), variables in spawned processes).
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PREFIXES = "@-:+!|"  # of ExecStart=
DIRECTORIES = {"t": "/run", "S": "/var/lib", "C": "/var/cache", "L": "/var/log", "E": "/etc"}
PERCENTAGES = ("CPUQuota", "MemoryMax", "MemoryHigh", "MemorySwapMax", "TasksMax")


def service(unit: str = "ollama.service", directories: tuple[str, ...] = unit_files.DIRECTORIES) -> Who | None:
    """Return who systemd unit UNIT runs as by its files, None when this host has no such unit.

    A user or group that this host lacks cannot be adopted: then the caller stands in, and `refused` says why.
    """
    try:
        read = unit_files.read_unit(unit, directories)
    except UnitProblem as problem:
        return refused(f"systemd unit {unit}", str(problem))
    return None if read is None else from_unit(read)


def from_unit(unit: Unit, *, manager_env: Mapping[str, str] | None = None, may_run: bool = False) -> Who:
    """Return who UNIT runs as. MANAGER_ENV is systemd's own environment, None where it was not asked.

    MAY_RUN: probes may be started by systemd, through a transient unit; then also as a user that it makes for them.
    """
    source = f"systemd unit {unit.name}"
    unit, unexpanded = _expanded(unit)
    dynamic = unit_values.boolean(unit.last("DynamicUser")) is True
    user = unit.last("User")
    entry: pwd.struct_passwd | None
    identity: Identity | None
    try:
        entry = _user(user or ("root" if not dynamic else unit.name.partition(".")[0]))
        identity = _identity(unit, entry)
    except KeyError as error:
        if not dynamic:
            return refused(f"user or group {error} of {unit.name}", "no such user or group here")
        if not may_run:
            return refused(f"DynamicUser of {unit.name}", "systemd makes that user anew at each start")
        entry = identity = None
    env, missing = _environment(unit, entry if user or dynamic else None, manager_env)
    limits, unknown = _limits(unit)
    missing += [Missing(name, why, EVERY) for name, why in unexpanded]
    missing += [Missing(f"the drop-in {path}", "may not be read", EVERY) for path in unit.unread]
    missing += [Missing(f"Limit{name}", "its value is not translated here") for name in unknown]
    if not may_run:
        missing += sandbox.missing(unit)
    root = unit.last("RootDirectory")
    return Who(
        identity,
        source,
        env=env,
        cwd=_cwd(unit, entry),
        limits=limits,
        binary=_binary(unit, env),
        root=root if root not in ("", "/") and not may_run else None,
        sandbox={**sandbox.facts(unit), "applied": may_run},
        transient=sandbox.transient(unit) if may_run else (),
        missing=tuple(missing),
    )


def without_systemd(who: Who, unit: Unit, why: str) -> Who:
    """Return WHO as it is when the transient unit cannot be had after all."""
    plain = from_unit(unit)
    note = Missing("the transient unit", why)
    return dataclasses.replace(plain, missing=(*plain.missing, note), notes=who.notes, pid=None)


def _user(name: str) -> pwd.struct_passwd:
    return pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)


def _group_id(name: str) -> int:
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid


def _identity(unit: Unit, entry: pwd.struct_passwd) -> Identity:
    group = unit.last("Group")
    gid = _group_id(group) if group else entry.pw_gid
    extra = {_group_id(name) for line in unit.all("SupplementaryGroups") for name in line.split()}
    groups = {*os.getgrouplist(entry.pw_name, gid), *extra}
    return Identity(entry.pw_uid, gid, tuple(sorted(groups)), entry.pw_name)


def _specifiers(unit: Unit) -> dict[str, str]:
    """Return the specifiers of systemd.unit(5); of the user they are root's for a system service, whatever User= is."""
    stem = unit.name.rpartition(".")[0]
    prefix, _, instance = stem.partition("@")
    found = {**DIRECTORIES, "n": unit.name, "N": stem, "p": prefix, "P": prefix, "i": instance, "I": instance}
    found |= {"j": prefix.rpartition("-")[2], "H": os.uname().nodename, "v": os.uname().release}
    return {**found, "u": "root", "U": "0", "g": "root", "G": "0", "h": "/root", "s": "/bin/sh"}


def _expanded(unit: Unit) -> tuple[Unit, list[tuple[str, str]]]:
    """Return UNIT with every specifier replaced where systemd does so, and (setting, why) of what is not known."""
    specifiers, found, unknown = _specifiers(unit), [], []
    for name, value in unit.assignments:
        text = value
        # Not in a percentage, and not in a command, of which only the program counts.
        if "%" in value and not name.startswith("Exec") and name not in PERCENTAGES:
            try:
                text = unit_values.expand(value, specifiers)
            except ValueError as error:
                unknown.append((name, str(error)))
        found.append((name, text))
    return dataclasses.replace(unit, assignments=tuple(found)), unknown


def _cwd(unit: Unit, entry: pwd.struct_passwd | None) -> str:
    said = unit.last("WorkingDirectory")
    path = said.removeprefix("-")
    if path == "~":
        return entry.pw_dir if entry is not None else "/"
    if said.startswith("-") and not os.path.isdir(path):
        return "/"
    return path if path.startswith("/") else "/"


def _binary(unit: Unit, env: Mapping[str, str]) -> str | None:
    """Return the program of ExecStart=, looked up as systemd does where it is a bare name."""
    line = next(iter(unit.all("ExecStart")), "")
    try:
        program = unit_values.words(line)[0].lstrip(PREFIXES)
    except (ValueError, IndexError):
        return None
    if program.startswith("/"):
        return program
    places = [f"{part}/{program}" for part in (env.get("PATH") or DEFAULT_PATH).split(":") if part.startswith("/")]
    return next((place for place in places if program and os.path.isfile(place)), None)


def _limits(unit: Unit) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return (RLIMIT name -> (soft, hard), the names whose values are not translated)."""
    found = {"RLIMIT_NOFILE": unit_values.DEFAULT_NOFILE}
    unknown = []
    for name in dict.fromkeys(key for key, _ in unit.assignments if sandbox.LIMITS.fullmatch(key)):
        text = unit.last(name)
        if not text:
            continue
        pair = unit_values.limit(name.removeprefix("Limit"), text)
        if pair is None:
            unknown.append(name.removeprefix("Limit"))
        else:
            found[f"RLIMIT_{name.removeprefix('Limit')}"] = pair
    return found, unknown


def _environment(
    unit: Unit, entry: pwd.struct_passwd | None, manager_env: Mapping[str, str] | None
) -> tuple[dict[str, str], list[Missing]]:
    """Return the environment as systemd composes it, later sources over earlier ones, and what could not be had.

    ENTRY is the user of User=, None without one: then HOME, USER, LOGNAME and SHELL are not set.
    """
    env = {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8"}
    if manager_env is not None:
        env |= {name: manager_env[name] for name in ("PATH", "LANG") if name in manager_env}
    missing: list[Missing] = []
    for name in [word for line in unit.all("PassEnvironment") for word in line.split()]:
        if manager_env is None:
            missing.append(Missing(f"PassEnvironment={name}", "systemd was not asked for it", NATIVE))
        elif name in manager_env:
            env[name] = manager_env[name]
    if entry is not None:
        env |= {"USER": entry.pw_name, "LOGNAME": entry.pw_name, "HOME": entry.pw_dir}
        if entry.pw_shell and not entry.pw_shell.endswith(("/nologin", "/false")):
            env["SHELL"] = entry.pw_shell
    for line in unit.all("Environment"):
        try:
            found = unit_values.words(line)
        except ValueError as error:
            missing.append(Missing("an Environment= line", str(error), EVERY))
            continue
        env |= {name: value for name, equals, value in (word.partition("=") for word in found) if equals and name}
    for pattern in unit.all("EnvironmentFile"):
        try:
            env |= unit_files.env_files(pattern)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            missing.append(Missing(f"EnvironmentFile={pattern}", why, EVERY))
    for word in [word for line in unit.all("UnsetEnvironment") for word in line.split()]:
        name, equals, value = word.partition("=")
        if name in env and (not equals or env[name] == value):
            del env[name]
    return env, missing
