"""What is known of refreshes (logknown.py), what is held back of a log, and the counts of what is left out of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from operator import le, sub
from typing import Any

from pytest_gpudiscovery.ollama.children import STAMP_S
from pytest_gpudiscovery.ollama.gotime import duration, stamp
from pytest_gpudiscovery.ollama.passes import ANOTHER_S
from pytest_gpudiscovery.ollama.refreshes import SLOW_S
from pytest_gpudiscovery.ollama.sessions import Server

LONGEST_S = ANOTHER_S - 0.1  # of a refresh that is left out
SPANS = 256

# What counts of one refresh: its least and its greatest time, how long it took, and the milliseconds of that (None
# where it is another unit).
Given = tuple[bytes, bytes, bytes, bytes | None]


@dataclass(eq=False)
class Episode:
    """A refresh that was read in full, and what it did."""

    server: Server
    token: object  # of the servers, before it and after it
    lines: int  # of the server itself
    inside: int  # of its children, where they stand between those in `whole`
    carrier: str
    failed: bool
    whole: re.Pattern[bytes]
    zone: str

    def time(self, text: bytes) -> float | None:
        """Return as seconds since 1970 what the server wrote as TEXT."""
        return stamp(text.decode() + self.zone)[0]


@dataclass(eq=False)
class Quiet:
    """A line that changes nothing that is told: of a child while its refresh may yet go well, or is over."""

    pattern: re.Pattern[bytes]
    server: Server
    token: object  # of the servers, before it and after it
    carrier: str
    zone: str
    inside: bool  # it is of a child: nothing while a refresh is going on, either
    has_time: bool


@dataclass(eq=False)
class Node:
    """A place in the lines of the refreshes that are known."""

    next: list[tuple[re.Pattern[bytes], Node]] = field(default_factory=list)
    keys: dict[bytes, Node] = field(default_factory=dict)
    firsts: set[int] = field(default_factory=set)  # the first bytes of those lines
    has_time: bool = False
    episode: Episode | None = None

    def after(self, buffer: bytes, place: int, end: int) -> tuple[Node | None, re.Match[bytes] | None]:
        """Return which place comes after this one when the line at PLACE of BUFFER is read, and how it was found."""
        for index, (pattern, child) in enumerate(self.next):
            found = pattern.match(buffer, place, end)
            if found is not None:
                if index:
                    self.next.insert(0, self.next.pop(index))
                return child, found
        return None, None


@dataclass
class Held:
    """A refresh that was left out and may still be read."""

    episode: Episode
    text: bytes
    number: int  # of its first line
    given: Given
    lines: int  # that say something
    late: list[tuple[bytes, int]] = field(default_factory=list)  # and behind them, with their numbers

    def ended_before(self, time: float | None) -> bool:
        """Whether a child that writes at TIME is none of its children."""
        ended = self.episode.time(self.given[1])
        return time is not None and ended is not None and time > ended + 2 * STAMP_S


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

    def count(self, episode: Episode, lines: int, given: list[Given], number: Callable[[int], int]) -> None:
        """Count what is left out for good, LINES of each; NUMBER gives the line where one of them begins."""
        refreshes, count = episode.server.builder.refreshes, len(given)
        refreshes.seen += count
        self.add_lines(episode.server, episode.carrier, lines * count)
        firsts, lasts, _, short = zip(*given, strict=True)
        self.span(episode, min(firsts), max(lasts))
        if episode.failed:
            refreshes.failed += count
            return
        took = list(map(float, short)) if None not in short else [_ms(groups) for groups in given]
        slowest, fastest = max(took), min(took)
        index = took.index(slowest)
        if slowest >= SLOW_S * 1e3:
            refreshes.slow += sum(
                seconds_of(given[place]) >= SLOW_S for place, ms in enumerate(took) if ms > SLOW_S * 999
            )
        slowest, fastest = seconds_of(given[index]), seconds_of(given[took.index(fastest)])
        if refreshes.slowest_s is None or slowest >= refreshes.slowest_s:
            refreshes.took(slowest, episode.time(given[index][0]), number(index))
        if refreshes.fastest_s is None or fastest < refreshes.fastest_s:
            refreshes.fastest_s = fastest


def reduced(given: list[tuple[Any, ...]]) -> list[Given]:
    """Return what counts of GIVEN, the groups of refreshes, as far as they were over in time."""
    minutes, *seconds, took, short = zip(*given, strict=True)
    if all(all(map(le, one, other)) for one, other in pairwise(seconds)):
        first, last = seconds[0], seconds[-1]
    else:
        first, last = tuple(map(min, *seconds)), tuple(map(max, *seconds))
    spent = list(map(sub, map(float, last), map(float, first)))
    over = next((index for index, seconds in enumerate(spent) if seconds > LONGEST_S), len(given))
    colon = b":"
    return [
        (minute + colon + one, minute + colon + other, value, ms)
        for minute, one, other, value, ms in zip(minutes[:over], first, last, took, short, strict=False)
    ]


def _ms(groups: Given) -> float:
    """Return about how many milliseconds a refresh took."""
    return seconds_of(groups) * 1e3


def seconds_of(groups: Given) -> float:
    """Return how long a refresh took."""
    return duration(groups[2].decode()) or 0.0
