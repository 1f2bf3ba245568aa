"""How values of the verdict are written: numbers with their unit, times in UTC, objects in one line or as an outline.

Everything takes what it gets: the verdict is JSON that came from probes, so a number may be infinite, a key empty and
a list a million long. No function here reads more of a value than it shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from itertools import islice

DEPTH = 8  # of nested objects; deeper ones are said to be there
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
KEY = 200  # characters of the key of an object
LONGEST = 100_000  # characters of one string inside an object; before the whole is cut
SHORT = 100  # characters of a list that stays on one line of an outline
ELSEWHERE = "see verdict.json"
CUT = 45  # characters of the sentence that says how much is cut


def clip(text: str, limit: int) -> str:
    """Return TEXT, or its first and last parts around a sentence that says how much is missing.

    What is shorter than that sentence is not cut out: the text would only become longer.
    """
    if len(text) <= limit + CUT:
        return text
    head = max(1, limit * 2 // 3)
    tail = max(1, limit - head)
    return f"{text[:head]} … [{len(text) - head - tail} characters cut, {ELSEWHERE}] … {text[-tail:]}"


def inline(value: object, limit: int) -> str:
    """Return VALUE on one line of about LIMIT characters: `a, b`, `key value, key value`; "" for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return clip(value, limit)
    return _collect(_flat(value, 0), limit)


def outline(value: object, limit: int) -> str:
    """Return VALUE as indented lines of `key: value`, cut at LIMIT characters."""
    return _collect((line + "\n" for line in _lines(value, "", 0)), limit).rstrip("\n")


def _collect(parts: Iterator[str], limit: int) -> str:
    taken: list[str] = []
    size = 0
    for part in parts:
        if size + len(part) > limit:
            taken.append(f"{part[: max(0, limit - size)]} … [cut, {ELSEWHERE}]")
            break
        taken.append(part)
        size += len(part)
    return "".join(taken)


def _flat(value: object, depth: int) -> Iterator[str]:
    if not isinstance(value, (Mapping, list, tuple)):
        yield scalar(value)
    elif depth > DEPTH:
        yield "…"
    elif isinstance(value, Mapping):
        for index, (key, item) in enumerate(value.items()):
            nested = isinstance(item, (Mapping, list, tuple))
            yield f"{', ' if index else ''}{name_of(key)} {'(' if nested else ''}"
            yield from _flat(item, depth + 1)
            yield ")" if nested else ""
    else:
        for index, item in enumerate(value):
            nested = isinstance(item, (Mapping, list, tuple))
            yield f"{', ' if index else ''}{'(' if nested else ''}"
            yield from _flat(item, depth + 1)
            yield ")" if nested else ""


def _lines(value: object, pad: str, depth: int) -> Iterator[str]:
    if depth > DEPTH:
        yield f"{pad}…"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _entry(f"{pad}{name_of(key)}:", item, pad, depth)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _entry(f"{pad}-", item, pad, depth)
    else:
        yield pad + scalar(value)


def _entry(label: str, item: object, pad: str, depth: int) -> Iterator[str]:
    if isinstance(item, str) and "\n" in item:
        yield label
        for line in clip(item, LONGEST).split("\n"):
            yield f"{pad}  {line}"
    elif not isinstance(item, (Mapping, list, tuple)):
        yield f"{label} {scalar(item)}"
    elif not item:
        yield f"{label} none"
    elif isinstance(item, (list, tuple)) and (text := _one_line(item)) is not None:
        yield f"{label} {text}"
    else:
        yield label
        yield from _lines(item, pad + "  ", depth + 1)


def _one_line(items: list[object] | tuple[object, ...]) -> str | None:
    """Return a short list of scalars on one line, None for anything longer."""
    if len(items) > SHORT or any(isinstance(item, (Mapping, list, tuple)) for item in items):
        return None
    text = ", ".join(scalar(item)[:SHORT] for item in islice(items, SHORT))
    return text if len(text) < SHORT and "\n" not in text else None


def name_of(key: object) -> str:
    """Return the key of an object, a long one cut."""
    return clip(str(key), KEY)


def scalar(value: object) -> str:
    """Return a value that is no container: "yes", "none", 0.0412, text as it is."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return clip(value, LONGEST)
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:g}"
    try:
        return str(value)
    except ValueError:  # an integer beyond sys.get_int_max_str_digits()
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "?"


def seconds(value: object) -> str:
    """Return a duration as read: "0.2 ms", "465 ms", "1.71 s", "45.0 s"; "?" for what is none."""
    number = finite(value)
    if number is None:
        return "?"
    if abs(number) < 0.01:
        return f"{number * 1000:.1f} ms"
    if abs(number) < 1:
        return f"{number * 1000:.0f} ms"
    return f"{number:.2f} s" if abs(number) < 10 else f"{number:.1f} s" if abs(number) < 1e6 else f"{number:g} s"


def finite(value: object) -> float | None:
    """Return VALUE as a finite float, None for anything else (also for a bool)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def clock(unix: object, *, date: bool = True) -> str:
    """Return a Unix time as "2026-11-22 21:25:14 UTC"; "" for 0 and for what is no time."""
    number = finite(unix)
    if not number:
        return ""
    try:
        return f"{EPOCH + timedelta(seconds=number):{'%Y-%m-%d ' if date else ''}%H:%M:%S} UTC"
    except (OverflowError, ValueError):
        return ""
