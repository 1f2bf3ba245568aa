"""Logs of real servers, healthy and with faults injected: what is explained must be what was done to them."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.ollama import render
from pytest_gpudiscovery.ollama.gotime import stamp
from tests.ollama import reading
from tests.ollama.faults import CAUSES, FIRST, cause
from tests.ollama.recorded import CORPUS, FILES, SIDECARS, at, candidates, explained, levels

ANSWERS = {"gpu": "gpu_found", "cpu": "no_gpu"}


def hung(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return pass and directory of every child that timed out."""
    return sorted(
        (attempt["pass"], attempt["directory"])
        for server in found["servers"]
        for discovery in server["discoveries"]
        for attempt in discovery["attempts"]
        if attempt["outcome"] == "timed_out"
    )


@pytest.mark.parametrize("name", SIDECARS)
def test_the_answer_is_the_servers(name: str) -> None:
    wanted = ANSWERS.get(SIDECARS[name]["result"], "cannot_tell")
    assert {level: explained(name, level)["answer"] for level in levels(name)} == dict.fromkeys(levels(name), wanted)


@pytest.mark.parametrize("name", [name for name, sidecar in SIDECARS.items() if sidecar["result"] in ANSWERS])
def test_what_is_said_of_the_server(name: str) -> None:
    sidecar = SIDECARS[name]
    for level in levels(name):
        (server,) = explained(name, level)["servers"]
        assert server["versions"]["exact"] == server["versions"]["releases"] == sidecar["version"]
        assert server["versions"]["unlisted"] == []
        assert not server["versions"]["contradicted"]
        assert [entry["id"] for entry in server["eras"]] == [sidecar["era"]]
        assert server["log_level"]["level"] == level
        if sidecar.get("discovery_s") is not None:
            assert server["discoveries"][0]["duration_s"] == pytest.approx(sidecar["discovery_s"], abs=0.05)
    reading.VALIDATOR.validate(explained(name, levels(name)[-1]))


@pytest.mark.parametrize("name", SIDECARS)
def test_every_level_shows_the_same_timeouts(name: str) -> None:
    seen = {level: hung(explained(name, level)) for level in levels(name)}
    assert all(timeouts == seen["INFO"] for timeouts in seen.values()), seen
    if (SIDECARS[name].get("discovery_s") or 0.0) < 29.0:
        assert seen["INFO"] == []


@pytest.mark.parametrize("name", [name for name in SIDECARS if cause(SIDECARS[name])])
def test_the_true_cause_is_never_excluded(name: str) -> None:
    for level in levels(name):
        left = candidates(explained(name, level))
        assert cause(SIDECARS[name]) & set(left), (level, left)


@pytest.mark.parametrize("name", FIRST)
def test_what_the_log_says_outright_comes_first(name: str) -> None:
    lowest, wanted = FIRST[name]
    shown = levels(name)[levels(name).index(lowest) :]
    assert {level: candidates(explained(name, level))[0] for level in shown} == dict.fromkeys(shown, wanted)


@pytest.mark.parametrize("name", ["0.16.3-sim-eager", "0.16.3-sim-hang-cuinit", "0.32.15-sim-hang-cuinit"])
def test_a_log_of_trace_level_that_grep_left_info_of_excludes_no_true_cause(name: str) -> None:
    """The child's own INFO lines stay, so its last words seem to be those of a child that came no further."""
    kept = [line for line in FILES[f"{name}.log"].splitlines(keepends=True) if b"level=INFO" in line]
    found = reading.explain(b"".join(kept))
    assert found["servers"][0]["log_level"]["level"] == "INFO"
    assert cause(SIDECARS[name]) <= set(candidates(found))


@pytest.mark.parametrize("name", ["0.16.3-h100-eager-v13", "0.32.15-sim-hang-cuinit-info"])
@pytest.mark.parametrize("width", [200, 120])
def test_a_timeout_whose_line_is_cut_is_still_one(name: str, width: int) -> None:
    shown = [line[:width] for line in at(name, "INFO").splitlines()]
    found = reading.explain(b"\n".join(shown) + b"\n")
    assert hung(found)
    assert cause(SIDECARS[name]) & set(candidates(found))


@pytest.mark.parametrize("name", ["0.16.3-stopped-early", "0.32.15-stopped-early"])
def test_a_server_that_was_told_to_stop_gave_no_answer(name: str) -> None:
    """Era B has the words of a timeout for it, after four seconds."""
    for level in levels(name):
        found = explained(name, level)
        assert found["summary"] == "cannot tell: the server was told to stop before its discovery had ended"
        (server,) = found["servers"]
        assert {attempt["outcome"] for attempt in server["discoveries"][0]["attempts"]} == {"canceled"}
        assert {"canceled"} <= {entry["id"] for entry in server["conclusions"]}
        assert not {"timeout.meaning", "fast", "unseen"} & {entry["id"] for entry in server["conclusions"]}
        assert server["analyses"] == []


