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
    pattern: re.Pattern[bytes] | None = None  # of those that may be left out; None: not known yet
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
        if run.pattern is None:
            return place
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
            self._tally.add_lines(run.server, run.carrier, counted)
            self._reader.window = window - count
            run.held = (buffer[start : place - 1], self._reader.number(start))
        return place

    def note(self, raw: bytes, line: LogLine, message: Message | None, word: Word | None, server: Server) -> None:
        """Say that LINE, which is MESSAGE or has WORD, was taken: it is of SERVER."""
        if message is not None and (message.window is not None or message.once or message.id == "runner.start"):
            self._run = Run()
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
