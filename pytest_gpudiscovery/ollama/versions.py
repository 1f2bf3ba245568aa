"""Sets of Ollama releases, and which releases have a message at the line that a log shows.

A set is an int with one bit per release of data/lines.json, oldest first: narrowing is `&`. The table says at which
line of which file each release writes a message, so that a few lines of a log name the version that wrote it
(`runner.go:464 "failure during GPU discovery"` is 0.13.2 to 0.22.1).
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
Releases = int  # one bit per release
# Messages whose line every release of their era is listed with: an unlisted line there is another build of Ollama.
COMPLETE = frozenset(
    {
        "server.config",
        "server.listening",
        "server.vram_context",
        "result.device",
        "start",
        "failure",
        "failure.c",
        "took",
    }
)

_NUMBER = re.compile(r"v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})")


@functools.cache
def load(name: str) -> Any:
    """Return the content of data/NAME.json."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


@functools.lru_cache(1024)
def number(text: str) -> tuple[int, int, int] | None:
    """Return (0, 16, 3) for "0.16.3", "v0.16.3-rc1" or "0.16.3-3-gabc"; None for what begins with no version."""
    found = _NUMBER.match(text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


@functools.cache
def releases() -> tuple[str, ...]:
    """Return every release that the table knows, oldest first."""
    return tuple(load("lines")["releases"])


def every() -> Releases:
    """Return the set of all releases."""
    return (1 << len(releases())) - 1


@functools.cache
def between(first: str, last: str | None) -> Releases:
    """Return the releases FIRST to LAST, both included; LAST None is without end."""
    low, high = number(first), number(last) if last else None
    found = 0
    for index, release in enumerate(releases()):
        this = number(release)
        if this is not None and low is not None and low <= this and (high is None or this <= high):
            found |= 1 << index
    return found


def of(text: str) -> Releases:
    """Return the set that holds release TEXT alone, empty when the table does not know it (a candidate, a fork)."""
    name = text.removeprefix("v")
    return 1 << releases().index(name) if name in releases() else 0


def at(file: str | None, line: int | None, message: str) -> Releases | None:
    """Return the releases that write MESSAGE (an id of messages.json) at FILE:LINE.

    None when the table says nothing of this file and message; 0 when it does and no release has it at that line.
    """
    by_line = _table().get((file or "", message))
    return None if by_line is None or line is None else by_line.get(line, 0)


@functools.cache
def _table() -> dict[tuple[str, str], dict[int, Releases]]:
    table: dict[tuple[str, str], dict[int, Releases]] = {}
    for file, by_message in load("lines")["lines"].items():
        for message, ranges in by_message.items():
            entry = table.setdefault((file, message), {})
            for line, first, last in ranges:
                entry[line] = entry.get(line, 0) | between(first, last)
    return table


def spans(found: Releases) -> list[tuple[str, str]]:
    """Return FOUND as runs of neighbouring releases: [("0.13.2", "0.22.1")]."""
    runs: list[tuple[str, str]] = []
    previous = -2
    for index, release in enumerate(releases()):
        if found >> index & 1:
            runs = [*runs[:-1], (runs[-1][0], release)] if index == previous + 1 else [*runs, (release, release)]
            previous = index
    return runs


def words(found: Releases) -> str:
    """Return "0.13.2 to 0.22.1", "0.16.3", "0.12.4 to 0.12.5 or 0.13.0"; the newest is "0.32.15 (the newest known)"."""
    texts = [first if first == last else f"{first} to {last}" for first, last in spans(found)]
    return " or ".join(texts) if texts else "none that is known"
