"""Waits, works or spins in the way that the request names: {"how": one of KINDS, "path": a file for those with one}."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from pytest_gpudiscovery.probes.journal import Journal

PTRACE_ATTACH = 16
PR_SET_PTRACER = 0x59616D61


def steps(_: str, journal: Journal) -> None:
    while True:
        with journal.step("one of many"):
            sum(range(200_000))


def nanosleep(_: str, __: Journal) -> None:
    while True:
        time.sleep(0.01)


def futex(_: str, __: Journal) -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def thread(path: str, journal: Journal) -> None:
    other = threading.Thread(target=spin, args=(path, journal))
    other.start()
    other.join()


def flock(path: str, _: Journal) -> None:
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def record_lock(path: str, _: Journal) -> None:
    with open(path, "w", encoding="utf-8") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)


def poll(_: str, __: Journal) -> None:
    poller = select.poll()
    poller.register(os.pipe()[0], select.POLLIN)
    poller.poll()


def epoll(_: str, __: Journal) -> None:
    select.epoll().poll()


def fifo(path: str, _: Journal) -> None:
    os.read(os.open(path, os.O_RDWR), 1)


def data(_: str, __: Journal) -> None:
    reader, writer = os.pipe()
    if os.fork() == 0:
        while True:
            os.write(writer, b"x")
            time.sleep(0.005)
    while True:
        os.read(reader, 1)


def spin(_: str, __: Journal) -> None:
    while True:
        pass


def sched_yield(_: str, __: Journal) -> None:
    while True:
        os.sched_yield()


def zeros(_: str, __: Journal) -> None:
    fd, place = os.open("/dev/zero", os.O_RDONLY), bytearray(1 << 20)
    while True:
        os.readv(fd, [place])


def new_memory(_: str, __: Journal) -> None:
    page = bytes(1 << 20)
    while True:
        mmap.mmap(-1, len(page)).write(page)


def stopped(_: str, __: Journal) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def traced(_: str, __: Journal) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)  # Yama lets a child trace its parent then
    if os.fork() == 0:
        ctypes.CDLL(None).ptrace(PTRACE_ATTACH, os.getppid(), None, None)
        signal.pause()
    time.sleep(600)


def wait4(_: str, __: Journal) -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.waitpid(pid, 0)


def accept(_: str, __: Journal) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.accept()


def connect(path: str, _: Journal) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(0)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(8)]
    for client in clients:
        client.connect(path)


def pause(_: str, __: Journal) -> None:
    signal.pause()


KINDS: dict[str, Callable[[str, Journal], None]] = {
    each.__name__: each
    for each in (
        *(
            steps,
            nanosleep,
            futex,
            thread,
            flock,
            record_lock,
            poll,
            epoll,
            fifo,
            data,
            spin,
            sched_yield,
            zeros,
            new_memory,
        ),
        *(stopped, traced, wait4, accept, connect, pause),
    )
}


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    with journal.step(request["how"]):
        KINDS[request["how"]](request.get("path", ""), journal)
    return {}
