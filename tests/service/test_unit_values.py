"""Words, specifiers, sizes and limits of unit files."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.unit_values import boolean, expand, limit, size, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1 B=2", ["A=1", "B=2"]),
        ('"A=b c" D=e', ["A=b c", "D=e"]),
        ("'A=b \"c\"'", ['A=b "c"']),
        ('A="b c"d', ["A=b cd"]),
        (r"A=a\sb \x41\101\u00e9", ["A=a b", "AA\u00e9"]),
        (r'A="a\"b" C=\\', ['A=a"b', "C=\\"]),
        (r"A=\q", [r"A=\q"]),
        ('""', [""]),
        ("  \t ", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize("text", ['"open', "'open", "end\\", r"\x00", r"\ud800"])
def test_words_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        words(text)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\\\"'#\x00"), max_size=60))
def test_plain_words_are_split_at_blanks(text: str) -> None:
    assert words(text) == [
        part for part in text.replace("\t", " ").replace("\n", " ").replace("\r", " ").split(" ") if part
    ]


@given(st.text(max_size=80))
def test_words_give_words_or_one_line(text: str) -> None:
    said = ""
    try:
        words(text)
    except ValueError as error:
        said = str(error)
    assert "\n" not in said


@given(st.lists(st.text("abc \"'=", max_size=6), max_size=4))
def test_quoted_words_come_back(given_words: list[str]) -> None:
    quoted = " ".join('"' + word.replace('"', '\\"') + '"' for word in given_words)
    assert words(quoted) == given_words
    assert words(shlex.join(word.replace("'", "x") for word in given_words)) == [
        w.replace("'", "x") for w in given_words
    ]


def test_specifiers() -> None:
    assert expand("/run/%n/%%i", {"n": "ollama.service"}) == "/run/ollama.service/%i"
    with pytest.raises(ValueError, match="specifier %q"):
        expand("%q", {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8G", 8 << 30),
        ("1.5K", 1536),
        ("512", 512),
        ("infinity", -1),
        ("50%", None),
        ("x", None),
        ("", None),
        ("1 M", 1 << 20),
    ],
)
def test_sizes(text: str, expected: int | None) -> None:
    assert size(text) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("NOFILE", "65536", (65536, 65536)),
        ("NOFILE", "1024:524288", (1024, 524288)),
        ("NOFILE", "infinity", (-1, -1)),
        ("AS", "4G", (4 << 30, 4 << 30)),
        ("MEMLOCK", "8M:infinity", (8 << 20, -1)),
        ("CORE", "0", (0, 0)),
        ("CPU", "1h", None),
        ("NICE", "+5", None),
        ("NOFILE", "many", None),
        ("AS", "1G:many", None),
    ],
)
def test_limits(name: str, text: str, expected: tuple[int, int] | None) -> None:
    assert limit(name, text) == expected


def test_booleans() -> None:
    assert [boolean(word) for word in ("yes", "True", " on ", "0", "off", "maybe")] == [
        True,
        True,
        True,
        False,
        False,
        None,
    ]
