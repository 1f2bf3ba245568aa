"""One line, whatever carries it: the same content comes out of every carrier, and nothing raises."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.ollama import gotime, logline
from pytest_gpudiscovery.ollama.logline import parse
from tests.ollama.writer import Log, quoted

FAILURE = (
    'time=2026-02-25T08:54:34.396-05:00 level=INFO source=runner.go:464 msg="failure during GPU discovery" '
    'OLLAMA_LIBRARY_PATH="[/usr/local/lib/ollama /usr/local/lib/ollama/cuda_v12]" extra_envs=map[] '
    'error="failed to finish discovery before timeout"'
)
AT = 1772027674.396
STAMP = "2026-02-25T13:54:34.500000001Z"
CARRIERS: dict[str, Callable[[str], str]] = {
    "plain": lambda line: line,
    "short": lambda line: f"Feb 25 08:54:34 gpu-host ollama[4711]: {line}",
    "short-precise": lambda line: f"Feb  5 08:54:34.123456 gpu-host ollama[4711]: {line}",
    "short-iso": lambda line: f"2026-02-25T08:54:34-0500 gpu-host ollama[4711]: {line}",
    "short-full": lambda line: f"Wed 2026-02-25 08:54:34 EST gpu-host ollama[4711]: {line}",
    "with-unit": lambda line: f"Wed 2026-02-25 08:54:34 EST gpu-host ollama.service[4711]: {line}",
    "short-monotonic": lambda line: f"[   12.345678] gpu-host ollama[4711]: {line}",
    "journal-json": lambda line: json.dumps(
        {"MESSAGE": line, "_PID": "4711", "_SYSTEMD_UNIT": "ollama.service", "__REALTIME_TIMESTAMP": "1772027674400000"}
    ),
    "journal-json-bytes": lambda line: json.dumps({"MESSAGE": list(line.encode()), "_PID": "4711"}),
    "json-file": lambda line: json.dumps({"log": line + "\n", "stream": "stderr", "time": STAMP}),
    "docker -t": lambda line: f"{STAMP} {line}",
    "compose": lambda line: f"ollama-1  | {line}",
    "compose -t": lambda line: f"ollama-1  | {STAMP} {line}",
    "kubectl --prefix": lambda line: f"[pod/ollama-0/ollama] {line}",
    "cri": lambda line: f"{STAMP} stderr F {line}",
    "coloured": lambda line: f"\x1b[36mollama-1  | \x1b[0m{line}\r",
    "quoted in a report": lambda line: f"> {line}",
    "after a crash": lambda line: "\0" * 300 + line,
}


@pytest.mark.parametrize("name", list(CARRIERS))
def test_every_carrier_gives_the_same_line(name: str) -> None:
    line = parse(CARRIERS[name](FAILURE).encode())
    assert line.kind == logline.SLOG
    assert line.time == pytest.approx(AT)
    assert line.offset_s == -5 * 3600
    assert (line.level, line.source, line.message) == ("INFO", "runner.go:464", "failure during GPU discovery")
    assert line.attributes == {
        "OLLAMA_LIBRARY_PATH": "[/usr/local/lib/ollama /usr/local/lib/ollama/cuda_v12]",
        "extra_envs": "map[]",
        "error": "failed to finish discovery before timeout",
    }
    if "short" in name or "journal" in name or name == "with-unit":
        assert line.pid == 4711
    if "compose" in name or name == "coloured":
        assert line.origin == "ollama-1"


@pytest.mark.parametrize("outer", ["compose", "docker -t", "json-file", "cri", "journal-json"])
@pytest.mark.parametrize("inner", ["compose", "docker -t", "short", "plain"])
def test_carriers_inside_each_other(outer: str, inner: str) -> None:
    line = parse(CARRIERS[outer](CARRIERS[inner](FAILURE)))
    assert (line.source, line.attributes.get("extra_envs")) == ("runner.go:464", "map[]")


def test_slog_as_json() -> None:
    line = parse(
        json.dumps(
            {
                "time": "2026-02-25T08:54:34.396-05:00",
                "level": "INFO",
                "source": {"function": "f", "file": "/go/src/discover/runner.go", "line": 464},
                "msg": "failure during GPU discovery",
                "OLLAMA_LIBRARY_PATH": ["/a", "/a/cuda_v12"],
                "extra_envs": {"B": "2", "A": "1"},
                "error": "failed to finish discovery before timeout",
            }
        )
    )
    assert line.source == "runner.go:464"
    assert line.time == pytest.approx(AT)
    assert line.attributes["OLLAMA_LIBRARY_PATH"] == "[/a /a/cuda_v12]"
    assert line.attributes["extra_envs"] == "map[A:1 B:2]"


def test_a_cut_json_line_still_says_what_it_can() -> None:
    line = parse(CARRIERS["json-file"](FAILURE)[:180])
    assert (line.source, line.message) == ("runner.go:464", "failure during GPU discovery")
    line = parse(CARRIERS["journal-json"](FAILURE)[:200])
    assert (line.source, line.message) == ("runner.go:464", "failure during GPU discovery")


def test_the_format_before_0_7() -> None:
    line = parse('2024/11/01 12:00:00 routes.go:1158: INFO server config env="map[OLLAMA_DEBUG:false]"')
    assert (line.kind, line.source, line.message) == (logline.SLOG, "routes.go:1158", "server config")
    assert line.attributes == {"env": "map[OLLAMA_DEBUG:false]"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('[GIN] 2026/02/25 - 08:55:12 | 200 |   13.518us | 127.0.0.1 | GET "/api/tags"', logline.REQUEST),
        ('ollama-1  | [GIN] 2026/02/25 - 08:55:12 | 200 | 13us | 127.0.0.1 | GET "/"', logline.REQUEST),
        ("ggml_cuda_init: found 1 CUDA devices:", logline.OTHER),
        ("", logline.EMPTY),
        ("\0\0\0\0", logline.EMPTY),
        ('{"log":"\\n","stream":"stderr"}', logline.EMPTY),
    ],
)
def test_what_is_no_line_of_ollamas(text: str, kind: str) -> None:
    assert parse(text).kind == kind


NAMES = st.text(string.ascii_letters + string.digits + "_.", min_size=1, max_size=12).filter(
    lambda name: name not in ("time", "level", "source", "msg")
)


@given(
    message=st.text(max_size=60),
    attributes=st.dictionaries(NAMES, st.text(max_size=40), max_size=6),
    carrier=st.sampled_from(sorted(CARRIERS)),
)
def test_what_slog_writes_is_what_is_read(message: str, attributes: dict[str, str], carrier: str) -> None:
    log = Log()
    log.put("x.go:1", message, **attributes)
    line = parse(CARRIERS[carrier](log.lines[0]).encode())
    assert (line.message, dict(line.attributes)) == (message, attributes)


@given(st.binary(max_size=400))
def test_no_bytes_raise(data: bytes) -> None:
    assert parse(data).kind in (logline.SLOG, logline.OTHER, logline.REQUEST, logline.EMPTY)


@given(st.data(), st.sampled_from(sorted(CARRIERS)))
def test_no_damage_to_a_line_raises(data: Any, carrier: str) -> None:
    line = bytearray(CARRIERS[carrier](FAILURE).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(line) - 1))
        line[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    parse(bytes(line[: data.draw(st.integers(0, len(line)))]))


@given(st.lists(st.sampled_from(['"', "\\", "=", " ", "{", "[", "a", "time=", "msg=", "|"]), max_size=300).map("".join))
def test_no_mix_of_marks_raises(text: str) -> None:
    parse(FAILURE[:60] + text)
    parse(text)


@pytest.mark.parametrize("text", ['x="' + "a" * 70_000, '{"a":' * 5000, "a=" * 40_000, "\\" * 65_000, '"' * 65_000])
def test_a_line_that_is_too_long_is_read_as_far_as_it_goes(text: str) -> None:
    line = parse(f"{FAILURE} {text}")
    assert line.message == "failure during GPU discovery"
    parse(text)


def test_times() -> None:
    time, offset = gotime.stamp("2026-02-25T08:54:34.396-05:00")
    assert time == pytest.approx(AT)
    assert offset == -18000
    assert gotime.stamp("2026-02-30T08:54:34Z") == (None, None)
    assert gotime.stamp("yesterday") == (None, None)
    assert gotime.duration("30.002849s") == pytest.approx(30.002849)
    assert gotime.duration("1m2.5s") == 62.5
    assert gotime.duration("251.3ms") == pytest.approx(0.2513)
    assert gotime.duration("1.162µs") == pytest.approx(1.162e-6)
    assert gotime.duration("30") is None


@given(st.text(max_size=30))
def test_no_text_for_a_time_raises(text: str) -> None:
    gotime.stamp(text)
    gotime.duration(text)


@given(st.text(max_size=80))
def test_escapes_go_back(text: str) -> None:
    assert logline.unescape(quoted(f" {text}")[1:-1]) == f" {text}"
