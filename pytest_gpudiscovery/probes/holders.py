"""Who holds what a hung process waits for, where /proc tells it: a file's lock, a pipe's other end, a child, the GPU.

Who holds a futex the kernel does not know, and the peer of a socket is not looked for. Reads /proc/locks and the
descriptors of other processes, never their memory; bounded, and run by probes/forensics.py only.
"""

from __future__ import annotations

import os
import time

from pytest_gpudiscovery.probes.syscalls import lookup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

SCAN_S = 0.3  # for all other processes together
DESCRIPTORS = 4096  # of one process
KEPT = 16  # holders
NODE = "/dev/nvidia"
LOCKS = ("flock", "fcntl")
TRANSFERS = ("read", "readv", "write", "writev", "splice")
CHILDREN = ("wait4", "waitid")


def look(pid: int, threads: Iterable[int], fds: Mapping[str, str]) -> dict[str, Any]:
    """Return {"holders": [{"kind", "what", "pid", "name"}], "hidden": n, "cut": bool} for what PID waits for.

    THREADS are its thread ids, FDS its open files. `kind`: "lock", "pipe" or "child" (what a thread waits for),
    "tracer", "gpu" (who else has one of the driver's nodes open that PID has open). `hidden` counts the processes whose
    files this one may not see; `cut` says that there was no time for the rest. A pid of None: nobody that can be seen.
    """
    threads = list(threads)
    waits = list(_waits(pid, threads))
    holders = [_holder("tracer", "the thread", tracer) for tracer in dict.fromkeys(map(_tracer, threads)) if tracer]
    shared: dict[str, str] = {target: "gpu" for target in fds.values() if target.startswith(NODE)}
    for call, fd, wchan in waits:
        target = fds.get(str(fd), "")
        if call in CHILDREN:
            holders += [_holder("child", "its end", child) for child in _children(pid)]
        elif call in LOCKS:
            owners = blockers(_text("/proc/locks"), pid)
            holders += [_holder("lock", target, owner) for owner in owners]
            if any(owner is None or not _name(owner) for owner in owners):
                shared[target] = "lock"  # its taker has ended, or is not told: who has the file open may hold it
        elif call in TRANSFERS and target and "pipe" in wchan:  # a FIFO too; asking what it is could block
            shared[target] = "pipe"
    found, hidden, cut = _scan(pid, shared) if shared else ([], 0, False)
    for target, kind in shared.items():
        if kind == "pipe" and not cut and not any(holder["what"] == target for holder in found):
            found.append(_holder("pipe", target, None))
    return {"holders": (holders + found)[:KEPT], "hidden": hidden, "cut": cut}


def blockers(locks: str, pid: int) -> list[int | None]:
    """Return who holds the locks that PID waits for, from the text of /proc/locks; None where it is not told.

    A waiter has an arrow and the number of the lock that it waits for: Documentation/filesystems/proc.rst. Pid 0 is of
    another pid namespace, -1 that of a lock of an open file description.
    """
    owners: dict[str, int] = {}
    waited: list[str] = []
    for line in locks.splitlines():
        number, _, rest = line.partition(": ")
        words = rest.split()
        waits = words[:1] == ["->"]
        try:
            owner = int(words[4 if waits else 3])
        except (IndexError, ValueError):
            continue
        if not waits:
            owners.setdefault(number, owner)
        elif owner == pid:
            waited.append(number)
    return [owner if (owner := owners.get(number, 0)) > 0 else None for number in dict.fromkeys(waited)]


def _waits(pid: int, threads: Iterable[int]) -> Iterator[tuple[str, int, str]]:
    """Yield (system call, first argument, wait channel) of each of THREADS that waits in one."""
    for tid in threads:
        fields = _text(f"/proc/{pid}/task/{tid}/syscall").split()
        try:
            yield lookup(int(fields[0])).name, int(fields[1], 16), _text(f"/proc/{pid}/task/{tid}/wchan")
        except (IndexError, ValueError):
            continue  # it runs, or is not ours to look at


def _scan(pid: int, shared: Mapping[str, str]) -> tuple[list[dict[str, Any]], int, bool]:
    """Return which other processes have one of the SHARED files open."""
    end = time.monotonic() + SCAN_S
    found: list[dict[str, Any]] = []
    hidden = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in (pid, os.getpid()):
            continue
        if time.monotonic() > end:
            return found, hidden, True
        try:
            names = os.listdir(f"/proc/{entry}/fd")[:DESCRIPTORS]
        except PermissionError:
            hidden += 1
            continue
        except OSError:
            continue  # it has ended
        targets = {_target(f"/proc/{entry}/fd/{name}") for name in names}
        found += [_holder(shared[target], target, int(entry)) for target in targets & shared.keys()]
    return found, hidden, False


def _holder(kind: str, what: str, pid: int | None) -> dict[str, Any]:
    return {"kind": kind, "what": what, "pid": pid, "name": _name(pid) if pid is not None else ""}


def _name(pid: int) -> str:
    text = _text(f"/proc/{pid}/stat")
    return text[text.find("(") + 1 : text.rfind(")")]


def _tracer(tid: int) -> int:
    """Return the pid of who traces thread TID, 0 for nobody."""
    _, found, rest = _text(f"/proc/{tid}/status").partition("TracerPid:\t")
    digits = rest.partition("\n")[0]
    return int(digits) if found and digits.isdecimal() else 0


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(word) for tid in threads for word in _text(f"/proc/{pid}/task/{tid}/children").split()]


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""  # closed meanwhile


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""
