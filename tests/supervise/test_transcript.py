"""The parent's half of the journal, fed with what a child wrote, half wrote, or should never have written."""

from __future__ import annotations

import json
import math
import os
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import wire
from pytest_gpudiscovery.probes.journal import Journal
from pytest_gpudiscovery.supervise import transcript
from pytest_gpudiscovery.supervise.transcript import Transcript, decode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
EVENTS = st.sampled_from(["start", "end", "observe", "answer", "begin", "refused", "nonsense", 7, None])
FIELDS = ("id", "step", "t", "result", "key", "value")
LINES = st.fixed_dictionaries(
    {"ev": EVENTS}, optional={name: JSON | st.integers(0, 3) | st.text(max_size=5) for name in FIELDS}
)


def feed(data: bytes, *, spawned: float = 100.0, now: float = 110.0, size: int = 1 << 16) -> Transcript:
    told = Transcript(spawned)
    for start in range(0, len(data), size):
        told.feed(data[start : start + size], now)
    return told


def check_sane(told: Transcript, life: float = 10.0) -> None:
    steps = told.steps()
    for step in steps:
        assert 0 <= step.started <= life
        assert step.duration_s is None or 0 <= step.duration_s <= life
        assert isinstance(step.name, str)
        assert len(step.name) <= transcript.NAME
    told.notes()
    text = json.dumps([told.observed, told.answer, [step.result for step in steps]], allow_nan=False)
    text.encode("utf-8", "strict")


@settings(deadline=None)
@given(st.binary(max_size=2000), st.integers(1, 50))
def test_any_bytes_are_harmless(data: bytes, size: int) -> None:
    check_sane(feed(data, size=size))


@settings(deadline=None)
@given(st.lists(LINES, max_size=20), st.integers(1, 200))
def test_any_json_is_harmless(lines: list[dict[str, Any]], size: int) -> None:
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    check_sane(feed(data, size=size))


@settings(deadline=None)
@given(st.lists(LINES, max_size=12), st.data())
def test_pieces_and_cuts_change_nothing(lines: list[dict[str, Any]], data: st.DataObject) -> None:
    """However the pipe cuts the bytes, the same lines come out; a cut end loses the last line and nothing else."""
    texts = [(json.dumps(line) + "\n").encode() for line in lines]
    whole = feed(b"".join(texts))
    pieces = feed(b"".join(texts), size=data.draw(st.integers(1, 64)))
    assert (pieces.steps(), pieces.observed, pieces.answer) == (whole.steps(), whole.observed, whole.answer)
    if texts:
        kept = feed(b"".join(texts[:-1]))
        cut = feed(b"".join(texts[:-1]) + texts[-1][: data.draw(st.integers(0, len(texts[-1]) - 1))])
        assert (cut.steps(), cut.observed, cut.answer) == (kept.steps(), kept.observed, kept.answer)


@settings(deadline=None)
@given(JSON)
def test_what_a_probe_says_arrives(value: Any) -> None:
    reader, writer = os.pipe()
    chunks: list[bytes] = []
    listener = threading.Thread(target=lambda: chunks.extend(iter(lambda: os.read(reader, 4096), b"")))
    listener.start()
    journal = Journal(writer)
    journal.begin()
    with journal.step("outer") as outer, journal.step("inner") as inner:
        inner.result = value
    outer.result = 0
    journal.observe("fact", value)
    journal.answer(value)
    os.close(writer)
    listener.join(10)
    os.close(reader)
    told = feed(b"".join(chunks), spawned=0.0, now=1e12)
    assert told.begun
    assert told.answered
    assert told.garbage == 0
    assert [step.name for step in told.steps()] == ["outer", "inner"]
    assert told.observed["fact"] == told.answer == told.steps()[1].result == decode(wire.dumps(value).encode())
    if json.dumps(value).isascii() and not _odd(value):
        assert told.answer == value


