"""Profiles: the shipped ones, a person's own, and every way in which a file can be no profile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery import profiles


def test_the_contracts_names_are_shipped() -> None:
    assert profiles.names() == ("any", "h100", "h100-nvl", "h100-pcie", "h100-sxm", "h200")


@pytest.mark.parametrize("name", profiles.names())
def test_a_shipped_profile_loads_and_names_its_sources(name: str) -> None:
    loaded = profiles.load(name)
    assert (loaded["profile"], loaded["source"]) == (name, f"{name}.toml")
    text = (profiles.HERE / f"{name}.toml").read_text(encoding="utf-8")
    assert name == "any" or "# Sources" in text
    assert name == "any" or loaded["cc"] == ["9.0"]


def test_any_expects_nothing() -> None:
    assert set(profiles.load("any")) == {"profile", "source", "title"}


def test_the_measured_board_fits_its_profiles() -> None:
    mib, sms, name = 81559, 132, "NVIDIA H100 80GB HBM3"  # one H100 80GB HBM3, driver 580.159.04
    for profile in ("h100", "h100-sxm"):
        loaded = profiles.load(profile)
        assert loaded["memory_mib"][0] <= mib <= loaded["memory_mib"][1]
        assert sms in loaded["sm_count"]
    assert profiles.load("h100-sxm")["name"] == [name]


def write(tmp_path: Path, text: str) -> str:
    """Write TEXT as a profile and return its path."""
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'title = "two boards"\nname = ["NVIDIA H100*"]\ncc = ["9.0"]\nmemory_mib = [80000, 82000]\n'
        'sm_count = [132]\ncount = 2\nmig = "off"\necc = "on"\n',
    )
    assert profiles.load(path) == {
        "profile": "mine",
        "source": path,
        "title": "two boards",
        "name": ["NVIDIA H100*"],
        "cc": ["9.0"],
        "memory_mib": [80000, 82000],
        "sm_count": [132],
        "count": [2, 2],
        "mig": "off",
        "ecc": "on",
    }


WRONG: list[tuple[str, str]] = [
    ("title", "not TOML"),
    ("title = ", "not TOML"),
    ("", "the key 'title' is missing"),
    ("title = 5", "title must be one line of text, not 5"),
    ('title = ""', "title must be one line"),
    ('title = "x"\nnames = ["y"]', "unknown key 'names'; did you mean name?"),
    ('title = "x"\nzzzzzz = 1', "unknown key 'zzzzzz'; known are title, name"),
    ('title = "x"\nname = "H100"', "name must be a list of texts, not 'H100'"),
    ('title = "x"\nname = []', "name must be a list of texts"),
    ('title = "x"\ncc = ["90"]', "cc must hold compute capabilities such as \"9.0\", not '90'"),
    ('title = "x"\ncc = [9.0]', "cc must be a list of texts"),
    ('title = "x"\nmemory_mib = 80', "memory_mib must be [least, most], whole numbers above 0, not 80"),
    ('title = "x"\nmemory_mib = [2, 1]', "memory_mib: 2 is more than 1"),
    ('title = "x"\nmemory_mib = [1, 2, 3]', "memory_mib must be [least, most]"),
    ('title = "x"\nsm_count = [0]', "sm_count must be a list of whole numbers above 0, not [0]"),
    ('title = "x"\nsm_count = [true]', "sm_count must be a list of whole numbers"),
    ('title = "x"\ncount = 0', "count must be [least, most]"),
    ('title = "x"\ncount = 1.5', "count must be [least, most]"),
    ('title = "x"\nmig = true', 'mig must be "on", "off" or "any", not True'),
    ('title = "x"\necc = "yes"', 'ecc must be "on", "off" or "any", not \'yes\''),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[text.replace("\n", " ") for text, _ in WRONG])
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        profiles.load(write(tmp_path, text))
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("h100sxm", "did you mean h100-sxm?"),
        ("H100", "did you mean h100?"),
        ("a100", "unknown profile, there are any, h100"),
        ("", "unknown profile"),
        ("/no/such/file.toml", "there is no such file"),
        ("no-such.toml", "there is no such file"),
        ("/dev/null", "not a regular file"),
        ("../", "not a regular file"),
    ],
)
def test_a_name_that_is_none(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        profiles.load(name)
    assert words in str(caught.value)


def test_files_that_are_no_text_or_have_no_end(tmp_path: Path) -> None:
    binary, endless, fifo = tmp_path / "b.toml", tmp_path / "e.toml", tmp_path / "f.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    endless.write_bytes(b"#" * (profiles.SIZE_LIMIT + 1))
    os.mkfifo(fifo)  # nobody writes: opening it would wait for ever
    for path, words in ((binary, "not UTF-8 text"), (endless, "longer than"), (fifo, "not a regular file")):
        with pytest.raises(ValueError, match=words):
            profiles.load(str(path))


def refusal(call: Callable[..., Any], *args: Any) -> str | None:
    """Return the words of the ValueError that CALL raises, None when it raises none."""
    try:
        call(*args)
    except ValueError as error:
        return str(error)
    return None


@settings(deadline=None)  # a loaded machine is no failure
@given(st.text(max_size=60))
def test_any_name_loads_or_is_refused_in_one_line(name: str) -> None:
    words = refusal(profiles.load, name)
    assert (words is None) == (name in profiles.names())
    assert words is None or (words and "\n" not in words)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None)  # a loaded machine is no failure
@given(st.sampled_from(sorted(profiles.KEYS)), VALUES)
def test_any_value_of_a_key_is_taken_or_refused_in_one_line(key: str, value: Any) -> None:
    words = refusal(profiles.KEYS[key], key, value)
    assert words is None or (words.startswith(key) and "\n" not in words)
