"""Finds the lines of a log that may say something: those with one of the hints in them. All others are dull.

The hints are some forty short texts. A find for each of them costs more than everything else that is done with a dull
line, so all are looked for at once: four letters of each, the rarest, stand for it, and where any of those may stand
is decided for all places together, by a table for each of the four letters and a bitwise "and" of long integers.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections.abc import Iterable
from math import prod

from pytest_gpudiscovery.ollama.messages import filter_pattern
from pytest_gpudiscovery.ollama.words import HINTS

SHORTEST, LONGEST = 4 << 10, 64 << 10  # bytes that are searched at once
MOST = 48  # lines with a hint that are noted of those
# Every line that says something has one of these in it.
_LETTERS = (b"{", b"\x1b", b"\\")  # it may be wrapped in JSON, or have escape sequences
_WORDS = tuple(hint.encode() for hint in HINTS)
_TEXTS = (b" msg=", b".go:", b"INFO", b"WARN", b"DEBUG", b"ERROR", *_WORDS)
_OLD = re.compile(rb"\d/\d\d/\d\d \d\d:\d\d:\d\d")  # Go's older format
_GRAM = 4
# How often letters are in logs, about; what is not here is rare.
_OFTEN = {**dict.fromkeys(b".-=(", 2), **dict.fromkeys(b"CUDA", 12), **dict.fromkeys(b"0123456789:_jkqvwxyz", 3),
          **dict.fromkeys(b"bcdfghlmpu", 6), **dict.fromkeys(b" aeinorst", 12)}  # fmt: skip
_NOT_NUL = b"\0" + b"\1" * 255


@functools.cache
def _grams() -> frozenset[bytes]:
    """Return what stands for the hints; one that is shorter stands for itself."""
    return frozenset(
        min((text[at : at + _GRAM] for at in range(max(1, len(text) - _GRAM + 1))), key=_how_often) for text in _TEXTS
    )


def _how_often(gram: bytes) -> int:
    return prod(_OFTEN.get(letter, 1) for letter in gram)


@functools.cache
def _tables() -> tuple[bytes, ...]:
    """Return, for each letter of a gram, in which of eight groups of grams it stands there: one bit each."""
    groups: list[list[bytes]] = [[] for _ in range(8)]
    for gram in sorted(_grams(), key=lambda gram: (len(gram), -_how_often(gram), gram)):
        costs = [_false([*group, gram]) - _false(group) for group in groups]
        groups[costs.index(min(costs))].append(gram)
    tables = [bytearray(256) for _ in range(_GRAM)]
    for bit, group in enumerate(groups):
        for place, table in enumerate(tables):
            for letter in _letters(group, place):
                table[letter] |= 1 << bit
    return tuple(map(bytes, tables))


def _letters(group: Iterable[bytes], place: int) -> set[int]:
    return {letter for gram in group for letter in (gram[place : place + 1] or range(256))}


def _false(group: Iterable[bytes]) -> int:
    """Return about how often the letters of GROUP stand where none of its grams is."""
    return prod(sum(_OFTEN.get(letter, 1) for letter in _letters(group, place)) for place in range(_GRAM))


def may_tell(line: bytes) -> bool:
    """Whether LINE may say something: it has a hint, and not only that it is in Ollama's format."""
    if filter_pattern().search(line) is not None or _OLD.search(line) is not None:
        return True
    return any(map(line.__contains__, _LETTERS)) or any(map(line.__contains__, _WORDS))


class Dull:
    """Says where dull lines end."""

    def __init__(self) -> None:
        self._buffer = b""
        self._begin = self._end = 0  # of what was searched last: whole lines
        self._telling: list[int] = []  # where the lines in it begin that have a hint
        self._size = SHORTEST

    def end(self, buffer: bytes, place: int, end: int) -> int:
        """Return where the dull lines of BUFFER end that begin at PLACE; END is where a line ends, or after it.

        They may go on behind that, unless it is PLACE.
        """
        if buffer is not self._buffer or not self._begin <= place < self._end or self._end > end:
            self._search(buffer, place, end)
        index = bisect_left(self._telling, place)
        return self._telling[index] if index < len(self._telling) else max(self._end, place)

    def _search(self, buffer: bytes, place: int, end: int) -> None:
        used = buffer is self._buffer and place == self._end  # all of what was searched before
        self._size = min(LONGEST, self._size * 2) if used else SHORTEST
        stop = buffer.rfind(b"\n", place, min(end, place + self._size)) + 1 or place
        piece = buffer[place:stop]
        length, telling = len(piece), set()
        for letter in (*_LETTERS, b""):
            found, until = _lines(piece, piece if letter else _marked(piece), letter)
            telling.update(found)
            length = min(length, until)
        self._telling = [place + start for start in sorted(telling) if start < length]
        self._buffer, self._begin, self._end = buffer, place, place + length


def _marked(piece: bytes) -> bytes:
    """Return 1 for each place of PIECE where a gram may be, 0 for the others; nothing where there is none."""
    places = -1
    for index, table in enumerate(_tables()):
        places &= int.from_bytes(piece.translate(table), "little") >> 8 * index
    return places.to_bytes(len(piece), "little").translate(_NOT_NUL) if places else b""


def _lines(piece: bytes, marks: bytes, letter: bytes) -> tuple[list[int], int]:
    """Return where the lines of PIECE begin that have LETTER in MARKS (empty: a mark, and a hint there).

    At most MOST of them; the second is up to where they are all.
    """
    found: list[int] = []
    grams, at = _grams(), marks.find(letter or b"\1")
    while at >= 0:
        start = stop = at
        if letter or piece[at : at + _GRAM] in grams or piece[at : at + _GRAM - 1] in grams:
            start, stop = piece.rfind(b"\n", 0, at) + 1, piece.find(b"\n", at)
            if letter or may_tell(piece[start:stop]):
                found.append(start)
            if len(found) == MOST:
                return found, stop + 1
        at = marks.find(letter or b"\1", stop + 1)
    return found, len(piece)
