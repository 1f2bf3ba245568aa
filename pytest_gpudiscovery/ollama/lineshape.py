"""When two lines of a log say the same: they differ in nothing but times, ports and sizes that a server measured.

Everything else counts, each digit of it: a line number names the release, a pid the process, cuda_v12 the directory.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from pytest_gpudiscovery.ollama.messages import messages

_STAMP = rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d"
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
    "port": (rb"(?<=--port )\d{1,5}|(?<=\d\d\d\.\d\.\d\.\d:)\d{1,5}|(?<=\[::\d\]:)\d{1,5}", rb"\d{1,5}"),
    "duration": (rb"(?<=duration=)" + _DURATION, rb"(?P<duration>" + _DURATION + rb")"),
    "memory": (rb"(?<=FreeMemory:)\d{1,20}|(?<=reporting free: )\d{1,20}", rb"\d{1,20}"),
}
_ANY = re.compile(b"|".join(rb"(?P<%s>%s)" % (name.encode(), find) for name, (find, _) in _KINDS.items()))
_ONCE = ("own", "duration")  # a second one in the same line must be the same, like all that is not listed
DIGITS = bytes.maketrans(b"0123456789", b"0" * 10)
_ESCAPED = re.compile(rb"\\[0-9ux]|\x1b")  # digits that are letters
_PLAIN_JSON = re.compile(rb'"(?:MESSAGE|log)":"')
TEMPLATE_LIMIT = 1000  # bytes
TEMPLATES = 4000  # whose parts are known
_CURSOR = re.compile(rb'"__CURSOR":"[\w=;]{1,300}')
_NO_CURSOR = b'"__CURSOR":"'


@dataclass(frozen=True)
class Parts:
    """What a line without cursor is made of: the same for all lines with its template."""

    fixed: tuple[slice, ...]  # what is the same in lines that say the same and have its template
    kinds: tuple[bytes, ...]  # what is between those
    time: slice | None  # the writer's own time
    duration: slice | None  # the value of duration=

    def key(self, line: bytes) -> bytes:
        """Return what LINE has in common with those that say the same."""
        return b"".join([line[part] + kind for part, kind in zip(self.fixed, self.kinds, strict=True)])


_known: dict[bytes, Parts] = {}


def parts(line: bytes, its_template: bytes) -> Parts:
    """Return what LINE, which has no cursor, is made of."""
    found = _known.get(its_template)
    if found is None:
        if len(_known) >= TEMPLATES:
            _known.clear()
        found = _known[its_template] = _parts(line)
    return found


def _parts(line: bytes) -> Parts:
    fixed, kinds, end = [], [], 0
    once: dict[str, slice] = {}
    for found in _ANY.finditer(line):
        kind = found.lastgroup or ""
        if kind in _ONCE:
            if kind in once:
                continue
            once[kind] = slice(*found.span())
        fixed.append(slice(end, found.start()))
        kinds.append(b"\0" + kind.encode() + b"\0")
        end = found.end()
    return Parts((*fixed, slice(end, None)), (*kinds, b""), once.get("own"), once.get("duration"))


def without_cursor(text: bytes) -> bytes:
    """Return TEXT, one line or more, without the journal's cursors: nothing in them is looked at."""
    return _CURSOR.sub(_NO_CURSOR, text) if b"{" in text and _NO_CURSOR in text else text


def key(line: bytes) -> bytes:
    """Return what LINE has in common with those that say the same."""
    line = without_cursor(line)
    return parts(line, line.translate(DIGITS)).key(line)


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


def zone(line: bytes) -> str:
    """Return what follows the writer's own time in LINE: "-05:00", "Z"; empty where it has none."""
    found = re.search(rb"time=" + _STAMP + rb"\.\d{1,9}(\S{0,8}) level=", line)
    return found[1].decode("ascii", "replace") if found else ""


def later(time: bytes, seconds: float) -> bytes:
    """Return a writer's own TIME with as many digits, SECONDS later, rounded down; TIME itself where there is none."""
    second, dot, fraction = time.decode().partition(".")
    try:
        then = datetime.fromisoformat(second) + timedelta(seconds=float(f"0.{fraction}") + seconds)
    except (ValueError, OverflowError):
        return time
    text = f"{then:%Y-%m-%d{second[10]}%H:%M:%S}{dot}{then.microsecond:06}000"
    return max(time, text[: len(time)].encode())


def template(line: bytes) -> bytes:
    """Return LINE, or lines, without cursors and the values of digits."""
    return without_cursor(line).translate(DIGITS)


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
