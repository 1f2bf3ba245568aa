"""Reading: every message is found whatever the block size, what lies around it and how the file was damaged."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.ollama import explainer, logread
from pytest_gpudiscovery.ollama.logline import parse
from pytest_gpudiscovery.ollama.logread import Reader
from tests.ollama import reading
from tests.ollama.writer import Log, begin, cpu, fail

GIN = b'[GIN] 2026/02/25 - 08:55:12 | 200 |      13.518us |       127.0.0.1 | GET      "/api/tags"\n'
CAPTURED = cpu(fail(begin(Log()).at(30.03), "cuda_v12").at(0.25)).data()


def blocks(data: bytes, sizes: Iterator[int]) -> logread.Read:
    """Return a reader of DATA that gives as much at a time as SIZES say."""
    stream = io.BytesIO(data)
    return lambda size: stream.read(min(size, next(sizes, size)))


def messages(data: bytes, sizes: list[int], *, every_line: bool) -> list[str]:
    reader = Reader(blocks(data, iter(sizes)), 1 << 30 if every_line else 0)
    return [
        line.message
        for line in (parse(*entry) for entry in reader.lines())
        if line.message.startswith("failure during")
    ]


LINES = st.lists(
    st.sampled_from([GIN, b"", b"\n", b"\xff\xfe\n", b"{\n", b"x" * 300 + b"\n"]) | st.binary(max_size=80), max_size=12
)


@given(before=LINES, after=LINES, sizes=st.lists(st.integers(1, 400), max_size=60), every_line=st.booleans())
def test_a_message_is_found_whatever_is_around_it(
    before: list[bytes], after: list[bytes], sizes: list[int], every_line: bool
) -> None:
    failure = CAPTURED.splitlines(keepends=True)[3]
    data = b"".join(before) + b"\n" + failure + b"".join(after)
    found = messages(data, sizes, every_line=every_line)
    utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")  # says of itself that it is something else
    assert found == ["failure during GPU discovery"] or utf16


@given(st.binary(max_size=3000), st.lists(st.integers(1, 100), max_size=50))
def test_no_bytes_raise(data: bytes, sizes: list[int]) -> None:
    explainer.read(blocks(data, iter(sizes)))


@pytest.mark.parametrize("every_line", [True, False])
@pytest.mark.parametrize(
    "rubbish",
    [b"\0" * 3_000_000, b"\xff" * 3_000_000, b"a" * 200_000, GIN * 20_000],
    ids=["NUL block", "binary", "no line end", "requests"],
)
def test_a_message_behind_a_lot_of_rubbish_is_found(rubbish: bytes, every_line: bool) -> None:
    data = rubbish + CAPTURED
    assert messages(data, [], every_line=every_line) == ["failure during GPU discovery"]
    log = reading.read(data)
    assert [entry.outcome for entry in log.servers[0].builder.discoveries[0].attempts] == ["timed_out"]


def test_lines_without_an_end_are_counted() -> None:
    log = reading.read(b"a" * 3_000_000 + b"\n" + CAPTURED)
    assert log.cut_lines > 0
    assert reading.read(CAPTURED).cut_lines == 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_what_powershell_writes(encoding: str) -> None:
    data = CAPTURED.decode().encode(encoding)
    if encoding == "utf-16-be":
        data = b"\xfe\xff" + data
    assert reading.explain(data)["answer"] == "no_gpu"


def test_a_log_may_end_in_the_middle_of_a_line() -> None:
    for end in range(0, len(CAPTURED), 7):
        reading.explain(CAPTURED[:end])
    for start in range(0, len(CAPTURED), 7):
        reading.explain(CAPTURED[start:])


@pytest.mark.parametrize("what", ["requests", "NULs", "debug lines", "restarts"])
def test_memory_does_not_grow_with_the_log(what: str) -> None:
    unit = {
        "requests": GIN * 1000,
        "NULs": b"\0" * 90_000,
        "debug lines": b"time=2026-02-25T08:54:34.396Z level=DEBUG source=sched.go:1 msg=x\n" * 1400,
        "restarts": CAPTURED * 8,
    }[what]

    def peak(times: int) -> int:
        left = [times]

        def read(_: int) -> bytes:
            left[0] -= 1
            return unit if left[0] >= 0 else b""

        tracemalloc.start()
        explainer.read(read)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(1)  # tables that are loaded once
    small, large = peak(20), peak(100)
    assert large < small + 1_000_000


def test_reading_that_fails_ends_with_what_there_was() -> None:
    stream = io.BytesIO(CAPTURED)

    def read(size: int) -> bytes:
        data = stream.read(100)
        if not data:
            raise OSError(5, "Input/output error")
        return data[:size]

    log = explainer.read(read)
    assert log.stopped == "reading stopped: Input/output error"
    assert log.servers[0].builder.discoveries[0].attempts[0].outcome == "timed_out"
