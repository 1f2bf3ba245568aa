"""What the lines of each server in a spelling are: refreshes that are known, and what changes nothing behind one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress, islice, pairwise
from operator import le

from pytest_gpudiscovery.ollama.episodes import SECOND, Episode, Held, may_be_two
from pytest_gpudiscovery.ollama.logknown import INSIDE, Known, Refrain
from pytest_gpudiscovery.ollama.logspell import CHILD, LOOSE, WORD, Letter, Spelling
from pytest_gpudiscovery.ollama.passes import ANOTHER_S
from pytest_gpudiscovery.ollama.refreshes import FAILED_KEPT
from pytest_gpudiscovery.ollama.sessions import Server, Servers

BETWEEN = 1000  # lines between the first and the last of a refresh
FIRST_WORD = chr(WORD)


@dataclass
class Part:
    """The lines of one server in a spelling. Places are those of `letters`."""

    server: Server
    letters: str
    at: Sequence[int]  # which lines of the spelling these are; more of them than letters when not all are known
    times: list[bytes]
    alone: bool  # no other server is in it
    head: int = 0  # up to where it is the rest of a refresh of which the beginning was read
    end: int = 0  # up to where all is known
    # The refreshes: what they are like, where they begin and end, their least and greatest times.
    episodes: list[Episode] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    stops: list[int] = field(default_factory=list)
    firsts: list[bytes] = field(default_factory=list)
    lasts: list[bytes] = field(default_factory=list)
    # A child's own words behind a refresh, where not every line counts, and where every line does and they may be kept.
    mute: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    def before(self, line: int) -> int:
        """Return how many of the lines of this server are before LINE."""
        return bisect_left(self.at, line)

    def whole(self, line: int) -> int:
        """Return how many refreshes end before LINE."""
        return bisect_right(self.stops, self.before(line))

    def tail(self, line: int) -> int:
        """Return where the refresh begins that goes on at LINE; how many lines are before LINE when there is none."""
        next_one, count = self.whole(line), self.before(line)
        if count < self.head:
            return 0
        return min(count, self.starts[next_one]) if next_one < len(self.starts) else count

    def uncut(self, line: int) -> int:
        """Return LINE, or the line where the refresh begins that goes on there."""
        tail = self.tail(line)
        return self.at[tail] if tail < self.before(line) else line

    def add(self, episode: Episode, begin: int, end: int) -> bool:
        """Add the refresh from BEGIN to END, which is like EPISODE; return whether it was short enough."""
        times = self.times[begin:end]
        first, last = times[0], times[-1]
        if not all(map(le, times, islice(times, 1, None))):
            first, last = min(times), max(times)
        if first[:SECOND] != last[:SECOND] and may_be_two(first, last):
            return False
        if self.at[end - 1] - self.at[begin] > BETWEEN:
            return False
        self.episodes.append(episode)
        self.starts.append(begin)
        self.stops.append(end)
        self.firsts.append(first)
        self.lasts.append(last)
        self.end = end
        return True

    def add_run(self, episode: Episode, begin: int, end: int) -> bool:
        """Add the refreshes from BEGIN to END, likewise, which have nothing but the server's own lines."""
        length = len(episode.spelling)
        starts, stops = range(begin, end, length), range(begin + length, end + 1, length)
        columns = [self.times[begin + index : end : length] for index in range(length)]
        firsts, lasts = columns[0], columns[-1]
        if not all(all(map(le, one, other)) for one, other in pairwise(columns)):
            firsts, lasts = list(map(min, *columns)), list(map(max, *columns))
        long = self.at[end - 1] - self.at[begin] > BETWEEN
        count = len(starts)
        for index, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
            if first[:SECOND] != last[:SECOND] and may_be_two(first, last):
                count = index
                break
            if long and self.at[stops[index] - 1] - self.at[starts[index]] > BETWEEN:
                count = index
                break
        self.episodes += [episode] * count
        self.starts += starts[:count]
        self.stops += stops[:count]
        self.firsts += firsts[:count]
        self.lasts += lasts[:count]
        self.end = stops[count - 1] if count else self.end
        return count == len(starts)


