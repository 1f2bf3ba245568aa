"""What is known of the lines of a log, learnt from those that were read in full: which refreshes do what, what is mute.

A line is worth a letter (logspell.py) only when one that says the same has come before: what never comes again is not
learnt. All of it holds for the state the servers are in; when that changes it is learnt anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pytest_gpudiscovery.ollama import attempts as records
from pytest_gpudiscovery.ollama import lineshape
from pytest_gpudiscovery.ollama.attempts import Discovery
from pytest_gpudiscovery.ollama.episodes import LINES, Episode, may_be_two
from pytest_gpudiscovery.ollama.logline import LogLine
from pytest_gpudiscovery.ollama.logspell import CHILD, LAST, LIMIT, LOOSE, OWN, WORD, Speller
from pytest_gpudiscovery.ollama.messages import CHILD as CHILDS
from pytest_gpudiscovery.ollama.messages import Message
from pytest_gpudiscovery.ollama.refreshes import KIND
from pytest_gpudiscovery.ollama.sessions import Server, Servers

# Ids of messages.json.
BEGIN, FAILED, END, START, ENVIRONMENT = "refresh", "refresh.failed", "took.refresh", "runner.start", "runner.env"
EPISODES = 64  # of one server that are known
RELEARN = 8  # how often all is forgotten because it was too much
SEEN = 4096  # keys of lines that were seen once
_INSIDE = f"[{chr(CHILD)}-{LOOSE}]*"  # what a child writes, and what is not known
_MESSAGES = f"[{chr(CHILD)}-{chr(WORD - 1)}]*"  # its messages alone
_CHILDS = f"[{chr(CHILD)}-{chr(LAST - 1)}]*"  # what a child writes
INSIDE = re.compile(_INSIDE)
_NEVER = re.compile(r"(?!)")


@dataclass
class Recording:
    """The lines of a refresh that is read in full."""

    server: Server
    token: object
    carrier: str
    lines: list[tuple[bytes, Message | None, bool]]  # and whether its carrier names the server


@dataclass
class Refrain:
    """The refreshes of one server that are known, and what may stand behind them."""

    episodes: dict[str, Episode] = field(default_factory=dict)  # by their spelling
    unfinished: dict[str, Episode] = field(default_factory=dict)  # likewise, those that have but one line
    environment: str = ""  # letters of its lines "subprocess": nothing, behind a refresh
    order: list[tuple[Episode, bool]] = field(default_factory=list)  # and whether it stands for a run of those
    pattern: re.Pattern[str] = _NEVER  # late lines in group 1, then group N: what is at N - 2 in `order`
    late: re.Pattern[str] = _NEVER
    starts: re.Pattern[str] = _NEVER  # a child's lines in group 1, then in group 2 the next one of `unfinished`

    def compile(self) -> None:
        """Put the patterns together."""
        late = f"[{chr(CHILD)}-{LOOSE}{self.environment}]*"
        self.order, ways = [], []
        for episode in self.episodes.values():  # several with nothing inside, or one
            self.order += [(episode, True), (episode, False)]
            begin, end = episode.spelling[: episode.over], episode.spelling[episode.over :]
            inside = _MESSAGES.join([_CHILDS.join(begin), *end])
            ways += [f"((?:{episode.spelling})+)", f"({inside})"]
        self.pattern = re.compile(f"({late})(?:{'|'.join(ways)})") if ways else _NEVER
        self.late = re.compile(late)
        if self.unfinished:
            self.starts = re.compile(f"({_INSIDE})([{''.join(self.unfinished)}])")


class Known:
    """Learns what the lines of SERVERS do; `speller` has the letters of those."""

    def __init__(self, servers: Servers) -> None:
        self.speller = Speller()
        self.refrains: dict[int, Refrain] = {}  # by the number of the server
        self.begins: set[str] = set()  # the letters that refreshes begin with
        self.ends: set[str] = set()  # and end with
        self._servers = servers
        self._token: object = None  # of the servers, for which all of this holds
        self._seen: set[int] = set()
        self._forgotten = 0
        self._recordings: dict[int, Recording] = {}
        self._before: object = None  # the token before the line that is read
        self._idle: set[int] = set()  # servers in no discovery before it
        self._unfinished: dict[int, Discovery | None] = {}  # the refreshes going on before it

    def refresh(self) -> bool:
        """Forget what does not hold for the state that the servers are in; return whether that is everything."""
        before, self._token = self._token, self._servers.token()
        changed = before is not self._token and before != self._token
        if changed:
            self._forget()
        return changed

    def before(self, message: Message | None) -> None:
        """Say that a line, which is MESSAGE or a child's own word, is about to be taken."""
        begins = message is not None and message.id == BEGIN
        starts = message is not None and message.id == START
        self._before = self._servers.token() if begins or starts or _may_be_quiet(message) else None
        if starts:
            self._unfinished = {server.number: server.builder.unfinished for server in self._servers.found}
        if begins:
            self._idle = {server.number for server in self._servers.found if server.builder.idle}

    def after(self, raw: bytes, line: LogLine, message: Message | None, server: Server) -> None:
        """Say that LINE was taken: it is of SERVER."""
        carrier = " in ".join(line.carriers) or "plain"
        bound = (line.pid is not None and line.pid == server.pid) or bool(line.origin and line.origin == server.origin)
        recording = self._recordings.get(server.number)
        # Without a message it is a child's own word: inside a refresh, and without a time.
        if _may_be_quiet(message) and (message is not None or (line.time is None and recording is not None)):
            self._learn_quiet(raw, carrier, server, message, bound=bound)
        if message is not None and message.id == BEGIN:
            self._recordings.pop(server.number, None)
            if server.number in self._idle:
                self._recordings[server.number] = Recording(server, self._before, carrier, [(raw, message, bound)])
            return
        if message is not None and message.id == START:
            self._learn_start(raw, carrier, server, message, bound=bound)
        if recording is None:
            return
        recording.lines.append((raw, message, bound))
        if carrier != recording.carrier or len(recording.lines) > LINES:
            self.break_off(server)
        elif message is not None and message.id == END:
            self.break_off(server)
            self._learn(recording)
        elif message is not None and (message.window is not None or message.once or message.id == "result.device"):
            self.break_off(server)

    def break_off(self, server: Server) -> None:
        """Say that a refresh of SERVER was left out: one that is being read has another inside it."""
        self._recordings.pop(server.number, None)

    def _learn(self, recording: Recording) -> None:
        server = recording.server
        if recording.token != self._servers.token() or not server.builder.idle or not server.builder.discoveries:
            return
        found = server.builder.discoveries[-1]
        open_ended = any(entry.outcome == records.OPEN or entry.ended is None for entry in found.attempts)
        if found.kind != KIND or not found.complete or found.took_s is None or open_ended:
            return
        own = [entry for entry in recording.lines if entry[1] is not None and entry[1].role != CHILDS]
        if any(len(raw) > LIMIT for raw, _, _ in own):
            return
        lines = [lineshape.without_cursor(raw) for raw, _, _ in own]
        parts = [lineshape.parts(line, lineshape.template(line)) for line in lines]
        if parts[0].time is None or parts[-1].time is None or parts[-1].duration is None:
            return
        times = [line[part.time] for line, part in zip(lines, parts, strict=True) if part.time is not None]
        zones = {lineshape.zone(line) for line in lines}
        if may_be_two(min(times), max(times)) or len(zones) > 1:
            return
        if not self._worth(tuple(map(lineshape.key, lines))):
            return
        spelling = [
            self._letter(raw, OWN, server, recording.carrier, message, bound=bound) for raw, message, bound in own
        ]
        if not all(spelling):
            return
        refrain = self.refrains.setdefault(server.number, Refrain())
        over = next((at for at, (_, message, _) in enumerate(own, 1) if message and message.id == FAILED), len(own))
        episode = Episode(server, "".join(spelling), recording.carrier, found.failed_refresh, zones.pop(), over)
        if len(refrain.episodes) >= EPISODES and episode.spelling not in refrain.episodes:
            return
        refrain.episodes[episode.spelling] = episode
        refrain.compile()
        self.begins.add(spelling[0])
        self.ends.add(spelling[-1])

    def _learn_start(self, raw: bytes, carrier: str, server: Server, message: Message, *, bound: bool) -> None:
        """Learn RAW, the start of a child, if it ended one refresh of SERVER without an end and began another."""
        before, now = self._unfinished.get(server.number), server.builder.unfinished
        if before is None or now is None or before is now or self._before != self._servers.token():
            return
        if len(raw) > LIMIT or b"time=" not in raw or not self._worth(lineshape.key(raw)):
            return
        char = self._letter(raw, OWN, server, carrier, message, bound=bound)
        refrain = self.refrains.setdefault(server.number, Refrain())
        if char and char not in refrain.unfinished and len(refrain.unfinished) < EPISODES:
            zone = lineshape.zone(raw)
            refrain.unfinished[char] = Episode(server, char, carrier, False, zone, unfinished=True)
            refrain.compile()
            self.begins.add(char)

    def _learn_quiet(self, raw: bytes, carrier: str, server: Server, message: Message | None, *, bound: bool) -> None:
        token = self._servers.token()
        if self._before is not token and self._before != token:
            return
        if len(raw) > LIMIT or not self._worth(lineshape.key(raw)):
            return
        environment = message is not None and message.role != CHILDS
        kind = OWN if environment else CHILD if message is not None else WORD
        char = self._letter(raw, kind, server, carrier, message, bound=bound)
        refrain = self.refrains.get(server.number)
        if environment and char and refrain is not None and char not in refrain.environment:
            refrain.environment += char
            refrain.compile()

    def _letter(
        self, raw: bytes, kind: int, server: Server, carrier: str, message: Message | None, *, bound: bool
    ) -> str:
        """Return the letter of RAW; empty when there is no room for it, or there was none: all was forgotten then."""
        self.refresh()
        if self._forgotten > RELEARN:
            return ""
        char = self.speller.learn(raw, kind, server, carrier, message, bound=bound)
        if self.speller.full:
            self._forgotten += 1
            self._forget()
            return ""
        return char

    def _forget(self) -> None:
        self.speller.forget()
        self.refrains, self.begins, self.ends = {}, set(), set()

    def _worth(self, shape: object) -> bool:
        """Whether something of the same SHAPE came before: what never comes again is not worth a letter."""
        name = hash(shape)
        if name in self._seen:
            return True
        if len(self._seen) >= SEEN:
            self._seen.clear()
        self._seen.add(name)
        return False


def _may_be_quiet(message: Message | None) -> bool:
    """Whether a line, which is MESSAGE or a child's own word, may change nothing that is told."""
    return message is None or message.role == CHILDS or message.id == ENVIRONMENT
