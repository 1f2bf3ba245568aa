"""Which server wrote a line: restarts one after the other, and two servers mixed in one log, are told apart.

By container, pod or unit and by pid where a carrier names them; else by the messages that a server writes once in its
life, and by the lines of the source that they name: two releases have few line numbers in common. What nothing tells
apart is said to be mixed, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_gpudiscovery.ollama import versions
from pytest_gpudiscovery.ollama.discovery import Builder
from pytest_gpudiscovery.ollama.logline import LogLine
from pytest_gpudiscovery.ollama.messages import CHILD, Message
from pytest_gpudiscovery.ollama.versions import Releases
from pytest_gpudiscovery.ollama.words import Word

SERVERS = 64  # kept; of more, the first and the newest stay
RUNNING = 4  # servers of one origin that a line without a pid may belong to
SOURCES = 24  # kinds of evidence for the version of one server
# The order in which a server writes what it writes once.
PHASES = {
    "server.config": 0,
    "server.listening": 1,
    "start": 2,
    "start.a": 2,
    "start.a_old": 2,
    "server.vram_context": 4,
    "server.vram_low": 4,
}
RESULT = 3  # "inference compute", once per device
SETTINGS = (
    "OLLAMA_DEBUG",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GGML_VK_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "HSA_OVERRIDE_GFX_VERSION",
    "OLLAMA_LLM_LIBRARY",
    "OLLAMA_VULKAN",
    "OLLAMA_GPU_OVERHEAD",
    "OLLAMA_IGPU_ENABLE",
    "OLLAMA_INTEL_GPU",
    "OLLAMA_SCHED_SPREAD",
)  # of "server config"; what is not here may hold a secret


@dataclass
class Server:
    """One run of `ollama serve`, as far as the log has it. Times are seconds since 1970."""

    number: int
    origin: str = ""
    pid: int | None = None
    offset_s: int | None = None  # of its time stamps from UTC
    first: float | None = None
    last: float | None = None
    lines: int = 0
    phase: int = -1
    exact: str | None = None  # the version it names itself
    releases: Releases = field(default_factory=versions.every)
    evidence: dict[tuple[str, str], Releases] = field(default_factory=dict)  # (source, message) -> releases
    unlisted: list[tuple[str, str]] = field(default_factory=list)  # no known release has the message there
    contradicted: bool = False  # no release has all of it
    levels: set[str] = field(default_factory=set)  # of its own lines
    settings: dict[str, str] | None = None  # of "server config"
    builder: Builder = field(default_factory=Builder)
    mixed: bool = False  # another server's lines may be among these
    apart: bool = False  # told apart from another by line numbers alone

    def take(self, line: LogLine, message: Message | None, word: Word | None) -> None:
        """Take a LINE of this server."""
        self.lines += 1
        self.saw(line.time)
        if message is not None:
            self.offset_s = line.offset_s if line.offset_s is not None else self.offset_s
            if message.role != CHILD and line.level:
                self.levels.add(line.level)
            self.phase = max(self.phase, RESULT if message.id == "result.device" else PHASES.get(message.id, -1))
            self._version(line, message)
            if message.id == "server.config":
                self.settings = settings(line.attributes.get("env", ""))
        self.builder.feed(line, message, word)

    def saw(self, time: float | None) -> None:
        """Note that it wrote a line at TIME."""
        if time is not None:
            self.first = time if self.first is None else min(self.first, time)
            self.last = time if self.last is None else max(self.last, time)

    def token(self) -> tuple[object, ...]:
        """Return all that decides what its next line means, but for the discoveries themselves."""
        known = len(self.evidence), len(self.unlisted), len(self.levels)
        told = self.exact, self.contradicted, self.mixed, self.apart, self.offset_s
        return self.number, self.phase, self.releases, self.builder.serving, known, told

    def _version(self, line: LogLine, message: Message) -> None:
        if message.id == "server.listening":
            named = line.message.rpartition("(version ")[2].rstrip(") ")
            self.exact = named[:60] if "(version " in line.message and named else self.exact
            of_name = versions.of(".".join(map(str, versions.number(self.exact or "") or ())))
            if of_name:  # a build without a version calls itself 0.0.0
                self.contradicted = self.contradicted or not self.releases & of_name
                self.releases = of_name
        key = (line.source, message.id)
        found = self.evidence[key] if key in self.evidence else fits(line, message)
        if found is None:
            if key not in self.unlisted and len(self.unlisted) < SOURCES:
                self.unlisted.append(key)
            found = message.releases
        if key not in self.evidence and len(self.evidence) < SOURCES:
            self.evidence[key] = found
        if self.releases & found:
            self.releases &= found
        else:
            self.contradicted = True


def fits(line: LogLine, message: Message) -> Releases | None:
    """Return the releases that write MESSAGE where LINE says; None when no release has it at that line."""
    found = versions.at(line.file, line.line, message.id)
    if found:
        return found
    return None if found == 0 and message.id in versions.COMPLETE else message.releases


def settings(text: str) -> dict[str, str]:
    """Return the settings of "server config" that steer discovery; TEXT is a Go map: map[A:b C: D:e f]."""
    found: dict[str, str] = {}
    inner = text[4:-1] if text.startswith("map[") and text.endswith("]") else text
    for part in inner.split(" "):
        name, colon, value = part.partition(":")
        if colon and name in SETTINGS:
            found[name] = value[:200]
    return found


class Servers:
    """Finds the server of each line. `found` are all servers, in the order of their beginning."""

    def __init__(self) -> None:
        self.found: list[Server] = []
        self.dropped = 0
        self._count = 0
        self._latest: Server | None = None
        self._token: tuple[object, ...] | None = None  # None: not known
        self._tokens: dict[int, tuple[object, ...]] = {}  # of the servers, as far as they are known

    def take(self, line: LogLine, message: Message | None, word: Word | None) -> Server:
        """Give LINE, which is MESSAGE or has WORD, to its server and return that."""
        self._token = None
        server = self._own(line, message) if message is not None and message.role != CHILD else self._near(line)
        server = server or self._new(line)
        server.take(line, message, word)
        self._tokens.pop(server.number, None)
        self._latest = server
        return server

    def token(self) -> tuple[object, ...]:
        """Return all that decides which server the next line is of, and what it means there."""
        if self._token is None:  # asked for each line that is left out, and those change nothing
            self._token = tuple([self._tokens.get(server.number) or self._note(server) for server in self.found])
        return self._token

    def _note(self, server: Server) -> tuple[object, ...]:
        token = self._tokens[server.number] = server.token()
        return token

    def state(self) -> tuple[object, ...]:
        """Return that, and how much is known of each discovery."""
        return self.token(), tuple(server.builder.state() for server in self.found)

    def stands_beside(self, server: Server) -> None:
        """Say that the line before the next one was of SERVER."""
        self._latest = server

    def is_beside(self, server: Server) -> bool:
        """Return whether the line before the next one was of SERVER."""
        return self._latest is server

    def skip(self, count: int) -> None:
        """Note that COUNT servers were left out of what comes."""
        self._token = None
        self._tokens.clear()
        self._count += count
        self.dropped += count
        for server in self.found:  # what comes is of none of these
            server.phase = max(server.phase, *PHASES.values())

    def finish(self) -> None:
        """Say that the log has ended."""
        for server in self.found:
            server.builder.finish()

    def _new(self, line: LogLine) -> Server:
        self._count += 1
        server = Server(self._count, line.origin, line.pid)
        if len(self.found) >= SERVERS:
            self.found.pop(1).builder.finish()
            self.dropped += 1
        self.found.append(server)
        return server

    def _near(self, line: LogLine) -> Server | None:
        """Return the server that a line of a child, or of nobody in particular, stands beside."""
        same = [server for server in self.found if line.pid is not None and server.pid == line.pid]
        same = same or [server for server in self.found if line.origin and server.origin == line.origin]
        return same[-1] if same else self._latest

    def _own(self, line: LogLine, message: Message) -> Server:
        """Return the server that wrote LINE itself."""
        phase = PHASES.get(message.id)
        here = [server for server in self.found if server.origin == line.origin]
        if line.pid is not None:
            mine = [server for server in here if server.pid == line.pid]
            if not mine or (phase is not None and phase < RESULT and mine[-1].phase >= phase):
                return self._new(line)  # a new process, or (pid 1 of a container) a restart
            return mine[-1]
        here = here[-RUNNING:]
        if not here:
            return self._new(line)
        releases = fits(line, message) or message.releases
        able = [server for server in here if server.releases & releases] or ([here[-1]] if len(here) == 1 else [])
        if phase is not None and phase < RESULT:
            waiting = [server for server in able if server.phase < phase]
            if not waiting or waiting[-1] is not here[-1]:
                waiting = [] if here[-1].phase >= phase else waiting
            return waiting[-1] if waiting else self._new(line)
        if not able:
            return self._new(line)
        return self._among(able, here, RESULT if message.id == "result.device" else phase)

    def _among(self, able: list[Server], here: list[Server], phase: int | None) -> Server:
        """Return the one of ABLE servers, newest last, that a line without a pid is of; mark what is not certain."""
        for server in here:
            self._tokens.pop(server.number, None)
        newest = able[-1]
        other = [server for server in here if server is not newest]
        if newest is not here[-1]:
            newest.apart = here[-1].apart = True  # the newest of all cannot have written it
        if phase is None or newest.phase < 4:
            return newest
        # The newest has had its result: this one is of an older server that is still at it.
        older = [server for server in able[:-1] if server.phase in (2, RESULT)]
        if not older:
            newest.mixed = newest.mixed or (bool(other) and phase == 4)
            return newest
        older[-1].mixed = newest.mixed = True
        return older[-1]
