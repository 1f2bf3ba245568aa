"""Runs one program and keeps what it says, or copies the kernel log's lines about the driver: for a bundle of evidence.

The program gets this process' environment and may touch the driver, so it runs only in a supervised child; SIGKILL to
the child's process group ends it as well.
"""

from __future__ import annotations

import os

from pytest_gpudiscovery.probes import kernel
from pytest_gpudiscovery.probes.facts import errno_name
from pytest_gpudiscovery.probes.host import open_view

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal

LIMIT = 1 << 20  # bytes of a program's output that are kept
CHUNK = 1 << 16


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return {"text", "status", "dropped"} of REQUEST["argv"] (its program by absolute path), or of the kernel log.

    REQUEST: {"argv": [path, ...]} or {"log": view}. A program that cannot be started gives {"errno"}; a log that
    cannot be read {"text": "", "errno"}.
    """
    if "log" in request:
        with journal.step("read /dev/kmsg"):
            found = kernel.kernel_log(open_view(request["log"]))
        return {"text": "\n".join(found["lines"]), "errno": found["errno"], "status": 0, "dropped": 0}
    argv = request["argv"]
    with journal.step(" ".join([os.path.basename(argv[0]), *argv[1:]])) as step:
        try:
            answer = _run(argv)
        except OSError as error:
            return {"errno": errno_name(error)}
        step.result = answer["status"]
    return answer


def _run(argv: list[str]) -> dict[str, Any]:
    out, child_out = os.pipe()
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            dict(os.environ),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, child_out, 1),
                (os.POSIX_SPAWN_DUP2, child_out, 2),
            ],
        )
    except OSError:
        os.close(out)
        raise
    finally:
        os.close(child_out)
    parts: list[bytes] = []
    kept = dropped = 0
    while part := os.read(out, CHUNK):
        room = LIMIT - kept
        parts.append(part[:room])
        kept += min(len(part), room)
        dropped += max(0, len(part) - room)
    os.close(out)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"text": b"".join(parts).decode("utf-8", "replace"), "status": status, "dropped": dropped}