class Parts:
    """Takes spellings apart by what is KNOWN of SERVERS; HELD are the refreshes held back, by the server's number."""

    def __init__(self, known: Known, servers: Servers, held: dict[int, Held]) -> None:
        self._known, self._servers, self._held = known, servers, held
        self._failed: set[int] = set()  # servers that have had as many failed refreshes as are kept

    def of(self, text: Spelling, window: int) -> tuple[list[Part], int]:
        """Return the parts of TEXT, and before which line they end: WINDOW lines of it all count."""
        letters, chars = self._known.speller.letters, text.chars
        spelled = "".join(chars)
        present = {char: letters[char] for char in set(spelled) if char != LOOSE}
        servers = {letter.server.number: letter.server for letter in present.values()}
        if len(servers) == 1:
            at: Sequence[int] = range(len(chars))
            if len(spelled) < len(chars):
                at = [place for place, char in enumerate(chars) if char]
            (server,) = servers.values()
            theirs = self._is_loose(spelled[0]) and not self._servers.is_beside(server)
            if theirs or not self._is_alike(server, present.values()):
                spelled = ""
            part = Part(server, spelled, at, text.times(at), alone=True)
            self._parse(part, window)
            return [part], len(chars)
        known = len(chars)
        if max(spelled, default="") >= FIRST_WORD:
            known = self._mute_late_words(text, present, window)
        parts = []
        for server in servers.values():
            own = {char for char, letter in present.items() if letter.server is server}
            is_mine = list(map(own.__contains__, chars[:known]))
            mine = list(compress(range(known), is_mine))
            spelled = "".join(compress(chars, is_mine))
            if not self._is_alike(server, [present[char] for char in own]):
                spelled = ""
            elif any(map(self._is_loose, own)):  # the line before it may be of another server
                loose = (index for index, char in enumerate(spelled) if self._is_loose(char))
                spelled = spelled[: next(loose, len(spelled))]
            if mine:
                parts.append(Part(server, spelled, mine, text.times(mine), alone=False))
                self._parse(parts[-1], window)
        return parts, known

    def _is_alike(self, server: Server, letters: Iterable[Letter]) -> bool:
        """Whether LETTERS of SERVER, and what is held back of it, are all in one carrier."""
        carriers = {letter.carrier for letter in letters}
        held = self._held.get(server.number)
        return len(carriers | ({held.episode.carrier} if held is not None else set())) == 1

    def _is_loose(self, char: str) -> bool:
        """Whether CHAR is of a child of which only the line before tells whose it is."""
        return ord(char) >= CHILD and not self._known.speller.letters[char].bound

    def _parse(self, part: Part, window: int) -> None:
        """Find the refreshes of PART, up to where all is known."""
        refrain = self._known.refrains.get(part.server.number)
        if refrain is None:
            return
        held = part.server.number in self._held
        if not part.server.builder.idle:
            ends = (place for place, char in enumerate(part.letters) if char in self._known.ends)
            part.head = 0 if part.alone else next(ends, -1) + 1
            if not part.head:
                self._parse_unfinished(part, refrain, window)
                return
            late = refrain.late.match(part.letters, part.head)  # of that refresh, which nobody holds back
            part.head = late.end() if late is not None else part.head
            held, part.end = False, part.head
        match = refrain.pattern.match
        while (found := match(part.letters, part.end)) is not None:
            which = found.lastindex or 2
            begin, end = found.span(which)
            if begin > part.end and not (held and self._is_late(part, begin, window)):
                return
            part.end = begin
            episode, is_run = refrain.order[which - 2]
            add = part.add_run if is_run else part.add
            if not self._holds(episode) or not add(episode, begin, end):
                return
            held = True
        late = refrain.late.match(part.letters, part.end)
        if held and late is not None and self._is_late(part, late.end(), window):
            part.end = late.end()

    def _parse_unfinished(self, part: Part, refrain: Refrain, window: int) -> None:
        """Find the starts of children in PART, each of which ends the refresh before it and begins another."""
        open_one, held = part.server.builder.unfinished, self._held.get(part.server.number)
        if open_one is None or window > 0:
            return
        known = held is not None
        before = held.episode.time(held.first) if held is not None else open_one.started
        while (found := refrain.starts.match(part.letters, part.end)) is not None:
            begin, end = found.span(2)
            if begin > part.end and not (known and self._is_late(part, begin, window)):
                return
            part.end = begin
            episode = refrain.unfinished[found[2]]
            now = episode.time(part.times[begin])
            if now is None or before is None or now - before <= ANOTHER_S:
                return
            part.add(episode, begin, end)
            before, known = now, True
        late = INSIDE.match(part.letters, part.end)
        if known and late is not None and self._is_late(part, late.end(), window):
            part.end = late.end()

    @staticmethod
    def _is_late(part: Part, end: int, window: int) -> bool:
        """Whether the letters of PART up to END, behind a refresh, change nothing of any; note a child's own words."""
        words = [place for place in range(part.end, end) if part.letters[place] >= FIRST_WORD]
        builder = part.server.builder
        if words and (not part.end and window > 0 if part.alone else not (builder.idle or part.head)):
            return False  # every line counts; of several servers, where a refresh of this one is going on
        if part.alone:
            part.mute += words
        elif builder.keeps_words:
            part.words += words
        return True

    def _mute_late_words(self, text: Spelling, present: Iterable[str], counts: int) -> int:
        """Take a child's own words out of TEXT where not every line counts, as the first COUNTS do.

        PRESENT are its letters. Return up to where all is known.
        """
        chars, length, opens = text.chars, len(text.chars), self._known.speller.opens
        opening = {char: opens(char) for char in present if char < FIRST_WORD}
        opening = {char: kind for char, kind in opening.items() if kind is not None}
        matter = {*opening, *(char for char in present if char >= FIRST_WORD), LOOSE}
        for place in compress(range(length), list(map(matter.__contains__, chars))):
            char = chars[place]
            if char in opening:
                counts = length if opening[char] else 0
            elif place >= counts:
                chars[place] = ""
            elif char == LOOSE:
                return place
        return length

    def _holds(self, episode: Episode) -> bool:
        """Whether EPISODE would now do what it did."""
        server = episode.server
        if not episode.failed or server.number in self._failed:
            return True
        if sum(entry.failed_refresh for entry in server.builder.discoveries) < FAILED_KEPT:
            return False
        self._failed.add(server.number)
        return True
