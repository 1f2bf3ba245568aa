"""A run that is stopped writes its reports and names the stage that ran; one that is killed leaves no old green."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from tests.plugin.conftest import LIMIT_S, Ended, Runner


def stop(
    run: Runner,
    number: signal.Signals,
    *arguments: str,
    plugins: tuple[str, ...] = ("pytest_timeout",),
    driver: str = "hang",
    starts: int = 1,
) -> Ended:
    """Start a gate whose driver hangs, send NUMBER after STARTS of its probe, and return what became of it."""
    process = subprocess.Popen(
        run.command("--gpu-stage-timeout", "driver=60", *arguments, plugins=plugins),
        cwd=run.directory,
        env=run.environment(FAKE_STAGES=f"driver={driver}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + LIMIT_S
        while not (run.log.exists() and run.log.read_text(encoding="utf-8").split().count("driver") >= starts):
            assert time.monotonic() < until, "the driver stage never began"
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return run.ended(process.returncode, out, err, run.directory)


def probes_left(run: Runner) -> list[str]:
    """Return the command lines of probes of RUN that are still there."""
    left = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if str(run.log).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                left.append(path.parent.joinpath("cmdline").read_text(encoding="utf-8"))
    return left


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 2, "interrupted from the keyboard")],
    ids=["SIGTERM", "SIGINT"],
)
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_a_stopped_run_reports(
    gate: Runner, number: signal.Signals, code: int, reason: str, workers: tuple[str, ...]
) -> None:
    plugins = ("pytest_timeout", "xdist.plugin") if workers else ("pytest_timeout",)
    ended = stop(gate, number, "--junitxml=junit.xml", *workers, plugins=plugins)
    assert ended.code == code, ended.out + ended.err
    assert ended.verdict["verdict"] == "incomplete"
    assert ended.outcomes["driver"] == "interrupted"
    assert reason in ended.last
    assert ended.last.endswith(f"(exit {code})")
    assert 'name="gpu_discovery.verdict" value="incomplete"' in (gate.directory / "junit.xml").read_text(
        encoding="utf-8"
    )
    assert not probes_left(gate)


def test_a_killed_run_leaves_no_old_green(gate: Runner) -> None:
    assert gate("-q").verdict["verdict"] == "ready"
    gate.log.unlink()
    ended = stop(gate, signal.SIGKILL)
    assert ended.code == -signal.SIGKILL
    assert ended.verdict["verdict"] == "incomplete"
    assert ended.outcomes["nvml"] == "passed", "what had an answer before the kill is in the file"
    assert ended.outcomes["driver"] == "not_selected"


def archive(path: Path) -> str:
    """Make a release archive at PATH that takes seconds to unpack, and return it: 2 GB of nothing in 2 MB."""
    header = tarfile.TarInfo("bin/ollama")
    header.size = 128 << 24
    with path.open("wb") as file:
        file.write(gzip.compress(header.tobuf()))
        file.write(gzip.compress(bytes(1 << 24)) * 128)
    return str(path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_while_it_unpacks_leaves_no_old_green(gate: Runner, number: signal.Signals) -> None:
    report = gate.directory / "gpu-discovery-report"
    report.mkdir()
    (report / "verdict.json").write_text('{"verdict": "ready"}', encoding="utf-8")
    refused = gate("--gpu-ollama", os.devnull)
    assert refused.code == 4
    assert refused.verdict == {"verdict": "ready"}, "nothing ran: what an earlier run said stands"
    command = gate.command("--gpu-ollama", archive(gate.directory / "ollama.tgz"))
    with subprocess.Popen(command, cwd=gate.directory, env=gate.environment(), stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + LIMIT_S
        while not any(gate.temporary.glob("gpu-discovery-*/*/bin/ollama")):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(LIMIT_S) != 0
    assert gate.ended(1, "", "", gate.directory).verdict.get("verdict") in (None, "incomplete")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_repeat_is_no_green(gate: Runner, number: signal.Signals) -> None:
    """Run 1 was ready; what was asked for is five runs."""
    ended = stop(gate, number, "--gpu-repeat", "5", driver="stuck", starts=2)
    assert ended.verdict["verdict"] == "incomplete"
    if number == signal.SIGKILL:
        assert ended.verdict["notes"][-1] == "--gpu-repeat: run 2 of 5"
        return
    assert ended.code == (143 if number == signal.SIGTERM else 2)
    assert ended.verdict["notes"][-1] == "--gpu-repeat: 1 of 5 runs"
    assert ended.last.startswith("gpu-discovery: INCOMPLETE: --gpu-repeat: 1 of 5 runs (exit ")
    assert not probes_left(gate)
