"""From a running process (--gpu-as pid:N) to who probes run as: what is adopted, what is read through it, what is not.

Probes never enter another mount or user namespace: their interpreter and its libraries are those of this one. Stages
that read files do so below the process's root; native stages then speak for this mount namespace only, and are said to.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping
from typing import Any

from pytest_gpudiscovery.options import UsageProblem
from pytest_gpudiscovery.service.adopt import capabilities
from pytest_gpudiscovery.service.who import EVERY, NATIVE, Missing, Who
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Identity, Probe

LOOK_S = 5.0
DELETED = " (deleted)"

Supervise = Callable[[Probe], ChildResult]


def asked_for(pid: int, scale: float = 1.0, *, supervise: Supervise = run) -> Who:
    """Return who process PID is; raises UsageProblem when there is none, or nothing of it can be seen."""
    result = supervise(Probe("process", {"pid": pid}, {"PATH": "/usr/bin:/bin"}, LOOK_S * scale))
    answer = result.answer if isinstance(result.answer, dict) else {}
    seen = {**result.observed, **answer}
    if seen.get("gone"):
        raise UsageProblem(f"--gpu-as=pid:{pid}: no such process")
    status = seen.get("status") or {}
    if status.get("uid") is None or status.get("gid") is None:
        raise UsageProblem(f"--gpu-as=pid:{pid}: /proc/{pid}/status does not say who it is ({result.ending.value})")
    if str(status.get("state") or "").startswith(("Z", "X")):  # nothing of it is left but its number
        raise UsageProblem(f"--gpu-as=pid:{pid}: the process has ended (state {status['state']})")
    return from_process(pid, seen, result)


def from_process(pid: int, seen: Mapping[str, Any], result: ChildResult) -> Who:
    """Return who process PID is, by what was SEEN of it before RESULT, the look at it, ended."""
    status, links = seen["status"], seen.get("links") or {}
    identity = Identity(status["uid"], status["gid"], tuple(status["groups"]), _name(status["uid"]))
    namespaces = seen.get("namespaces") or {}
    env = seen.get("environ")
    missing = _missing(pid, seen, result, namespaces)
    mntns = f"/proc/{pid}/ns/mnt" if _can_enter(seen, namespaces) else None
    elsewhere = mntns is None and (seen.get("same_root") is not True or namespaces.get("mnt") is not True)
    netns = f"/proc/{pid}/ns/net" if namespaces.get("net") is False and os.geteuid() == 0 else None
    return Who(
        identity,
        f"process {pid} ({status.get('name') or '?'})",
        env=env if env is not None else None,
        cwd=None if elsewhere else _cwd(pid, links.get("cwd")),
        limits={f"RLIMIT_{name}": (pair[0], pair[1]) for name, pair in (seen.get("limits") or {}).items()},
        binary=_binary(_below(links.get("exe"), links.get("root")), status.get("name")),
        root=f"/proc/{pid}/root" if elsewhere else None,
        pid=pid,
        netns=netns,
        mntns=mntns,
        sandbox={
            "process": {
                "pid": pid,
                "state": status.get("state"),
                "seccomp": status.get("seccomp"),
                "effective": status.get("effective"),
                "uid_map": seen.get("uid_map"),
                "namespaces": dict(namespaces),
                "exe": links.get("exe"),
                "cwd": links.get("cwd"),
                "closed": seen.get("same_root") is None,
            },
            "running": {"pid": pid, "active": "running", "devices": seen.get("devices")},
            "applied": False,
        },
        missing=tuple(missing),
        refused="" if env is not None else f"the environment of process {pid} cannot be read",
    )


def _missing(pid: int, seen: Mapping[str, Any], result: ChildResult, namespaces: Mapping[str, Any]) -> list[Missing]:
    found = []
    if seen.get("environ") is None:
        step = result.open_step
        if result.ending in (Ending.TIMED_OUT, Ending.UNKILLABLE) and step is not None:
            why = f"{step.name} did not return: the process is stuck in the kernel"
        else:
            why = f"{seen.get('environ_errno') or result.ending.value}: another user's process"
        found.append(Missing(f"environment of process {pid}", why, EVERY))
    if not _can_enter(seen, namespaces) and not (namespaces.get("mnt") is True and seen.get("same_root") is True):
        known = namespaces.get("mnt") is not None and seen.get("same_root") is not None
        what = "root directory" if namespaces.get("mnt") is True else "mount namespace"
        why = "files are read below its root; native calls are made with this system's libraries"
        found.append(Missing(what, why if known else "another user's process does not show it", NATIVE))
    if namespaces.get("net") is not True:
        root = os.geteuid() == 0
        why = "only root can enter it" if namespaces.get("net") is False else "another user's process does not show it"
        if not (root and namespaces.get("net") is False):
            found.append(Missing("network namespace", why, ("loopback", "bootstrap", "serve")))
    if namespaces.get("user") is False:
        found.append(Missing("user namespace", "its mapping is judged, not entered", NATIVE))
    if namespaces.get("pid") is False:
        found.append(Missing("pid namespace", "not entered; discovery does not depend on it"))
    found += _capabilities(seen["status"])
    found.append(Missing("cgroup", "read, never joined: the device controller is judged by what it allows"))
    if (seen.get("status") or {}).get("seccomp") == "2":
        found.append(Missing("seccomp filter", "a filter cannot be taken from another process", NATIVE))
    found.append(Missing("security context", "SELinux and AppArmor contexts are not adopted"))
    return found


def _capabilities(status: Mapping[str, Any]) -> list[Missing]:
    """Say that a root without all of root's capabilities, as a container's is, is probed for with the caller's."""
    held = str(status.get("effective") or "")
    if status["uid"] != os.geteuid() or not held or held == f"{capabilities():016x}":
        return []
    return [Missing("capabilities", f"the process has {held}; what it could do to device nodes is judged by them")]


def _can_enter(seen: Mapping[str, Any], namespaces: Mapping[str, Any]) -> bool:
    """Whether probes can enter the mount namespace: another one with our root directory, as a service's sandbox is."""
    own = all(namespaces.get(name) is True for name in ("user", "pid"))  # /proc in it shows us too
    return namespaces.get("mnt") is False and seen.get("same_root") is True and own and os.geteuid() == 0


def _cwd(pid: int, link: str | None) -> str:
    if link is None:
        return "/"
    return f"/proc/{pid}/cwd" if link.endswith(DELETED) else link


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _below(exe: str | None, root: str | None) -> str | None:
    """Return EXE as a process in ROOT calls it: after a mere chroot its link names our path (fs/d_path.c)."""
    if exe is None or root is None or not exe.startswith(root.rstrip("/") + "/"):
        return exe
    return exe[len(root.rstrip("/")) :]


def _binary(exe: str | None, name: str | None) -> str | None:
    """Return the program of the process where it is Ollama's; a script's interpreter is not."""
    called = exe is not None and ("ollama" in exe.rpartition("/")[2] or name == "ollama")
    if exe is None or not exe.startswith("/") or not called:
        return None
    return exe.removesuffix(DELETED)
