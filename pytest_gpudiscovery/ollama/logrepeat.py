"""Leaves out of a log what says the same as before: refreshes by the million, a line that stands there again and again.

What a server's lines do to what is known of it depends on their text and on the state it is in. So when the lines of a
whole refresh are like those of an earlier one in everything but times, ports and sizes (lineshape.py), nothing else
was going on, and that earlier one left the servers as they were, then this one does too: it is counted, and its lines
are not parsed. Of several in a row the last is held back and read in full once anything comes that may be about it.
A refresh in which a line is missing, added or different is read in full, always.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from pytest_gpudiscovery.ollama import attempts as records
from pytest_gpudiscovery.ollama import lineshape
from pytest_gpudiscovery.ollama.children import ALL_ATTEMPTS
from pytest_gpudiscovery.ollama.episodes import (
    LONGEST_S,
    Episode,
    Given,
    Held,
    Node,
    Quiet,
    Recording,
    Run,
    Tally,
    reduced,
)
from pytest_gpudiscovery.ollama.gotime import stamp
from pytest_gpudiscovery.ollama.logline import LogLine
from pytest_gpudiscovery.ollama.logread import Reader
from pytest_gpudiscovery.ollama.messages import CHILD, Message
from pytest_gpudiscovery.ollama.refreshes import FAILED_KEPT, KIND
from pytest_gpudiscovery.ollama.sessions import Server, Servers
from pytest_gpudiscovery.ollama.words import Word

BEGIN, END, ENVIRONMENT = "refresh", "took.refresh", "runner.env"  # ids of messages.json
QUIET = 1000  # lines that are known to change nothing
LINES, TEXT = 300, 64 << 10  # lines and bytes of a refresh that is learnt
LEARNT = 512 << 10  # bytes of lines that are learnt, of all
RELEARN = 8  # how often all of that is forgotten to learn anew
SEEN = 4096  # shapes that were seen once; templates of lines that say nothing
BETWEEN = 1000  # lines that say nothing inside a refresh
RECENT = 12  # refreshes that are looked for first
MINUTE = len("2026-02-25T08:54")
SHORT = lineshape.TEMPLATE_LIMIT
_is_milliseconds = re.compile(rb"\d{1,9}(?:\.\d{1,12})?ms").fullmatch
EPISODES = 64  # that are known
TRIED = 400  # refreshes of which it is tried to learn what stands between their lines
RUN, SETTLED = ALL_ATTEMPTS + 500, 64  # equal lines, one after the other: all that is bounded is full by then


class Repeats:
    """Decides for READER what is left out. READ_IN_FULL takes lines that were held back, with their number."""

    def __init__(
        self, reader: Reader, servers: Servers, carriers: Counter[str], read_in_full: Callable[[bytes, int], None]
    ) -> None:
        self._reader, self._servers, self._read = reader, servers, read_in_full
        self._tally = Tally(carriers)
        self._nothing: set[bytes] = set()  # templates of lines that say nothing
        self._root, self._learnt, self._forgotten = Node(), 0, 0
        self._seen: set[int] = set()
        self._episodes: list[Episode] = []
        self._recent: list[Episode] = []  # those that came last
        self._held: dict[int, Held] = {}  # by the number of the server
        self._recording: Recording | None = None
        self._before: object = None
        self._before_quiet: object = None
        self._quiet: dict[bytes, list[Quiet]] = {}  # by template
        self._quiet_count = self._tried = 0
        self._failed: set[int] = set()  # servers that have had as many failed refreshes as are kept
        self._token: object = None  # None: not known
        self._run = Run()

    # What the reader asks.

    def skip(self, buffer: bytes, start: int, end: int) -> int:
        """Return where, at START or after it, the next line begins that must be read in full."""
        reader, place = self._reader, start
        if reader.window > 0:
            place = self._skip_nothing(buffer, start, end)
            if place > start:
                return place
        if self._run.pattern is not None:
            place = self._skip_run(buffer, start, end)
            if place > start:
                return place
        while self._recent and self._root.after(buffer, place, end)[0] is not None:
            before = place
            for index, episode in enumerate(self._recent):
                place = self._skip_alike(episode, buffer, place, end)
                if place > before:
                    if index:
                        self._recent.insert(0, self._recent.pop(index))
                    break
            if place == before:
                place = self._skip_one(buffer, place, end)
            if place == before:
                break
            reader.window = 0
        if place == start and self._held and self._quiet:
            place = self._skip_quiet(buffer, start, end)
        return place

    def _known_quiet(self, buffer: bytes, place: int, stop: int) -> tuple[Quiet, re.Match[bytes]] | None:
        """Return which line that changes nothing is the one at PLACE, which ends at STOP."""
        for quiet in self._quiet.get(lineshape.template(buffer[place:stop]), ()):
            found = quiet.pattern.match(buffer, place, stop + 1)
            if found is not None:
                if self._token is None:
                    self._token = self._servers.token()
                return (quiet, found) if quiet.token == self._token else None
        return None

    def _skip_quiet(self, buffer: bytes, place: int, end: int) -> int:
        """Return where the line ends that begins at PLACE, when it changes nothing behind a refresh that is held."""
        stop = buffer.find(b"\n", place, end)
        if stop < 0 or stop - place > SHORT:
            return place
        known = self._known_quiet(buffer, place, stop)
        held = self._held.get(known[0].server.number) if known else None
        if held is None or len(held.late) >= LINES or held.episode.server.builder.idle is False:
            return place
        held.late.append((buffer[place:stop], self._reader.number(place)))
        self._servers.stands_beside(held.episode.server)
        self._reader.window -= 1
        self._run = Run() if self._run.held is None else self._run
        return stop + 1

    def _skip_nothing(self, buffer: bytes, place: int, end: int) -> int:
        window, known = self._reader.window, self._nothing
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
        node, place, between, quiet = self._root, start, 0, 0
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
            if node is self._root or stop < 0 or stop - place > SHORT or between >= BETWEEN:
                return start
            if not self._says_nothing(buffer[place:stop]):
                known = self._known_quiet(buffer, place, stop)
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
        if place - start < TEXT and self._tried < TRIED:
            self._learn_whole(episode, buffer[start : place - 1].split(b"\n"), quiet)
        return place

    def _learn_whole(self, episode: Episode, lines: list[bytes], quiet: int) -> None:
        """Learn a refresh like EPISODE with all that stands between its LINES, QUIET of them of its children."""
        self._tried += 1
        shape = hash(tuple(map(lineshape.key, lines)))
        if shape in self._seen:
            self._add_episode(replace(episode, whole=lineshape.whole(lines), inside=quiet))
        else:
            self._remember(shape)

    def _says_nothing(self, line: bytes) -> bool:
        if line.startswith(b"[GIN") or lineshape.template(line) in self._nothing:
            return True
        if lineshape.dull(line + b"\n", 0, len(line) + 1) <= len(line):
            return False
        self._note_nothing(line)
        return True

    def _note_nothing(self, line: bytes) -> None:
        if len(self._nothing) >= SEEN:
            self._nothing.clear()
        self._nothing.add(lineshape.template(line))

    def _holds(self, episode: Episode) -> bool:
        """Whether EPISODE would now do what it did."""
        if self._token is None:
            self._token = self._servers.token()
        server = episode.server
        if episode.token != self._token or not server.builder.idle:
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
        self._recording = None
        if self._run.held is not None:
            self._read_run()
        self._run = Run()
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
        self._tally.add_lines(held.episode, len(held.late))
        for line, _ in held.late:
            known = self._known_quiet(line + b"\n", 0, len(line))
            if known is not None and known[0].has_time:
                self._tally.span(held.episode, known[1]["time"], known[1]["time"])

    def _skip_run(self, buffer: bytes, place: int, end: int) -> int:
        run, window = self._run, self._reader.window
        assert run.pattern is not None
        assert run.server is not None
        count, start = 0, place
        every_line = window > 0
        while not every_line or window > count:
            found = run.pattern.match(buffer, place, end)
            if found is None or found["time"] < run.last or len(found["time"]) != len(run.last):
                break
            run.last = found["time"]
            start, place, count = place, found.end(), count + 1
        if count:
            counted = count - (run.held is None)  # the last one is read in the end
            self._tally.add_lines(run, counted)
            self._reader.window = window - count
            run.held = (buffer[start : place - 1], self._reader.number(start))
        return place

    # What is read in full.

    def nothing(self, line: bytes) -> None:
        """Note that LINE says nothing."""
        if lineshape.says_nothing_for_others(line):
            self._note_nothing(line)

    def before(self, line: LogLine, message: Message | None) -> None:
        """Say that LINE, which is MESSAGE or a child's own word, is about to be taken."""
        if self._run.held is not None:
            self._read_run()
        if self._held and message is not None:
            late = message.role == CHILD and all(held.ended_before(line.time) for held in self._held.values())
            if not late:
                self.read_held()
        self._before_quiet = None
        if message is None or message.role == CHILD or message.id == ENVIRONMENT:
            self._before_quiet = self._token if self._token is not None else self._servers.token()
        if message is not None and message.id == BEGIN:
            idle = all(server.builder.idle for server in self._servers.found)
            self._before = self._servers.token() if idle else None

    def after(self, raw: bytes, line: LogLine, message: Message | None, word: Word | None, server: Server) -> None:
        """Say that LINE was taken: it is of SERVER."""
        self._token = None
        inside = message is None or message.role == CHILD
        if self._before_quiet is not None:
            self._learn_quiet(raw, line, server, message, inside=inside)
        self._note_run(raw, line, message, word, server)
        carrier = " in ".join(line.carriers) or "plain"
        recording = self._recording
        if message is not None and message.id == BEGIN:
            self._recording = (
                Recording(server, self._before, carrier, [(raw, False)]) if self._before is not None else None
            )
            return
        if recording is None:
            return
        recording.lines.append((raw, inside))
        recording.size += len(raw)
        if (
            server is not recording.server
            or carrier != recording.carrier
            or len(recording.lines) > LINES
            or recording.size > TEXT
        ):
            self._recording = None
        elif message is not None and message.id == END:
            self._recording = None
            self._learn(recording)

    def read_held(self) -> None:
        """Read in full what was held back."""
        held, self._held = sorted(self._held.values(), key=lambda entry: entry.number), {}
        for entry in held:
            for index, line in enumerate(entry.text.split(b"\n")):
                self._read(line, entry.number + index)
            for line, number in entry.late:
                self._read(line, number)
        if held:
            self._token = None

    def finish(self) -> None:
        """Say that the log has ended."""
        if self._run.held is not None:
            self._read_run()
        self.read_held()
        self._tally.note_times()

    def _read_run(self) -> None:
        held, self._run.held = self._run.held, None
        if held is not None:
            self._read(*held)

    # Learning.

    def _learn(self, recording: Recording) -> None:
        server = recording.server
        self._token = self._servers.token()
        if recording.token != self._token or not server.builder.idle or not server.builder.discoveries:
            return
        found = server.builder.discoveries[-1]
        open_ended = any(entry.outcome == records.OPEN or entry.ended is None for entry in found.attempts)
        if found.kind != KIND or not found.complete or found.took_s is None or open_ended:
            return
        everything = [line for line, _ in recording.lines]
        own = [line for line, inside in recording.lines if not inside]
        keys = [lineshape.key(line) for line in own]
        if lineshape.DURATION not in keys[-1] or lineshape.TIME not in keys[0] or lineshape.TIME not in keys[-1]:
            return
        shape = hash(tuple(map(lineshape.key, everything)))
        if shape not in self._seen:  # what never comes again is not worth a pattern
            self._remember(shape)
            return
        if self._learnt + recording.size > LEARNT:
            self._forgotten += 1
            self._root, self._learnt = Node(), 0
            self._episodes, self._recent = [], []
        if self._forgotten > RELEARN:
            return
        node = self._root
        for line, name in zip(own, keys, strict=True):
            child = node.keys.get(name)
            if child is None:
                pattern = lineshape.pattern(line)
                child = node.keys[name] = Node(has_time="time" in pattern.groupindex)
                node.next.append((pattern, child))
                node.firsts.update(line[:1] if lineshape.begins_the_same(line) else range(256))
                self._learnt += len(line)
            node = child
        episode = Episode(
            server,
            self._token,
            len(own),
            len(everything) - len(own),
            recording.carrier,
            found.failed_refresh,
            lineshape.whole(everything),
            lineshape.zone(own[0]),
        )
        node.episode = episode
        self._add_episode(episode)
        self._learnt += recording.size

    def _add_episode(self, episode: Episode) -> None:
        same = [entry for entry in self._episodes if entry.whole.pattern == episode.whole.pattern]
        for entry in {*same, *self._episodes[:-EPISODES]}:
            self._episodes.remove(entry)
        self._episodes.append(episode)
        self._recent = [entry for entry in self._recent if entry in self._episodes]
        self._recent = [episode, *self._recent[: RECENT - 1]]

    def _learn_quiet(self, raw: bytes, line: LogLine, server: Server, message: Message | None, *, inside: bool) -> None:
        if message is None and (line.time is not None or self._recording is None):
            return
        self._token = self._servers.token()
        if self._before_quiet != self._token or len(raw) > SHORT:
            return
        template = lineshape.template(raw)
        known = self._quiet.get(template, [])
        for quiet in known:
            if quiet.pattern.match(raw + b"\n"):
                quiet.server, quiet.token = server, self._token
                return
        shape = hash(lineshape.key(raw))
        if shape not in self._seen:
            self._remember(shape)
            return
        if self._quiet_count >= QUIET:
            self._quiet, self._quiet_count, known = {}, 0, []
        pattern = lineshape.pattern(raw)
        carrier, zone = " in ".join(line.carriers) or "plain", lineshape.zone(raw)
        quiet = Quiet(pattern, server, self._token, carrier, zone, inside, "time" in pattern.groupindex)
        self._quiet[template] = [quiet, *known[:3]]
        self._quiet_count += 1

    def _remember(self, shape: int) -> None:
        if len(self._seen) >= SEEN:
            self._seen.clear()
        self._seen.add(shape)

    def _note_run(self, raw: bytes, line: LogLine, message: Message | None, word: Word | None, server: Server) -> None:
        if message is not None and (message.window is not None or message.once or message.id == "runner.start"):
            self._run.count, self._run.pattern = 0, None
            return
        what = (message.id if message else "", word.id if word else "", line.source, line.message, server.number)
        run = self._run
        if what != run.what or not run.count:
            self._run = Run(what, 1)
            return
        run.count += 1
        if run.count == RUN:
            run.state = self._servers.state()
        elif run.count == RUN + SETTLED and run.state == self._servers.state() and line.file is not None:
            pattern = lineshape.pattern(raw)
            time = pattern.match(raw + b"\n")
            if time is not None and "time" in pattern.groupindex:
                run.pattern, run.last, run.server = pattern, time["time"], server
                run.carrier = " in ".join(line.carriers) or "plain"
