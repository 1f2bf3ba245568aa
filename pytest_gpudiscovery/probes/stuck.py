"""Looks at a program that did not answer in time, before it is killed: threads, descriptors, sockets, maps, stacks.

What cannot block is read here; maps and memory, whose reading may wait for ever, are read by a forked child with a
limit. The texts of /proc go to the judgement as they are.
"""

from __future__ import annotations

import os
import select
import time

from pytest_gpudiscovery.probes.facts import errno_name
from pytest_gpudiscovery.probes.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.spawned import Spawned

THREADS, STACKS, CHILDREN = 24, 16, 16
TEXT = 4_096  # bytes of one file
LOOK_S = 1.5  # for maps and stacks
ANSWER = 1 << 20
LISTENING = "0A"
FILES = ("stat", "status", "wchan", "syscall", "stack")  # reading these never waits for the task


def sample(pid: int) -> dict[str, Any]:
    """Return {"at", "threads": [{"tid", "stat", "status", "wchan", "syscall", "stack", "unread"}], "more": n}.

    The texts are those of /proc; `unread` has the errno's name of each file that could not be read.
    """
    tids = tasks(pid)
    threads = []
    for tid in tids[:THREADS]:
        unread: dict[str, str] = {}
        texts = {name: read(f"/proc/{pid}/task/{tid}/{name}", unread) for name in FILES}
        threads.append({"tid": tid, **texts, "unread": unread})
    return {"at": time.monotonic(), "threads": threads, "more": max(0, len(tids) - THREADS)}


def look(pid: int, port: int | None, age_s: float = 0.0) -> dict[str, Any]:
    """Return what is seen of PID, which should listen on PORT (None: it need not), and of its children.

    AGE_S is for how long it has lived: the kernel log is read from a minute before that on.
    """
    inodes = sockets(pid)
    owner = listener(pid, port) if port else None
    return {
        "threads": sample(pid),
        "listens": owner is not None and owner in inodes if port else None,
        "stranger": owner is not None and owner not in inodes if port else None,
        "children": [{"pid": child, "name": name(child)} for child in children(pid)[:CHILDREN]],
        "close": closely(pid, age_s),
    }


def goroutines(child: Spawned) -> dict[str, Any]:
    """Return what godump.ask says of CHILD, a Go program, which that ends."""
    from pytest_gpudiscovery.probes import godump  # noqa: PLC0415 - only for a program that hangs: 10 ms

    return godump.ask(child)


def tasks(pid: int) -> list[int]:
    """Return the thread ids of PID, the main thread first; [] when it is gone."""
    try:
        return sorted((int(entry) for entry in os.listdir(f"/proc/{pid}/task")), key=lambda tid: (tid != pid, tid))
    except OSError:
        return []


def read(path: str, unread: dict[str, str] | None = None) -> str:
    """Return the text of a file of /proc, "" when it cannot be read; UNREAD gets the errno's name then."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, TEXT).decode("utf-8", "replace")
        finally:
            os.close(fd)
    except OSError as error:
        if unread is not None:
            unread[path.rpartition("/")[2]] = errno_name(error)
        return ""


def name(pid: int) -> str:
    """Return the name of PID's main thread."""
    text = read(f"/proc/{pid}/stat")
    return text[text.find("(") + 1 : text.rfind(")")]


def children(pid: int) -> list[int]:
    """Return the pids of PID's children."""
    found: list[int] = []
    for tid in tasks(pid):
        found += [int(word) for word in read(f"/proc/{pid}/task/{tid}/children").split()]
    return found


def sockets(pid: int) -> set[str]:
    """Return the inodes of the sockets that PID has open."""
    found = set()
    try:
        for entry in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{entry}")
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        pass  # gone meanwhile, or not ours to look at
    return found


def listener(pid: int, port: int) -> str | None:
    """Return the inode of the socket that listens on 127.0.0.1:PORT, or everywhere, in PID's network namespace."""
    wanted = {f"0100007F:{port:04X}", f"00000000:{port:04X}"}
    try:
        with open(f"/proc/{pid}/net/tcp", encoding="ascii", errors="replace") as file:
            for line in file:
                fields = line.split()
                if len(fields) > 9 and fields[1] in wanted and fields[3] == LISTENING:
                    return fields[9]
    except OSError:
        pass
    return None


def closely(pid: int, age_s: float) -> dict[str, Any]:
    """Return what probes/forensics.py observes of PID, and its program; "error" when that look was caught."""
    reader, writer = os.pipe()
    looker = os.fork()
    if looker == 0:
        os.close(reader)
        _look(pid, writer, age_s)
    os.close(writer)
    data, end = b"", time.monotonic() + LOOK_S
    while (left := end - time.monotonic()) > 0 and len(data) < ANSWER and select.select([reader], [], [], left)[0]:
        part = os.read(reader, 65_536)
        if not part:
            break
        data += part
    os.close(reader)
    caught = not _ended(looker)
    return _observed(data, caught)


def _look(pid: int, writer: int, age_s: float) -> None:
    """Run in the forked child; ends it."""
    try:
        from pytest_gpudiscovery.probes import forensics  # noqa: PLC0415 - only for a program that hangs: 20 ms

        journal = Journal(writer)
        threads = [{"tid": tid, "path_at": None} for tid in tasks(pid)[:STACKS]]
        try:
            journal.observe("exe", os.readlink(f"/proc/{pid}/exe"))
        except OSError as error:
            journal.observe("exe_error", error.strerror)
        request = {"pid": pid, "threads": threads, "age_s": age_s, "native": False, "py_spy": None, "py_spy_s": 0}
        forensics.probe(request, journal)
    finally:
        os._exit(0)


def _ended(pid: int) -> bool:
    """Whether PID ended by itself; kills it otherwise, and does not wait for one that cannot die."""
    for _ in range(20):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(pid, 9)
    return False


def _observed(data: bytes, caught: bool) -> dict[str, Any]:
    import json  # noqa: PLC0415 - only for a program that hangs, and it costs 10 ms

    seen: dict[str, Any] = {}
    last = None
    for line in data.decode("utf-8", "replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # half a line
        if event.get("ev") == "observe":
            seen[event["key"]] = event["value"]
        elif event.get("ev") == "start":
            last = event["step"]
    if caught:
        seen["error"] = f"caught in {last!r} for {LOOK_S} s"
    return seen
