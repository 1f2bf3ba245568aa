"""Markup that cannot be broken by what it shows: log text, file names and environment values are hostile.

Every text that becomes part of a page passes `el` or `Paper.text`, which escape it; only `Html`, which nothing else
makes, is taken as it is. What a terminal or a browser would act on instead of showing (control characters, invisible
and bidirectional formatting, lone surrogates) is written as a backslash escape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TypeVar

from pytest_gpudiscovery.reports.html_values import clip, inline, outline

T = TypeVar("T")

BUDGET = 3_000_000  # bytes of text in a page; then values are cut to SPENT characters and tables to FEW rows
CELL = 1_000  # characters of one value in a table
BLOCK = 70_000  # characters of one folded block: a captured stream (64 KiB) whole
LITERAL = 500  # characters of a plain child of `el`: our own words, or a short name
SPENT, FEW = 60, 10
ROW_COST = 400  # bytes of markup around the values of one row

# Marks that stack on the letter before them (more than three of them paint over the lines above), controls but tab
# and newline, soft hyphen, fillers, zero-width and bidirectional formatting, line separators, variation selectors,
# surrogates, the byte order mark, specials and tags.
_MARKS = r"[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
_UNSEEN = re.compile(
    rf"(?<={_MARKS}{{3}}){_MARKS}+"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\ud800-\udfff\U0001fffe\U0001ffff"
    r"\U000e0000-\U000e0fff]"
)


class Html(str):
    """Markup that is safe to put into a page."""

    __slots__ = ()


def visible(text: str) -> str:
    """Return TEXT with every character that would act instead of being seen as \\xNN, \\uNNNN or \\UNNNNNNNN."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSEEN.sub(lambda match: "".join(map(_escaped, match.group())), text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def el(name: str, /, *children: str | None, **attributes: str | float | bool | None) -> Html:
    """Return element NAME. A child that is not Html is escaped, None left out; so is an attribute None or False.

    `class_` gives class, `data_label` data-label. NAME and the attributes' names are always literals of ours.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        parts.append(f" {attribute}" if value is True else f' {attribute}="{_literal(str(value))}"')
    parts.append(">")
    if name in VOID:
        return Html("".join(parts))
    parts += [child if isinstance(child, Html) else _literal(child) for child in children if child is not None]
    parts.append(f"</{name}>")
    return Html("".join(parts))


VOID = frozenset({"meta", "br"})


def _literal(text: str) -> str:
    return escape(visible(clip(text, LITERAL)))


def join(parts: Iterable[str]) -> Html:
    """Return PARTS after one another, each escaped unless it is Html."""
    return Html("".join(part if isinstance(part, Html) else _literal(part) for part in parts))


class Paper:
    """The room that is left in one page: what is long is cut, and the cut is said."""

    def __init__(self, left: int = BUDGET) -> None:
        self._left = left

    def text(self, value: object, limit: int = CELL) -> Html:
        """Return VALUE (a string, number, list or object) on one line, at most LIMIT characters of it."""
        return self._put(inline(value, self._limit(limit)))

    def block(self, value: object, limit: int = BLOCK) -> Html:
        """Return VALUE as lines: a string as it is, anything else as indented `key: value`."""
        limit = self._limit(limit)
        return self._put(clip(value, limit) if isinstance(value, str) else outline(value, limit))

    def rows(self, items: Sequence[T], limit: int = 400) -> tuple[Sequence[T], Html | None]:
        """Return the first of ITEMS, at most LIMIT, and a paragraph that says how many were left out."""
        limit = max(FEW, min(limit, self._left // ROW_COST))
        kept = items[:limit]
        self._left -= len(kept) * ROW_COST
        lost = len(items) - len(kept)
        return kept, el("p", f"{lost} more: see verdict.json.", class_="cut") if lost else None

    def _limit(self, limit: int) -> int:
        return max(SPENT, min(limit, self._left))

    def _put(self, text: str) -> Html:
        markup = escape(visible(text))
        self._left -= len(markup) if markup.isascii() else len(markup.encode())
        return Html(markup)
