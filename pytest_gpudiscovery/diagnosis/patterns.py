"""Which entry of a table of patterns is a cause's: a pattern is an id, or a prefix that ends in a dot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


def longest(cause_id: str, table: Mapping[str, Value]) -> Value | None:
    """Return what TABLE has for CAUSE_ID itself, else for its longest prefix; None when it has nothing."""
    if cause_id in table:
        return table[cause_id]
    parts = cause_id.split(".")
    begins = (".".join(parts[:count]) + "." for count in range(len(parts) - 1, 0, -1))
    return next((table[begin] for begin in begins if begin in table), None)


def matches(cause_id: str, patterns: Iterable[str]) -> bool:
    """Whether one of PATTERNS is CAUSE_ID or a prefix of it."""
    return any(cause_id == pattern or (pattern.endswith(".") and cause_id.startswith(pattern)) for pattern in patterns)


def meet(some: Iterable[str], others: Iterable[str]) -> bool:
    """Whether a cause could match both a pattern of SOME and one of OTHERS."""
    others = tuple(others)
    return any(matches(a, (b,)) or matches(b, (a,)) for a in some for b in others)
