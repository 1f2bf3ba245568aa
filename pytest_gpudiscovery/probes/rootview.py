"""The host as another process has it: its root directory, and its /proc/self in the place of ours.

Paths are resolved component by component below that root, as chroot(2) would, so that an absolute symbolic link of a
container leads into the container. cgroups are read where we have them: the process's own view begins elsewhere.
"""

from __future__ import annotations

import errno
import os
import posixpath

from pytest_gpudiscovery.probes.host import READ_LIMIT, LiveView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LINKS = 40  # ELOOP, as in the kernel
CGROUP = "/sys/fs/cgroup"


class RootView(LiveView):
    """The kernel's answers below directory ROOT, for process PID (None: no process stands behind it)."""

    def __init__(self, root: str, pid: int | None) -> None:
        self._root = "" if root == "/" else root.rstrip("/")
        self._pid = pid

    def _ours(self, path: str) -> str | None:
        """Return the path of ours that PATH means whatever the root is, None when the root decides."""
        if self._pid is not None and (path == "/proc/self" or path.startswith("/proc/self/")):
            return f"/proc/{self._pid}{path[len('/proc/self') :]}"
        if self._pid is not None and path.startswith(f"/proc/{self._pid}/"):
            return path  # by its number among our processes: a container's /proc counts its own
        return path if path == CGROUP or path.startswith(f"{CGROUP}/") else None

    def _host(self, path: str, *, last: bool = True) -> str:
        """Return the path of ours for PATH; LAST follows a link that PATH itself is. Raises OSError (ELOOP)."""
        ours = self._ours(path)
        if ours is not None or not self._root:
            return ours or path
        done: list[str] = []
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                del done[-1:]
                continue
            if not todo and not last:
                done.append(part)
                break
            try:
                target = os.readlink("/".join([self._root, *done, part]))
            except OSError:
                done.append(part)
                continue
            links += 1
            if links > LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                done.clear()
            todo += [step for step in reversed(target.split("/")) if step not in ("", ".")]
        return "/".join([self._root, *done]) or "/"

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes:
        return super().read(self._host(path), limit)

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        return super().read_at(self._host(path), offset, size)

    def listdir(self, path: str) -> list[str]:
        return super().listdir(self._host(path))

    def stat(self, path: str) -> dict[str, Any]:
        return super().stat(self._host(path))

    def readlink(self, path: str) -> str:
        return super().readlink(self._host(path, last=False))

    def realpath(self, path: str) -> str:
        try:
            found = self._host(path)
        except OSError:
            return path
        if self._ours(path) is not None:
            return path
        return (posixpath.normpath(found)[len(self._root) :] or "/") if self._root else os.path.realpath(found)

    def open_device(self, path: str) -> None:
        super().open_device(self._host(path))

    def access(self, path: str, wanted: int) -> bool:
        try:
            return super().access(self._host(path), wanted)
        except OSError:
            return False

    def map_executable(self, path: str) -> None:
        super().map_executable(self._host(path))
