"""How much of a few files is in the page cache, and how fast their storage delivers: by reads that change nothing.

Dropping the cache would show the true cold time and would slow down everybody on the host. A read with RWF_NOWAIT says
whether a page is cached without fetching it (Linux 4.14), and a read with O_DIRECT comes from the device itself.
"""

from __future__ import annotations

import mmap
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

SAMPLES = 64  # pages asked a file
PAGE = 4096
BLOCK = 1 << 20  # bytes a direct read
BLOCKS = 16
DIRECT_S = 0.5  # after which no further block is read


def resident(paths: Iterable[str]) -> dict[str, Any]:
    """Return {"bytes": size of PATHS together, "cached": estimate of the bytes that are in the page cache}.

    `cached` is None when a file system does not answer the question.
    """
    total, cached, answered = 0, 0.0, True
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue  # a file that cannot be opened is the loader's finding
        try:
            size = os.fstat(fd).st_size
            share = _share(fd, size)
        finally:
            os.close(fd)
        total += size
        if share is None:
            answered = False
        else:
            cached += share * size
    return {"bytes": total, "cached": round(cached) if answered else None}


def _share(fd: int, size: int) -> float | None:
    """Return which part of SAMPLES pages, spread over the file, is cached."""
    buffer = bytearray(1)
    pages = max(1, -(-size // PAGE))
    asked = sorted({index * pages // SAMPLES for index in range(SAMPLES)})
    hits = 0
    for page in asked:
        try:
            hits += os.preadv(fd, [buffer], page * PAGE, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            pass  # EAGAIN: not there
        except (OSError, AttributeError):
            return None
    return hits / len(asked)


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
