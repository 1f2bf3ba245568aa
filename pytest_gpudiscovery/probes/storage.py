"""How much of a few files is in the page cache, and how fast their storage delivers, without changing either.

Dropping the cache would show the true cold time and would slow down everybody on the host. cachestat(2) (Linux 6.5)
counts the cached pages of a file and reads nothing (a read with RWF_NOWAIT starts read-ahead, measured); a read with
O_DIRECT comes from the device itself and leaves the cache alone.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

CACHESTAT = 451  # of every architecture
PAGE = 4096
BLOCK = 1 << 20  # bytes a direct read
BLOCKS = 16
DIRECT_S = 0.5  # after which no further block is read


def resident(paths: Iterable[str]) -> dict[str, Any]:
    """Return {"bytes": size of PATHS together, "cached": bytes of them that are in the page cache}.

    `cached` is None where the kernel does not say: before Linux 6.5, or for files that others own.
    """
    total, cached, answered = 0, 0, True
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue  # a file that cannot be opened is the loader's finding
        try:
            size = os.fstat(fd).st_size
            pages = _cached_pages(fd)
        finally:
            os.close(fd)
        total += size
        if pages is None:
            answered = False
        else:
            cached += min(pages * PAGE, size)
    return {"bytes": total, "cached": cached if answered else None}


class _Range(ctypes.Structure):
    """struct cachestat_range of linux/mman.h; a length of 0 means until the end of the file."""

    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Pages(ctypes.Structure):
    """struct cachestat of linux/mman.h."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted"))


def _cached_pages(fd: int) -> int | None:
    """Return how many pages of FD are cached, None where the kernel does not say."""
    whole, counted = _Range(0, 0), _Pages()
    arguments = (ctypes.c_long(fd), ctypes.byref(whole), ctypes.byref(counted), ctypes.c_uint(0))
    try:
        failed = ctypes.CDLL(None).syscall(ctypes.c_long(CACHESTAT), *arguments)
    except (OSError, AttributeError):
        return None
    return None if failed else int(counted.cache)


def delivery(path: str) -> dict[str, Any]:
    """Return {"bytes", "seconds"} of direct reads spread over PATH, or {"error": why} where that is not possible."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_DIRECT", 0)
    try:
        fd = os.open(path, flags)
    except OSError as error:
        return {"error": f"O_DIRECT: {error.strerror}"}  # tmpfs, some FUSE and overlay file systems
    try:
        size = os.fstat(fd).st_size
        with mmap.mmap(-1, BLOCK) as buffer:  # page-aligned, as direct reads must be
            return _read(fd, size, buffer)
    except OSError as error:
        return {"error": f"O_DIRECT: {error.strerror}"}
    finally:
        os.close(fd)


def _read(fd: int, size: int, buffer: mmap.mmap) -> dict[str, Any]:
    began, got = time.monotonic(), 0
    for block in range(BLOCKS):
        offset = block * (size // BLOCKS) // PAGE * PAGE
        got += os.preadv(fd, [buffer], offset)
        if time.monotonic() - began > DIRECT_S:
            break
    return {"bytes": got, "seconds": round(time.monotonic() - began, 6)}
