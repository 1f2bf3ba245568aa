"""One line that says where a hung child is: the call, the library functions above it, state and wait channel."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.probes.syscalls import lookup

FRAMES = 3
# What a system call waits for, as probes/holders.py calls it, and how its holder is said.
WAITS = {
    **dict.fromkeys(("flock", "fcntl"), "lock"),
    **dict.fromkeys(("read", "readv", "write", "writev", "splice"), "pipe"),
    **dict.fromkeys(("wait4", "waitid"), "child"),
}
HELD = {"lock": "lock held by", "pipe": "other end at", "child": "waits for", "tracer": "traced by"}
NOBODY = {"lock": "lock held by nobody that can be seen", "pipe": "other end at nobody else"}
# The interpreter and the C library are below every probe: they say nothing about the driver.
PLUMBING = re.compile(
    r"(libc|libm|libdl|libpthread|librt|ld-linux[-\w]*|ld-musl[-\w]*|libffi[-\w]*|libpython[\d.]+\w*)[.-].*"
    r"|libc\.musl.*|python[\d.]*|_[a-z_]+\.(cpython-.*|abi3\.)so|\[.*"
)


def describe(at_deadline: Mapping[str, Any], forensics: Mapping[str, Any]) -> str:
    """Return e.g. "ioctl on /dev/nvidiactl < cuInit (libcuda.so.1); state D, wchan rwsem_down_read_slowpath".

    AT_DEADLINE is evidence.snapshot's, FORENSICS what probes/forensics.py observed; either may be empty.
    """
    thread = _culprit(at_deadline.get("threads") or [])
    if thread is None:
        return "gone before it could be looked at"
    stack = (forensics.get("stacks") or {}).get(str(thread["tid"])) or {}
    call, held = _call(thread, stack, forensics.get("fds") or {}), _held(thread, forensics.get("holders"))
    chain = [f"{call}, {held}" if held else call, *_frames(stack.get("frames") or [])]
    state = [f"state {thread['state'] or 'unknown'}"]
    if thread["wchan"]:
        state.append(f"wchan {thread['wchan']}")
    elif thread["stack"]:
        state.append(f"kernel {thread['stack'][0]}")
    return f"{' < '.join(chain)}; {', '.join(state)}"


def _held(thread: Mapping[str, Any], seen: Any) -> str:
    """Return who holds what THREAD waits for, from what probes/holders.py saw; "" where that is not told."""
    entries = seen.get("holders") if isinstance(seen, Mapping) else None
    kind = WAITS.get(str(thread["syscall"].get("name"))) if isinstance(thread["syscall"], Mapping) else None
    kind = "tracer" if thread["state"] == "t" else kind
    mine = [one for one in entries if isinstance(one, Mapping)] if isinstance(entries, list) else []
    mine = [one for one in mine if kind is not None and one.get("kind") == kind]
    if not mine:
        return ""
    others = f" and {len(mine) - 1} more" if len(mine) > 1 else ""
    pid, name = mine[0].get("pid"), mine[0].get("name")
    if pid is None:
        return NOBODY.get(str(kind), "")
    return f"{HELD[str(kind)]} PID {pid} ({name or 'ended'}){others}"


def _culprit(threads: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the thread that holds the others up: one in state D, else the main thread."""
    return next((thread for thread in threads if thread["state"] == "D"), threads[0] if threads else None)


def _call(thread: Mapping[str, Any], stack: Mapping[str, Any], fds: Mapping[str, Any]) -> str:
    syscall = thread["syscall"]
    if syscall == "running" or (syscall is None and thread["state"] == "R"):
        return "running"
    if syscall is None:
        return "a call that could not be read"
    known = lookup(syscall["number"])
    if known.fd_argument is not None and syscall["args"]:
        fd = syscall["args"][known.fd_argument]
        return f"{syscall['name']} on {fds.get(str(fd), f'descriptor {fd}')}"
    if known.path_argument is not None and stack.get("path"):
        return f"{syscall['name']} of {stack['path']}"
    return str(syscall["name"])


def _frames(frames: list[Mapping[str, Any]]) -> list[str]:
    named = [
        (os.path.basename(str(frame.get("library"))), str(frame.get("symbol") or ""), int(frame.get("offset") or 0))
        for frame in frames
    ]
    texts = [
        f"{symbol} ({library})" if symbol else f"{library}+0x{offset:x}"
        for library, symbol, offset in named
        if not PLUMBING.fullmatch(library)
    ]
    return list(dict.fromkeys(texts))[:FRAMES]
