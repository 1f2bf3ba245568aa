"""Hangs in the way that the request names: {"how": ..., "lib": a library with that function, "path": a file}."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import time
from typing import Any

from pytest_gpudiscovery.probes.journal import Journal


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    how = request["how"]
    if "pid_file" in request:
        with open(request["pid_file"], "w", encoding="utf-8") as file:
            file.write(str(os.getpid()))
    if how in ("hang_sleep", "hang_futex", "hang_spin"):
        library = (ctypes.PyDLL if request.get("hold_gil") else ctypes.CDLL)(request["lib"])
        with journal.step(f"{how}()"):
            getattr(library, how)()
    elif how == "signals":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with journal.step("sleep with every signal blocked"):
            time.sleep(600)
    elif how in ("grandchild", "daemon", "tidy daemon", "daemon and crash"):
        with journal.step("fork"):
            journal.observe("daemon", _daemon(closes=how == "tidy daemon"))
        if how == "daemon and crash":
            os.abort()
        if how == "grandchild":
            with journal.step("sleep"):
                time.sleep(600)
    elif how == "read a pipe":
        reader, _ = os.pipe()
        with journal.step("read"):
            os.read(reader, 1)
    elif how == "create":
        with journal.step("create"):
            os.close(os.open(request["path"], os.O_CREAT | os.O_WRONLY, 0o600))
    elif how == "stat":
        with journal.step("stat"):
            os.stat(request["path"])
    elif how == "mmap":
        _lock_memory_map(request["path"], journal)
    elif how == "polling":
        with journal.step("poll"):
            while True:
                time.sleep(0.01)
    return {}


def _daemon(closes: bool) -> int:
    """Fork twice with a session of its own; return the daemon's pid. It keeps our pipes unless it CLOSES them."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if (pid := os.fork()) == 0:
            if closes:
                os.closerange(0, 64)
            time.sleep(600)
        os.write(writer, str(pid).encode())
        os._exit(0)
    pid = int(os.read(reader, 32))
    os.close(reader)
    os.close(writer)
    return pid


def _lock_memory_map(path: str, journal: Journal) -> None:
    """Map over a dirty page of a FUSE file: the page is written back while the memory map is locked."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    at = libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, os.open(path, os.O_RDWR), 0)
    ctypes.memset(at, 1, 4096)
    with journal.step("mmap(MAP_FIXED)"):
        libc.mmap(at, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10, -1, 0)
