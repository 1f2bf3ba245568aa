"""What could not be seen of a child that hangs, and why: a missing view is said, never taken for "nothing there". Pure.

None of the views needs root for a child of the same user; ptrace, gdb and strace are never needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NEEDS = {
    "stack": "the kernel shows a task's kernel stack to CAP_SYS_ADMIN only",
    "syscall": "needs the right to trace it: the same user and no capabilities that we lack (ptrace(2), Yama)",
    "wchan": "needs the right to trace it (ptrace(2))",
}
WHAT = {
    "stack": "kernel stack",
    "syscall": "system call",
    "wchan": "wait channel",
    "stat": "state",
    "status": "switches",
}
VIEWS = {
    "fds": "open files",
    "holders": "who holds what it waits for",
    "kernel_log": "kernel log",
    "libraries": "memory map",
    "stacks": "native stack",
}
FUTEX = ("futex", "futex_waitv")


def reasons(snapshot: Mapping[str, Any], forensics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return [{"what", "why"}] for a SNAPSHOT (evidence.snapshot) and what probes/forensics.py observed (FORENSICS)."""
    return [{"what": what, "why": why} for what, why in (*_of_threads(snapshot), *_of_look(snapshot, forensics))]


def _of_threads(snapshot: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    threads = snapshot.get("threads") or []
    if not threads:
        yield "everything", "it was gone, or hidden (/proc is mounted with hidepid), before it could be looked at"
        return
    refused: dict[str, str] = {}
    for thread in threads:
        refused |= thread.get("unread") or {}
    for name, failure in refused.items():
        needs = f": {NEEDS[name]}" if name in NEEDS else ""
        yield WHAT.get(name, name), f"{failure}{needs}"
    if snapshot.get("more_threads"):
        yield f"{snapshot['more_threads']} more threads", f"only the first {len(threads)} are looked at"


def _of_look(snapshot: Mapping[str, Any], forensics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    errors = forensics.get("errors")
    errors = errors if isinstance(errors, Mapping) else {}
    caught = str(forensics.get("error") or "the look ended before")
    for key, what in VIEWS.items():
        if key not in forensics:
            why = (
                errors.get("fds") if key == "fds" else errors.get("memory") if key in ("libraries", "stacks") else None
            )
            yield what, str(why or caught)
    stacks = forensics.get("stacks")
    for tid, stack in stacks.items() if isinstance(stacks, Mapping) else ():
        if isinstance(stack, Mapping) and stack.get("error"):
            yield f"native stack of thread {tid}", f"{stack['error']}: a thread that runs must be stopped to be read"
    log = forensics.get("kernel_log")
    if isinstance(log, Mapping) and log.get("unknown"):
        yield "kernel log", str(log["unknown"])
    yield from _of_holders(snapshot, forensics.get("holders"))
    seen = forensics.get("py_spy")
    if isinstance(seen, Mapping) and seen.get("error"):
        yield "Python frames", f"py-spy: {seen['error']}"
    elif seen is None and "error" not in forensics:
        yield "Python frames", "py-spy is not installed (the child's own traceback is on its stderr)"


def _of_holders(snapshot: Mapping[str, Any], holders: Any) -> Iterator[tuple[str, str]]:
    waits = [thread.get("syscall") for thread in snapshot.get("threads") or []]
    if any(isinstance(call, Mapping) and call.get("name") in FUTEX for call in waits[:1]):
        yield "who holds the futex", "the kernel does not know: a futex is a word in the process's own memory"
    if isinstance(holders, Mapping) and holders.get("hidden"):
        yield f"open files of {holders['hidden']} other processes", "EACCES: they are another user's"
    if isinstance(holders, Mapping) and holders.get("cut"):
        yield "open files of some other processes", "there was no time for all of them"
