"""HostView: the one way to read facts of the host from files (sysfs, procfs, /dev, /etc).

`LiveView` asks the kernel. `RecordedView` (recordedview.py) replays a recording made on a real machine
(simulate/record.py), so that the same probe code runs on a simulated host. Errors are OSError with the errno of the
real call in both.
"""

from __future__ import annotations

import os
import stat as stat_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol
else:
    Protocol = object  # typing, json and base64 together cost a probe 15 ms

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


def open_view(spec: dict[str, Any]) -> HostView:
    """Return the view that SPEC names: {"kind": "live"}, {"kind": "recorded", "path": FILE}, or that of a process below
    its own root, {"kind": "root", "path": DIRECTORY, "pid": PID | None}.
    """
    if spec["kind"] == "live":
        return LiveView()
    if spec["kind"] == "root":
        from pytest_gpudiscovery.probes.rootview import RootView  # noqa: PLC0415 - a process elsewhere is rare

        return RootView(spec["path"], spec["pid"])
    from pytest_gpudiscovery.probes.recordedview import recording  # noqa: PLC0415 - only a simulated host has one

    recorded = recording(spec["path"])
    if spec.get("live"):
        from pytest_gpudiscovery.probes.overlayview import OverlayView  # noqa: PLC0415 - rare, and it imports this

        return OverlayView(recorded, spec["live"])
    return recorded
