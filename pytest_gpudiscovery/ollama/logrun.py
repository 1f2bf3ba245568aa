"""One line that stands there again and again: once it tells nothing new, those like it are counted, not parsed.

What a log can make us keep is bounded, and a line's further copies change nothing once all of that is full. Their
times still count: of those that were left out the last one is held back and read in full when the run is over.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pytest_gpudiscovery.ollama import lineshape
from pytest_gpudiscovery.ollama.children import ALL_ATTEMPTS
from pytest_gpudiscovery.ollama.episodes import Tally
from pytest_gpudiscovery.ollama.logline import LogLine
from pytest_gpudiscovery.ollama.logread import Reader
from pytest_gpudiscovery.ollama.messages import Message
from pytest_gpudiscovery.ollama.sessions import Server, Servers
from pytest_gpudiscovery.ollama.words import Word

RUN, SETTLED = ALL_ATTEMPTS + 500, 64  # equal lines, one after the other: all that is bounded is full by then


@dataclass
class Run:
    """Equal lines, one after the other."""

    what: object = None
    count: int = 0
    state: object = None
    lines: re.Pattern[bytes] | None = None  # those that may be left out; None: not known yet
    times: re.Pattern[bytes] | None = None  # what finds the time of each of them, in its one group
    until: bytes = b""  # after this time they would change something; empty: never
    server: Server | None = None
    carrier: str = ""
    last: bytes = b""  # the time of the last one
    held: tuple[bytes, int] | None = None  # the last one that was left out, and its number


class Runs:
    """Leaves equal lines out for READER. READ_IN_FULL takes the last one of them, with its number."""

    def __init__(
        self, reader: Reader, servers: Servers, tally: Tally, read_in_full: Callable[[bytes, int], None]
    ) -> None:
        self._reader, self._servers, self._tally, self._read = reader, servers, tally, read_in_full
        self._run = Run()

    def skip(self, buffer: bytes, place: int, end: int) -> int:
        """Return where the lines end that go on with the run at PLACE of BUFFER; PLACE where there is none."""
        run, window = self._run, self._reader.window
        found = run.lines.match(buffer, place, end) if run.lines is not None else None
        if found is None or run.times is None or run.server is None:
            return place
        times = run.times.findall(buffer, place, found.end())
        count = min(len(times), window) if window > 0 else len(times)
        last = run.last
        for index, time in enumerate(times[:count]):
            if time < last or len(time) != len(last) or (run.until and time > run.until):
                count = index
                break
            last = time
        if not count:
            return place
        stop = found.end()
        for _ in range(len(times) - count):
            stop = buffer.rfind(b"\n", place, stop - 1) + 1
        start = max(place, buffer.rfind(b"\n", place, stop - 1) + 1)
        run.last = last
        counted = count - (run.held is None)  # the last one is read in the end
        self._tally.add_lines(run.server, run.carrier, counted)
        self._reader.window = window - count
        run.held = (buffer[start : stop - 1], self._reader.number(start))
        return stop

    def note(self, raw: bytes, line: LogLine, message: Message | None, word: Word | None, server: Server) -> None:
        """Say that LINE, which is MESSAGE or has WORD, was taken: it is of SERVER."""
        if message is not None and (message.window is not None or message.once):
            self._run = Run()
            return
        what = (message.id if message else "", word.id if word else "", line.source, line.message, server.number)
        run = self._run
        if what != run.what or not run.count or run.until:
            self._run = Run(what, 1)
            return
        run.count += 1
        if run.count == RUN:
            run.state = self._servers.state()
        elif run.count == RUN + SETTLED and run.state == self._servers.state() and line.file is not None:
            self._settle(run, raw, line, message, server)

    @staticmethod
    def _settle(run: Run, raw: bytes, line: LogLine, message: Message | None, server: Server) -> None:
        """Have lines like RAW, which is LINE and MESSAGE of SERVER, left out."""
        pattern = lineshape.pattern(raw)
        found = pattern.match(raw + b"\n")
        if found is None or "time" not in pattern.groupindex:
            return
        run.last, run.server = found["time"], server
        ends = server.builder.another_at if message is not None and message.id == "runner.start" else None
        if ends is not None and line.time is not None:
            run.until = lineshape.later(run.last, ends - line.time - 0.001)
        text = pattern.pattern.replace(b"(?P<duration>", b"(?:")
        run.times = re.compile(text.replace(b"(?P<time>", b"("))
        run.lines = re.compile(b"(?:" + text.replace(b"(?P<time>", b"(?:") + b")+")
        run.carrier = " in ".join(line.carriers) or "plain"

    def interrupt(self) -> None:
        """Say that a line which changes nothing was left out: a run of which nothing is held back ends there."""
        if self._run.held is None:
            self._run = Run()

    def end(self) -> None:
        """Say that what comes is no part of the run."""
        self.read_held()
        self._run = Run()

    def read_held(self) -> None:
        """Read in full the line that was held back."""
        held, self._run.held = self._run.held, None
        if held is not None:
            self._read(*held)
