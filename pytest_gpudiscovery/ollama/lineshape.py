"""When two lines of a log say the same: they differ in nothing but times, ports and sizes that a server measured.

Everything else counts, each digit of it: a line number names the release, a pid the process, cuda_v12 the directory.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from pytest_gpudiscovery.ollama.messages import messages
from pytest_gpudiscovery.ollama.words import HINTS

_STAMP = rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d"
_MINUTE = rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d"
_DURATION = rb"(?:\d{1,9}(?:\.\d{1,12})?(?:h|ms|m|s|\xc2\xb5s|\xce\xbcs|us|ns)){1,3}"
# What differs: how it is found in a line, and what stands for it. The writer's own time and a duration are captured.
_KINDS: dict[str, tuple[bytes, bytes]] = {
    "own": (rb"(?<=time=)" + _STAMP + rb"\.\d{1,9}(?=\S{0,8} level=)", rb"(?P<time>" + _STAMP + rb"\.\d{1,9})"),
    "stamp": (_STAMP + rb"(?:[.,]\d{1,9})?", _STAMP + rb"(?:[.,]\d{1,9})?"),
    "syslog": (
        rb"\A[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d{1,6})?",
        rb"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d{1,6})?",
    ),
    "uptime": (rb"\A\[ {0,11}\d{1,10}\.\d{6}\]", rb"\[ {0,11}\d{1,10}\.\d{6}\]"),
    "micros": (rb'(?<=_TIMESTAMP":")\d{1,18}|(?<="__SEQNUM":")\d{1,18}', rb"\d{1,18}"),
    "cursor": (rb'(?<="__CURSOR":")[\w=;]{1,300}', rb"[\w=;]{1,300}"),
    "port": (rb"(?<=--port )\d{1,5}|(?<=127\.0\.0\.1:)\d{1,5}|(?<=\[::1\]:)\d{1,5}", rb"\d{1,5}"),
    "duration": (rb"(?<=duration=)" + _DURATION, rb"(?P<duration>" + _DURATION + rb")"),
    "memory": (rb"(?<=FreeMemory:)\d{1,20}|(?<=reporting free: )\d{1,20}", rb"\d{1,20}"),
}
_ANY = re.compile(b"|".join(rb"(?P<%s>%s)" % (name.encode(), find) for name, (find, _) in _KINDS.items()))
_ONCE = ("own", "duration")  # a second one in the same line must be the same, like all that is not listed
TIME, DURATION = b"\0own\0", b"\0duration\0"  # as they stand in a key
_DIGITS = bytes.maketrans(b"0123456789", b"0" * 10)
_ESCAPED = re.compile(rb"\\[0-9ux]|\x1b")  # digits that are letters
_PLAIN_JSON = re.compile(rb'"(?:MESSAGE|log)":"')
TEMPLATE_LIMIT = 1000  # bytes
STRETCH = 32 << 10  # bytes that are searched at once
# Every line that says something has one of these in it; it may be wrapped in JSON, or have escape sequences.
_HINTS = (b"msg", b"{", b"\x1b", b"\\", b".go:", b"INFO", b"WARN", b"DEBUG", b"ERROR",
          *(hint.encode() for hint in HINTS))  # fmt: skip


def key(line: bytes) -> bytes:
    """Return what LINE has in common with those that say the same."""
    return _ANY.sub(lambda found: b"\0" + (found.lastgroup or "").encode() + b"\0", line)


def pattern(line: bytes) -> re.Pattern[bytes]:
    """Return what matches LINE and those that say the same, with their ends.

    Groups "time" and "duration", where LINE has them: the writer's own time, the value of duration=.
    """
    parts, end, once = [], 0, list(_ONCE)
    for found in _ANY.finditer(line):
        kind = found.lastgroup or ""
        if kind in _ONCE and kind not in once:
            continue
        once = [name for name in once if name != kind]
        parts += [re.escape(line[end : found.start()]), _KINDS[kind][1]]
        end = found.end()
    return re.compile(b"".join([*parts, re.escape(line[end:]), rb"\n"]))


def whole(lines: Sequence[bytes]) -> re.Pattern[bytes]:
    """Return what matches LINES, one after the other in one minute, and those that say the same, and requests.

    Groups: the minute; of each line that has a time the seconds; the value of the last duration=, and the number
    of milliseconds in it where those are its unit. The first line has a time, the last one both.
    """
    parts = [pattern(line).pattern for line in lines]
    times = 0
    for index, part in enumerate(parts):
        before, found, after = part.partition(_KINDS["own"][1])
        if found:
            minute = rb"(?P=minute)" if times else rb"(?P<minute>" + _MINUTE + rb")"
            before, found, times = before + minute, rb":(\d\d\.\d{1,9})", times + 1
        took = rb"((\d{1,9}(?:\.\d{1,12})?)ms|%s)" % _DURATION if index == len(parts) - 1 else _DURATION
        parts[index] = before + found + after.replace(_KINDS["duration"][1], took)
    return re.compile(rb"(?:\[GIN[^\n]{0,900}\n)*".join(parts))


def begins_the_same(line: bytes) -> bool:
    """Return whether those that say the same as LINE have its first byte."""
    found = _ANY.search(line)
    return found is None or found.start() > 0


def zone(line: bytes) -> str:
    """Return what follows the writer's own time in LINE: "-05:00", "Z"; empty where it has none."""
    found = re.search(rb"time=" + _STAMP + rb"\.\d{1,9}(\S{0,8}) level=", line)
    return found[1].decode("ascii", "replace") if found else ""


def template(line: bytes) -> bytes:
    """Return LINE without the values of its digits."""
    return line.translate(_DIGITS)


def dull(buffer: bytes, place: int, end: int) -> int:
    """Return where those lines of BUFFER end, from PLACE to END, that say nothing for sure: no hint is in them."""
    end = limit = min(end, place + STRETCH)
    for hint in _HINTS:
        found = buffer.find(hint, place, limit)
        limit = found if found >= 0 else limit
    return buffer.rfind(b"\n", place, limit) + 1 or place


def says_nothing_for_others(line: bytes) -> bool:
    """Whether every line with the template of LINE says nothing when LINE does: whether digits cannot matter."""
    if len(line) > TEMPLATE_LIMIT or _ESCAPED.search(line):
        return False
    if line[:1] == b"{" and not _PLAIN_JSON.search(line):
        return False  # a list of byte values, or numbers that make it JSON or not
    return not any(text in template(line) for text in _with_digits())


@functools.cache
def _with_digits() -> tuple[bytes, ...]:
    """Return the templates of the messages that have digits ("skipping 32bit library")."""
    texts = (text for entry in messages().values() for text in (entry.text, *entry.aliases))
    return tuple(template(text.encode()) for text in texts if re.search(r"\d", text))
