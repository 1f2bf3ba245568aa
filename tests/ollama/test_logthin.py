"""A crash loop: its middle is left out, and nothing else; what is said of the log is the same as without that."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.ollama import explainer, logthin, sessions
from pytest_gpudiscovery.ollama.logthin import Thinner
from tests.ollama.test_logread import blocks
from tests.ollama.writer import Log, begin, cpu, fail

TIME = "time=2026-02-25T08:54:04.366-05:00 level=INFO source=routes.go"
CONFIG = f'{TIME}:1663 msg="server config" env="map[OLLAMA_DEBUG:INFO]"\n'.encode()
LISTENING = f'{TIME}:1718 msg="Listening on [::]:11434 (version 0.16.3)"\n'.encode()
IN_USE = CONFIG + b"Error: listen tcp 127.0.0.1:11434: bind: address already in use\n"
GIN = b'[GIN] 2026/02/25 - 08:55:12 | 200 |      13.518us |       127.0.0.1 | GET      "/api/tags"\n'
QUOTED = f'{TIME}:9 msg="completion request" prompt="why: source=routes.go:1718 msg=\\"Listening on x\\""\n'.encode()
FAILS = cpu(fail(begin(Log()).at(30.03), "cuda_v12").at(0.25)).data()
HEALTHY = CONFIG + LISTENING + b"a child's word\n"
PARTS = st.sampled_from([FAILS, IN_USE, HEALTHY, LISTENING, GIN, QUOTED, b"x" * 300 + b"\n", b"\n", b"\0\n"])


def journal(data: bytes) -> bytes:
    fields = {"_PID": "7", "__REALTIME_TIMESTAMP": "1772027674396000"}
    lines = data.decode("utf-8", "replace").splitlines()
    return b"".join(json.dumps({**fields, "MESSAGE": line}).encode() + b"\n" for line in lines)


def compose(data: bytes) -> bytes:
    return b"".join(b"ollama  | " + line + b"\n" for line in data.splitlines())


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SERVERS", 5)
    monkeypatch.setattr(logthin, "KEPT", 9)


def said(read: Any) -> Any:
    """What a log holds, without how much of it was looked at."""
    log = explainer.read(read)
    servers = [dataclasses.asdict(dataclasses.replace(server, builder=None)) for server in log.servers]  # type: ignore[arg-type]
    discoveries = [[dataclasses.asdict(found) for found in server.builder.discoveries] for server in log.servers]
    return servers[1:], servers[:1], discoveries, log.bytes_read, log.last_time, log.stopped, len(log.servers)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(PARTS, st.integers(1, 15)), max_size=5),
    st.sampled_from([bytes, journal, compose]),
    st.lists(st.integers(1, 3000), max_size=20),
)
def test_the_same_is_said_of_a_log_that_was_thinned(parts: list[Any], carry: Any, sizes: list[int]) -> None:
    data = carry(b"".join(part * times for part, times in parts))
    with pytest.MonkeyPatch.context() as patch:
        thin = said(blocks(data, iter(sizes)))
        patch.setattr(logthin, "KEPT", 1 << 30)  # everything is given on
        whole = said(blocks(data, iter(sizes)))
    assert [server["lines"] for server in thin[0]] == [server["lines"] for server in whole[0]]
    assert thin[2:] == whole[2:]
    assert thin[0] == whole[0]


@given(st.lists(st.tuples(PARTS, st.integers(1, 12)), max_size=8), st.lists(st.integers(1, 2000), max_size=40))
def test_only_the_middle_is_left_out(parts: list[Any], sizes: list[int]) -> None:
    data = b"".join(part * times for part, times in parts)
    counted: list[int] = []
    thinner = Thinner(blocks(data, iter(sizes)), lambda servers, _: counted.append(servers))
    given_on = b"".join(iter(lambda: thinner(1 << 20), b""))
    assert thinner.bytes_read == len(data)
    if not counted:
        assert given_on == data
    else:
        left_out = len(data) - len(given_on)
        places = [place for place in range(len(given_on)) if given_on[:place] + data[place : place + left_out]]
        assert any(data[:place] + data[place + left_out :] == given_on for place in {*places, len(given_on)})


@pytest.mark.parametrize("start", [FAILS, IN_USE, HEALTHY, journal(FAILS)], ids=["fails", "in use", "healthy", "json"])
def test_every_server_is_counted(start: bytes) -> None:
    log = explainer.read(io.BytesIO(start * 500).read)
    assert (len(log.servers), log.dropped) == (5, 495)
    assert log.lines_looked_at < 60 * len(start.splitlines())


def test_what_is_held_back_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logthin, "HOLD", 100_000)
    unit = HEALTHY + GIN * 300  # nine of them are more than that
    log = explainer.read(io.BytesIO(unit * 40).read)
    assert (len(log.servers), log.dropped) == (5, 35)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_what_was_held_back_when_reading_stops_is_not_lost(error: BaseException) -> None:
    parts: Iterator[bytes] = iter([IN_USE * 300, FAILS])

    def read(_: int) -> bytes:
        part = next(parts, None)
        if part is None:
            raise error
        return part

    log = explainer.read(read)
    assert log.stopped
    assert log.servers[-1].builder.discoveries[-1].complete
