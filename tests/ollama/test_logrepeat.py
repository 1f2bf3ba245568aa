"""Refreshes by the thousand: what is said is the same as when every line is read, and the one that differs is found."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.ollama import (
    children,
    discovery,
    explainer,
    lineshape,
    logrepeat,
    logrun,
    postmortem,
    shape,
    words,
)
from pytest_gpudiscovery.ollama.explainer import Log as Read
from pytest_gpudiscovery.ollama.loghints import Dull, may_tell
from pytest_gpudiscovery.ollama.logrepeat import Repeats
from pytest_gpudiscovery.ollama.versions import load
from tests.ollama import reading, recorded
from tests.ollama.test_logread import blocks
from tests.ollama.writer import Log, begin, cpu, fail, gpu, spawn, took

GIN = '[GIN] 2026/02/25 - 08:55:12 | 200 |      13.518us |       127.0.0.1 | GET      "/api/tags"'
KINDS = ("healthy", "slow", "failed", "by existing runners", "two children", "without a child's end", "without an end")
CHILD = (
    "ggml_cuda_init: found 1 CUDA devices:",
    "load_backend: loaded CUDA backend from /usr/local/lib/ollama/cuda_v12/libggml-cuda.so",
    "CUDA error: out of memory",
    "llama_model_loader: - kv  17: tokenizer.ggml.tokens arr",
)


def refresh(log: Log, kind: str = "healthy", port: int = 37001, between: Callable[[Log], None] = lambda _: None) -> Log:
    """Write a refresh of 0.16.3; BETWEEN writes what stands between its lines."""
    seconds = {"slow": 2.5, "failed": 3.001}.get(kind, 0.03 + port % 7 / 1000)
    text = f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"
    log.put("runner.go:264", "refreshing free memory", "DEBUG")
    if kind != "by existing runners":
        log.put("runner.go:328", "unable to refresh all GPUs with existing runners, performing bootstrap", "DEBUG")
        between(log)
        spawn(log.at(0.001), port)
        between(log)
        log.at(seconds)
        if kind == "failed":
            fail(log, "cuda_v12")
        if kind != "without a child's end":
            took(log, "cuda_v12", text)
        if kind == "two children":  # after four seconds it is another refresh
            took(spawn(log.at(5.0 if port % 5 == 0 else 0.1), port).at(0.1), "cuda_v13", "100ms")
        if kind == "failed":
            log.put("runner.go:356", "unable to refresh free memory, using old values", "WARN")
        between(log)
    if kind != "without an end":
        log.put("runner.go:40", "overall device VRAM discovery took", "DEBUG", duration=text)
    return log


def noise(rng: random.Random, often: float) -> Callable[[Log], None]:
    """Return what writes, now and then, a line that is none of a refresh."""

    def write(log: Log) -> None:
        if rng.random() < often:
            what = rng.randrange(6)
            if what == 0:
                log.raw(GIN)
            elif what == 1:
                log.put("sched.go:147", "evaluating already loaded", "DEBUG", model=f"/m{rng.randint(1, 12)}")
            elif what == 2:
                log.raw(rng.choice(CHILD))
            elif what == 3:
                log.put(
                    "server.go:431", "starting runner", cmd=f"/usr/bin/ollama runner --model /m --port {rng.random()}"
                )
            elif what == 4:
                log.put("runner.go:1446", f"Server listening on 127.0.0.1:{rng.randint(1000, 60000)}")
            else:
                log.put("ggml.go:104", "system", cpu="1")

    return write


def again(log: Log, rng: random.Random) -> None:
    """Write the starts of several children, one after the other."""
    steps = rng.choice([[0.0], [0.1], [5.0], [5.0, 5.0, 5.0, 5.0, 0.3]])
    often = rng.choice([0.0, 0.3])
    for _ in range(rng.choice([5, 30, 100])):
        spawn(log.at(rng.choice(steps)), rng.randint(1000, 60000))
        if rng.random() < often:
            log.put("runner.go:1446", f"Server listening on 127.0.0.1:{rng.randint(1000, 60000)}")
        if rng.random() < often / 3:
            log.raw(rng.choice(CHILD))


def mixed(seed: int) -> bytes:
    """Return a log of mostly refreshes, of one server or of several, in one of the ways a log reaches us."""
    rng = random.Random(seed)
    logs = [written(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    step = rng.choice([1, 6, 30])
    lines: list[str] = []
    pids: list[int] = []
    while any(left for left, _ in logs):
        left, pid = rng.choice(logs)
        count = rng.randint(1, step)
        lines, pids = lines + left[:count], pids + pid[:count]
        del left[:count], pid[:count]
    return carried(lines, pids, rng)


def written(rng: random.Random) -> tuple[list[str], list[int]]:
    """Return the lines of a log of mostly refreshes, mostly of one kind, and the pids that wrote them."""
    log = Log(1_700_000_000.0 + rng.random() * 60, zone_h=rng.choice([0, -5]))
    between = noise(rng, rng.choice([0.0, 0.05, 0.5]))
    usual, often = rng.choice(KINDS[:5]), rng.choice([0.8, 0.97])
    others: list[Callable[[], Any]] = [
        lambda: gpu(spawn(begin(log, debug=rng.choice(["INFO", "DEBUG-4"])))),
        lambda: cpu(fail(begin(log).at(30.0), "cuda_v12")),
        lambda: log.put("runner.go:356", "unable to refresh free memory, using old values", "WARN"),
        lambda: spawn(log, rng.randint(1000, 60000)),
        lambda: log.raw(rng.choice(CHILD)),
        lambda: log.at(-rng.random() * 100),
        lambda: [fail(log, "cuda_v12") for _ in range(rng.randint(2, 30))],
        lambda: again(log, rng),
        lambda: log.put("runner.go:1446", "Server listening on 127.0.0.1:37001"),
    ]
    pids: list[int] = []
    own = rng.choice([100, 200, 300])
    pid = own
    for _ in range(rng.choice([10, 40])):
        if rng.random() < 0.9:
            refresh(log, usual if rng.random() < often else rng.choice(KINDS), rng.randint(1000, 60000), between)
        else:
            rng.choice(others)()
        pids += [pid] * (len(log.lines) - len(pids))
        pid = rng.choice([own] * 9 + [100])
        log.at(rng.choice([0.0, 0.001, 0.5, 5.0, 60.0]))
    return log.lines, pids


def carried(lines: list[str], pids: list[int], rng: random.Random) -> bytes:
    how = rng.randrange(5)
    numbered = list(enumerate(zip(lines, pids, strict=True)))
    if how == 1:
        lines = [f"Feb 25 08:{index % 60:02}:04 host ollama[{pid}]: {line}" for index, (line, pid) in numbered]
    elif how == 2:
        fields = {"_SYSTEMD_UNIT": "ollama.service", "__CURSOR": "s=ab;i=1"}
        lines = [
            json.dumps({**fields, "__REALTIME_TIMESTAMP": f"{17 + index}", "_PID": str(pid), "MESSAGE": line})
            for index, (line, pid) in numbered
        ]
    elif how == 3:
        lines = [f"ollama-{pid}  | {line}" for line, pid in zip(lines, pids, strict=True)]
    elif how == 4:  # docker's file, of which somebody unpacked some lines
        step = rng.choice([1, 7, 50])
        lines = [json.dumps({"log": line}) if at // step % 2 else line for at, line in enumerate(lines)]
    return "".join(f"{line}\n" for line in lines).encode()


def in_full(patch: pytest.MonkeyPatch) -> None:
    """Have every line read."""
    patch.setattr(Repeats, "skip", lambda _self, _buffer, start, _end: start)


def both(data: bytes, sizes: list[int]) -> Iterator[dict[str, Any]]:
    """Yield what is said of DATA when what repeats itself is left out, and when every line is read."""
    yield postmortem.explain(blocks(data, iter(sizes)), "a log")
    with pytest.MonkeyPatch.context() as patch:
        in_full(patch)
        yield postmortem.explain(blocks(data, iter(sizes)), "a log")


@settings(max_examples=25)
@given(st.integers(0, 1 << 40), st.lists(st.integers(1, 3000), max_size=20))
def test_the_same_is_said_when_every_line_is_read(seed: int, sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logrun, "RUN", 12)
        patch.setattr(logrun, "SETTLED", 3)
        patch.setattr(children, "ATTEMPTS", 4)
        patch.setattr(discovery, "WORDS", 3)
        patch.setattr(logrepeat, "SHORTEST", 300)  # bytes that are looked at together: more than once in so short a log
        short, whole = both(mixed(seed), sizes)
    assert short == whole


@pytest.mark.parametrize("name", ["0.16.3-sim-healthy", "0.32.15-sim-hang-cuinit", "0.24.0-sim-healthy"])
def test_the_same_is_said_of_a_recorded_log(name: str) -> None:
    short, whole = both(recorded.FILES[f"{name}.log"] * 2, [])
    assert short == whole


def read(log: Log) -> Read:
    return explainer.read(io.BytesIO(log.data()).read)


def test_the_one_that_failed_and_the_one_that_was_slow_are_found_among_thousands() -> None:
    log = gpu(spawn(begin(Log(), debug="DEBUG")).at(0.5))
    lines: dict[str, tuple[int, str]] = {}
    for index in range(2500):
        kind = {700: "failed", 1900: "slow"}.get(index, "healthy")
        if kind != "healthy":
            lines[kind] = len(log.lines) + 1, shape.time_of(log.now + 2, 0) or ""
        refresh(log.at(2), kind, 1000 + index)
    server = reading.only(log)
    counted = server["refreshes"]
    assert (counted["seen"], counted["failed"], counted["slow"]) == (2500, 1, 1)
    assert (counted["fastest_s"], counted["slowest_s"]) == (0.03, 2.5)
    assert (counted["slowest_line"], counted["slowest_at"]) == lines["slow"]
    (shown,) = [entry for entry in server["discoveries"] if entry["kind"] == "refresh"]
    assert (shown["line"], shown["started"]) == lines["failed"]
    assert [entry["outcome"] for entry in shown["attempts"]] == ["timed_out"]
    assert {"refresh.failed", "refresh.slow"} <= set(reading.ids(server))
    assert any(part["pass"] == "refresh" for part in server["analyses"])
    assert read(log).lines_looked_at < 200


@pytest.mark.parametrize("kind", KINDS[:4])
def test_most_of_what_repeats_itself_is_not_read(kind: str) -> None:
    log = gpu(spawn(begin(Log(), debug="DEBUG")).at(0.5))
    for index in range(300):
        refresh(log.at(5), kind, 1000 + index)
    found = read(log)
    server = found.servers[0]
    counted = server.builder.all_refreshes
    assert (counted.seen, counted.failed) == (300, 300 if kind == "failed" else 0)
    assert server.lines == found.carriers["plain"] == len(log.lines)
    assert found.lines_looked_at < len(log.lines) / 3


def test_failed_refreshes_are_kept_however_many_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    in_full(monkeypatch)
    monkeypatch.setattr(children, "ALL_ATTEMPTS", 60)
    log = gpu(spawn(begin(Log(), debug="DEBUG")).at(0.5))
    for index in range(150):  # more than there is room for children
        refresh(log.at(5), "failed" if index in (3, 140) else "healthy")
    server = reading.only(log)
    assert (server["refreshes"]["seen"], server["refreshes"]["failed"]) == (150, 2)
    shown = [entry for entry in server["discoveries"] if entry["kind"] == "refresh"]
    assert [[child["outcome"] for child in entry["attempts"]] for entry in shown] == [["timed_out"], ["timed_out"]]


def test_a_line_that_stands_there_again_and_again_is_not_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logrun, "RUN", 300)  # more than there are children in one discovery
    log = begin(Log())
    for _ in range(logrun.RUN + 2000):
        fail(log.at(0.001), "cuda_v12")
    found = read(cpu(log))
    assert found.lines_looked_at < logrun.RUN + 200
    assert found.carriers["plain"] == len(log.lines)
    assert reading.explain(log)["answer"] == "no_gpu"


def interleaved(rng: random.Random, step: int) -> tuple[bytes, int]:
    """Return the journal of two servers that refresh at the same time, STEP lines of one and then of the other."""
    texts = []
    for seed in (1, 2):
        log = gpu(spawn(begin(Log(1_700_000_000.0 + seed), debug="DEBUG")).at(0.5))
        for _ in range(300):
            refresh(log.at(2), "healthy", rng.randint(1000, 60000))
        texts.append([f"Feb 25 08:54:04 host ollama[{seed}]: {line}\n" for line in log.lines])
    pieces = [text[at : at + step] for at in range(0, len(texts[0]), step) for text in texts]
    lines = [line for piece in pieces for line in piece]
    return "".join(lines).encode(), len(lines)


@pytest.mark.parametrize("step", [1, 5])
def test_of_two_servers_line_by_line_most_is_not_read(step: int) -> None:
    data, count = interleaved(random.Random(1), step)
    found = reading.read(data)
    assert [server.builder.all_refreshes.seen for server in found.servers] == [300, 300]
    assert sum(server.lines for server in found.servers) == count
    assert found.lines_looked_at < count / 5


@pytest.mark.parametrize("kept", [5, 1000])
def test_of_two_servers_at_trace_most_is_not_read_and_no_word_is_lost(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def says(log: Log) -> None:
        log.raw(CHILD[0])

    monkeypatch.setattr(discovery, "WORDS", kept)
    rng = random.Random(1)
    texts = []
    for seed in (1, 2):
        log = gpu(spawn(begin(Log(1_700_000_000.0 + seed), debug="DEBUG-4")).at(0.5))
        for index in range(200):
            refresh(log.at(2), "healthy", 1000 + index, says)
            if rng.random() < 0.5:  # the pipe is slower than the answer
                log.put("runner.go:1446", f"Server listening on 127.0.0.1:{1000 + index}").raw(*CHILD[:1] * 2)
        texts.append([f"Feb 25 08:54:04 host ollama[{seed}]: {line}" for line in log.lines][::-1])
    lines: list[str] = []
    while any(texts):
        text = rng.choice(texts)
        lines += [text.pop() for _ in range(min(len(text), rng.randint(1, 9)))]
    data = "".join(f"{line}\n" for line in lines).encode()
    with pytest.MonkeyPatch.context() as patch:
        in_full(patch)
        whole = explainer.read(io.BytesIO(data).read)
    tell = Mock(wraps=explainer._told)
    monkeypatch.setattr(explainer, "_told", tell)
    short = explainer.read(blocks(data, iter([9000] * 200)))
    for one, other in zip(short.servers, whole.servers, strict=True):
        assert (one.builder.words, one.lines) == (other.builder.words, other.lines)
    assert min(len(server.builder.words) for server in short.servers) >= 5
    assert tell.call_count - sum(len(server.builder.words) for server in short.servers) < len(lines) / 8


def test_loads_without_the_line_of_a_refresh_are_counted() -> None:
    log = gpu(spawn(begin(Log())).at(0.5))
    for index in range(400):  # INFO shows the child that asks for free memory, not what it is for
        spawn(log.at(5), 1000 + index)
        log.put("runner.go:1446", f"Server listening on 127.0.0.1:{1000 + index}")
        log.raw(CHILD[1])
    found = read(log)
    assert found.servers[0].builder.all_refreshes.seen == 400
    assert found.lines_looked_at < 100


def test_a_childs_word_behind_a_refresh_that_failed_is_none_of_it() -> None:
    log = gpu(spawn(begin(Log(), debug="DEBUG")).at(0.5))
    for index in range(24):
        places = iter(range(3))  # behind the last one the refresh has been given up
        wanted = {15: 1, 16: 1, 19: 2}.get(index)

        def word(log: Log, places: Iterator[int] = places, wanted: int | None = wanted) -> None:
            if next(places) == wanted:
                log.raw("CUDA error: out of memory")

        refresh(log.at(5), "failed", between=word)
    short, whole = both(log.data(), [])
    assert short == whole
    assert [said.id for said in read(log).servers[0].builder.words] == ["cuda_error"]


def test_a_late_line_of_a_child_is_none_of_an_older_refresh() -> None:
    log = gpu(spawn(begin(Log(), debug="DEBUG")).at(0.5))
    spawn(log.at(5)).put("runner.go:356", "unable to refresh free memory, using old values", "WARN")
    for index in range(10):
        refresh(log.at(5), "healthy", 1000 + index)
    short, whole = both(log.at(5).put("runner.go:1446", "Server listening on 127.0.0.1:37001").data(), [])
    assert short == whole


def test_what_waits_for_more_lines_is_read_when_reading_stops() -> None:
    log = gpu(spawn(begin(Log(), debug="DEBUG")).at(0.5))
    for index in range(50):
        refresh(log.at(2), "healthy", 1000 + index)
    whole = len(log.lines)
    fail(refresh(log.at(2), "without an end").at(3), "cuda_v12")
    stream = io.BytesIO(log.data())

    def broken(size: int) -> bytes:
        block = stream.read(size)
        if not block:
            raise OSError(5, "Input/output error")
        return block

    server = explainer.read(broken).servers[0]
    assert server.builder.discoveries[-1].line == whole + 1
    assert server.builder.discoveries[-1].attempts[-1].outcome == "timed_out"


LINE = b'time=2026-02-25T08:54:04.366-05:00 level=INFO source=server.go:431 msg="starting runner" cmd="x --port 37001"'


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (b"08:54:04.366", b"23:59:59.001", True),
        (b"37001", b"123", True),
        (b"431", b"432", False),
        (b"-05:00", b"-06:00", False),
        (b"INFO", b"WARN", False),
    ],
)
def test_only_times_and_ports_may_differ(old: bytes, new: bytes, same: bool) -> None:
    other = LINE.replace(old, new)
    assert (lineshape.key(LINE) == lineshape.key(other)) == same
    assert (lineshape.pattern(LINE).fullmatch(other + b"\n") is not None) == same


@settings(max_examples=60)
@given(st.data())
def test_every_word_has_a_hint(data: st.DataObject) -> None:
    entry = data.draw(st.sampled_from(load("words")["words"]))
    short = re.sub(r"\{[01],\d+\}", "{1,2}", entry["pattern"])
    text = data.draw(st.from_regex(re.compile(short, re.ASCII)))
    assume(not re.search("[\x1c-\x1f]", text))  # white space in Python, except with re.ASCII
    assert words.recognise(text) is not None


@pytest.mark.parametrize("hint", [*words.HINTS, " msg=subprocess", "2024/11/01 12:00:00 INFO", "{", "\x1b", "\\"])
def test_a_hint_is_found_wherever_it_is(hint: str) -> None:
    dull = GIN + "\n"
    for before in range(9):
        data = (dull * 3 + "x" * before + hint + "\n" + dull).encode()
        assert Dull().end(data, 0, len(data)) == 3 * len(dull)


@given(st.lists(st.sampled_from([*CHILD, GIN, "x" * 50, "a msg= of somebody", *words.HINTS]) | st.text(), max_size=8))
def test_dull_lines_say_nothing(lines: list[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    end = Dull().end(data, 0, len(data))
    assert data[:end].endswith(b"\n") or not end
    assert not any(map(may_tell, data[:end].split(b"\n")))
    assert not any(words.recognise(line) for line in data[:end].decode().split("\n"))
    assert end == len(data) or may_tell(data[end:].split(b"\n")[0])
