"""Reads a log of any size in constant memory and gives the lines that matter.

Two speeds. Where a discovery is going on, every line counts (a child's own words have no marks); elsewhere a search
over the bytes jumps from one message of messages.json to the next, so that a gigabyte of requests costs little more
than reading it. The consumer switches with `every_line`.

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
BEFORE = 4096  # bytes before a message in a line that has no beginning in sight
Read = Callable[[int], bytes]  # like io.RawIOBase.read: b"" at the end

_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


@dataclass
class Reader:
    """Reads a log through READ. Iterate over `lines()`; `every_line` may be switched between two of them."""

    read: Read
    every_line: bool = True  # the beginning of a log may be the middle of a discovery
    bytes_read: int = 0
    cut_lines: int = 0
    last_line: bytes = field(default=b"", repr=False)  # the last complete line that had something in it

    def lines(self) -> Iterator[bytes]:
        """Yield, without their ends, the lines that matter. Raises what READ raises."""
        left = b""
        for block in self._blocks():
            buffer = left + block
            end = buffer.rfind(b"\n") + 1
            kept = end
            if (
                len(buffer) - end > LINE_LIMIT
            ):  # no end in sight: give what there is, keep enough to recognise a message
                self.cut_lines += 1
                kept = len(buffer) - LINE_LIMIT // 2
                yield from self._in(buffer, end)
                yield from self._in(buffer[end:kept], kept - end)
            else:
                yield from self._in(buffer, end)
            self._note_last(buffer, end)
            left = buffer[kept:]
        if left:
            yield from self._in(left, len(left))
            self.last_line = left[:LINE_LIMIT] if left.strip() else self.last_line

    def _in(self, buffer: bytes, end: int) -> Iterator[bytes]:
        """Yield the lines that matter of BUFFER up to END."""
        search = filter_pattern().search
        position = 0
        while position < end:
            start = position
            if not self.every_line:
                found = search(buffer, position, end)
                if found is None:
                    return
                start = max(buffer.rfind(b"\n", position, found.start()) + 1, position, found.start() - BEFORE)
            stop = buffer.find(b"\n", start, end)
            stop = end if stop < 0 else stop
            position = stop + 1
            if stop - start > LINE_LIMIT:
                self.cut_lines += 1
                yield from self._pieces(buffer, start, stop)
            else:
                yield buffer[start:stop]

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
