"""What is known of refreshes (logknown.py), what is held back of a log, and the counts of what is left out of it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pytest_gpudiscovery.ollama.gotime import duration, stamp
from pytest_gpudiscovery.ollama.passes import ANOTHER_S
from pytest_gpudiscovery.ollama.refreshes import SLOW_S
from pytest_gpudiscovery.ollama.sessions import Server

LONGEST_S = ANOTHER_S - 0.1  # of a refresh that is left out
SPANS = 256
LINES = 300  # of a refresh that is learnt
MINUTE, SECOND = len("2026-02-25T08:54:"), len("2026-02-25T08:54:04")


@dataclass(eq=False)
class Episode:
    """A refresh that was read in full, and what it did. `spelling` has the letters of the server's own lines."""

    server: Server
    spelling: str
    carrier: str
    failed: bool
    zone: str
    over: int = LINES  # behind so many letters a child's words are none of it any more
    unfinished: bool = False  # its child was started, and that is all: the next one's start ends it

    def time(self, text: bytes) -> float | None:
        """Return as seconds since 1970 what the server wrote as TEXT."""
        return stamp(text.decode() + self.zone)[0]


@dataclass
class Held:
    """A refresh that was left out and may still be read."""

    episode: Episode
    lines: list[tuple[bytes, int]]  # that say something, with their numbers
    first: bytes  # its least time
    last: bytes  # its greatest
    took: bytes  # how long it took, as the server wrote it
    late: list[tuple[bytes, int]] = field(default_factory=list)  # of its child, behind them
    late_times: list[bytes] = field(default_factory=list)
    words: list[tuple[bytes, int]] = field(default_factory=list)  # those of `late` that are read in full, always


class Tally:
    """Counts what is left out for good; CARRIERS are those of the log's lines."""

    def __init__(self, carriers: Counter[str]) -> None:
        self._carriers = carriers
        self.lines = 0
        self._spans: dict[tuple[int, str], tuple[Episode, bytes, bytes]] = {}  # least and greatest time, by server

    def span(self, episode: Episode, first: bytes, last: bytes) -> None:
        """Note that one like EPISODE lasted from FIRST to LAST."""
        key = episode.server.number, episode.zone
        if key not in self._spans and len(self._spans) >= SPANS:
            self.note_times()
        known = self._spans.get(key)
        if known is not None:
            first, last = min(first, known[1]), max(last, known[2])
        self._spans[key] = episode, first, last

    def note_times(self) -> None:
        """Tell the servers the times of what was left out."""
        for episode, first, last in self._spans.values():
            episode.server.saw(episode.time(first))
            episode.server.saw(episode.time(last))
        self._spans = {}

    def add_lines(self, server: Server, carrier: str, count: int) -> None:
        """Count lines of SERVER that came in CARRIER."""
        server.lines += count
        self._carriers[carrier] += count
        self.lines += count

    def count(
        self, episode: Episode, took: Sequence[bytes], first: Callable[[int], bytes], number: Callable[[int], int]
    ) -> None:
        """Count refreshes like EPISODE that are left out for good and TOOK as long as the server wrote.

        FIRST gives the least time of one of them, NUMBER the number of its first line.
        """
        refreshes, count = episode.server.builder.refreshes, len(took)
        refreshes.seen += count
        if episode.failed:
            refreshes.failed += count
        if episode.failed or episode.unfinished:
            return
        about = _milliseconds(took)
        index = about.index(max(about))
        slowest, fastest = _seconds(took[index]), _seconds(took[about.index(min(about))])
        if slowest >= SLOW_S:
            refreshes.slow += sum(
                ms > SLOW_S * 1001 or _seconds(took[at]) >= SLOW_S for at, ms in enumerate(about) if ms > SLOW_S * 999
            )
        if refreshes.slowest_s is None or slowest >= refreshes.slowest_s:
            refreshes.took(slowest, episode.time(first(index)), number(index))
        if refreshes.fastest_s is None or fastest < refreshes.fastest_s:
            refreshes.fastest_s = fastest


def may_be_two(first: bytes, last: bytes) -> bool:
    """Whether a refresh whose least and greatest times are FIRST and LAST, of one zone, lasted as long as two do."""
    if first[:MINUTE] == last[:MINUTE]:
        return float(last[MINUTE:]) - float(first[MINUTE:]) > LONGEST_S
    return (stamp(last.decode())[0] or 0.0) - (stamp(first.decode())[0] or 0.0) > LONGEST_S


_SCALES = {b"ms": 1.0, **{b"%ds" % digit: 1e3 for digit in range(10)}}


def _milliseconds(texts: Sequence[bytes]) -> list[float]:
    """Return about how many milliseconds each of TEXTS, durations, are."""
    with contextlib.suppress(ValueError, KeyError):  # 1m2s, 20us
        return [float(text.rstrip(b"ms")) * _SCALES[text[-2:]] for text in texts]
    return [_seconds(text) * 1e3 for text in texts]


def _seconds(text: bytes) -> float:
    return duration(text.decode()) or 0.0
