"""Which Python another user can start: ours may lie in a home directory that only root can enter."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable

from pytest_gpudiscovery.supervise.types import Identity

# Ours, then the system's, newest first; the child refuses one that is too old and takes the next.
LOOKED_AT = (
    sys.executable,
    *(f"/usr/bin/python3.{minor}" for minor in range(20, 9, -1)),
    "/usr/bin/python3",
    "/usr/local/bin/python3",
)
READ, EXECUTE = 4, 1
ANYBODY = Identity(65534, 65534)
LINKS = 40  # ELOOP, as in the kernel


def is_ours(identity: Identity) -> bool:
    """Whether IDENTITY is who this process is."""
    groups = {*identity.groups, identity.gid}
    return (identity.uid, identity.gid) == (os.geteuid(), os.getegid()) and groups == {*os.getgroups(), os.getegid()}


def ours() -> Identity:
    """Return who this process is."""
    return Identity(os.geteuid(), os.getegid(), tuple(os.getgroups()))


def find_interpreter(identity: Identity) -> str | None:
    """Return the first of `interpreters`, None when there is none."""
    return next(iter(interpreters(identity)), None)


def interpreters(identity: Identity, paths: Iterable[str] = LOOKED_AT) -> tuple[str, ...]:
    """Return those of PATHS that IDENTITY can execute, in order.

    Mode bits of every path component are looked at, not ACLs or security modules, and not whether the interpreter
    is new enough: the child tries them in turn and says what it met.
    """
    return tuple(dict.fromkeys(path for path in paths if path and may_execute(path, identity)))


def may_execute(path: str, identity: Identity) -> bool:
    """Whether the mode bits along PATH, symlinks followed, let IDENTITY read and execute the file."""
    todo, done, links = _parts(path), "/", 0
    try:
        while todo:
            if not _allowed(os.stat(done), identity, EXECUTE):
                return False
            part = todo.pop()
            if part == "..":
                done = os.path.dirname(done)
                continue
            here = os.path.join(done, part)
            if not stat.S_ISLNK(os.lstat(here).st_mode):
                done = here
                continue
            links += 1
            if links > LINKS:
                return False
            target = os.readlink(here)
            todo += _parts(target)
            if target.startswith("/"):
                done = "/"
        found = os.stat(done)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and _allowed(found, identity, READ) and _allowed(found, identity, EXECUTE)


def _parts(path: str) -> list[str]:
    """Return the components of PATH, last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _allowed(found: os.stat_result, identity: Identity, wanted: int) -> bool:
    if identity.uid == 0:
        return wanted == READ or stat.S_ISDIR(found.st_mode) or bool(found.st_mode & 0o111)
    if found.st_uid == identity.uid:
        return bool(found.st_mode >> 6 & wanted)
    if found.st_gid == identity.gid or found.st_gid in identity.groups:
        return bool(found.st_mode >> 3 & wanted)
    return bool(found.st_mode & wanted)
