"""Creates a device node at request["path"] (1:3, as /dev/null), and says what /dev is like and what an exec may do."""

from __future__ import annotations

import os
import stat
from typing import Any

from pytest_gpudiscovery.probes.journal import Journal


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    path = request["path"]
    created = opened = ""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.close(os.open(path, os.O_RDWR))
        opened = "yes"
    except OSError as error:
        created = str(error.strerror)
    by_exec = os.waitstatus_to_exitcode(os.system(f"mknod {path}2 c 1 3 2>/dev/null"))
    return {
        "error": created,
        "opened": opened,
        "by_exec": by_exec,
        "dev": listing("/dev"),
        "shm": os.stat("/dev/shm").st_dev,
    }


def listing(path: str) -> dict[str, list[int]]:
    """Return {path: [mode, uid, gid, device]} of everything below PATH that is on its own file system."""
    found, device = {}, os.stat(path).st_dev
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            full = os.path.join(directory, name)
            seen = os.lstat(full)
            if seen.st_dev == device:
                found[full] = [seen.st_mode, seen.st_uid, seen.st_gid, seen.st_rdev]
        names[:] = [name for name in names if os.lstat(os.path.join(directory, name)).st_dev == device]
    return found
