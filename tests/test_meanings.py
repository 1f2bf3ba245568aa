"""One lookup over every family of error: each table is whole, and any value at all is answered."""

from __future__ import annotations

import json
import re
import signal
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.diagnosis import catalogue, errors, xid
from pytest_gpudiscovery.diagnosis.meanings import FAMILIES, meaning
from pytest_gpudiscovery.loader import problems

DATA = json.loads((catalogue.DATA / "errors.json").read_text())
VALUES = st.none() | st.integers() | st.text(max_size=60)


@given(family=st.sampled_from(FAMILIES), value=VALUES)
def test_any_value_is_answered_in_one_line(family: str, value: int | str | None) -> None:
    found = meaning(family, value)
    assert found.family == family
    assert found.label.strip()
    assert "\n" not in found.label
    assert found.discovery.endswith(".")
    assert found.cause is None or found.cause in catalogue.causes()


@pytest.mark.parametrize("family", ["dlerror", "exit", "signal"])
def test_every_entry_has_a_sentence_and_a_cause_of_the_catalogue(family: str) -> None:
    keys = [entry.get("code", entry["name"]) for entry in DATA[family]]
    assert len(set(keys)) == len(keys)
    for entry in DATA[family]:
        assert entry["discovery"].endswith(".")
        assert entry["cause"] is None or entry["cause"] in catalogue.causes(), entry
    for entry in DATA["signal"]:
        assert signal.Signals(entry["code"]).name == entry["name"]


def test_the_tables_of_codes_are_reached_through_the_one_lookup() -> None:
    for family in ("cuda", "runtime", "nvml"):
        for code in errors.codes(family):
            assert (meaning(family, code.code).label, meaning(family, str(code.code)).cause) == (code.label, code.cause)
    for number in xid.catalogue()["xids"]:
        assert meaning("xid", number).known


WORDS = [value for name, value in vars(problems).items() if name.isupper() and " " in str(value) and name != "NO_START"]


@pytest.mark.parametrize("text", WORDS)
def test_everything_that_the_loader_predicts_in_the_words_of_ld_so_has_a_meaning(text: str) -> None:
    assert meaning("dlerror", f"/opt/libggml-cuda.so: {text}").known


SYMBOLS = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=30)


@given(symbol=SYMBOLS, version=st.none() | SYMBOLS)
def test_the_parts_of_an_undefined_symbol_come_back(symbol: str, version: str | None) -> None:
    found = meaning("dlerror", f"/opt/lib.so: {problems.undefined_symbol(symbol, version)}")
    assert dict(found.parts) == {"symbol": symbol, **({"version": version} if version else {})}


@pytest.mark.parametrize(
    ("text", "name", "cause"),
    [
        (
            "libcudart.so.12: cannot open shared object file: No such file or directory",
            "missing",
            "closure.dependency.missing",
        ),
        ("/opt/lib.so: wrong ELF class: ELFCLASS32", "class", "closure.object.wrong_class"),
        (f"libc.so.6: {problems.version_not_found('GLIBC_2.38', '/opt/lib.so')}", "version", "closure.version.missing"),
        (
            "Inconsistency detected by ld.so: dl-lookup.c: 111: check_match: Assertion `...' failed!",
            "assertion",
            "closure.loader.aborts",
        ),
        ("ERROR: ld.so: object 'x.so' from LD_PRELOAD cannot be preloaded", "preload", "service.preload.unusable"),
    ],
)
def test_texts_of_real_hosts(text: str, name: str, cause: str) -> None:
    found = meaning("dlerror", text)
    assert (found.label, found.cause) == (name, cause)


def test_an_exit_code_is_read_as_a_signal_where_it_stands_for_one() -> None:
    assert meaning("exit", -11).label == "11 SIGSEGV"
    assert meaning("exit", 135).label == "135 (128 + SIGBUS)"
    assert meaning("exit", 127).cause == "bootstrap.exit.loader"
    assert not meaning("exit", 77).known


def test_no_pattern_takes_long_on_a_hostile_text() -> None:
    # A bound on work, not on time: nested repetition would not come back at all.
    for entry in DATA["dlerror"]:
        assert not re.search(r"[+*]\)[+*]", entry["pattern"])
    for text in ("a" * 200_000, ": " * 100_000, "version `" * 20_000, "undefined symbol: " * 10_000):
        meaning("dlerror", text)
