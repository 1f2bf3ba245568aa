"""Finds processes that still hold a pipe of a child that has ended: daemons that it left behind.

request: {"inodes": [of the pipes], "after": start time in ticks, "session": that of the supervisor, "not": [pids]}.
Answers [{pid, name, start}].
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Answer with who can still write to one of the pipes, our own session and older processes left out."""
    wanted = {f"pipe:[{inode}]" for inode in request["inodes"]}
    found = []
    with journal.step("look at every process"):
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) not in request["not"]:
                try:
                    entry = _holder(int(name), wanted, request)
                except (OSError, ValueError, IndexError):
                    continue  # gone, or another user's
                if entry is not None:
                    found.append(entry)
    return {"found": found}


def _holder(pid: int, wanted: set[str], request: dict[str, Any]) -> dict[str, Any] | None:
    with open(f"/proc/{pid}/stat", "rb") as file:
        name, _, rest = file.read().decode("utf-8", "replace").partition("(")[2].rpartition(")")
    fields = rest.split()
    if int(fields[3]) == request["session"] or int(fields[19]) < request["after"]:
        return None
    for fd in os.listdir(f"/proc/{pid}/fd"):
        link = f"/proc/{pid}/fd/{fd}"
        if os.readlink(link) in wanted and os.lstat(link).st_mode & stat.S_IWUSR:  # the mode says how it was opened
            return {"pid": pid, "name": name, "start": int(fields[19])}
    return None
