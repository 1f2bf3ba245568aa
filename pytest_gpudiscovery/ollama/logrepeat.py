"""Leaves out of a log what says the same as before: refreshes by the million, lines that say nothing, lines in a run.

What a server's lines do to what is known of it depends on their text and on the state it is in. So when the lines of a
whole refresh are like those of an earlier one in everything but times, ports and sizes (lineshape.py), nothing else
was going on, and that earlier one left the servers as they were, then this one does too: it is counted, and its lines
are not parsed. Of several in a row the last is held back and read in full once anything comes that may be about it.
A refresh in which a line is missing, added or different is read in full, always.

What is known of the lines is learnt in logknown.py from those that are read in full; runs of one line are logrun.py's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from operator import itemgetter

from pytest_gpudiscovery.ollama import lineshape
from pytest_gpudiscovery.ollama.episodes import LINES, Held, Tally
from pytest_gpudiscovery.ollama.logknown import Known
from pytest_gpudiscovery.ollama.logline import LogLine
from pytest_gpudiscovery.ollama.logparts import BETWEEN, Part, Parts
from pytest_gpudiscovery.ollama.logread import DISCOVERING, WAIT, Reader
from pytest_gpudiscovery.ollama.logrun import Runs
from pytest_gpudiscovery.ollama.logspell import LIMIT, LOOSE, Spelling
from pytest_gpudiscovery.ollama.messages import Message
from pytest_gpudiscovery.ollama.sessions import Server, Servers
from pytest_gpudiscovery.ollama.words import Word

WAITING = 64 << 10  # bytes that are looked at again when more lines have come
SHORTEST, LONGEST = 4 << 10, 512 << 10  # bytes that are spelled at once


class Repeats:
    """Decides for READER what is left out. READ_IN_FULL takes lines that were held back, with their number."""

    def __init__(
        self, reader: Reader, servers: Servers, carriers: Counter[str], read_in_full: Callable[[bytes, int], None]
    ) -> None:
        self._reader, self._servers, self._read = reader, servers, read_in_full
        self._tally = Tally(carriers)
        self._known = Known(servers)
        self._speller = self._known.speller
        self._runs = Runs(reader, servers, self._tally, read_in_full)
        self._held: dict[int, Held] = {}  # by the number of the server
        self._parts = Parts(self._known, servers, self._held)
        self._size = SHORTEST  # bytes that are spelled next
        self._waits: tuple[bytes, int] | None = None  # a buffer, and where the lines begin in it that wait for more
        self._partial = False  # what was spelled last ends in the middle of something

    # What the reader asks.

    def skip(self, buffer: bytes, start: int, end: int) -> int:
        """Return where, at START or after it, the next line begins that must be read in full; or WAIT."""
        waits, self._waits = self._waits, None
        if waits is not None and waits[0] is buffer and waits[1] == start:
            return WAIT
        if self._reader.window > 0:
            place = self._skip_nothing(buffer, start, end)
            if place > start:
                return place
        place = self._runs.skip(buffer, start, end)
        if place > start or not self._known.begins:
            return place
        while True:
            before = place
            place = self._skip_alike(buffer, place, end)
            if place == WAIT and before > start:
                self._waits = buffer, before
                return before
            if place in (before, WAIT):
                return place

    def _skip_nothing(self, buffer: bytes, place: int, end: int) -> int:
        """Return where the lines end that say nothing, from PLACE on, where every line counts."""
        window, speller = self._reader.window, self._speller
        while window > 0:
            stop = buffer.find(b"\n", place, end)
            if stop < 0:
                break
            dull = speller.dull.end(buffer, place, end)
            if dull == place:
                if stop - place > LIMIT or not speller.nothing(buffer[place:stop]):
                    break
                dull = stop + 1
            count = buffer.count(b"\n", place, dull)
            if count > window:
                dull, count = stop + 1, 1
            place, window = dull, window - count
        self._reader.window = window
        return place

    def _skip_alike(self, buffer: bytes, place: int, end: int) -> int:
        """Return where the lines end, from PLACE on, that are refreshes as known, or change nothing; or WAIT."""
        stop = buffer.find(b"\n", place, end)
        letter = self._speller.letter(buffer[place:stop]) if stop > 0 else None
        if letter is None or not (letter.char in self._known.begins or letter.server.number in self._held):
            return place
        if self._known.refresh():
            return place
        number = self._reader.number(place)
        while True:
            stop = buffer.rfind(b"\n", place, min(end, place + self._size)) + 1
            text = self._speller.spell(buffer, place, stop, number) if stop > place else None
            self._partial = True
            waits = stop == end and end - place < WAITING and self._reader.may_wait
            grows = stop < end and self._size < LONGEST
            taken = self._take(text, cut=not (text.known and (waits or grows))) if text is not None else 0
            more = text is None or (text.known and self._partial and stop < end)
            if taken and text is not None:
                place = text.after(taken)
                self._reader.passed(taken, place)
                if stop < end or not text.known:
                    self._size = min(LONGEST, 2 * self._size) if more else max(SHORTEST, (place - text.place) // 2)
                return place
            if text is not None and text.known and self._partial and waits:
                return WAIT
            if not more or self._size >= LONGEST:
                self._size = SHORTEST
                return place
            self._size *= 2

    def _take(self, text: Spelling, *, cut: bool) -> int:
        """Leave out lines of TEXT, from the first on; return how many. CUT says that there will not be more of it."""
        parts, end = self._parts.of(text, self._reader.window)
        if end < len(text.chars):  # more lines would not tell what that one is
            cut, self._partial = True, False
        unknown = [part for part in parts if part.end < len(part.at) and part.at[part.end] < end]
        if unknown:
            first = min(unknown, key=lambda part: part.at[part.end])
            end = first.at[first.end]
            over = any(char in self._known.ends or char == LOOSE for char in first.letters[first.end :])
            self._partial = first.server.builder.idle and not over and len(text.chars) - end <= BETWEEN
        limit, before = end, -1
        while end != before:  # no refresh may be cut in two
            before = end
            for part in parts:
                end = part.uncut(end)
        if not end and any(part.starts for part in parts):
            if not cut:
                self._partial = True
                return 0
            end = limit  # of several servers one is in the middle of a refresh, always: those are read in full
        taken = [part for part in parts if part.at[0] < end]
        refreshes = sum(part.whole(end) for part in taken)
        for part in taken:
            held = self._held.get(part.server.number)
            if not part.whole(end) and held is not None and len(held.late) + part.before(end) > LINES:
                self._partial = False
                return 0
        if refreshes or any(part.head or part.tail(end) < part.before(end) for part in taken):
            self._runs.end()
        elif taken:
            self._runs.interrupt()
        for part in taken:
            self._leave_out(text, part, end)
        if not taken:
            return 0
        self._reader.window = self._window(text, end)
        self._servers.stands_beside(max(taken, key=lambda part: part.at[part.before(end) - 1]).server)
        return end

    def _window(self, text: Spelling, end: int) -> int:
        """Return how many lines count behind those of TEXT before END."""
        for at in range(end - 1, -1, -1):
            opens = self._speller.opens(text.chars[at]) if text.chars[at] else None
            if opens is not None:
                return DISCOVERING - (end - at - 1) if opens else 0
        return self._reader.window - end

    def _leave_out(self, text: Spelling, part: Part, end: int) -> None:
        """Leave out the lines of PART of TEXT before END; what is not of whole refreshes there is read in full."""
        number, count, tail, mute = part.server.number, part.whole(end), part.tail(end), set(part.mute)
        lines = [text.line(part.at[index]) for index in range(min(part.head, part.before(end)))]
        if lines:
            self._read_held(self._held.pop(number, None))
        for line in lines:
            self._read(*line)
        if count:
            self._hold(text, part, count)
        place = part.stops[count - 1] if count else len(lines)
        held = self._held.get(number)
        if held is not None:
            late = [index for index in range(place, tail) if index not in mute]
            held.late += [text.line(part.at[index]) for index in late]
            held.words += [text.line(part.at[index]) for index in part.words if place <= index < tail]
            held.late_times += [part.times[index] for index in late if part.times[index]]
        rest = range(max(tail, len(lines)), part.before(end))
        if lines or rest:
            self._known.break_off(part.server)
        if rest:
            self._read_held(self._held.pop(number, None))
            for index in rest:
                self._read(*text.line(part.at[index]))

    def _hold(self, text: Spelling, part: Part, count: int) -> None:
        """Leave out the first COUNT refreshes of PART of TEXT: all are counted but for the last, which is held back."""
        tally, server, before = self._tally, part.server, self._held.get(part.server.number)
        self._known.break_off(server)
        start, stop, last = part.starts[count - 1], part.stops[count - 1], part.episodes[count - 1]
        if before is not None:
            self._count_held(before)
        if start > part.head:
            words = part.words[: bisect_left(part.words, start)]
            for place in words:
                self._read(*text.line(part.at[place]))
            left_out = start - part.head - bisect_left(part.mute, start) - len(words)
            tally.add_lines(server, last.carrier, left_out)
            tally.span(last, min(part.times[part.head : start]), max(part.times[part.head : start]))
        took = [text.duration(part.at[place - 1]) for place in part.stops[:count]]
        episodes = part.episodes[: count - 1]
        for episode in dict.fromkeys(episodes):
            those: Sequence[int] = range(count - 1)
            if episodes.count(episode) < count - 1:
                those = [index for index in those if episodes[index] is episode]
            tally.count(
                episode,
                [took[index] for index in those],
                lambda index, those=those: part.firsts[those[index]],  # type: ignore[misc]
                lambda index, those=those: text.number + part.at[part.starts[those[index]]],  # type: ignore[misc]
            )
        lines = [text.line(at) for at in part.at[start:stop]]
        self._held[server.number] = Held(last, lines, part.firsts[count - 1], part.lasts[count - 1], took[-1])

    def _count_held(self, held: Held) -> None:
        episode, times = held.episode, (held.first, held.last, *held.late_times)
        self._tally.count(episode, [held.took], lambda _: held.first, lambda _: held.lines[0][1])
        for line in held.words:
            self._read(*line)
        left_out = len(held.lines) + len(held.late) - len(held.words)
        self._tally.add_lines(episode.server, episode.carrier, left_out)
        self._tally.span(episode, min(times), max(times))

    # What is read in full.

    def nothing(self, line: bytes) -> None:
        """Note that LINE says nothing."""
        if lineshape.says_nothing_for_others(line):
            self._speller.note_nothing(line)

    def before(self, message: Message | None) -> None:
        """Say that a line, which is MESSAGE or a child's own word, is about to be taken."""
        self._runs.read_held()
        self.read_held()
        self._known.before(message)

    def after(self, raw: bytes, line: LogLine, message: Message | None, word: Word | None, server: Server) -> None:
        """Say that LINE was taken: it is of SERVER."""
        self._known.after(raw, line, message, server)
        self._runs.note(raw, line, message, word, server)

    def read_held(self) -> None:
        """Read in full what was held back."""
        held = list(self._held.values())
        self._held.clear()
        self._read_held(*held)

    def _read_held(self, *held: Held | None) -> None:
        lines = [line for entry in held if entry is not None for line in (*entry.lines, *entry.late)]
        for line, number in sorted(lines, key=itemgetter(1)):
            self._read(line, number)

    def finish(self) -> None:
        """Say that the log has ended."""
        self._runs.read_held()
        self.read_held()
        self._tally.note_times()
