"""The values of systemd's unit files: words, specifiers, booleans, sizes, limits. Pure; see systemd.syntax(7)."""

from __future__ import annotations

import re
from collections.abc import Mapping

INFINITY = -1  # resource.RLIM_INFINITY
TRUE, FALSE = ("1", "yes", "y", "true", "t", "on"), ("0", "no", "n", "false", "f", "off")
ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "s": " ",
    "\\": "\\",
    '"': '"',
    "'": "'",
}
NUMBERED = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})")
SIZES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50, "E": 1 << 60}
# Limits that this module translates: counts and sizes. Times (CPU, RTTIME) and NICE have units of their own.
COUNTED = ("NOFILE", "NPROC", "SIGPENDING", "RTPRIO")
SIZED = ("AS", "DATA", "FSIZE", "STACK", "MEMLOCK", "CORE", "RSS", "MSGQUEUE")
DEFAULT_NOFILE = (1024, 524288)  # DefaultLimitNOFILE= (systemd-system.conf(5), since v240)


def words(text: str) -> list[str]:
    """Return the words of TEXT: quotes of both kinds, C-style escapes; raises ValueError with one line."""
    found: list[str] = []
    word: list[str] | None = None
    quote = ""
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "\\":
            piece, at = _escaped(text, at)
            word = [*(word or []), piece]
        elif quote:
            if character == quote:
                quote = ""
            else:
                word = [*(word or []), character]
        elif character in "\"'":
            quote, word = character, word or []
        elif character in " \t\n\r":
            if word is not None:
                found.append("".join(word))
                word = None
        else:
            word = [*(word or []), character]
    if quote:
        raise ValueError(f"a quote {quote} that is not closed")
    return found if word is None else [*found, "".join(word)]


def _escaped(text: str, at: int) -> tuple[str, int]:
    if at >= len(text):
        raise ValueError("a backslash at the end")
    if text[at] in ESCAPES:
        return ESCAPES[text[at]], at + 1
    number = NUMBERED.match(text, at)
    if number is None:
        return "\\" + text[at], at + 1  # as systemd does, with a warning
    digits = next(group for group in number.groups() if group is not None)
    value = int(digits, 8 if number[4] else 16)
    if value == 0 or value > 0x10FFFF or 0xD800 <= value < 0xE000:
        raise ValueError(f"an escape that is no character: \\{number[0]}")
    return chr(value), number.end()


def expand(text: str, specifiers: Mapping[str, str]) -> str:
    """Return TEXT with its %-specifiers replaced; raises ValueError for one that SPECIFIERS do not have."""

    def replace(match: re.Match[str]) -> str:
        letter = match[1]
        if letter == "%":
            return "%"
        if letter not in specifiers:
            raise ValueError(f"specifier %{letter} is not known here")
        return specifiers[letter]

    return re.sub(r"%(.)", replace, text)


def boolean(text: str) -> bool | None:
    """Return what TEXT says, None when it is no boolean."""
    word = text.strip().lower()
    return True if word in TRUE else False if word in FALSE else None


def size(text: str) -> int | None:
    """Return the bytes of "8G", INFINITY, or None for what cannot be told (a percentage, or nonsense)."""
    word = text.strip()
    if word == "infinity":
        return INFINITY
    match = re.fullmatch(r"([0-9]{1,18})(?:\.([0-9]{1,6}))?\s*([BKMGTPE]?)", word)
    if match is None:
        return None
    fraction = float(f"0.{match[2]}") if match[2] else 0.0
    return int(match[1]) * SIZES[match[3]] + int(fraction * SIZES[match[3]])


def limit(name: str, text: str) -> tuple[int, int] | None:
    """Return (soft, hard) of LimitNAME=TEXT, None for a limit or a value that is not translated here."""
    if name not in (*COUNTED, *SIZED):
        return None
    soft, colon, hard = text.partition(":")
    values = [_one_limit(name, part) for part in ([soft, hard] if colon else [text, text])]
    if values[0] is None or values[1] is None:
        return None
    return values[0], values[1]


def _one_limit(name: str, text: str) -> int | None:
    if name in SIZED:
        return size(text)
    word = text.strip()
    if word == "infinity":
        return INFINITY
    return int(word) if word.isascii() and word.isdigit() and len(word) < 19 else None
