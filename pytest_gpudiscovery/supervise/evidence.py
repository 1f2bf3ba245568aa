"""What is known of a child that did not end in time: where each of its threads waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.probes.syscalls import lookup
from pytest_gpudiscovery.supervise import procfs
from pytest_gpudiscovery.supervise.activity import TICK


def snapshot(pid: int, *, in_exec: bool = False) -> dict[str, Any]:
    """Return {"pid", "threads": [...], "more_threads": n} of PID as it is now; never blocks.

    A thread is {tid, name, state, wchan, syscall, stack, cpu_s, voluntary, involuntary, unread: {file: errno name}}.
    IN_EXEC leaves out syscall and stack, which wait for a task that is inside execve.
    """
    tids = procfs.tasks(pid)
    files = ("stat", "status", "wchan") if in_exec else ("stat", "status", "wchan", "syscall", "stack")
    threads = []
    for tid in tids[: procfs.THREADS]:
        texts, unread = {}, {}
        for name in files:
            texts[name], failure = procfs.read(f"/proc/{pid}/task/{tid}/{name}")
            if failure:
                unread[name] = failure
        threads.append({"tid": tid, **thread(texts), "unread": unread})
    return {"pid": pid, "threads": threads, "more_threads": max(0, len(tids) - procfs.THREADS)}


def thread(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return what the TEXTS of one thread's files say."""
    stat = procfs.parse_stat(texts.get("stat", ""))
    syscall = procfs.parse_syscall(texts.get("syscall", ""))
    if isinstance(syscall, dict):
        name = "page fault" if syscall["number"] == -1 else lookup(syscall["number"]).name
        syscall = {"name": name, **syscall}
    wchan = texts.get("wchan", "").strip()
    return {
        "name": stat.name if stat else None,
        "state": stat.state if stat else None,
        "wchan": None if wchan in ("", "0") else wchan,
        "syscall": syscall,
        "stack": procfs.parse_stack(texts.get("stack", "")),
        "cpu_s": (stat.utime + stat.stime) / TICK if stat else None,
        **procfs.parse_status(texts.get("status", "")),
    }
