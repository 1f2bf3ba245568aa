"""Files as the loader sees them: opened read-only, read with pread, never mapped.

A page that cannot be read is an OSError here; in a mapping it would be SIGBUS. No call in this module waits for a
peer: a FIFO, a terminal or a socket is recognised by stat before it is opened. A network file system that does not
answer can block any of these calls; that is why predictions for unknown paths belong in a supervised child.
"""

from __future__ import annotations

import errno
import os
import stat
from struct import Struct

from pytest_gpudiscovery.loader.problems import CANNOT_READ, HANGS, INVALID_HEADER, TOO_SHORT, Refused, Skipped

CHUNK = 1 << 14  # bytes per pread, a power of two; tables of one library lie close together
CHUNKS_KEPT = 96  # per file: 1.5 MB at most
LINKS_FOLLOWED = 40  # the kernel's own limit


class Root:
    """Where absolute paths begin: this system, or a directory that holds another one (a container's root, an unpacked
    image).

    Symbolic links below another root are followed inside it, as chroot would.
    """

    def __init__(self, prefix: str | None = None, cwd: str = "/") -> None:
        self.prefix = prefix.rstrip("/") if prefix and prefix != "/" else None
        self.cwd = cwd

    def absolute(self, path: str) -> str:
        """Return PATH joined with the process's working directory, not normalised (as ld.so keeps it)."""
        return path if path.startswith("/") else f"{self.cwd.rstrip('/')}/{path}"

    def host(self, path: str) -> str:
        """Return the path on this host that PATH stands for; raises OSError (ELOOP) only for a foreign root."""
        path = self.absolute(path)
        if self.prefix is None:
            return path
        done: list[str] = []
        todo = [part for part in reversed(path.split("/")) if part and part != "."]
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                del done[-1:]
                continue
            here = "/".join([self.prefix, *done, part])
            try:
                target = os.readlink(here)
            except OSError:
                done.append(part)
                continue
            links += 1
            if links > LINKS_FOLLOWED:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                done.clear()
            todo.extend(part for part in reversed(target.split("/")) if part and part != ".")
        return "/".join([self.prefix, *done])

    def is_directory(self, path: str) -> tuple[bool, int]:
        """Return (PATH is a directory, errno of the stat or 0)."""
        try:
            return stat.S_ISDIR(os.stat(self.host(path)).st_mode), 0
        except (OSError, ValueError) as problem:
            return False, getattr(problem, "errno", None) or errno.ENOENT

    def exists(self, path: str) -> bool:
        """Return whether something, even a dangling link, has this name."""
        try:
            os.lstat(self.host(path))
        except (OSError, ValueError):
            return False
        return True

    def real(self, path: str) -> str:
        """Return PATH with every link resolved, still as this root's processes would write it."""
        try:
            if self.prefix is None:
                return os.path.realpath(self.absolute(path))
            return self.host(path)[len(self.prefix) :] or "/"
        except OSError:
            return path

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """Return at most LIMIT bytes of a regular file; raises OSError."""
        fd = os.open(self.host(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
            return os.pread(fd, limit, 0)
        finally:
            os.close(fd)


class File:
    """A regular file, read with pread through a small cache of chunks.

    `size` in bytes, `identity` = (st_dev, st_ino): what ld.so compares to find that two names are one object.
    """

    __slots__ = ("_chunks", "_fd", "blocks", "identity", "name", "size")

    def __init__(self, root: Root, name: str) -> None:
        """Open NAME as open_verify in dl-load.c does; raises Skipped, or Refused for what is not a regular file."""
        self.name = name
        self._fd = -1
        self._chunks: dict[int, bytes] = {}
        try:
            path = root.host(name)
            found = os.stat(path)
            self._refuse_special(found)
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            found = os.fstat(self._fd)
        except OSError as problem:
            raise Skipped(os.strerror(problem.errno or 0), problem.errno or errno.EIO) from None
        except ValueError:  # a NUL inside the name
            raise Skipped(os.strerror(errno.ENOENT), errno.ENOENT) from None
        if stat.S_ISDIR(found.st_mode):
            self.close()
            raise Refused(CANNOT_READ, name, errno=errno.EISDIR)
        self.size = found.st_size
        self.identity = (found.st_dev, found.st_ino)
        self.blocks = found.st_blocks
        try:
            # Tables are a few percent of a CUDA library: read-ahead would fetch hundreds of megabytes.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        except OSError:
            pass  # advice only

    def _refuse_special(self, found: os.stat_result) -> None:
        mode = found.st_mode
        if stat.S_ISFIFO(mode):
            raise Refused("open() of a FIFO that nobody writes to blocks", self.name, HANGS)
        if stat.S_ISSOCK(mode):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        if stat.S_ISCHR(mode):
            device = (os.major(found.st_rdev), os.minor(found.st_rdev))
            if device == (1, 3):  # /dev/null
                raise Refused(TOO_SHORT, self.name)
            if device in ((1, 5), (1, 8), (1, 9)):  # /dev/zero, /dev/random, /dev/urandom
                raise Refused(INVALID_HEADER, self.name)
            raise Refused("read() of a character device may block", self.name, HANGS)

    def close(self) -> None:
        """Close the descriptor; reading afterwards is an OSError."""
        fd, self._fd = self._fd, -1
        self._chunks.clear()
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def _chunk(self, number: int) -> bytes:
        data = self._chunks.get(number)
        if data is None:
            if len(self._chunks) >= CHUNKS_KEPT:
                self._chunks.clear()
            data = self._chunks[number] = os.pread(self._fd, CHUNK, number * CHUNK)
        return data

    def read(self, offset: int, size: int) -> bytes:
        """Return SIZE bytes at OFFSET, fewer at the end of the file; raises OSError."""
        if offset < 0 or size <= 0 or offset >= self.size:
            return b""
        number, start = divmod(offset, CHUNK)
        if start + size <= CHUNK:
            return self._chunk(number)[start : start + size]
        return os.pread(self._fd, min(size, self.size - offset), offset)

    def ahead(self, offset: int, size: int) -> bytes:
        """As `read`, without the cache: for records that are spread over the whole file."""
        return os.pread(self._fd, size, offset) if 0 <= offset < self.size else b""

    def unpack(self, form: Struct, offset: int) -> tuple[int, ...] | None:
        """Return the fields of FORM at OFFSET, or None where the file ends before them; raises OSError."""
        if offset < 0:
            return None
        start = offset & CHUNK - 1
        if start + form.size <= CHUNK and offset < self.size:
            data = self._chunks.get(offset // CHUNK) or self._chunk(offset // CHUNK)
            if start + form.size <= len(data):
                return form.unpack_from(data, start)
            return None
        data = self.read(offset, form.size)
        return form.unpack(data) if len(data) == form.size else None

    def string(self, offset: int, limit: int = 4096) -> bytes | None:
        """Return the bytes up to the next NUL within LIMIT, or None; raises OSError."""
        if offset < 0 or offset >= self.size:
            return None
        number, start = divmod(offset, CHUNK)
        data = self._chunk(number)
        end = data.find(b"\0", start, start + limit)
        if end >= 0:
            return data[start:end]
        data = self.read(offset, limit)
        end = data.find(b"\0")
        return data[:end] if end >= 0 else None
