"""Ways to hang for real, shared by the tests and ci/bench/hangs.py. What needs root raises Unavailable without it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.supervise import reaper
from pytest_gpudiscovery.supervise.types import Probe, Setup

PROBES = Path(__file__).with_name("probes")
ENV = {"PATH": "/usr/bin:/bin"}
PLAIN = Setup()
HANGS = """
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile unsigned long turns;
int hang_sleep(void) { struct timespec t = {600, 0}; nanosleep(&t, 0); __asm__ volatile(""); return 0; }
int hang_futex(void) { pthread_mutex_lock(&lock); pthread_mutex_lock(&lock); __asm__ volatile(""); return 0; }
int hang_spin(void) { for (;;) turns++; return 0; }
int leave(void) { exit(0); }
"""

NO_DESCRIPTORS = """
#include <sys/resource.h>
__attribute__((constructor)) static void take(void) {
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_NOFILE, &none);
}
"""

PRELOAD = """
#include <unistd.h>
__attribute__((constructor)) static void wait_for_ever(void) { for (;;) pause(); }
"""


class Unavailable(Exception):
    """This rig cannot be built here; the text says why."""


def probe(module: str, deadline_s: float = 30.0, *, setup: Setup = PLAIN, cwd: str = "/", **request: Any) -> Probe:
    """Return a probe of tests/supervise/probes."""
    return Probe(module, request, ENV, deadline_s, cwd=cwd, setup=setup)


def wait_for(condition: Callable[[], object], limit_s: float = 10.0) -> bool:
    """Whether CONDITION became true within LIMIT_S seconds."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    """Whether PID exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def library(directory: Path, source: str = HANGS, name: str = "libhang.so.1") -> str:
    """Build the stripped library NAME from SOURCE in DIRECTORY and return its path."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Unavailable("no C compiler (cc)")
    text, path = directory / f"{name}.c", directory / name
    text.write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-s", "-pthread", "-o", path, text], check=True)
    return str(path)


def _need(*programs: str) -> None:
    if os.geteuid() != 0:
        raise Unavailable("needs root: mounts a file system")
    if missing := [program for program in programs if shutil.which(program) is None]:
        raise Unavailable(f"not installed: {', '.join(missing)}")


def _do(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{command[0]}: {done.stderr.strip() or done.returncode}")


@contextlib.contextmanager
def frozen(directory: Path) -> Iterator[Path]:
    """Yield a directory in which every create sleeps in state D, which SIGKILL does not end, until the block ends."""
    _need("mkfs.ext4", "mount", "umount", "fsfreeze")
    image, mountpoint = directory / "image", directory / "frozen"
    mountpoint.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    _do("mkfs.ext4", "-q", image)
    _do("mount", "-o", "loop", image, mountpoint)
    try:
        (mountpoint / "d").mkdir()
        _do("fsfreeze", "-f", mountpoint)
        try:
            yield mountpoint / "d"
        finally:
            _do("fsfreeze", "-u", mountpoint)
            wait_for(lambda: not reaper.reap())
    finally:
        subprocess.run(["umount", "-l", mountpoint], timeout=30, check=False)


@contextlib.contextmanager
def fuse(directory: Path, policy: str) -> Iterator[Path]:
    """Yield the root of a FUSE file system with fuse_server.py's POLICY; whoever waits is freed at the end."""
    _need("umount")
    if not os.path.exists("/dev/fuse"):
        raise Unavailable("no /dev/fuse")
    mountpoint = directory / "fuse"
    mountpoint.mkdir()
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("fuse_server.py"), mountpoint, policy],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert server.stderr is not None
        if server.stdout.readline() != "ready\n":
            raise Unavailable(f"FUSE cannot be mounted: {server.stderr.read().strip()[-200:]}")
        yield mountpoint
    finally:
        server.kill()  # closes /dev/fuse: the kernel aborts the connection
        server.communicate()
        wait_for(lambda: not reaper.reap())
        subprocess.run(["umount", "-l", mountpoint], timeout=30, check=False)