def _odd(value: Any) -> bool:
    """Whether VALUE holds what strict JSON cannot: floats that are no numbers, lone surrogates, huge integers."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, int):
        return len(str(value)) > transcript.DIGITS
    if isinstance(value, str):
        return any(0xD800 <= ord(char) < 0xE000 for char in value)
    if isinstance(value, dict):
        return any(_odd(item) for item in (*value, *value.values()))
    return isinstance(value, list) and any(_odd(item) for item in value)


@settings(deadline=None)
@given(JSON)
def test_the_light_encoder_agrees_with_json(value: Any) -> None:
    assert wire.dumps({"v": value}) == json.dumps({"v": value}, default=str)


def test_the_light_encoder_refuses_what_json_refuses() -> None:
    assert wire.dumps({"v": {1, 2} and b"x"}) == json.dumps({"v": b"x"}, default=str)
    with pytest.raises(TypeError):
        wire.dumps({(1, 2): 3})
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises((ValueError, RecursionError)):
        wire.dumps({"v": circle})


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"[NaN, Infinity, -Infinity]", ["NaN", "Infinity", "-Infinity"]),
        (b"[1e999, -1e999, 1e2]", ["1e999", "-1e999", 100.0]),
        (b"9" * 400, "9" * 400),
        (b'"\\ud800x"', "\\ud800x"),
        (b'{"\\uDFFF": ["\\udc00"]}', {"\\udfff": ["\\udc00"]}),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b"[" * 101 + b"]" * 101, None),
        (b"[" * 1_000_000, None),
        (b'{"a":' * 100_000, None),
        (b"{", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_decode(line: bytes, value: Any) -> None:
    assert decode(line) == value


@pytest.mark.parametrize(("depth", "taken"), [(transcript.DEPTH, True), (transcript.DEPTH + 1, False)])
def test_depth(depth: int, taken: bool) -> None:
    assert (decode(b"[" * depth + b"]" * depth) is not None) is taken
    wide = b"[" + b",".join([b"{}"] * 1000) + b"]"
    assert decode(wide) == [{}] * 1000


def test_times_stay_within_the_life_of_the_child() -> None:
    told = feed(
        b'{"ev": "start", "id": 1, "step": "early", "t": -1e300}\n'
        b'{"ev": "start", "id": 2, "step": "late", "t": 1e300}\n'
        b'{"ev": "start", "id": 3, "step": "none", "t": null}\n'
        b'{"ev": "start", "id": 4, "step": "bool", "t": true}\n'
        b'{"ev": "start", "id": 5, "step": "well", "t": 103.5}\n{"ev": "end", "id": 5, "t": 104.0, "result": [0]}\n'
        b'{"ev": "start", "id": 6, "step": "backwards", "t": 105}\n{"ev": "end", "id": 6, "t": 104}\n'
    )
    assert [(step.name, step.started, step.duration_s) for step in told.steps()] == [
        ("early", 0.0, None),
        ("late", 10.0, None),
        ("none", 10.0, None),
        ("bool", 10.0, None),
        ("well", 3.5, 0.5),
        ("backwards", 5.0, 0.0),
    ]


def test_limits() -> None:
    line = b'{"ev": "observe", "key": "k", "value": 1}\n'
    told = feed(line + b" " * transcript.BYTES + b"\n" + line)
    assert told.observed == {"k": 1}
    assert told.dropped == 2 * len(line) + 1
    assert "beyond" in told.notes()[0]
    many = b"".join(b'{"ev": "observe", "key": "%d", "value": 1}\n' % index for index in range(transcript.KEYS + 50))
    assert len(feed(many).observed) == transcript.KEYS
    long_names = feed(b'{"ev": "start", "id": 1, "step": "%s", "t": 101}\n' % (b"n" * 9999))
    assert len(long_names.steps()[0].name) == transcript.NAME


def test_begin_ends_the_exec_that_could_not_end_itself() -> None:
    told = Transcript(100.0)
    told.feed(b'{"ev": "start", "id": 1, "step": "exec python", "t": 101}\n', 101.0)
    assert told.steps()[0].duration_s is None
    told.feed(b'{"ev": "begin"}\n', 103.0)
    assert told.steps()[0].duration_s == 2.0
    told.feed(b'{"ev": "start", "id": 1, "step": "first", "t": 104}\n', 105.0)
    assert [step.duration_s for step in told.steps()] == [2.0, None]


def test_a_probe_cannot_refuse_itself() -> None:
    assert feed(b'{"ev": "refused", "value": "no"}\n').refused == "no"
    assert feed(b'{"ev": "begin"}\n{"ev": "refused", "value": "no"}\n').refused is None
