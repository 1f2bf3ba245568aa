"""Stages 12 and 13 with real children on simulated hosts: what they saw, what a hang leaves, and that nothing is left.

Which cause each fault gets is in tests/matrix/data.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.model import Outcome, StageRecord
from pytest_gpudiscovery.probes import private
from tests.stages.ollama_host import alive, causes, run

HANG: dict[str, Any] = {"stage_timeout": {"bootstrap": 4.0, "serve": 2.0}}
HOME = re.compile(private.NAME + r"(\d+)-")
PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run")


def private_directories() -> set[str]:
    """Return the private directories of all probes that are no more, ours and others'."""
    return {
        f"{place}/{name}"
        for place in PLACES
        if os.path.isdir(place)
        for name in os.listdir(place)
        if (found := HOME.match(name)) and not os.path.exists(f"/proc/{found[1]}")
    }


def left(before: set[str], directory: Path, limit_s: float = 20.0) -> list[str]:
    """Return programs of DIRECTORY that stay, and private directories that were not there BEFORE and stay."""
    until = time.monotonic() + limit_s
    while True:
        found = [*alive(directory), *(private_directories() - before)]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.05)


def children(record: StageRecord) -> list[Any]:
    return list(record.facts["children"])


@pytest.mark.parametrize("host", ["h100-ollama", "h100-ollama-c", "h100x2-ollama"])
def test_a_healthy_host(host: str, tmp_path: Path) -> None:
    before = private_directories()
    records = run(host, tmp_path, until="serve")
    for name in ("bootstrap", "serve"):
        assert (records[name].outcome, causes(records[name])) == (Outcome.PASSED, set())
    kept, devices = records["bootstrap"].facts["kept"], records["serve"].facts["devices"]
    count = 2 if "x2" in host else 1
    assert [device["libdir"] for device in kept] == ["cuda_v13"] * count
    assert [device["pci"] for device in kept] == [device["pci"] for device in devices]
    assert [device["id"] for device in kept] == [device["id"] for device in devices]
    # One child for each directory, and in the second pass one for each device of each.
    assert len(children(records["bootstrap"])) == 2 + 2 * count
    assert left(before, tmp_path) == []


def test_the_child_is_the_one_that_this_version_starts(tmp_path: Path) -> None:
    (first, second, *deeper) = children(run("h100-ollama", tmp_path)["bootstrap"])
    assert first["argv"][1:4] == ["runner", "--ollama-engine", "--port"]
    assert first["argv"][4] == str(first["port"])
    assert "libggml-cuda.so" in first["output"]  # what Ollama throws away is kept
    assert "cuda_v12" in first["output"]
    assert "cuda_v13" in second["output"]
    assert len(deeper) == 2


@pytest.mark.parametrize(
    ("host", "cause"),
    [
        ("h100-ollama:runner.start.pause", "bootstrap.hang.start"),
        ("h100-ollama:runner.mute", "bootstrap.hang.mute"),
        ("h100-ollama-c:server.list.pause", "bootstrap.list.hang"),
        ("h100-ollama-c:native.pause", "bootstrap.native.hang"),
    ],
)
def test_a_hang_is_looked_at_and_leaves_nothing(host: str, cause: str, tmp_path: Path) -> None:
    before = private_directories()
    record = run(host, tmp_path, **HANG)["bootstrap"]
    assert cause in causes(record)
    (finding,) = [finding for _, finding in record.findings if finding.cause == cause][:1]
    assert "pause" in str(finding.evidence)  # where it waits
    assert left(before, tmp_path) == []


@pytest.mark.parametrize("host", ["h100-ollama:serve.hang", "h100-ollama-c:serve.hang"])
def test_a_server_that_hangs_leaves_nothing(host: str, tmp_path: Path) -> None:
    before = private_directories()
    record = run(host, tmp_path, until="serve", **HANG)["serve"]
    assert (record.outcome, causes(record)) == (Outcome.TIMED_OUT, {"serve.hang"})
    assert left(before, tmp_path) == []


@pytest.mark.parametrize("host", ["h100-ollama:serve.hang", "h100-ollama:runner.mute"])
def test_a_gate_that_is_killed_leaves_nothing(host: str, tmp_path: Path) -> None:
    before = private_directories()
    code = (
        "import sys; from pathlib import Path; from tests.stages.ollama_host import run; "
        "run(sys.argv[1], Path(sys.argv[2]), until='serve')"
    )
    argv = [sys.executable, "-c", code, host, str(tmp_path)]
    with subprocess.Popen(argv, start_new_session=True, stderr=subprocess.DEVNULL) as gate:
        until = time.monotonic() + 60
        wanted = "serve" if "serve" in host else "runner"
        while not any(wanted in command for command in commands(tmp_path)) and time.monotonic() < until:
            time.sleep(0.02)
        assert commands(tmp_path)
        time.sleep(0.3)
        os.killpg(gate.pid, signal.SIGKILL)
    assert left(before, tmp_path) == []


def commands(directory: Path) -> list[str]:
    found = []
    for entry in alive(directory):
        try:
            found.append(Path(f"/proc/{entry.split()[0]}/cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_an_operators_variables_reach_the_children(tmp_path: Path) -> None:
    records = run("h100x2-ollama", tmp_path, until="serve", env={"CUDA_VISIBLE_DEVICES": "1"})
    (device,) = records["bootstrap"].facts["kept"]
    (same,) = records["serve"].facts["devices"]
    assert device["pci"] == same["pci"]
    everything = run("h100x2-ollama", tmp_path / "both")["bootstrap"].facts["kept"]
    assert device["pci"] == everything[1]["pci"]


def test_without_a_home_the_program_panics_as_the_service_would(tmp_path: Path) -> None:
    record = run("h100-ollama", tmp_path, env={"HOME": ""})["bootstrap"]
    assert record.outcome is Outcome.CRASHED
    assert "bootstrap.exit.fault" in causes(record)
    assert "$HOME is not defined" in children(record)[0]["output"]


def test_a_trace_is_a_timeline_and_an_experiment_says_what_it_changes(tmp_path: Path) -> None:
    record = run("h100-ollama", tmp_path, trace=True, experiment="preload")["bootstrap"]
    assert record.outcome is Outcome.PASSED
    events = record.facts["timeline"]["cuda_v12"]["loader"]
    names = [(event["what"], os.path.basename(event["name"])) for event in events]
    assert names.index(("opened", "libggml-cuda.so")) < names.index(("initialised", "libggml-cuda.so"))
    assert ("opened", "libcuda.so.1") in names or any("libcuda.so" in name for _, name in names)
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    assert {entry["directory"] for entry in record.facts["experiment"]} == {"cuda_v12", "cuda_v13"}
    assert "bootstrap.experiment.same" in causes(record)
    assert any("opened" in step.name for step in record.steps)
