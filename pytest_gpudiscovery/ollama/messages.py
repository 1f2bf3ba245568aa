"""The messages that tell about discovery: data/messages.json, found by their beginning.

Each has an id that the rest of this package uses, so that a message that was reworded between releases ("evluating
which if any …") is one entry with an alias.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from pytest_gpudiscovery.ollama import eras
from pytest_gpudiscovery.ollama.versions import Releases, load

SERVER, CHILD = "server", "child"
OPEN, CLOSE = "open", "close"


@dataclass(frozen=True)
class Message:
    """One message of Ollama's log."""

    id: str
    text: str  # how it begins
    role: str  # who writes it: SERVER, or CHILD (a runner; seen at TRACE only)
    eras: str  # e.g. "BC"
    level: str
    meaning: str
    aliases: tuple[str, ...] = ()
    window: str | None = None  # OPEN: every line after it matters; CLOSE: until here
    once: bool = False  # a server writes it once in its life

    @property
    def releases(self) -> Releases:
        """The releases of the eras that have it."""
        return _releases(self.eras)


@functools.cache
def _releases(ids: str) -> Releases:
    found = 0
    for era in eras.eras():
        found |= era.releases if era.id in ids else 0
    return found


@functools.cache
def messages() -> dict[str, Message]:
    """Return every message by id."""
    entries = load("messages")["messages"]
    return {entry["id"]: Message(**{**entry, "aliases": tuple(entry.get("aliases", ()))}) for entry in entries}


@functools.cache
def _beginnings() -> tuple[re.Pattern[str], dict[str, str]]:
    texts = {text: entry.id for entry in messages().values() for text in (entry.text, *entry.aliases)}
    ordered = sorted(texts, key=len, reverse=True)  # "starting runner for device discovery" before "starting runner"
    return re.compile(r"(?:\[\d{1,3}\] )?(" + "|".join(map(re.escape, ordered)) + ")"), texts


def identify(message: str) -> Message | None:
    """Return which message a log line's MESSAGE is, None for one that says nothing of discovery."""
    pattern, texts = _beginnings()
    found = pattern.match(message)
    if found is None:
        return None
    entry = messages()[texts[found[1]]]
    # Words that are whole messages must not take longer ones for themselves.
    return None if " " not in entry.text and message != entry.text else entry


@functools.cache
def filter_pattern() -> re.Pattern[bytes]:
    """Return what finds, in the bytes of a log, the lines that may hold one of these messages.

    Fast because it begins with a literal and then decides letter by letter. In front of the message: slog's text, its
    JSON, and both inside another JSON string.
    """
    texts = sorted({text for entry in messages().values() for text in (entry.text, *entry.aliases)})
    return re.compile(rb'msg(?:=|\\*"\s?:\s?)\\*"?(?:\[\d{1,3}\] )?' + _tree([text.encode() for text in texts]))


def _tree(texts: list[bytes]) -> bytes:
    """Return a pattern that matches any of TEXTS (sorted), branching where they differ; the shortest of several."""
    if b"" in texts:
        return b""
    branches = []
    for first in sorted({text[:1] for text in texts}):
        rest = [text[1:] for text in texts if text[:1] == first]
        branches.append(re.escape(first) + _tree(rest))
    return branches[0] if len(branches) == 1 else b"(?:" + b"|".join(branches) + b")"
