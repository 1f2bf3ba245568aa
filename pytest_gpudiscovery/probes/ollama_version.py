"""Asks a program for its version by running a copy of it that can reach neither the driver nor the running service.

Ollama initialises MLX, and with it CUDA, in every process, before main() (v0.14.3 to v0.17.7 with -tags mlx; from
v0.18.0 on by a search beside the executable). A copy in memory has nothing beside it. OLLAMA_HOST is a port that this
probe holds without listening: whoever connects is refused at once, and nobody else can take it meanwhile.
"""

from __future__ import annotations

import _socket
import errno
import os
import re

from pytest_gpudiscovery.probes.facts import errno_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal

NAME = "gpu-discovery/bin/ollama"  # what the copy takes for its path is /memfd:NAME: no ../lib/ollama is there
SIZE_LIMIT = 512 << 20
OUTPUT_LIMIT = 65536
MFD_EXEC = 0x10  # linux/memfd.h, since 6.3
SAID = re.compile(r"(?:ollama version is|client version is) v?([0-9][0-9A-Za-z.+-]{0,40})")


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return {"version", "said", "exit"} of program REQUEST["path"], or {"version": None, "why"}."""
    path = request["path"]
    with journal.step(f"copy {path} into memory") as step:
        try:
            copy = _copy(path, request["size"])
        except OSError as error:
            step.result = errno_name(error)
            return {"version": None, "why": f"cannot be copied into memory: {errno_name(error)}"}
    held, address = None, "127.0.0.1:1"  # without a socket or a loopback: nobody answers there either
    try:
        try:
            held = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
            held.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{held.getsockname()[1]}"
        except OSError:
            pass
        with journal.step("run a copy with --version") as step:
            said, status = _run(copy, address)
            step.result = status
    finally:
        if held is not None:
            held.close()
    found = SAID.findall(said)
    why = "" if found else f"it ended with {status} and said: {' '.join(said.split())[-200:] or 'nothing'}"
    return {"version": found[-1] if found else None, "said": said[-500:], "exit": status, "why": why}


def _copy(path: str, expected: int) -> int:
    """Return a descriptor of a copy in memory; raises OSError, ESTALE when the file has not EXPECTED bytes."""
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size = os.fstat(source).st_size
        if size > SIZE_LIMIT:
            raise OSError(errno.EFBIG, "too large", path)
        if size != expected:  # not the file that was looked at
            raise OSError(errno.ESTALE, "another file", path)
        try:
            copy = os.memfd_create(NAME, os.MFD_CLOEXEC | MFD_EXEC)
        except OSError:
            copy = os.memfd_create(NAME)  # before Linux 6.3 every memfd may be executed
        done = 0
        while done < size and (count := os.sendfile(copy, source, done, size - done)):
            done += count
        return copy
    finally:
        os.close(source)


def _run(copy: int, address: str) -> tuple[str, int]:
    """Run descriptor COPY with --version and return what it printed and its exit status (a signal's is negative)."""
    out, child_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(child_out, 1)
            os.dup2(child_out, 2)
            # No HOME that could be written, no library path by which MLX could be found.
            env = {"PATH": "/usr/bin:/bin", "HOME": "/proc/self/no-home", "OLLAMA_HOST": address, "NO_PROXY": "*"}
            os.execve(copy, ["ollama", "--version"], env)  # noqa: S606 - there is no shell
        finally:
            os._exit(127)
    os.close(child_out)
    parts, left = [], OUTPUT_LIMIT
    while left > 0 and (part := os.read(out, left)):
        parts.append(part)
        left -= len(part)
    os.close(out)
    return b"".join(parts).decode("utf-8", "replace"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
