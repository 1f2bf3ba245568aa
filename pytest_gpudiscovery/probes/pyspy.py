"""Python and native frames as py-spy sees them, where it is installed. It is never required."""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OUTPUT = 1 << 20  # bytes
THREADS, FRAMES = 16, 64


def dump(program: str, pid: int, *, native: bool, limit_s: float) -> dict[str, Any]:
    """Return {"threads": [{name, tid, owns_gil, frames: [text]}]} or {"error": why}, after LIMIT_S seconds at most.

    NATIVE stops the process with ptrace, which would wait for ever in state D; otherwise memory is read as it runs.
    """
    end = time.monotonic() + limit_s
    reader, writer = os.pipe()
    try:
        pid_of_tool = os.posix_spawn(
            program,
            [program, "dump", "--json", "--native" if native else "--nonblocking", "--pid", str(pid)],
            dict(os.environ),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writer, 1),
                (os.POSIX_SPAWN_DUP2, writer, 2),
            ],
        )
    except OSError as error:
        os.close(reader)
        return {"error": f"{program}: {error.strerror}"}
    finally:
        os.close(writer)
    parts: list[bytes] = []
    size = 0
    while (left := end - time.monotonic()) > 0 and size < OUTPUT and select.select([reader], [], [], left)[0]:
        part = os.read(reader, 65_536)
        if not part:
            os.waitpid(pid_of_tool, os.WNOHANG)
            return parse(b"".join(parts))
        parts.append(part)
        size += len(part)
    os.kill(pid_of_tool, 9)
    return {"error": f"no end within {limit_s:.1f} s or {OUTPUT >> 20} MiB"}


def parse(output: bytes) -> dict[str, Any]:
    """Return what OUTPUT of `py-spy dump --json` says; anything else is an error with its last line."""
    import json  # noqa: PLC0415 - only here, and it costs 10 ms

    try:
        threads = json.loads(output)
        return {
            "threads": [
                {
                    "name": thread["thread_name"],
                    "tid": thread["os_thread_id"],
                    "owns_gil": thread["owns_gil"],
                    "frames": [_frame(frame) for frame in thread["frames"][:FRAMES]],
                }
                for thread in threads[:THREADS]
            ]
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        lines = output.decode("utf-8", "backslashreplace").strip().splitlines()
        return {"error": lines[-1][:500] if lines else "no output"}


def _frame(frame: dict[str, Any]) -> str:
    where = frame.get("short_filename") or frame.get("filename") or frame.get("module") or ""
    line = frame.get("line")
    return f"{frame['name']} ({where}{f':{line}' if line else ''})"
