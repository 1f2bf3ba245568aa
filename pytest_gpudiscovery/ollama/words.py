"""What a discovery child (or systemd, or the kernel) says in its own words: data/words.json, recognised line by line.

At TRACE the child's output stands between the server's lines. `mark` says how far it had come.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.ollama.versions import load

GROUP = 300  # characters of one value
# Every line that one of the patterns finds has one of these in it.
HINTS = ("ggml_", "compute capability", "load_backend: ", "CUDA error: ", "ROCm error: ", "fatal error: ",
         "Listen error", "GGML_ASSERT", "Resource temp", "OS thread", "max user processes", "nnot allocate memory",
         "reserve page", "pages in arena", "SIG", "panic: ", "current path", "ld.so: ", "ARCHS", "NVML", "OOM",
         "Out of memory", "oom-kill", "libvgpu", "HAM", "unified_lock", "lock shrreg", "Hijacking", "LD_PRELOAD",
         "initializing ", "calling cu", "cuInit err")  # fmt: skip


@dataclass(frozen=True)
class Word:
    """One recognised line: `id` of words.json, and what its groups hold."""

    id: str
    values: tuple[str, ...]
    mark: str | None
    text: str
    early: bool = False  # a child may say it before its main() has printed a line


@functools.cache
def marks() -> tuple[str, ...]:
    """Return the marks of a child's progress in their order."""
    return tuple(entry["id"] for entry in load("words")["marks"])


def blocked_at(mark: str) -> str:
    """Return what a child was doing whose last sign of life is MARK."""
    return next((str(entry["blocked"]) for entry in load("words")["marks"] if entry["id"] == mark), "")


def exit_code(code: int) -> str:
    """Return what a child's exit CODE means."""
    return str(load("words")["exit_codes"].get(str(code), "a code that Ollama's child does not give by itself"))


def meaning(word: str) -> str:
    """Return what the word with id WORD means."""
    return str(next(entry for entry in load("words")["words"] if entry["id"] == word)["meaning"])


def further(one: str | None, other: str | None) -> str | None:
    """Return the mark that is further on; a mark of era A, which has no order, counts as the later word."""
    if one is None or other is None:
        return one or other
    order = marks()
    if one not in order or other not in order:
        return other
    return max(one, other, key=order.index)


def recognise(text: str) -> Word | None:
    """Return what TEXT, a line that is not of the server's log format, says of discovery; None for anything else."""
    if not any(map(text.__contains__, HINTS)):  # a tenth of what the patterns take
        return None
    for entry, pattern in _patterns():
        found = pattern.search(text)
        if found is not None:
            values = tuple((value or "")[:GROUP] for value in found.groups())
            return Word(entry["id"], values, entry.get("mark"), text[:GROUP], entry.get("early", False))
    return None


@functools.cache
def _patterns() -> tuple[tuple[dict[str, Any], re.Pattern[str]], ...]:
    return tuple((entry, re.compile(entry["pattern"])) for entry in load("words")["words"])
