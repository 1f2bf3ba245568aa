"""From who a service is to how its probes are set up: what is adopted, what is not, and what that leaves open."""

from __future__ import annotations

import dataclasses
import os
import resource
from typing import Any

from pytest_gpudiscovery.service import environment
from pytest_gpudiscovery.service.who import Missing, Who
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.types import Probe, Setup

CAP_SYS_ADMIN, CAP_MKNOD = 21, 27
LOOK_S = 5.0  # to enter a directory
DESCRIPTORS = 256  # what pytest, its workers and a supervised child need with room to spare
# Stages that load files of the install: those of another root directory need that root's own C library.
INSTALLED = ("runtime", "load", "backend", "bootstrap", "serve", "upgrade")
# A root directory on FUSE, as rootless engines make it, lets nobody in who is in another user namespace: not even root
# (fs/fuse/dir.c, fuse_allow_current_process).
CLOSED = "its root directory cannot be read (a rootless container's): run the gate in there (docs/containers.md)"
ELSEWHERE = "the install lies below another root directory: run the gate in there (docs/containers.md)"


def may_adopt(who: Who) -> bool:
    """Whether probes can be WHO: root becomes anybody, everybody else stays what they are."""
    return who.identity is None or os.geteuid() == 0 or who.identity.uid == os.geteuid()


def unasked(who: Who) -> dict[str, str]:
    """Return stage -> why it cannot be asked for WHO, whose root directory is another one."""
    if who.root is None:
        return {}
    closed = dict.fromkeys(("package", "kernel", "closure"), CLOSED) if is_closed(who) else {}
    return {**closed, **dict.fromkeys(INSTALLED, ELSEWHERE)}


def is_closed(who: Who) -> bool:
    """Whether nothing can be read below the root directory of WHO, a process."""
    return bool((who.sandbox.get("process") or {}).get("closed"))


def at_its_root(who: Who, setup: Setup) -> tuple[Who, Setup]:
    """Return WHO and SETUP with which probes can look below the root directory of WHO at all.

    A process that changed its user without an exec is not dumpable: its /proc/PID/root is closed to its own user.
    """
    if setup.identity is None or is_closed(who):
        return who, setup
    asked = run(Probe("nothing", {"enter": who.root}, {"PATH": "/usr/bin:/bin"}, LOOK_S, setup=setup))
    if isinstance(asked.answer, dict) and asked.answer.get("entered"):
        return who, setup
    why = "its root directory is closed to its own user: files are looked at as root"
    lost = Missing(f"user {who.identity_name}", why, ("package", "service", "kernel", "closure"))
    return dataclasses.replace(who, missing=(*who.missing, lost)), dataclasses.replace(setup, identity=None)


def in_its_directory(who: Who, setup: Setup) -> Who:
    """Return WHO with a working directory that probes can have; one that they cannot is kept in `sandbox`.

    systemd does not start a service whose directory cannot be entered, and Ollama to 0.24 finds nothing from one that
    is gone: stage 01 says so, and probes run in / meanwhile.
    """
    if who.cwd in (None, "/"):
        return who
    asked = run(Probe("nothing", {"chdir": who.cwd}, {"PATH": "/usr/bin:/bin"}, LOOK_S, setup=setup))
    errno = asked.answer.get("chdir") if isinstance(asked.answer, dict) else "ETIMEDOUT"
    if errno is None:
        return who
    lost = {"path": who.cwd, "errno": errno}
    return dataclasses.replace(who, cwd="/", sandbox={**who.sandbox, "directory": lost})


def with_paths(setup: Setup, paths: list[str]) -> Setup:
    """Return SETUP in which what this run has made at PATHS can be seen: a unit may have a /tmp of its own."""
    if not setup.transient or not paths:
        return setup
    return dataclasses.replace(setup, transient=(*setup.transient, *(f"BindReadOnlyPaths={path}" for path in paths)))


