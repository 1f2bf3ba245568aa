"""From the bytes of a log to its servers and their discoveries, in one pass and constant memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pytest_gpudiscovery.ollama import logline
from pytest_gpudiscovery.ollama.logread import Read, Reader
from pytest_gpudiscovery.ollama.logthin import Thinner
from pytest_gpudiscovery.ollama.messages import CLOSE, OPEN, identify
from pytest_gpudiscovery.ollama.sessions import Server, Servers
from pytest_gpudiscovery.ollama.words import recognise

# How many lines after a message are all looked at, not only those with a message in them.
AT_FIRST, DISCOVERING, AFTER_RESULT = 2000, 20_000, 64
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
    servers = Servers()
    thinner = Thinner(source, servers.skip)
    reader = Reader(thinner)
    carriers: Counter[str] = Counter()
    window, looked = AT_FIRST, 0
    stopped = ""
    try:
        for raw in reader.lines():
            looked += 1
            window -= 1
            reader.every_line = window > 0
            if MODEL_RUNNER in raw and START in raw:
                continue  # of a busy server most hits are these
            line = logline.parse(raw)
            if line.kind == logline.REQUEST:
                servers.request(line)
            elif line.kind != logline.EMPTY:
                message = identify(line.message) if line.kind == logline.SLOG else None
                word = recognise(line.text) if line.kind == logline.OTHER else None
                if message is not None or word is not None:
                    carriers[" in ".join(line.carriers) or "plain"] += 1
                    servers.take(line, message, word)
                if message is not None:
                    window = _window(message.window, message.id, window)
            reader.every_line = window > 0
    except KeyboardInterrupt:
        stopped = "stopped by the keyboard: this is what the log had said by then"
    except OSError as error:
        stopped = f"reading stopped: {error.strerror or error}"
    servers.finish()
    return Log(
        servers.found,
        servers.dropped,
        thinner.bytes_read,
        reader.cut_lines,
        looked,
        carriers,
        logline.parse(reader.last_line).time,
        stopped,
    )


def _window(kind: str | None, message: str, left: int) -> int:
    if kind == OPEN:
        return DISCOVERING
    if kind == CLOSE:
        return 0
    return min(left, AFTER_RESULT) if message == "result.device" else left