@pytest.mark.parametrize("name", ["0.16.3-healthy-nogpu", "0.16.3-sim-healthy", "0.32.15-healthy-nogpu"])
@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_a_lower_level_is_the_same_log_filtered(name: str, level: str) -> None:
    """A server's end and the order of what its threads say differ from run to run."""
    said = []
    for data in (at(name, level), FILES[f"{name}-{level.lower()}.log"]):
        messages = re.findall(rb' msg=("[^"]*"|\S+)', data)
        said.append(messages[: next(i for i, text in enumerate(messages) if b"vram-based" in text)])
    wanted, found = (sorted(re.sub(rb"\d+", b"", text) for text in messages) for messages in said)
    assert found == wanted


def test_every_log_has_its_sidecar_and_every_fault_its_cause() -> None:
    assert {name.rpartition(".")[0] for name in FILES} == set(SIDECARS)
    faults = {sidecar["fault"].removeprefix("gpu-") for sidecar in SIDECARS.values()}
    assert faults - set(CAUSES) == set()


def parts_of(name: str, level: str) -> list[bytes]:
    return at(name, level).splitlines(keepends=True)


FAULTY = [name for name, sidecar in SIDECARS.items() if cause(sidecar) and sidecar["result"] == "cpu"]


@given(st.data())
def test_a_log_that_begins_in_the_middle_excludes_no_true_cause(data: Any) -> None:
    """How a child failed, or that it hung, may have been said before: then nothing speaks against it."""
    name = data.draw(st.sampled_from(FAULTY))
    level = data.draw(st.sampled_from(levels(name)))
    lines = parts_of(name, level)
    found = reading.explain(b"".join(lines[data.draw(st.integers(0, len(lines) - 1)) :]))
    if found["answer"] == "no_gpu":
        assert cause(SIDECARS[name]) & set(candidates(found)), found["summary"]
        (server,) = found["servers"]
        if hung(explained(name, level)) and not hung(found):
            assert "fast" not in reading.ids(server)
            assert "nothing timed out" not in found["summary"]


def test_nothing_of_a_machine_is_in_the_corpus() -> None:
    for name, data in {**FILES, "captured": (CORPUS / "captured.log").read_bytes()}.items():
        assert not re.search(rb"ssh-ed25519 AAAA[A-Za-z0-9]|/root/|/work/|\b10\.\d+\.\d+\.\d+", data), name


@given(st.data())
def test_no_damage_to_a_real_log_raises(data: Any) -> None:
    name, other = (data.draw(st.sampled_from(sorted(SIDECARS))) for _ in range(2))
    lines = FILES[f"{name}.log"].splitlines(keepends=True)
    foreign = FILES[f"{other}.log"].splitlines(keepends=True)
    for _ in range(data.draw(st.integers(0, 12))):
        place = data.draw(st.integers(0, max(0, len(lines) - 1)))
        kind = data.draw(st.sampled_from(["drop", "double", "swap", "cut", "flip", "foreign", "tail"]))
        if kind == "drop":
            del lines[place : place + data.draw(st.integers(1, 5))]
        elif kind == "double":
            lines[place:place] = lines[place : place + 3]
        elif kind == "swap":
            lines[place : place + 2] = reversed(lines[place : place + 2])
        elif kind == "cut":
            lines[place : place + 1] = [line[: len(line) // 2] for line in lines[place : place + 1]]
        elif kind == "flip":
            mark = data.draw(st.binary(min_size=1, max_size=4))
            lines[place : place + 1] = [line[:40] + mark + line[41:] for line in lines[place : place + 1]]
        elif kind == "foreign":
            lines[place:place] = foreign[data.draw(st.integers(0, len(foreign))) :][:8]
        else:
            del lines[place:]
    found = reading.explain(b"".join(lines))
    reading.VALIDATOR.validate(found)
    render.text(found)


@pytest.mark.parametrize("pair", [("0.16.3-sim-healthy", "0.32.15-gpu-fifo"), ("0.32.15-gpu-cpuonly", "0.16.3-fifo")])
def test_two_real_servers_in_one_log_come_apart(pair: tuple[str, str]) -> None:
    """Both begin at the same time, as two units of one host; their lines stand in the order of their times."""
    entries = []
    for name in pair:
        begin, now = None, 0.0
        for line in at(name, "INFO").splitlines(keepends=True):
            found = re.match(rb"time=(\S+)", line)
            if found is not None:
                time = stamp(found[1].decode())[0] or 0.0
                begin = time if begin is None else begin
                now = time - begin
            moved = datetime.datetime.fromtimestamp(1.8e9 + now, datetime.timezone.utc)
            text = moved.isoformat(timespec="milliseconds").encode()
            entries.append((now, re.sub(rb"^time=\S+", b"time=" + text, line)))
    explanation = reading.explain(b"".join(line for _, line in sorted(entries, key=lambda entry: entry[0])))
    answers = {server["versions"]["releases"]: server["answer"] for server in explanation["servers"]}
    assert answers == {SIDECARS[name]["version"]: ANSWERS[SIDECARS[name]["result"]] for name in pair}
