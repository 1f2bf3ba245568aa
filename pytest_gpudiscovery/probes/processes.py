"""Looks for processes that hold a device node of the driver, and for tasks among them that sleep in state D.

Reads only stat, wchan and the fd links of other processes: their maps, cmdline and environ block for ever when a task
sleeps in D with its memory map locked. Even so this scan is not trusted: it runs as a probe of its own, with a short
deadline, and is abandoned when it hangs.
"""

from __future__ import annotations

import os
import time

from pytest_gpudiscovery.probes.facts import names, number
from pytest_gpudiscovery.probes.host import HostView, open_view
from pytest_gpudiscovery.probes.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NODE = "/dev/nvidia"
SAMPLES_S = 0.3  # a task that is in D twice, this far apart, with nothing run in between, is worth a warning
HOLDERS_LIMIT = 64
FDS_LIMIT = 4096  # file descriptors of one process


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return {"holders": [{"pid", "comm", "nodes"}], "stuck": [{"pid", "tid", "comm", "wchan", "nodes"}], "hidden"}.

    `hidden` counts processes in state D whose open files this process may not see. REQUEST: {"view"}.
    """
    view = open_view(request["view"])
    with journal.step("list /proc"):
        pids = [name for name in names(view, "/proc") if number(name) not in (None, os.getpid())]
    holders: list[dict[str, Any]] = []
    hidden = 0
    with journal.step("read who holds /dev/nvidia*"):
        for pid in pids:
            nodes = nodes_of(view, pid)
            status = parse_stat(_read(view, f"/proc/{pid}/stat"))
            if nodes is None and status is not None and status["state"] == "D" and not status["kernel"]:
                hidden += 1
            if nodes and status is not None and len(holders) < HOLDERS_LIMIT:
                holders.append({"pid": int(pid), "comm": status["comm"], "nodes": nodes})
    journal.observe("holders", holders)
    with journal.step("look for state D"):
        first = sleeping(view, holders)
        if first:
            time.sleep(SAMPLES_S)  # only then: a healthy host does not pay for it
        again = {moved(task) for task in sleeping(view, holders)} if first else set()
        stuck = [task for task in first if moved(task) in again]
    return {"holders": holders, "stuck": stuck, "hidden": hidden}


def sleeping(view: HostView, holders: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tasks of HOLDERS that are in state D; `started`, `ran` and `switches` tell whether they moved."""
    found = []
    for holder in holders:
        where = f"/proc/{holder['pid']}/task"
        for tid in names(view, where):
            status = parse_stat(_read(view, f"{where}/{tid}/stat"))
            if status is not None and status["state"] == "D":
                wchan = (_read(view, f"{where}/{tid}/wchan") or b"").decode("ascii", "replace")
                task = {"pid": holder["pid"], "tid": int(tid), "comm": status["comm"], "nodes": holder["nodes"]}
                found.append({**task, "wchan": wchan, "started": status["started"], "ran": status["ran"]})
                found[-1]["switches"] = switches(_read(view, f"{where}/{tid}/status"))
    return found


def moved(task: dict[str, Any]) -> tuple[Any, ...]:
    """Return what changes of TASK when it runs: a reader of many small blocks uses no whole clock tick in between."""
    return task["tid"], task["started"], task["ran"], task["switches"]


def switches(data: bytes | None) -> tuple[str, ...]:
    """Return the counts of context switches in /proc/PID/task/TID/status, () where it does not tell them."""
    lines = (data or b"").decode("ascii", "replace").splitlines()
    return tuple(line.split()[-1] for line in lines if "ctxt_switches:" in line)


def nodes_of(view: HostView, pid: str) -> list[str] | None:
    """Return the driver's nodes among the open files of PID, None when this process may not look."""
    where = f"/proc/{pid}/fd"
    try:
        descriptors = view.listdir(where)
    except OSError:
        return None
    found = set()
    for name in descriptors[:FDS_LIMIT]:
        try:
            target = view.readlink(f"{where}/{name}")
        except OSError:
            continue  # closed meanwhile
        if target.startswith(NODE):
            found.add(target)
    return sorted(found)


def parse_stat(data: bytes | None) -> dict[str, Any] | None:
    """Return {"comm", "state", "started", "ran", "kernel"} of /proc/PID/stat; the name may hold blanks and brackets."""
    if not data:
        return None
    head, bracket, tail = data.rpartition(b")")
    fields = tail.split()
    if not bracket or len(fields) < 20:
        return None
    try:
        flags, ran, started = int(fields[6]), int(fields[11]) + int(fields[12]), int(fields[19])
    except ValueError:
        return None
    return {
        "comm": head.partition(b"(")[2].decode("utf-8", "replace"),
        "state": fields[0].decode("ascii", "replace"),
        "started": started,
        "ran": ran,
        "kernel": bool(flags & 0x00200000),  # PF_KTHREAD: kernel threads wait in D by design
    }


def _read(view: HostView, path: str) -> bytes | None:
    try:
        return view.read(path, 4096)
    except OSError:
        return None
