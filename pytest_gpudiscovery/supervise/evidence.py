"""What is known of a child that did not end in time: where each thread waits, and whether it moves at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.supervise import procfs
from pytest_gpudiscovery.supervise.syscalls import lookup

SAMPLE_AT = 0.8  # of the deadline: the first of the two samples
IDLE_CPU = 0.02  # CPU seconds a second; a spinner gets more even on a loaded host
IDLE_SWITCHES = 3  # voluntary ones; whoever works through a queue of the driver makes hundreds
TICK = os.sysconf("SC_CLK_TCK")


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


@dataclass(frozen=True)
class Sample:
    """How much a process has done so far."""

    at: float  # time.monotonic()
    cpu_s: float
    voluntary: int
    involuntary: int
    steps: int  # started and ended in its journal


def sample(pid: int, at: float, steps: int) -> Sample:
    """Return what PID has done until AT; STEPS comes from its journal."""
    whole = procfs.stat(pid)
    switches = [
        procfs.parse_status(procfs.read(f"/proc/{pid}/task/{tid}/status")[0])
        for tid in procfs.tasks(pid)[: procfs.THREADS]
    ]
    return Sample(
        at,
        (whole.utime + whole.stime) / TICK if whole else 0.0,
        sum(found.get("voluntary", 0) for found in switches),
        sum(found.get("involuntary", 0) for found in switches),
        steps,
    )


def activity(first: Sample, last: Sample) -> dict[str, Any]:
    """Return what happened between two samples, and its name: hung ("spinning", "sleeping") or "making progress".

    Spinning: it uses the processor, calls nothing that waits, and ends no step (a long computation looks the same).
    Sleeping: it does nothing at all.
    """
    window = max(last.at - first.at, 1e-6)
    cpu, voluntary = max(0.0, last.cpu_s - first.cpu_s), max(0, last.voluntary - first.voluntary)
    if last.steps > first.steps or voluntary >= IDLE_SWITCHES:
        name = "making progress"
    else:
        name = "spinning" if cpu / window >= IDLE_CPU else "sleeping"
    return {
        "verdict": name,
        "window_s": round(window, 3),
        "cpu_s": round(cpu, 3),
        "voluntary": voluntary,
        "involuntary": max(0, last.involuntary - first.involuntary),
        "steps": last.steps - first.steps,
    }
