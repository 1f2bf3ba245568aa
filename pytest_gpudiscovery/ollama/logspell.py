"""Spells a log: one letter stands for all lines that say the same, so that what repeats itself can be found as text is.

Which letter a line has is looked up: its template (lineshape.py) says where its times and ports are, and what is around
those says the rest. A line that says nothing has an empty letter; one that nothing is known of has none, and the
spelling ends before it. All that is kept here is bounded; what has become too much is forgotten and learnt anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import Any

from pytest_gpudiscovery.ollama import lineshape
from pytest_gpudiscovery.ollama.loghints import Dull
from pytest_gpudiscovery.ollama.messages import OPEN, Message, filter_pattern
from pytest_gpudiscovery.ollama.sessions import Server

NOTHING = ""  # the letter of a line that says nothing
LOOSE = chr(0x4400)  # of one that the reader does not find: nothing where not every line counts, else not known
LIMIT = 4000  # bytes of a line that has a letter
TEMPLATES, LETTERS = 6000, 2000  # that are known at once
TEXT = 2 << 20  # bytes of them
# Letters of a server's own lines, of its child's messages and of the child's own words begin here.
OWN, CHILD, WORD, LAST = 0x100, 0x4000, 0x4200, 0x4400

# How the lines with one template are told apart: what gives their fixed digits, the letter for those, where the time
# and the duration are, where the fixed parts are, and all the letters.
Entry = tuple[Callable[[bytes], Any], Callable[[Any], str | None], slice, slice, tuple[slice, ...], dict[Any, str]]
_NOWHERE = slice(0, 0)
_NONE: dict[Any, str] = {b"": NOTHING}
_EMPTY: Entry = (itemgetter(_NOWHERE), _NONE.get, _NOWHERE, _NOWHERE, (), _NONE)
_ANY = {b"": LOOSE}
_UNSEEN: Entry = (itemgetter(_NOWHERE), _ANY.get, _NOWHERE, _NOWHERE, (), _ANY)


@dataclass(frozen=True, eq=False)
class Letter:
    """What is known of the lines that say the same. `message` is None for a child's own words."""

    char: str
    server: Server
    carrier: str
    message: Message | None
    bound: bool  # what carries it says that it is of this server


@dataclass
class Spelling:
    """Some lines of a log. `plain` are the lines without cursors, for each of which there is a letter in `chars`."""

    place: int  # in the buffer
    number: int  # of the first line
    lines: list[bytes]
    plain: list[bytes]
    chars: list[str]
    entries: list[Entry]
    known: bool  # it did not end because nothing is known of the next line

    def after(self, count: int) -> int:
        """Return where in the buffer the first COUNT lines end."""
        return self.place + sum(map(len, self.lines[:count])) + count

    def line(self, place: int) -> tuple[bytes, int]:
        """Return the line at PLACE and its number."""
        return self.lines[place], self.number + place

    def times(self, at: Sequence[int]) -> list[bytes]:
        """Return the times of the lines AT; where one has none, that of the one before it."""
        plain, entries = self.plain, self.entries
        if len(at) == len(entries):
            found = [line[entry[2]] for line, entry in zip(plain, entries, strict=False)]
        else:
            found = [plain[place][entries[place][2]] for place in at]
        if b"" in found:
            last = next(filter(None, found), b"")
            for index, time in enumerate(found):
                found[index] = last = time or last
        return found

    def duration(self, place: int) -> bytes:
        """Return the value of duration= in the line at PLACE; empty where it has none."""
        return self.plain[place][self.entries[place][3]]


