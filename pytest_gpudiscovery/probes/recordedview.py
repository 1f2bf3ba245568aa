"""RecordedView: a HostView that replays a recording.

A recording is JSON: {"entries": {path: entry}} where entry is one of
    {"type": "file", "mode": 0o444, "uid": 0, "gid": 0, "text": "..."}      (or "b64": "..." for bytes)
    {"type": "dir",  "mode": ..., "uid": ..., "gid": ...}                   children are found by path
    {"type": "link", "target": "..."}
    {"type": "char", "mode": ..., "uid": ..., "gid": ..., "major": 195, "minor": 0, "open": "ENODEV"}  (open: optional)
    {"type": "error", "errno": "EACCES"}                                    every access fails so
A file may have "map": "EACCES", the errno of mapping it executable.
"""

from __future__ import annotations

import binascii
import errno
import json
import os
import posixpath

from pytest_gpudiscovery.probes.host import READ_LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


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
            if entry:
                _refuse(entry, "errno", path)
            if entry and entry["type"] == "link":
                target = posixpath.join(posixpath.dirname(done), entry["target"])
                return self._entry(posixpath.join(target, *parts[index + 1 :]), hops + 1)
            if entry and entry["type"] == "dir" and index + 1 < len(parts):
                self._check(entry, 1, path)
        entry = self._entries.get(done, {"type": "dir", "mode": 0o755, "uid": 0, "gid": 0})
        return done, entry

    def _allowed(self, entry: dict[str, Any], wanted: int) -> bool:
        if os.geteuid() == 0:
            return True
        mode = entry.get("mode", 0o755 if entry["type"] == "dir" else 0o644)
        if entry.get("uid", 0) == os.geteuid():
            mode >>= 6
        elif entry.get("gid", 0) in (os.getegid(), *os.getgroups()):
            mode >>= 3
        return bool(mode & wanted == wanted)

    def _check(self, entry: dict[str, Any], wanted: int, path: str) -> None:
        if not self._allowed(entry, wanted):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes:
        _, entry = self._entry(path)
        if entry["type"] == "dir":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self._check(entry, 4, path)
        return self._content(entry)[:limit]

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        return self.read(path, offset + size)[offset:]

    def _content(self, entry: dict[str, Any]) -> bytes:
        if "b64" in entry:
            return binascii.a2b_base64(entry["b64"])
        return str(entry.get("text", "")).encode()

    def listdir(self, path: str) -> list[str]:
        real, entry = self._entry(path)
        if entry["type"] != "dir":
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        self._check(entry, 4, path)
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
        self._check(entry, 6, path)
        _refuse(entry, "open", path)

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
        self._check(entry, 4, path)
        _refuse(entry, "map", path)

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


def _refuse(entry: dict[str, Any], act: str, path: str) -> None:
    """Raise the OSError that ENTRY says ACT ends with, if it does."""
    if act in entry:
        code = getattr(errno, entry[act])
        raise OSError(code, os.strerror(code), path)


def recording(path: str) -> RecordedView:
    """Return the view that file PATH holds. Raises OSError, and ValueError or KeyError for anything else."""
    with open(path, encoding="utf-8") as file:
        return RecordedView(json.load(file)["entries"])
