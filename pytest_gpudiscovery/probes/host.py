"""HostView: the one way to read facts of the host from files (sysfs, procfs, /dev, /etc).

`LiveView` asks the kernel. `RecordedView` replays a recording made on a real machine (simulate/record.py), so that
the same probe code runs on a simulated host. Errors are OSError with the errno of the real call in both.

A recording is JSON: {"entries": {path: entry}} where entry is one of
    {"type": "file", "mode": 0o444, "uid": 0, "gid": 0, "text": "..."}      (or "b64": "..." for bytes)
    {"type": "dir",  "mode": ..., "uid": ..., "gid": ...}                   children are found by path
    {"type": "link", "target": "..."}
    {"type": "char", "mode": ..., "uid": ..., "gid": ..., "major": 195, "minor": 0, "open": "ENODEV"}  (open: optional)
    {"type": "error", "errno": "EACCES"}                                    every access fails so
A file may have "map": "EACCES", the errno of mapping it executable.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import posixpath
import stat as stat_module
from typing import Any, Protocol

READ_LIMIT = 1 << 20  # bytes; a fact that needs more than this is read by its own probe


class HostView(Protocol):
    """How probes read the host."""

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes:
        """Return at most LIMIT bytes of PATH; raises OSError."""

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        """Return SIZE bytes of PATH from OFFSET on, fewer at its end; raises OSError."""

    def listdir(self, path: str) -> list[str]:
        """Return the sorted names in directory PATH; raises OSError."""

    def stat(self, path: str) -> dict[str, Any]:
        """Return {type, mode, uid, gid, major, minor, size} of PATH, symlinks followed; raises OSError."""

    def readlink(self, path: str) -> str:
        """Return the target of symlink PATH; raises OSError."""

    def realpath(self, path: str) -> str:
        """Return PATH with every symlink resolved; PATH itself where that fails."""

    def open_device(self, path: str) -> None:
        """Open PATH read-write, as CUDA does, and close it again; raises OSError. May block as long as CUDA would."""

    def access(self, path: str, wanted: int) -> bool:
        """Return whether this process may use PATH so: WANTED is os.R_OK, os.W_OK and os.X_OK or-ed together."""

    def map_executable(self, path: str) -> None:
        """Map the first page of PATH executable, as ld.so does, without touching it; raises OSError."""

    def kernel_log(self, limit: int = READ_LIMIT * 8) -> list[bytes]:
        """Return the records of /dev/kmsg from the oldest on, at most LIMIT bytes of them; raises OSError."""


class LiveView:
    """The kernel's answers."""

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO in its place must not block
        try:
            parts, left = [], limit
            while left > 0 and (part := os.read(fd, min(left, 65536))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        finally:
            os.close(fd)

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            parts, left = [], size
            while left > 0 and (part := os.pread(fd, left, offset + size - left)):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        finally:
            os.close(fd)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def stat(self, path: str) -> dict[str, Any]:
        found = os.stat(path)
        kinds = {stat_module.S_IFREG: "file", stat_module.S_IFDIR: "dir", stat_module.S_IFCHR: "char"}
        kind = kinds.get(stat_module.S_IFMT(found.st_mode), "other")
        return {
            "type": kind,
            "mode": stat_module.S_IMODE(found.st_mode),
            "uid": found.st_uid,
            "gid": found.st_gid,
            "major": os.major(found.st_rdev) if kind == "char" else None,
            "minor": os.minor(found.st_rdev) if kind == "char" else None,
            "size": found.st_size,
            "mtime": found.st_mtime,
        }

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def realpath(self, path: str) -> str:
        return os.path.realpath(path)

    def open_device(self, path: str) -> None:
        # Not O_NONBLOCK: the driver would then put off the GPU's initialisation and answer 0 for a GPU that is stuck
        # (open-gpu-kernel-modules, kernel-open/nvidia/nv.c, nv_try_lock_foreground_open).
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def access(self, path: str, wanted: int) -> bool:
        return os.access(path, wanted, effective_ids=os.access in os.supports_effective_ids)

    def map_executable(self, path: str) -> None:
        import mmap  # noqa: PLC0415 - one probe maps

        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if os.fstat(fd).st_size:
                mmap.mmap(fd, 1, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
        finally:
            os.close(fd)

    def kernel_log(self, limit: int = READ_LIMIT * 8) -> list[bytes]:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        records: list[bytes] = []
        try:
            while limit > 0:
                try:
                    record = os.read(fd, 65536)  # one record a read; a smaller buffer than the record is EINVAL
                except BlockingIOError:
                    break  # the end of the log
                except BrokenPipeError:
                    continue  # records were overwritten meanwhile: the next read goes on with the oldest one left
                if not record:
                    break
                records.append(record)
                limit -= len(record)
        finally:
            os.close(fd)
        return records


class RecordedView:
    """A recorded host. Permissions are applied for the identity of the process that asks, as the kernel would."""

    def __init__(self, entries: dict[str, dict[str, Any]]) -> None:
        self._entries = dict(entries)
        self._children: dict[str, set[str]] = {}
        for path in self._entries:
            below = path
            while below != "/":
                parent, name = posixpath.split(below)
                self._children.setdefault(parent, set()).add(name)
                below = parent

    def _entry(self, path: str, hops: int = 0) -> tuple[str, dict[str, Any]]:
        if hops > 40:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        done = "/"
        parts = [part for part in posixpath.normpath(path).split("/") if part]
        for index, part in enumerate(parts):
            done = posixpath.join(done, part)
            entry = self._entries.get(done)
            if entry is None and done not in self._children:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if entry and entry["type"] == "error":
                code = getattr(errno, entry["errno"])
                raise OSError(code, os.strerror(code), path)
            if entry and entry["type"] == "link":
                target = posixpath.join(posixpath.dirname(done), entry["target"])
                return self._entry(posixpath.join(target, *parts[index + 1 :]), hops + 1)
        entry = self._entries.get(done, {"type": "dir", "mode": 0o755, "uid": 0, "gid": 0})
        return done, entry

    def _allowed(self, entry: dict[str, Any], wanted: int) -> bool:
        if os.geteuid() == 0:
            return True
        mode = entry.get("mode", 0o644)
        if entry.get("uid", 0) == os.geteuid():
            mode >>= 6
        elif entry.get("gid", 0) in (os.getegid(), *os.getgroups()):
            mode >>= 3
        return bool(mode & wanted == wanted)

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes:
        _, entry = self._entry(path)
        if entry["type"] == "dir":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not self._allowed(entry, 4):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return self._content(entry)[:limit]

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        return self.read(path, offset + size)[offset:]

    def _content(self, entry: dict[str, Any]) -> bytes:
        if "b64" in entry:
            return base64.b64decode(entry["b64"])
        return str(entry.get("text", "")).encode()

    def listdir(self, path: str) -> list[str]:
        real, entry = self._entry(path)
        if entry["type"] != "dir":
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return sorted(self._children.get(real, ()))

    def stat(self, path: str) -> dict[str, Any]:
        _, entry = self._entry(path)
        return {
            "type": entry["type"],
            "mode": entry.get("mode", 0o755 if entry["type"] == "dir" else 0o644),
            "uid": entry.get("uid", 0),
            "gid": entry.get("gid", 0),
            "major": entry.get("major"),
            "minor": entry.get("minor"),
            "size": entry.get("size", len(self._content(entry))),
            "mtime": float(entry.get("mtime", 0)),
        }

    def readlink(self, path: str) -> str:
        parent, _ = self._entry(posixpath.dirname(path))
        entry = self._entries.get(posixpath.join(parent, posixpath.basename(path)))
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if entry["type"] != "link":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return str(entry["target"])

    def realpath(self, path: str) -> str:
        try:
            return self._entry(path)[0]
        except OSError:
            return path

    def open_device(self, path: str) -> None:
        _, entry = self._entry(path)
        if not self._allowed(entry, 6):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        if "open" in entry:
            code = getattr(errno, entry["open"])
            raise OSError(code, os.strerror(code), path)

    def access(self, path: str, wanted: int) -> bool:
        try:
            _, entry = self._entry(path)
        except OSError:
            return False
        if os.geteuid() == 0 and wanted & os.X_OK and entry["type"] == "file":
            return bool(entry.get("mode", 0o644) & 0o111)  # root too needs one execute bit
        return self._allowed(entry, wanted)

    def map_executable(self, path: str) -> None:
        _, entry = self._entry(path)
        if not self._allowed(entry, 4):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        if "map" in entry:
            code = getattr(errno, entry["map"])
            raise OSError(code, os.strerror(code), path)

    def kernel_log(self, limit: int = READ_LIMIT * 8) -> list[bytes]:
        try:
            restricted = self.read("/proc/sys/kernel/dmesg_restrict").strip() not in (b"", b"0")
        except OSError:
            restricted = False
        if restricted and os.geteuid() != 0:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), "/dev/kmsg")
        records: list[bytes] = []
        for line in self.read("/dev/kmsg", limit).splitlines(keepends=True):
            if line.startswith(b" ") and records:
                records[-1] += line  # " KEY=value" lines belong to the record before them
            else:
                records.append(line)
        return records


def open_view(spec: dict[str, Any]) -> HostView:
    """Return the view that SPEC names: {"kind": "live"}, {"kind": "recorded", "path": FILE}, or that of a process below
    its own root, {"kind": "root", "path": DIRECTORY, "pid": PID | None}.
    """
    if spec["kind"] == "live":
        return LiveView()
    if spec["kind"] == "root":
        from pytest_gpudiscovery.probes.rootview import RootView  # noqa: PLC0415 - a process elsewhere is rare

        return RootView(spec["path"], spec["pid"])
    with open(spec["path"], encoding="utf-8") as file:
        recorded = RecordedView(json.load(file)["entries"])
    if spec.get("live"):
        from pytest_gpudiscovery.probes.overlayview import OverlayView  # noqa: PLC0415 - rare, and it imports this

        return OverlayView(recorded, spec["live"])
    return recorded
