"""Looks closely at a hung process from a child of its own: every read here may block for ever.

request: {"pid", "threads": [{"tid", "path_at": address or None}], "age_s": of the process, "native": bool, "py_spy":
program or None, "py_spy_s": seconds}. Each fact is observed as soon as it is known, the ones that can block least
first, so that a reader that is caught in the process's locked memory map has said the rest. Observes fds {number:
target}, holders (holders.look), kernel_log (kmsg.read), libraries [path], stacks {tid: {frames, path, error}}, py_spy,
errors {what: why}.
"""

from __future__ import annotations

import os

from pytest_gpudiscovery.probes import holders, kmsg, pyspy, registers, stackscan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal

DESCRIPTORS, LIBRARIES, THREADS = 256, 512, 16


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Observe what can be seen; the answer is {} when nothing blocked."""
    pid, errors = request["pid"], {}
    fds: dict[str, str] = {}
    try:
        with journal.step("read descriptors"):
            fds = _descriptors(pid)
            journal.observe("fds", fds)
    except OSError as error:
        errors["fds"] = str(error.strerror)
    with journal.step("look for who holds what it waits for"):
        journal.observe("holders", holders.look(pid, [thread["tid"] for thread in request["threads"][:THREADS]], fds))
    with journal.step("read the kernel log"):
        journal.observe("kernel_log", kmsg.read(request["age_s"]))
    try:
        with journal.step("read memory map"):
            regions = stackscan.read_maps(pid)
        paths = dict.fromkeys(region[4] for region in regions if region[4].startswith("/"))
        journal.observe("libraries", list(paths)[:LIBRARIES])
        with journal.step("scan stacks"):
            journal.observe("stacks", _stacks(pid, regions, request["threads"][:THREADS]))
        if request["py_spy"]:
            with journal.step("py-spy"):
                seen = pyspy.dump(request["py_spy"], pid, native=request["native"], limit_s=request["py_spy_s"])
            journal.observe("py_spy", seen)
    except OSError as error:
        errors["memory"] = str(error.strerror)
    journal.observe("errors", errors)
    return {}


def _descriptors(pid: int) -> dict[str, str]:
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd")[:DESCRIPTORS]:
        try:
            found[name] = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue  # closed meanwhile
    return found


def _stacks(pid: int, regions: list[stackscan.Region], threads: list[dict[str, Any]]) -> dict[str, Any]:
    scanner = stackscan.Scanner(pid, regions)
    try:
        return {str(thread["tid"]): _stack(scanner, pid, thread) for thread in threads}
    finally:
        scanner.close()


def _stack(scanner: stackscan.Scanner, pid: int, thread: dict[str, Any]) -> dict[str, Any]:
    try:
        fields = stackscan.read_file(f"/proc/{pid}/task/{thread['tid']}/syscall", 4096).split()
        if fields[:1] == [b"running"]:
            sp, pc = registers.read(thread["tid"])
        else:
            sp, pc = int(fields[-2], 16), int(fields[-1], 16)
        path = scanner.text(thread["path_at"]) if thread["path_at"] else None
        return {"frames": scanner.frames(sp, pc), "path": path}
    except (OSError, ValueError, IndexError) as error:
        return {"frames": [], "path": None, "error": str(error)}
