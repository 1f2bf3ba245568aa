"""What is known of the lines of a log, learnt from those that were read in full: which refreshes do what, what is mute.

A line is worth a pattern only when its shape (lineshape.py) has come before: what never comes again is not learnt.
All of it is bounded; what has become too much is forgotten and learnt anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pytest_gpudiscovery.ollama import attempts as records
from pytest_gpudiscovery.ollama import lineshape
from pytest_gpudiscovery.ollama.episodes import Episode, Node, Quiet
from pytest_gpudiscovery.ollama.logline import LogLine
from pytest_gpudiscovery.ollama.messages import CHILD, Message
from pytest_gpudiscovery.ollama.refreshes import KIND
from pytest_gpudiscovery.ollama.sessions import Server, Servers

BEGIN, END, ENVIRONMENT = "refresh", "took.refresh", "runner.env"  # ids of messages.json
SHORT = lineshape.TEMPLATE_LIMIT  # bytes of a line that is known by its template
LINES, TEXT = 300, 64 << 10  # lines and bytes of a refresh that is learnt
LEARNT = 512 << 10  # bytes of lines that are learnt, of all
RELEARN = 8  # how often all of that is forgotten to learn anew
SEEN = 4096  # shapes that were seen once; templates of lines that say nothing
RECENT = 12  # refreshes that are looked for first
EPISODES = 64  # that are known
TRIED = 400  # refreshes of which it is tried to learn what stands between their lines
QUIET = 1000  # lines that are known to change nothing


@dataclass
class Recording:
    """The lines of a refresh that is read in full."""

    server: Server
    token: object
    carrier: str
    lines: list[tuple[bytes, bool]]  # and whether it is of a child
    size: int = 0


class Known:
    """Learns what the lines of SERVERS do.

    `nothing` are templates of lines that say nothing, `root` is where the lines of every known refresh begin, `recent`
    are the refreshes that came last, the newest first.
    """

    def __init__(self, servers: Servers) -> None:
        self.nothing: set[bytes] = set()
        self.root = Node()
        self.recent: list[Episode] = []
        self._servers = servers
        self._episodes: list[Episode] = []
        self._quiet: dict[bytes, list[Quiet]] = {}  # by template
        self._seen: set[int] = set()
        self._learnt = self._forgotten = self._quiet_count = self._tried = 0
        self._recording: Recording | None = None
        # The servers' token before the refresh that is read, and before the line that is; None: nothing to learn.
        self._before: object = None
        self._before_quiet: object = None

    # What is known.

    def says_nothing(self, line: bytes) -> bool:
        """Whether LINE says nothing for sure."""
        if line.startswith(b"[GIN") or lineshape.template(line) in self.nothing:
            return True
        if lineshape.dull(line + b"\n", 0, len(line) + 1) <= len(line):
            return False
        self.note_nothing(line)
        return True

    def quiet(self, buffer: bytes, place: int, stop: int) -> tuple[Quiet, re.Match[bytes]] | None:
        """Return which line that changes nothing is the one at PLACE, which ends at STOP."""
        for quiet in self._quiet.get(lineshape.template(buffer[place:stop]), ()):
            found = quiet.pattern.match(buffer, place, stop + 1)
            if found is not None:
                return (quiet, found) if quiet.token == self._servers.token() else None
        return None

    def prefer(self, episode: Episode) -> None:
        """Have EPISODE, one of the recent ones, looked for first."""
        self.recent.remove(episode)
        self.recent.insert(0, episode)

    # Learning.

    def note_nothing(self, line: bytes) -> None:
        """Note that every line with the template of LINE says nothing."""
        if len(self.nothing) >= SEEN:
            self.nothing.clear()
        self.nothing.add(lineshape.template(line))

    def before(self, message: Message | None) -> None:
        """Say that a line, which is MESSAGE or a child's own word, is about to be taken."""
        quiet = message is None or message.role == CHILD or message.id == ENVIRONMENT
        self._before_quiet = self._servers.token() if quiet else None
        if message is not None and message.id == BEGIN:
            idle = all(server.builder.idle for server in self._servers.found)
            self._before = self._servers.token() if idle else None

    def after(self, raw: bytes, line: LogLine, message: Message | None, server: Server) -> None:
        """Say that LINE was taken: it is of SERVER."""
        inside = message is None or message.role == CHILD
        carrier = " in ".join(line.carriers) or "plain"
        # Without a message it is a child's own word: inside a refresh, and without a time.
        telling = message is not None or (line.time is None and self._recording is not None)
        if telling and self._before_quiet is not None:
            self._learn_quiet(raw, carrier, server, inside=inside)
        if message is not None and message.id == BEGIN:
            begun = self._before is not None
            self._recording = Recording(server, self._before, carrier, [(raw, False)]) if begun else None
            return
        recording = self._recording
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

    def break_off(self) -> None:
        """Say that a refresh was left out: one that is being read has another inside it, and is not learnt."""
        self._recording = None

    def learn_whole(self, episode: Episode, text: bytes, quiet: int) -> None:
        """Learn a refresh like EPISODE with all that stands between its lines in TEXT, QUIET of them of its children.

        The line ends of TEXT are between its lines alone.
        """
        if len(text) >= TEXT - 1 or self._tried >= TRIED:
            return
        self._tried += 1
        lines = text.split(b"\n")
        shape = hash(tuple(map(lineshape.key, lines)))
        if shape in self._seen:
            self._add_episode(replace(episode, whole=lineshape.whole(lines), inside=quiet))
        else:
            self._remember(shape)

    def _learn(self, recording: Recording) -> None:
        server = recording.server
        token = self._servers.token()
        if recording.token != token or not server.builder.idle or not server.builder.discoveries:
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
            self.root, self._learnt = Node(), 0
            self._episodes, self.recent = [], []
        if self._forgotten > RELEARN:
            return
        node = self.root
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
            token,
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
        self.recent = [entry for entry in self.recent if entry in self._episodes]
        self.recent = [episode, *self.recent[: RECENT - 1]]

    def _learn_quiet(self, raw: bytes, carrier: str, server: Server, *, inside: bool) -> None:
        token = self._servers.token()
        if self._before_quiet != token or len(raw) > SHORT:
            return
        template = lineshape.template(raw)
        known = self._quiet.get(template, [])
        for quiet in known:
            if quiet.pattern.match(raw + b"\n"):
                quiet.server, quiet.token = server, token
                return
        shape = hash(lineshape.key(raw))
        if shape not in self._seen:
            self._remember(shape)
            return
        if self._quiet_count >= QUIET:
            self._quiet, self._quiet_count, known = {}, 0, []
        pattern = lineshape.pattern(raw)
        quiet = Quiet(pattern, server, token, carrier, lineshape.zone(raw), inside, "time" in pattern.groupindex)
        self._quiet[template] = [quiet, *known[:3]]
        self._quiet_count += 1

    def _remember(self, shape: int) -> None:
        if len(self._seen) >= SEEN:
            self._seen.clear()
        self._seen.add(shape)
