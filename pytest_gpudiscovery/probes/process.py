"""Looks at another process: who it is, its limits, namespaces, cgroup and environment. Nothing is entered or changed.

In the order in which it may block: a process that is stuck with its memory map locked lets its status be read, and its
environment not. What was seen before a hang is kept.
"""

from __future__ import annotations

import os

from pytest_gpudiscovery.probes import devicecgroup
from pytest_gpudiscovery.probes.facts import errno_name, number, pairs, text
from pytest_gpudiscovery.probes.host import LiveView
from pytest_gpudiscovery.probes.journal import Journal
from pytest_gpudiscovery.probes.rootview import RootView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMESPACES = ("mnt", "net", "pid", "user", "ipc", "uts", "cgroup", "time")
ENVIRONMENT_LIMIT = 4 << 20
# Names in /proc/PID/limits -> RLIMIT name (fs/proc/base.c, lnames).
LIMITS = {
    "Max cpu time": "CPU",
    "Max file size": "FSIZE",
    "Max data size": "DATA",
    "Max stack size": "STACK",
    "Max core file size": "CORE",
    "Max resident set": "RSS",
    "Max processes": "NPROC",
    "Max open files": "NOFILE",
    "Max locked memory": "MEMLOCK",
    "Max address space": "AS",
    "Max pending signals": "SIGPENDING",
    "Max msgqueue size": "MSGQUEUE",
    "Max realtime priority": "RTPRIO",
}


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return what is known of process REQUEST["pid"]; {"gone": True} when there is none."""
    pid, view = request["pid"], LiveView()
    place = f"/proc/{pid}"
    answer: dict[str, Any] = {}

    def keep(key: str, value: Any) -> None:
        answer[key] = value
        journal.observe(key, value)

    with journal.step(f"read {place}/status"):
        status = text(view, f"{place}/status", 16384)
    if status is None:
        return {"gone": True}
    keep("status", identity(pairs(status)))
    with journal.step(f"read {place}/limits"):
        keep("limits", limits(text(view, f"{place}/limits", 16384) or ""))
    with journal.step(f"read the links of {place}"):
        keep("namespaces", {name: _same(pid, name) for name in NAMESPACES})
        keep("links", {name: _link(f"{place}/{name}") for name in ("root", "cwd", "exe")})
        keep("same_root", _same_root(place))
        keep(
            "uid_map",
            [[number(x) for x in line.split()] for line in (text(view, f"{place}/uid_map") or "").splitlines()],
        )
        keep("cgroup", text(view, f"{place}/cgroup", 16384))
    with journal.step("read its device cgroup"):
        root = RootView(f"{place}/root", pid)
        keep("devices", devicecgroup.of_process(root, pid))
    with journal.step(f"read {place}/environ"):
        try:
            raw = view.read(f"{place}/environ", ENVIRONMENT_LIMIT)
            keep("environ", environment(raw))
        except OSError as error:
            keep("environ", None)
            keep("environ_errno", errno_name(error))
    return answer


def identity(status: dict[str, str]) -> dict[str, Any]:
    """Return who the process of STATUS (the lines of /proc/PID/status) is: the effective ids decide what it may do."""
    uids, gids = (status.get(key, "").split() for key in ("Uid", "Gid"))
    return {
        "name": status.get("Name"),
        "state": status.get("State"),
        "uid": number(uids[1]) if len(uids) > 1 else None,
        "gid": number(gids[1]) if len(gids) > 1 else None,
        "groups": [value for word in status.get("Groups", "").split() if (value := number(word)) is not None],
        "effective": status.get("CapEff"),
        "bounding": status.get("CapBnd"),
        "no_new_privs": status.get("NoNewPrivs"),
        "seccomp": status.get("Seccomp"),
        "ns_pids": [number(word) for word in status.get("NSpid", "").split()],
    }


def limits(said: str) -> dict[str, list[int]]:
    """Return RLIMIT name -> [soft, hard] of the text of /proc/PID/limits; -1 is unlimited."""
    found = {}
    for line in said.splitlines():
        for words, name in LIMITS.items():
            fields = line[len(words) :].split()
            if line.startswith(words + " ") and len(fields) >= 2:
                values = [-1 if field == "unlimited" else number(field) for field in fields[:2]]
                if None not in values:
                    found[name] = [int(value or 0) for value in values]
    return found


def environment(raw: bytes) -> dict[str, str]:
    """Return the variables of /proc/PID/environ."""
    entries = (entry.decode("utf-8", "surrogateescape").partition("=") for entry in raw.split(b"\0"))
    return {name: value for name, equals, value in entries if equals and name}


def _same(pid: int, name: str) -> bool | None:
    """Whether namespace NAME of PID is ours; None when that cannot be told."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
    except OSError:
        return None


def _same_root(place: str) -> bool | None:
    """Whether the root directory of PLACE is ours, on the same mount; None when that cannot be told."""
    try:
        theirs, ours = os.stat(f"{place}/root/"), os.stat("/")
    except OSError:
        return None
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
