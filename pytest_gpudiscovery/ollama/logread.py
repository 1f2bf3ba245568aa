"""Reads a log of any size in constant memory and gives the lines that matter.

Two speeds. Where a discovery is going on, every line counts (a child's own words have no marks); elsewhere a search
over the bytes jumps from one message of messages.json to the next, so that a gigabyte of requests costs little more
than reading it. The consumer switches with `window`.

Binary rubbish, lines without an end, NUL blocks after a crash and UTF-16 are read as far as they make sense; what had
to be cut is counted.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pytest_gpudiscovery.ollama.messages import filter_pattern

BLOCK = 1 << 20  # bytes a read
LINE_LIMIT = 64 * 1024  # bytes of a line that are given
DISCOVERING = 20_000  # lines that all count where a discovery may be going on
BEFORE = 4096  # bytes before a message in a line that has no beginning in sight
Read = Callable[[int], bytes]  # like io.RawIOBase.read: b"" at the end
# Given a buffer, where a line begins in it and where its whole lines end: where the next line to be given begins; WAIT
# when that depends on lines that are still to come.
WAIT = -1
Skip = Callable[[bytes, int, int], int]

_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


@dataclass
class Reader:
    """Reads a log through READ. Iterate over `lines()`; `window` may be set between two of them."""

    read: Read
    window: int = 1 << 62  # so many lines more are all given; after them those with a message in them
    bytes_read: int = 0
    cut_lines: int = 0
    last_line: bytes = field(default=b"", repr=False)  # the last complete line that had something in it
    skip: Skip | None = None  # asked before a line is given
    may_wait: bool = False  # more lines may come behind the buffer
    _buffer: bytes = field(default=b"", repr=False)
    _before: int = 0  # lines before `_counted`
    _counted: int = 0  # a place in the buffer
    _waits: int | None = None  # where the lines begin that are looked at again when there is more

    def number(self, place: int) -> int:
        """Return the number, from 1, of the line that begins at PLACE of the buffer; places may only grow."""
        self._before += self._buffer.count(b"\n", self._counted, place)
        self._counted = place
        return self._before + 1

    def passed(self, lines: int, place: int) -> None:
        """Say that LINES, from the one whose number was asked for last, end at PLACE of the buffer."""
        self._before += lines
        self._counted = place

    def left_out(self, lines: int) -> None:
        """Say that LINES of the log were left out before what is read next."""
        self._before += lines

    def lines(self) -> Iterator[tuple[bytes, int]]:
        """Yield, without their ends, the lines that matter and their numbers. Raises what READ raises."""
        left, blocks = b"", self._blocks()
        stopped: BaseException | None = None
        while stopped is None:
            try:
                buffer = left + next(blocks)
            except (StopIteration, OSError, KeyboardInterrupt) as error:
                stopped = error
                break
            self._buffer, self._counted, self._waits = buffer, 0, None
            end = buffer.rfind(b"\n") + 1
            kept = end
            self.may_wait = len(buffer) - end <= LINE_LIMIT
            if not self.may_wait:  # no end in sight: give what there is, keep enough to recognise a message
                self.cut_lines += 1
                kept = len(buffer) - LINE_LIMIT // 2
                yield from self._in(buffer, end)
                yield from self._in(buffer, kept, end)
            else:
                yield from self._in(buffer, end)
                kept = end if self._waits is None else self._waits
            self._note_last(buffer, end)
            self.number(kept)
            left = buffer[kept:]
        if left:
            self._buffer, self._counted, self.may_wait = left, 0, False
            yield from self._in(left, len(left))
            self._note_last(left, len(left))
        if not isinstance(stopped, StopIteration):
            raise stopped

    def _in(self, buffer: bytes, end: int, position: int = 0) -> Iterator[tuple[bytes, int]]:
        """Yield the lines that matter of BUFFER from POSITION, where one begins, up to END."""
        search = filter_pattern().search
        while position < end:
            start = position
            if self.window <= 0:
                found = search(buffer, position, end)
                if found is None:
                    return
                start = max(buffer.rfind(b"\n", position, found.start()) + 1, position, found.start() - BEFORE)
            if self.skip is not None:
                position = self.skip(buffer, start, end)
                if position == WAIT:
                    self._waits = start
                    return
                if position > start:
                    continue
            stop = buffer.find(b"\n", start, end)
            stop = end if stop < 0 else stop
            position = stop + 1
            number = self.number(start)
            if stop - start > LINE_LIMIT:
                self.cut_lines += 1
                for piece in self._pieces(buffer, start, stop):
                    self.window -= 1
                    yield piece, number
            else:
                self.window -= 1
                yield buffer[start:stop], number

    def _pieces(self, buffer: bytes, start: int, stop: int) -> Iterator[bytes]:
        """Yield what matters of one line that is too long: its beginning, and each message inside it."""
        yield buffer[start : start + LINE_LIMIT]
        for found in filter_pattern().finditer(buffer, start + LINE_LIMIT, stop):
            yield buffer[max(start, found.start() - BEFORE) : min(stop, found.end() + LINE_LIMIT - BEFORE)]

    def _note_last(self, buffer: bytes, end: int) -> None:
        lines = buffer[:end].rstrip()  # blank lines behind it do not matter
        if lines:
            self.last_line = lines[lines.rfind(b"\n") + 1 :][:LINE_LIMIT]

    def _blocks(self) -> Iterator[bytes]:
        first = self._next()
        encoding = _UTF16.get(first[:2])
        if encoding is None:
            block = first
            while block:
                yield block
                block = self._next()
            return
        decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        block = first[2:]
        while block:
            yield decoder.decode(block).encode("utf-8", "replace")
            block = self._next()

    def _next(self) -> bytes:
        block = self.read(BLOCK)
        self.bytes_read += len(block)
        return block
