"""The post-mortem as a whole: the captured failure, and every sentence that it has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import pytest_gpudiscovery
from pytest_gpudiscovery.ollama import render, statements
from tests.ollama import reading
from tests.ollama.writer import Log, begin, cpu, fail, gpu, spawn

CORPUS = Path(__file__).parent / "corpus"
PACKAGE = Path(pytest_gpudiscovery.__file__).parent
CODE = "\n".join(path.read_text(encoding="utf-8") for path in (PACKAGE / "ollama").glob("*.py"))


@pytest.fixture(scope="module")
def captured() -> dict[str, Any]:
    return reading.only((CORPUS / "captured.log").read_bytes())


def test_the_captured_failure_is_a_timeout_in_the_first_pass(captured: dict[str, Any]) -> None:
    assert captured["answer"] == "no_gpu"
    assert captured["summary"] == "no GPU: cuda_v12 timed out in the first pass"
    (attempt,) = captured["discoveries"][0]["attempts"]
    assert (attempt["pass"], attempt["directory"], attempt["duration_s"]) == ("first_pass", "cuda_v12", 30.03)
    said = {entry["id"]: entry["text"] for entry in captured["conclusions"]}
    assert "30 s" in said["timeout.meaning"]
    assert "0.030 s of the 30.030 s" in said["timeout.slack"]
    assert "0.251 s" in said["timeout.after"]
    assert "excerpt" in said


def test_its_versions(captured: dict[str, Any]) -> None:
    assert captured["versions"]["releases"] == "0.16.2 to 0.17.4"
    assert [entry["id"] for entry in captured["eras"]] == ["B"]
    assert [entry["id"] for entry in captured["sub_ranges"]] == ["B5"]
    lines = (CORPUS / "captured.log").read_text(encoding="utf-8").splitlines(keepends=True)
    alone = reading.only("".join(line for line in lines if "routes.go:1768" not in line))
    assert alone["versions"]["releases"] == "0.13.2 to 0.22.1"


def test_what_it_excludes_and_what_is_left(captured: dict[str, Any]) -> None:
    (analysis,) = captured["analyses"]
    excluded = {row for entry in analysis["excluded"] for row in entry["prerequisites"]}
    assert {"P06", "P22", "P24", "P25", "P26", "P27", "P46"} <= excluded, "they fail fast"
    left = [entry["id"] for entry in analysis["candidates"]]
    assert {"R1", "R2", "R5", "R6", "R7", "R8", "R10", "R14"} <= set(left)
    assert "R13b" not in left
    assert "R13b" in [entry["id"] for entry in analysis["excluded_causes"]]


def test_its_failure_line_alone_is_of_no_second_pass() -> None:
    lines = (CORPUS / "captured.log").read_text(encoding="utf-8").splitlines(keepends=True)
    found = reading.only("".join(line for line in lines if "failure during" in line))
    assert found["summary"].endswith("after cuda_v12 timed out in an unknown pass")
    (analysis,) = found["analyses"]
    left = {entry["id"] for entry in analysis["candidates"]}
    assert {"R1", "R24"} <= left  # the first pass, or a refresh
    assert not left & {"R22", "R23"}, "extra_envs=map[]"


def test_what_cannot_be_concluded_from_it(captured: dict[str, Any]) -> None:
    texts = {entry["id"]: entry["text"] for entry in captured["not_concluded"]}
    assert "libggml-cuda.so was never loaded" in texts["not.load"]
    assert {"not.server", "not.path", "not.envs", "not.vram", "not.eager"} <= set(texts)


def test_it_corrects_the_common_advice(captured: dict[str, Any]) -> None:
    advice = {entry["id"]: entry for entry in captured["advice"]}
    assert advice["debug_level"]["title"] == "OLLAMA_DEBUG=1 does not show what the child says; 2 does"
    drop_in = advice["debug_level"]["commands"][0]["command"]
    assert "[Service]" in drop_in
    assert 'Environment="OLLAMA_DEBUG=2"' in drop_in
    assert "timeout 60 journalctl -u ollama --since" in advice["capture_once"]["commands"][0]["command"]
    assert "state D" in " ".join(advice["strace"]["text"])
    hidden = " ".join(entry["text"] for entry in captured["hidden"])
    assert "/dev/null" in hidden
    assert captured["next"][0]["command"] == "gpu-discovery gate"


def test_a_healthy_log_is_short() -> None:
    server = reading.only(gpu(spawn(begin(Log()).at(0.01)).at(0.6)))
    assert server["answer"] == "gpu_found"
    assert server["summary"] == "GPU found: 1 x NVIDIA H100 80GB HBM3"
    assert (server["advice"], server["next"], server["analyses"]) == ([], [], [])
    text = render.text(reading.explain(gpu(spawn(begin(Log())).at(0.6))))
    assert len(text.splitlines()) < 14


@pytest.mark.parametrize("data", [(CORPUS / "captured.log").read_bytes(), b""], ids=["captured", "empty"])
def test_every_answer_fits_the_schema(data: bytes) -> None:
    found = reading.explain(data)
    reading.VALIDATOR.validate(found)
    assert json.loads(json.dumps(found)) == found
    render.text(found)


def test_every_sentence_can_be_said() -> None:
    for sentence in statements.ids():
        assert re.search(rf"[\"']{re.escape(sentence)}[\"']", CODE), sentence
    assert set(re.findall(r"say\(\s*\"([a-z_.]+)\"", CODE)) <= set(statements.ids())


def test_a_directory_that_hangs_beside_one_that_works() -> None:
    log = begin(Log())
    fail(spawn(log, 4001).at(30.0), "cuda_v13")
    gpu(spawn(log, 4002).at(0.6))
    found = reading.explain(log)
    assert found["answer"] == "gpu_found"
    assert found["summary"] == "GPU found: 1 x NVIDIA H100 80GB HBM3; cuda_v13 timed out in the first pass"
    late = next(entry for entry in found["servers"][0]["conclusions"] if entry["id"] == "found.late")
    assert "30 s late" in late["text"]
    left = {entry["id"]: entry for entry in found["servers"][0]["analyses"][0]["candidates"]}
    assert "R13b" in left, "cuda_v13 holds PTX only"
    assert left["R13b"]["not_seen"]


def test_the_second_start_was_fast() -> None:
    first = cpu(fail(spawn(begin(Log())).at(30.0), "cuda_v12"))
    text = first.text() + gpu(spawn(begin(Log(first.now + 60)))).text()
    found = reading.explain(text)
    left = {entry["id"]: entry for entry in found["servers"][0]["analyses"][0]["candidates"]}
    assert left["R3"]["speaks_for_it"]
    assert left["R10"]["speaks_for_it"]


def test_the_kernel_killed_the_child() -> None:
    log = spawn(begin(Log()))
    log.at(4).raw("ollama.service: A process of this unit has been killed by the OOM killer.")
    found = reading.explain(cpu(fail(log, "cuda_v12", "runner crashed")))
    (analysis,) = found["servers"][0]["analyses"]
    assert analysis["outcome"] == "crashed"
    assert analysis["candidates"][0]["id"] == "K1"
    assert analysis["candidates"][0]["speaks_for_it"]
    assert {entry["id"] for entry in analysis["excluded"]} == {"X12", "X13"}


def test_variables_that_hide_the_gpu() -> None:
    log = begin(Log(), CUDA_VISIBLE_DEVICES="7")
    log.put("runner.go:485", "user overrode visible devices", "WARN", CUDA_VISIBLE_DEVICES="7")
    found = reading.explain(cpu(spawn(log).at(0.3)))
    assert found["servers"][0]["analyses"][0]["candidates"][0]["id"] == "F6"
    assert "override" in reading.ids(found["servers"][0])
