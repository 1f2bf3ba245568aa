"""Leaves the middle of a crash loop out of a log: starts of servers by the ten thousand, which nobody keeps.

Of more than sessions.SERVERS servers only the first and the newest are kept, so those between need not be parsed; they
are counted. Whether a server is among the newest is known once enough starts follow it: until then its bytes are held
back, HOLD of them at most; beyond that they are given on. What a server writes once, as its first line or its second,
is how starts are found; a log whose lines have another shape (slog's JSON, UTF-16) is given on as it is.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

from pytest_gpudiscovery.ollama.logread import LINE_LIMIT, Read
from pytest_gpudiscovery.ollama.sessions import SERVERS

KEPT = SERVERS + 8  # the newest starts; a few more than are kept, because two servers may be mixed
HOLD = 8 << 20  # bytes
ROUTES, CONFIG, LISTENING = b"routes.go:", b"server config", b"Listening on "
# In JSON the quote has a backslash. Before it stand a carrier and a time stamp: neither has a quote of its own.
MARK = re.compile(rb'routes\.go:\d{1,5}(?: msg=(\\?)"|: INFO )(?:(server config)|Listening on )')


class Thinner:
    """Reads through READ, and is itself such a function. `bytes_read` are READ's.

    ON_DROPPED is told how many servers were left out, and their lines, before what comes after them is given.
    """

    def __init__(self, read: Read, on_dropped: Callable[[int, int], None] = lambda *_: None) -> None:
        self._read, self._on_dropped = read, on_dropped
        self._dropped = self._lines = 0  # servers and lines, before what is held
        self.bytes_read = 0
        self._seen = 0  # starts that were given on
        self._after_config = False  # the last mark was "server config": "Listening on" is of the same server
        self._starts: deque[int] = deque()  # of the lines held back that begin a server: places in the log
        self._held: deque[bytes] = deque()  # whole lines, from the first of those on
        self._begin = self._end = 0  # of what is held: places in the log
        self._rest = b""  # a line whose end was not seen
        self._out: deque[tuple[int, int, bytes]] = deque()  # servers and lines left out before it
        self._raises: BaseException | None = None

    def __call__(self, size: int) -> bytes:
        """Return some bytes of the log, b"" at its end; raises what READ raises, after all that it gave."""
        while not self._out:
            if self._raises is not None:
                raise self._raises
            try:
                block = self._read(size)
            except (OSError, KeyboardInterrupt) as error:
                self._raises, block = error, b""
            self.bytes_read += len(block)
            if block:
                self._take(block)
                continue
            self._give_held()
            if self._rest:
                self._out.append((0, 0, self._rest))
                self._rest = b""
            elif not self._out and self._raises is None:
                return b""
        dropped, lines, data = self._out.popleft()
        if dropped:
            self._on_dropped(dropped, lines)
        return data

    def _take(self, block: bytes) -> None:
        cut = block.rfind(b"\n") + 1
        if not cut and len(self._rest) + len(block) < LINE_LIMIT:
            self._rest += block
            return
        cut = cut or len(block)
        # One copy, not three: each page of a new megabyte costs as much as what is then done with it.
        lines, self._rest = b"".join((self._rest, memoryview(block)[:cut])), block[cut:]
        place = self._end
        self._end += len(lines)
        marks = self._marks(lines) if ROUTES in lines and (CONFIG in lines or LISTENING in lines) else []
        if not self._held:
            fresh = max(0, KEPT - self._seen)  # a log with few starts is given on as it comes
            self._seen += min(fresh, len(marks))
            first = marks[fresh] if len(marks) > fresh else len(lines)
            if first:
                self._out.append((0, 0, lines[:first]))
            if first == len(lines):
                return
            self._begin, lines = place + first, lines[first:]
        self._held.append(lines)
        self._starts.extend(place + mark for mark in marks if place + mark >= self._begin)
        self._thin()
        if self._end - self._begin > HOLD:
            self._give_held()

    def _marks(self, lines: bytes) -> list[int]:
        """Return where in LINES a server begins."""
        found = []
        for mark in MARK.finditer(lines):
            place = lines.rfind(b"\n", 0, mark.start()) + 1
            before = lines[place : mark.start()]
            if before[:1] != b"{" if mark[1] else b'"' in before:
                continue  # quoted by something else
            config = mark[2] is not None
            if config or not self._after_config:
                found.append(place)
            self._after_config = config
        return found

    def _thin(self) -> None:
        """Forget what is before the newest KEPT starts."""
        if len(self._starts) <= KEPT:
            return
        self._dropped += len(self._starts) - KEPT
        while len(self._starts) > KEPT:
            self._starts.popleft()
        left = self._starts[0] - self._begin
        self._begin = self._starts[0]
        while left >= len(self._held[0]):
            gone = self._held.popleft()
            left -= len(gone)
            self._lines += gone.count(b"\n")
        self._lines += self._held[0].count(b"\n", 0, left)
        self._held[0] = self._held[0][left:]

    def _give_held(self) -> None:
        for data in self._held:
            self._out.append((self._dropped, self._lines, data))
            self._dropped = self._lines = 0
        self._held.clear()
        self._starts.clear()
        self._begin = self._end