def unspoken(who: Who) -> dict[str, str]:
    """Return stage -> why its answer may be another one for WHO than for our probes."""
    found: dict[str, list[str]] = {}
    for item in who.missing:
        for stage in item.stages:
            found.setdefault(stage, []).append(f"{item.what}: {item.why}")
    return {stage: "; ".join(dict.fromkeys(reasons)) for stage, reasons in found.items()}


def capabilities() -> int:
    """Return the effective capability set of this process as a bit mask; 0 where /proc cannot be read."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    except (OSError, ValueError):
        return 0


def room_for_ourselves() -> dict[str, tuple[int, int]]:
    """Raise this process' own soft limit on descriptors where it is too low to work, as far as the hard one allows.

    Returns the limits that probes must get back, because a low limit is one of the faults that the gate is to find.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < DESCRIPTORS and (hard == resource.RLIM_INFINITY or hard > soft):
        raised = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        return {"RLIMIT_NOFILE": (soft, hard)}
    return {}


def setup_for(who: Who, euid: int, effective: int) -> Setup:
    """Return how probes are set up for WHO when the caller has EUID and the capability mask EFFECTIVE.

    Root's driver user space creates missing device nodes (measured), so root's probes get a private copy of /dev; a
    root that may not mount gives up CAP_MKNOD instead. Somebody else's could only be healed by a setuid
    nvidia-modprobe: inside a private /dev that may happen, outside of it PR_SET_NO_NEW_PRIVS keeps it from happening.
    What systemd starts gives up the capability by a property of its unit.
    """
    root = euid == 0
    may_mount = root and bool(effective >> CAP_SYS_ADMIN & 1) and bool(effective >> CAP_MKNOD & 1)
    somebody = who.identity is not None and who.identity.uid != 0
    if root and who.transient:
        return Setup(identity=who.identity if somebody else None, drop_mknod=True, transient=who.transient)
    return Setup(
        identity=who.identity if root and somebody else None,
        private_dev=may_mount,
        no_new_privs=True,
        drop_mknod=root and not may_mount,
        limits=dict(who.limits),
        netns=who.netns if root else None,
        mntns=who.mntns if root else None,
    )


def describe(who: Who, setup: Setup, effective: int) -> dict[str, Any]:
    """Return the verdict's `context` object: who probes, what was adopted and what could not be."""
    identity = setup.identity
    not_adopted = [{"what": item.what, "why": item.why} for item in who.missing]
    if who.identity is not None and identity is None and who.identity.uid != os.geteuid():
        not_adopted.append({"what": f"user {who.identity.name}", "why": "only root can probe as another user"})
    return {
        "as": who.source,
        "uid": identity.uid if identity else os.geteuid(),
        "gid": identity.gid if identity else os.getegid(),
        "groups": list(identity.groups) if identity else sorted(os.getgroups()),
        "capabilities": f"{_held(setup, effective):016x}",
        "private_dev": setup.private_dev,
        "environment": environment.shown(who.env) if who.env is not None else None,
        "adopted": _adopted(who, setup),
        "not_adopted": not_adopted,
    }


def _held(setup: Setup, effective: int) -> int:
    """Return the capability mask that probes have: another user than root has none (capabilities(7))."""
    if setup.identity is not None and setup.identity.uid != 0:
        return 0
    return effective & ~(1 << CAP_MKNOD) if setup.drop_mknod else effective


def _adopted(who: Who, setup: Setup) -> list[str]:
    found = ["user", "groups"] if setup.identity else []
    if not may_adopt(who):
        return found
    parts = (
        ("environment", who.env is not None),
        ("limits", bool(setup.limits) and bool(who.limits)),
        ("working directory", bool(who.cwd) and who.cwd != "/"),
        ("root directory, for what is read", who.root is not None),
        ("network namespace", setup.netns is not None),
        ("mount namespace", setup.mntns is not None),
        ("every property, through a transient unit", bool(setup.transient)),
    )
    return found + [name for name, there in parts if there]