class Speller:
    """Knows letters and templates."""

    def __init__(self) -> None:
        self.dull = Dull()
        self.letters: dict[str, Letter] = {}
        self.full = False  # more was to be learnt than is kept
        self._by_key: dict[bytes, Letter] = {}
        self._table: dict[bytes, Entry] = {}
        self._text = self._size = 0  # bytes of the lines that have letters, and of templates
        self._next: dict[int, int] = {}
        self._once: set[int] = set()  # templates that stood there once

    def forget(self) -> None:
        """Forget every letter."""
        self.full = False
        if self._by_key:
            self.letters, self._by_key, self._next, self._text = {}, {}, {}, 0
            self._table = {name: entry for name, entry in self._table.items() if not entry[4]}

    # What is known.

    def opens(self, char: str) -> bool | None:
        """Whether every line counts behind one with CHAR (True), or not any more (False); None where that stays."""
        letter = self.letters.get(char)
        kind = letter.message.window if letter is not None and letter.message is not None else None
        return None if kind is None else kind == OPEN

    def nothing(self, line: bytes) -> bool:
        """Whether LINE is known to say nothing."""
        return line.startswith(b"[GIN") or self._table.get(lineshape.template(line)) is _EMPTY

    def letter(self, line: bytes) -> Letter | None:
        """Return the letter of LINE; None where it says nothing or nothing is known of it."""
        if len(line) > LIMIT:
            return None
        line = lineshape.without_cursor(line)
        char = self._char(line, line.translate(lineshape.DIGITS))
        return self.letters[char] if char and char != LOOSE else None

    def spell(self, buffer: bytes, place: int, stop: int, number: int) -> Spelling:
        """Return the lines of BUFFER from PLACE on, at most up to STOP (the end of a line), as far as they are known.

        NUMBER is that of the first.
        """
        text = buffer[place:stop]
        plain_text = lineshape.without_cursor(text)
        lines = text.split(b"\n")
        lines.pop()
        plain = lines if plain_text is text else plain_text.split(b"\n")
        templates = plain_text.translate(lineshape.DIGITS).split(b"\n")
        templates.pop()
        entries: list[Any] = list(map(self._table.get, templates))
        count = len(lines)
        if None in entries:  # first of all: it may end there
            count = self._ask(buffer, place, lines, plain, templates, entries, [entry is None for entry in entries])
            del lines[count:], entries[count:]
        chars: list[Any] = [
            NOTHING if entry is _EMPTY else entry[1](entry[0](line))
            for entry, line in zip(entries, plain, strict=False)
        ]
        if None in chars:
            count = self._ask(buffer, place, lines, plain, templates, entries, [char is None for char in chars])
            del lines[count:], entries[count:], chars[count:]
            for at in [at for at, char in enumerate(chars) if char is None]:
                chars[at] = entries[at][1](entries[at][0](plain[at]))
        return Spelling(place, number, lines, plain, chars, entries, count == len(templates))

    def _ask(
        self,
        buffer: bytes,
        place: int,
        lines: list[bytes],
        plain: list[bytes],
        templates: list[bytes],
        entries: list[Any],
        unknown: list[bool],
    ) -> int:
        """Find the entries of those LINES that are UNKNOWN; return before which line that ends."""
        starts = list(accumulate(map(len, lines), lambda start, length: start + length + 1, initial=place))
        end = starts[-1]
        dull = place
        at = -1
        for _ in range(sum(unknown)):
            at = unknown.index(True, at + 1)
            if dull < starts[at + 1]:
                dull = max(dull, self.dull.end(buffer, starts[at], end))
            line, template = lines[at], templates[at]
            if dull >= starts[at + 1] or line.startswith(b"[GIN"):
                entries[at] = self._meet(line, template, _EMPTY)
            elif len(line) > LIMIT:
                return at
            elif self._char(plain[at], template) is not None:
                entries[at] = self._table[template]
            elif filter_pattern().search(line) is None:
                entries[at] = self._meet(line, template, _UNSEEN)
            else:
                return at
        return len(lines)

    def _char(self, line: bytes, template: bytes) -> str | None:
        """Return the letter of LINE, which has no cursor, None when there is none; note that TEMPLATE has it."""
        entry = self._table.get(template)
        if entry is not None:
            char = entry[1](entry[0](line))
            if char is not None and char != LOOSE:
                return char
        elif not self._by_key:
            return None
        parts = lineshape.parts(line, template)
        letter = self._by_key.get(parts.key(line))
        return letter.char if letter is not None and self._enter(parts, line, template, letter.char) else None

    # Learning.

    def note_nothing(self, line: bytes) -> None:
        """Note that every line with the template of LINE says nothing."""
        self._put(lineshape.template(line), _EMPTY)

    def learn(
        self, line: bytes, kind: int, server: Server, carrier: str, message: Message | None, *, bound: bool
    ) -> str:
        """Return the letter of LINE, of SERVER in CARRIER, a new one of KIND where it has none.

        BOUND says whether the carrier names the server. It is empty, and `full` is set, when there is no room for more,
        or when the lines that say the same were of another server.
        """
        line = lineshape.without_cursor(line)
        template = line.translate(lineshape.DIGITS)
        parts = lineshape.parts(line, template)
        known = self._by_key.get(parts.key(line))
        if known is None:
            if len(self._by_key) >= LETTERS or self._text + len(line) > TEXT or len(line) > LIMIT:
                self.full = True
                return NOTHING
            number = self._next.get(kind, kind)
            self._next[kind] = number + 1
            if number in (CHILD, WORD, LAST) and number != kind:
                self.full = True
                return NOTHING
            known = Letter(chr(number), server, carrier, message, bound)
            self._by_key[parts.key(line)] = self.letters[known.char] = known
            self._text += len(line)
        if known.server is not server or known.carrier != carrier:
            self.full = True
            return NOTHING
        self._enter(parts, line, template, known.char)
        return known.char

    def _enter(self, parts: lineshape.Parts, line: bytes, template: bytes, char: str) -> bool:
        """Note that lines with TEMPLATE and the fixed parts of LINE have the letter CHAR; whether that can be noted."""
        entry = self._table.get(template)
        if entry is None or entry is _EMPTY or entry is _UNSEEN:
            chars: dict[Any, str] = {}
            digits = itemgetter(*_digits(line, parts.fixed))
            entry = (digits, chars.get, parts.time or _NOWHERE, parts.duration or _NOWHERE, parts.fixed, chars)
            self._put(template, entry)
        if entry[4] != parts.fixed:
            return False  # the digits of this line make other parts of it
        entry[5][entry[0](line)] = char
        return True

    def _put(self, template: bytes, entry: Entry) -> None:
        if len(self._table) >= TEMPLATES or self._size > TEXT:
            self._table, self._size = {}, 0
        self._size += len(template)
        self._table[template] = entry

    def _meet(self, line: bytes, template: bytes, entry: Entry) -> Entry:
        """Note that all lines with the TEMPLATE of LINE are what ENTRY says, if that is so and it was met before."""
        name = hash(template)
        if name in self._once:
            if template not in self._table and lineshape.says_nothing_for_others(line):
                self._put(template, entry)
        else:
            if len(self._once) >= TEMPLATES:
                self._once.clear()
            self._once.add(name)
        return entry


def _digits(line: bytes, fixed: tuple[slice, ...]) -> list[slice]:
    """Return where digits are in the FIXED parts of LINE; all else in them is the same for lines with one template."""
    found = []
    for part in fixed:
        places = [place for place in range(*part.indices(len(line))) if 48 <= line[place] < 58]
        if places:
            found.append(slice(places[0], places[-1] + 1))
    return found or [_NOWHERE]
