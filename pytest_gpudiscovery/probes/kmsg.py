"""The kernel log around a hang: the few lines about the driver, a hung task or a lack of memory.

Read from /dev/kmsg, which never waits for more (O_NONBLOCK), else by syslog(2), which some containers allow alone.
"""

from __future__ import annotations

import os
import re
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

BEFORE_S = 60.0  # before the child began: what made it hang may have come first
KEPT, LENGTH = 20, 400  # lines, and characters of one
LIMIT = 32 << 20  # bytes that are read; the largest log is 16 MiB on most kernels
WORDS = re.compile(
    r"NVRM|nvidia|\bXid\b|nouveau|blocked for more than|hung task|hung_task|soft lockup|"
    r"out of memory|oom[-_ ](kill|reaper)|invoked oom|memory cgroup",
    re.IGNORECASE,
)
RECORD = re.compile(r"(\d+),\d+,(\d+),[^;]*;(.*)")  # Documentation/ABI/testing/dev-kmsg: level, number, microseconds
LINE = re.compile(r"<\d+>\[ *(\d+\.\d+)\](?:\[[^]]*\])? (.*)")  # what syslog(2) says
READ_ALL, SIZE = 3, 10  # SYSLOG_ACTION_READ_ALL, SYSLOG_ACTION_SIZE_BUFFER: syslog(2)


def read(age_s: float) -> dict[str, Any]:
    """Return {"lines": ["[12.345678] text"], "source", "since_s", "now_s"} of the last AGE_S seconds and BEFORE_S.

    AGE_S is a child's age. {"unknown": why} where this process may not read the log.
    """
    # The log's clock is not adjusted by NTP, and neither is this one; CLOCK_MONOTONIC drifts away from it over months.
    now_s = time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
    since_s = now_s - age_s - BEFORE_S
    try:
        lines, source = [parse_record(text) for text in records()], "/dev/kmsg"
    except OSError as error:
        try:
            lines, source = [parse_line(text) for text in syslog().splitlines()], "syslog(2)"
        except OSError as other:
            return {"unknown": f"/dev/kmsg: {error.strerror}; syslog(2): {other.strerror}"}
    return {"lines": select(lines, since_s), "source": source, "since_s": round(since_s, 3), "now_s": round(now_s, 3)}


def records() -> list[str]:
    """Return the records of /dev/kmsg, oldest first; raises OSError."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    found: list[str] = []
    left = LIMIT
    try:
        while left > 0:
            try:
                data = os.read(fd, 65_536)  # one record a read
            except BlockingIOError:
                break  # the end of the log
            except BrokenPipeError:
                continue  # records were overwritten: the next read goes on with the oldest one left
            if not data:
                break
            found.append(data.decode("utf-8", "replace"))
            left -= len(data)
    finally:
        os.close(fd)
    return found


def syslog() -> str:
    """Return the kernel log as syslog(2) gives it; raises OSError."""
    import ctypes  # noqa: PLC0415 - where /dev/kmsg cannot be read

    libc = ctypes.CDLL(None, use_errno=True)
    size = libc.klogctl(SIZE, None, 0)
    buffer = ctypes.create_string_buffer(min(size, LIMIT) if size > 0 else 1 << 18)
    count = libc.klogctl(READ_ALL, buffer, len(buffer))
    if count < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw[:count].decode("utf-8", "replace")


def parse_record(text: str) -> tuple[float, str] | None:
    """Return (seconds, text) of a record of /dev/kmsg, None for anything else; further lines of it are dropped."""
    match = RECORD.match(text)
    return (int(match[2][:18]) / 1e6, match[3]) if match else None


def parse_line(text: str) -> tuple[float, str] | None:
    """Return (seconds, text) of a line of syslog(2), None for anything else, or without a time."""
    match = LINE.match(text)
    return (float(match[1]), match[2]) if match else None


def select(lines: Iterable[tuple[float, str] | None], since_s: float) -> list[str]:
    """Return the last KEPT of LINES that came at SINCE_S or later and are about the driver, a hung task or memory."""
    wanted = [line for line in lines if line is not None and line[0] >= since_s and WORDS.search(line[1])]
    return [f"[{at:.6f}] {text[:LENGTH]}" for at, text in wanted[-KEPT:]]
