"""Reading a hung task without being caught by it: five files of /proc whose reading never sleeps on the task.

maps, mem, cmdline, environ and smaps take the memory map's lock, which a task in state D may hold for ever; they are
read by probes/forensics.py only. `children` takes nothing but tasklist_lock (fs/proc/array.c).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any

LIMIT = 16_384  # bytes of one file
THREADS = 64  # of one process; libcuda starts about ten
DESCENDANTS = 1_000


@dataclass(frozen=True)
class Stat:
    """What is used of /proc/PID/stat; times in clock ticks."""

    name: str
    state: str  # R S D Z T t X I
    group: int  # process group
    utime: int
    stime: int
    start: int  # after boot
    faults: int = 0  # of pages, minor and major


def parse_stat(text: str) -> Stat | None:
    """Return the fields of a stat line, None for anything else. The name may itself contain blanks and brackets."""
    opened, closed = text.find("("), text.rfind(")")
    fields = text[closed + 1 :].split()
    if not 0 < opened < closed or len(fields) < 20:
        return None
    try:
        group, minor, major, utime, stime, start = (int(fields[index]) for index in (2, 7, 9, 11, 12, 19))
    except ValueError:
        return None
    if max(utime, stime, minor, major) >> 64:
        return None  # no kernel's
    return Stat(text[opened + 1 : closed], fields[0], group, utime, stime, start, minor + major)


def parse_status(text: str) -> dict[str, int]:
    """Return the context switches of a status file: {"voluntary": n, "involuntary": n}, without what is not there."""
    names = {"voluntary_ctxt_switches": "voluntary", "nonvoluntary_ctxt_switches": "involuntary"}
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in names and value.strip().isdecimal():
            found[names[name]] = int(value)
    return found


def parse_syscall(text: str) -> dict[str, Any] | str | None:
    """Return {number, args, sp, pc} of a blocked task, "running", or None when the file could not be read.

    `number` is -1 when the task waits outside of a system call (a page fault).
    """
    fields = text.split()
    if fields == ["running"]:
        return "running"
    try:
        number, *rest = (int(field, 0) for field in fields)
    except ValueError:
        return None
    if len(rest) < 2:
        return None
    return {"number": number, "args": rest[:-2], "sp": rest[-2], "pc": rest[-1]}


def parse_stack(text: str) -> list[str]:
    """Return the kernel functions of a stack file, innermost first, without addresses and offsets."""
    frames = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0].startswith("[<"):
            frames.append(words[1].partition("+")[0])
    return frames


def read(path: str) -> tuple[str, str]:
    """Return (text, "") or ("", errno name) of a /proc file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, LIMIT).decode("utf-8", "replace"), ""
        finally:
            os.close(fd)
    except OSError as error:
        return "", errno_name(error)


def errno_name(error: OSError) -> str:
    """Return EACCES for [Errno 13]."""
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def stat(pid: int) -> Stat | None:
    """Return the Stat of PID, None when it is gone."""
    return parse_stat(read(f"/proc/{pid}/stat")[0])


def tasks(pid: int) -> list[int]:
    """Return the thread ids of PID, the main thread first, without a limit; [] when it is gone."""
    try:
        return sorted((int(name) for name in os.listdir(f"/proc/{pid}/task")), key=lambda tid: (tid != pid, tid))
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """Return the pids below PID, at most DESCENDANTS. Complete while PID lives, because it is a subreaper."""
    found: list[int] = []
    todo = [pid]
    while todo and len(found) < DESCENDANTS:
        current = todo.pop()
        for tid in tasks(current):
            children = read(f"/proc/{current}/task/{tid}/children")[0].split()
            todo += (new := [int(child) for child in children])
            found += new
    return found
