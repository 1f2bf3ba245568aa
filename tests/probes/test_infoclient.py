"""GET /info without ever waiting: whole, cut, chunked and hostile answers, and servers that hang up or stay silent."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import infoclient
from pytest_gpudiscovery.probes.infoclient import Ask, parse, unchunked

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "at_end", "answer"),
    [
        (OK + b"Content-Length: 2\r\n\r\n[]", False, (200, b"[]")),
        (OK + b"Content-Length: 2\r\n\r\n[]trailing", False, (200, b"[]")),
        (OK + b"Content-Length: 3\r\n\r\n[]", False, None),
        (OK + b"Content-Length: 3\r\n\r\n[]", True, None),  # cut off: no answer at all
        (OK + b"\r\n[]", False, None),
        (OK + b"\r\n[]", True, (200, b"[]")),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", False, (404, b"")),
        (b"HTTP/1.1 500\r\nContent-Length: 4\r\n\r\nboom", False, (500, b"boom")),
        (OK + b"Content-Length: -1\r\n\r\n[]", True, (200, b"[]")),
        (OK + b"Content-Length: 99999999999999\r\n\r\n[]", True, (200, b"[]")),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked([b"[", b"]"]), False, (200, b"[]")),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[", False, None),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", True, (200, b"zz\r\n")),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False, None),
        (b"SSH-2.0-OpenSSH_9.2\r\n", True, (0, b"SSH-2.0-OpenSSH_9.2\r\n")),
        (b"HTTP/1.1 ab\r\n\r\n", True, (0, b"HTTP/1.1 ab\r\n\r\n")),
        (b"", True, None),
    ],
)
def test_an_answer_is_whole_or_it_is_none(data: bytes, at_end: bool, answer: tuple[int, bytes] | None) -> None:
    assert parse(data, at_end=at_end) == answer


@given(st.binary(max_size=200), st.booleans(), st.sampled_from((b"", OK, OK + b"Transfer-Encoding: chunked\r\n\r\n")))
def test_no_answer_is_an_error(data: bytes, at_end: bool, head: bytes) -> None:
    found = parse(head + data, at_end=at_end)
    assert found is None or (0 <= found[0] <= 9999 and len(found[1]) <= len(head) + len(data))


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5))
def test_chunks_are_put_together_and_no_beginning_of_them_is(parts: list[bytes]) -> None:
    data = chunked(parts)
    assert unchunked(data) == b"".join(parts)
    # The last chunk's own line is enough: what follows it are trailers.
    assert all(unchunked(data[:size]) is None for size in range(len(data) - 4))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def until_it_ends(ask: Ask, limit: float = 5.0) -> Ask:
    until = time.monotonic() + limit
    while not ask.ended and time.monotonic() < until:
        ask.step()
        time.sleep(0.002)
    return ask


def test_a_server_is_asked_as_go_asks_and_byte_by_byte_is_an_answer_too(listener: socket.socket) -> None:
    ask = Ask(listener.getsockname()[1])
    ask.step()
    server, _ = listener.accept()
    with server:
        until = time.monotonic() + 5
        while not ask.connected and time.monotonic() < until:
            ask.step()
        request = server.recv(4096).decode()
        assert request.startswith("GET /info HTTP/1.1\r\nHost: 127.0.0.1:")
        for byte in OK + b"Content-Length: 2\r\n\r\n[]":
            assert not ask.ended
            server.sendall(bytes([byte]))
            ask.step()
        until_it_ends(ask)
    assert (ask.status, ask.body, ask.error) == (200, b"[]", None)


def test_a_server_that_hangs_up(listener: socket.socket) -> None:
    ask = Ask(listener.getsockname()[1])
    server, _ = listener.accept()
    server.close()
    until_it_ends(ask)
    assert (ask.status, ask.error in ("EOF", "ECONNRESET", "EPIPE")) == (None, True)


def test_a_silent_server_costs_nobody_any_time(listener: socket.socket) -> None:
    ask = Ask(listener.getsockname()[1])
    began = time.monotonic()
    for _ in range(100):
        ask.step()
    assert time.monotonic() - began < 1.0
    assert not ask.ended
    ask.close()
    assert ask.error == "gave up"


def test_a_closed_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert until_it_ends(Ask(port)).error == "ECONNREFUSED"


def test_an_answer_without_end_is_given_up(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infoclient, "LIMIT", 1000)
    ask = Ask(listener.getsockname()[1])
    server, _ = listener.accept()
    with server:
        ask.step()
        server.sendall(OK + b"\r\n" + b"x" * 2000)
        until_it_ends(ask)
    assert ask.error == "EMSGSIZE"
