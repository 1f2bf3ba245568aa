"""Leaves out of a log what says the same as before: refreshes by the million, lines that say nothing, lines in a run.

What a server's lines do to what is known of it depends on their text and on the state it is in. So when the lines of a
whole refresh are like those of an earlier one in everything but times, ports and sizes (lineshape.py), nothing else
was going on, and that earlier one left the servers as they were, then this one does too: it is counted, and its lines
are not parsed. Of several in a row the last is held back and read in full once anything comes that may be about it.
A refresh in which a line is missing, added or different is read in full, always.

What is known of the lines is learnt in logknown.py from those that are read in full; runs of one line are logrun.py's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from pytest_gpudiscovery.ollama import lineshape
from pytest_gpudiscovery.ollama.episodes import LONGEST_S, Episode, Given, Held, Tally, reduced
from pytest_gpudiscovery.ollama.gotime import stamp
from pytest_gpudiscovery.ollama.logknown import LINES, SHORT, Known
from pytest_gpudiscovery.ollama.logline import LogLine
from pytest_gpudiscovery.ollama.logread import Reader
from pytest_gpudiscovery.ollama.logrun import Runs
from pytest_gpudiscovery.ollama.messages import CHILD, Message
from pytest_gpudiscovery.ollama.refreshes import FAILED_KEPT
from pytest_gpudiscovery.ollama.sessions import Server, Servers
from pytest_gpudiscovery.ollama.words import Word

BETWEEN = 1000  # lines that say nothing inside a refresh
MINUTE = len("2026-02-25T08:54")
_is_milliseconds = re.compile(rb"\d{1,9}(?:\.\d{1,12})?ms").fullmatch


class Repeats:
    """Decides for READER what is left out. READ_IN_FULL takes lines that were held back, with their number."""

    def __init__(
        self, reader: Reader, servers: Servers, carriers: Counter[str], read_in_full: Callable[[bytes, int], None]
    ) -> None:
        self._reader, self._servers, self._read = reader, servers, read_in_full
        self._tally = Tally(carriers)
        self._known = Known(servers)
        self._runs = Runs(reader, servers, self._tally, read_in_full)
        self._held: dict[int, Held] = {}  # by the number of the server
        self._failed: set[int] = set()  # servers that have had as many failed refreshes as are kept

    # What the reader asks.

    def skip(self, buffer: bytes, start: int, end: int) -> int:
        """Return where, at START or after it, the next line begins that must be read in full."""
        reader, known, place = self._reader, self._known, start
        if reader.window > 0:
            place = self._skip_nothing(buffer, start, end)
            if place > start:
                return place
        place = self._runs.skip(buffer, start, end)
        if place > start:
            return place
        while known.recent and known.root.after(buffer, place, end)[0] is not None:
            before = place
            for episode in known.recent:
                place = self._skip_alike(episode, buffer, place, end)
                if place > before:
                    known.prefer(episode)
                    break
            if place == before:
                place = self._skip_one(buffer, place, end)
            if place == before:
                break
            reader.window = 0
        if place == start and self._held:
            place = self._skip_quiet(buffer, start, end)
        return place

    def _skip_quiet(self, buffer: bytes, place: int, end: int) -> int:
        """Return where the line ends that begins at PLACE, when it changes nothing behind a refresh that is held."""
        stop = buffer.find(b"\n", place, end)
        if stop < 0 or stop - place > SHORT:
            return place
        known = self._known.quiet(buffer, place, stop)
        held = self._held.get(known[0].server.number) if known else None
        if held is None or len(held.late) >= LINES or held.episode.server.builder.idle is False:
            return place
        held.late.append((buffer[place:stop], self._reader.number(place)))
        self._servers.stands_beside(held.episode.server)
        self._reader.window -= 1
        self._runs.interrupt()
        return stop + 1

    def _skip_nothing(self, buffer: bytes, place: int, end: int) -> int:
        """Return where the lines end that say nothing, from PLACE on, where every line counts."""
        window, known = self._reader.window, self._known.nothing
        while window > 0:
            stop = buffer.find(b"\n", place, end)
            if stop < 0 or stop - place > SHORT:
                break
            line = buffer[place:stop]
            if line.startswith(b"[GIN") or lineshape.template(line) in known:
                place, window = stop + 1, window - 1
                continue
            dull = lineshape.dull(buffer, place, end)
            count = buffer.count(b"\n", place, dull)
            if not count:
                break
            if count > window:
                dull, count = stop + 1, 1
            place, window = dull, window - count
        self._reader.window = window
        return place

    def _skip_alike(self, episode: Episode, buffer: bytes, place: int, end: int) -> int:
        """Return where the refreshes end that begin at PLACE and are like EPISODE, with nothing between their lines."""
        match = episode.whole.match
        found = match(buffer, place, end)
        if found is None or not self._holds(episode):
            return place
        starts, given = [place], []
        while found is not None:
            given.append(found.groups())
            place = found.end()
            starts.append(place)
            found = match(buffer, place, end)
        short = reduced(given)
        count = len(short)
        if count:
            self._hold(episode, episode.lines + episode.inside, buffer, starts[:count], starts[count], short)
        return starts[count]

    def _skip_one(self, buffer: bytes, start: int, end: int) -> int:
        """Return where the refresh ends that begins at START, when it is like one that is known."""
        root = self._known.root
        node, place, between, quiet = root, start, 0, 0
        times: list[bytes] = []
        servers: set[tuple[int, str]] = set()  # of the lines that changed nothing
        while node.episode is None:
            if place >= end:
                return start
            child, found = node.after(buffer, place, end) if buffer[place] in node.firsts else (None, None)
            if child is not None and found is not None:
                times += [found["time"]] if child.has_time else []
                place, node = found.end(), child
                continue
            stop = buffer.find(b"\n", place, end)
            if node is root or stop < 0 or stop - place > SHORT or between >= BETWEEN:
                return start
            if not self._known.says_nothing(buffer[place:stop]):
                known = self._known.quiet(buffer, place, stop)
                if known is None or not known[0].inside:
                    return start
                line, found = known
                quiet += 1
                servers.add((line.server.number, line.carrier))
                times += [found["time"]] if line.has_time else []
            place, between = stop + 1, between + 1
        episode = node.episode
        if found is None or not self._holds(episode) or not servers <= {(episode.server.number, episode.carrier)}:
            return start
        first, last = min(times), max(times)
        if first[:MINUTE] == last[:MINUTE]:
            spent = float(last[MINUTE + 1 :]) - float(first[MINUTE + 1 :])
        else:
            spent = (stamp(last.decode())[0] or 0.0) - (stamp(first.decode())[0] or 0.0)
        if spent > LONGEST_S:
            return start
        took = found["duration"]
        short = took[:-2] if _is_milliseconds(took) else None
        self._hold(episode, episode.lines + quiet, buffer, [start], place, [(first, last, took, short)])
        self._known.learn_whole(episode, buffer[start : place - 1], quiet)
        return place

    def _holds(self, episode: Episode) -> bool:
        """Whether EPISODE would now do what it did."""
        server = episode.server
        if episode.token != self._servers.token() or not server.builder.idle:
            return False
        if not episode.failed:
            return True
        if server.number not in self._failed:
            if sum(entry.failed_refresh for entry in server.builder.discoveries) < FAILED_KEPT:
                return False
            self._failed.add(server.number)
        return True

    def _hold(
        self, episode: Episode, lines: int, buffer: bytes, starts: list[int], end: int, given: list[Given]
    ) -> None:
        """Leave out those like EPISODE that begin at STARTS, of LINES each; GIVEN is what counts of them.

        All are counted but for the last, which ends at END.
        """
        server = episode.server
        self._known.break_off()
        self._runs.end()
        before = self._held.get(server.number)
        if before is not None:
            self._tally.count(before.episode, before.lines, [before.given], lambda _: before.number)
            if before.late:
                self._count_late(before)
        if len(starts) > 1:
            self._tally.count(episode, lines, given[:-1], lambda index: self._reader.number(starts[index]))
        number = self._reader.number(starts[-1])
        self._held[server.number] = Held(episode, buffer[starts[-1] : end], number, given[-1], lines)
        self._servers.stands_beside(server)

    def _count_late(self, held: Held) -> None:
        self._tally.add_lines(held.episode.server, held.episode.carrier, len(held.late))
        for line, _ in held.late:
            known = self._known.quiet(line + b"\n", 0, len(line))
            if known is not None and known[0].has_time:
                self._tally.span(held.episode, known[1]["time"], known[1]["time"])

    # What is read in full.

    def nothing(self, line: bytes) -> None:
        """Note that LINE says nothing."""
        if lineshape.says_nothing_for_others(line):
            self._known.note_nothing(line)

    def before(self, line: LogLine, message: Message | None) -> None:
        """Say that LINE, which is MESSAGE or a child's own word, is about to be taken."""
        self._runs.read_held()
        if self._held and message is not None:
            late = message.role == CHILD and all(held.ended_before(line.time) for held in self._held.values())
            if not late:
                self.read_held()
        self._known.before(message)

    def after(self, raw: bytes, line: LogLine, message: Message | None, word: Word | None, server: Server) -> None:
        """Say that LINE was taken: it is of SERVER."""
        self._known.after(raw, line, message, server)
        self._runs.note(raw, line, message, word, server)

    def read_held(self) -> None:
        """Read in full what was held back."""
        held, self._held = sorted(self._held.values(), key=lambda entry: entry.number), {}
        for entry in held:
            for index, line in enumerate(entry.text.split(b"\n")):
                self._read(line, entry.number + index)
            for line, number in entry.late:
                self._read(line, number)

    def finish(self) -> None:
        """Say that the log has ended."""
        self._runs.read_held()
        self.read_held()
        self._tally.note_times()
