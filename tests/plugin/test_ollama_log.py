"""`--gpu-ollama-log`: a post-mortem instead of the gate; nothing on this host is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plugin.conftest import Runner

CORPUS = Path(__file__).parents[1] / "ollama" / "corpus"
CAPTURED = CORPUS / "captured.log"


def test_the_log_is_explained_and_nothing_is_probed(gate: Runner) -> None:
    ended = gate("--gpu-ollama-log", str(CAPTURED))
    assert ended.code == 1, ended.err
    assert ended.ran == ()
    assert ended.verdict == {}, "verdict.json is of a host, not of a log"
    assert ended.out.startswith("no GPU: cuda_v12 timed out in the first pass\n")
    assert ended.last == "gpu-discovery: no GPU: cuda_v12 timed out in the first pass (exit 1)"
    report = json.loads((gate.directory / "gpu-discovery-report" / "ollama-log.json").read_text(encoding="utf-8"))
    assert report["answer"] == "no_gpu"


def test_an_older_verdict_of_this_host_stays(gate: Runner) -> None:
    gate()
    before = (gate.directory / "gpu-discovery-report" / "verdict.json").read_bytes()
    assert gate("--gpu-ollama-log", str(CAPTURED)).code == 1
    assert (gate.directory / "gpu-discovery-report" / "verdict.json").read_bytes() == before


@pytest.mark.parametrize(("convention", "code"), [("nagios", 2), ("npd", 1)])
def test_other_exit_codes(gate: Runner, convention: str, code: int) -> None:
    ended = gate("--gpu-ollama-log", str(CAPTURED), "--gpu-exit", convention)
    assert ended.code == code
    assert ended.out.splitlines() == [f"gpu-discovery: no GPU: cuda_v12 timed out in the first pass (exit {code})"]


def test_from_the_environment_and_from_an_ini_file(gate: Runner) -> None:
    assert gate(env={"GPU_DISCOVERY_OLLAMA_LOG": str(CAPTURED)}).code == 1
    (gate.directory / "ollama.log").write_bytes(CAPTURED.read_bytes())
    (gate.directory / "pytest.ini").write_text("[pytest]\ngpu_ollama_log = ollama.log\n", encoding="utf-8")
    ended = gate()
    assert (ended.code, ended.ran) == (1, ())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--gpu-ollama-log", "absent.log"), "expected a file that exists and can be reached, journal or journal:UNIT"),
        (("--gpu-ollama-log", "journal:"), "expected a file that exists"),
        (("--gpu-ollama-log", str(CAPTURED), "--gpu-until", "driver"), "not together with --gpu-until"),
        (("--gpu-ollama-log", str(CAPTURED), "--gpu-as", "pid:1"), "not together with --gpu-as"),
        (("--gpu-ollama-log", str(CAPTURED), "tests"), "not together with tests"),
        (("--gpu-ollama-log", str(CORPUS)), "is a directory"),
    ],
)
def test_what_it_cannot_be_used_with(gate: Runner, arguments: tuple[str, ...], says: str) -> None:
    (gate.directory / "tests").mkdir()
    ended = gate(*arguments)
    assert ended.code == 4
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert ended.ran == ()


def test_a_report_that_cannot_be_written_is_said(gate: Runner) -> None:
    (gate.directory / "file").touch()
    ended = gate("--gpu-ollama-log", str(CAPTURED), "--gpu-report", "file/below")
    assert ended.code == 1
    assert "could not be written to" in ended.out
