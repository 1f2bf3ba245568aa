"""From the bytes of a log to its servers and their discoveries, in one pass and constant memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pytest_gpudiscovery.ollama import logline
from pytest_gpudiscovery.ollama.logline import LogLine
from pytest_gpudiscovery.ollama.logread import DISCOVERING, Read, Reader
from pytest_gpudiscovery.ollama.logrepeat import Repeats
from pytest_gpudiscovery.ollama.logthin import Thinner
from pytest_gpudiscovery.ollama.messages import CLOSE, OPEN, Message, identify
from pytest_gpudiscovery.ollama.sessions import Server, Servers
from pytest_gpudiscovery.ollama.words import Word, recognise

# How many lines after a message are all looked at, not only those with a message in them.
AT_FIRST, AFTER_RESULT = 2000, 64
# "starting runner" for a model: no discovery (children.is_discovery).
MODEL_RUNNER, START = b" --model ", b"starting runner"


@dataclass
class Log:
    """What a log holds."""

    servers: list[Server]
    dropped: int  # servers in the middle that were not kept
    bytes_read: int
    cut_lines: int
    lines_looked_at: int
    carriers: Counter[str] = field(default_factory=Counter)  # formats around Ollama's own lines
    last_time: float | None = None  # of the last line, whatever it is
    stopped: str = ""  # why reading ended before the end, empty when it did not


def read(source: Read) -> Log:
    """Return what the log that SOURCE gives holds; when SOURCE raises OSError, what it held until then."""
    reading = _Reading(source)
    stopped = ""
    try:
        reading.all()
    except KeyboardInterrupt:
        stopped = "stopped by the keyboard: this is what the log had said by then"
    except OSError as error:
        stopped = f"reading stopped: {error.strerror or error}"
    return reading.log(stopped)


class _Reading:
    """Puts together what reads a log, what leaves lines out and what keeps the rest."""

    def __init__(self, source: Read) -> None:
        self.servers = Servers()
        self.carriers: Counter[str] = Counter()
        self.looked = 0
        self.thinner = Thinner(source, self._dropped)
        self.reader = Reader(self.thinner, AT_FIRST)
        self.repeats = Repeats(self.reader, self.servers, self.carriers, self._again)
        self.reader.skip = self.repeats.skip

    def all(self) -> None:
        """Read the log. Raises what its source raises."""
        for raw, number in self.reader.lines():
            self.looked += 1
            line, message, word = _told(raw, number)
            if message is None and word is None:
                self.repeats.nothing(raw)
                continue
            self.repeats.before(message)
            server = self._take(line, message, word)
            if message is not None:
                self.reader.window = _window(message.window, message.id, self.reader.window)
            self.repeats.after(raw, line, message, word, server)

    def log(self, stopped: str) -> Log:
        """Return what was read; STOPPED says why that is not all."""
        self.repeats.finish()
        self.servers.finish()
        last = logline.parse(self.reader.last_line).time
        return Log(
            self.servers.found,
            self.servers.dropped,
            self.thinner.bytes_read,
            self.reader.cut_lines,
            self.looked,
            self.carriers,
            last,
            stopped,
        )

    def _take(self, line: LogLine, message: Message | None, word: Word | None) -> Server:
        self.carriers[" in ".join(line.carriers) or "plain"] += 1
        return self.servers.take(line, message, word)

    def _again(self, raw: bytes, number: int) -> None:
        """Take a line that was held back."""
        line, message, word = _told(raw, number)
        if message is not None or word is not None:
            self._take(line, message, word)

    def _dropped(self, servers: int, lines: int) -> None:
        self.servers.skip(servers)
        self.reader.left_out(lines)


def _told(raw: bytes, number: int) -> tuple[LogLine, Message | None, Word | None]:
    if MODEL_RUNNER in raw and START in raw:  # of a busy server most hits are these
        return LogLine(logline.OTHER, ""), None, None
    line = logline.parse(raw, number)
    message = identify(line.message) if line.kind == logline.SLOG else None
    return line, message, recognise(line.text) if line.kind == logline.OTHER else None


def _window(kind: str | None, message: str, left: int) -> int:
    if kind == OPEN:
        return DISCOVERING
    if kind == CLOSE:
        return 0
    return min(left, AFTER_RESULT) if message == "result.device" else left
