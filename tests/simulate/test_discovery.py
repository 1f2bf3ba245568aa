"""The simulated ollama and llama-server speak as the real ones do: what is compared was recorded from those.

Recorded from Ollama 0.16.3 and 0.32.15, built from source, over the same simulated driver libraries.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.simulate.assemble import SimulatedHost
from pytest_gpudiscovery.stages import serve_log
from tests.simulate.conftest import LIMIT_S, Make, child_env, install
from tests.stages.bootstrap_answers import DEVICE_B, INIT_C, LISTED, NATIVE
from tests.stages.server_logs import CPU, HEALTHY_B, HEALTHY_C

V12 = "cuda_v12"


def environment(host: SimulatedHost, directory: str = V12, **more: str) -> dict[str, str]:
    lib = install(host)
    own = {"OLLAMA_LIBRARY_PATH": f"{lib}:{lib}/{directory}", "HOME": "/proc/self/no-home"}
    return {"PATH": "/usr/bin:/bin", **child_env(host, directory), **own, **more}


def program(host: SimulatedHost) -> str:
    return f"{host.ollama}/bin/ollama"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def runner(host: SimulatedHost, **more: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    port = free_port()
    argv = [program(host), "runner", "--ollama-engine", "--port", str(port)]
    with subprocess.Popen(argv, env=environment(host, **more), stderr=subprocess.PIPE, text=True) as child:
        until = time.monotonic() + LIMIT_S
        while child.poll() is None and time.monotonic() < until:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        try:
            yield port, child
        finally:
            child.kill()


def ask(port: int) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/info", timeout=LIMIT_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_runner_answers_with_the_keys_and_types_of_a_real_one(make: Make) -> None:
    with runner(make("h100x2-ollama")) as (port, _):
        status, body = ask(port)
        devices = json.loads(body)
        assert (status, len(devices)) == (200, 2)
        for device in devices:
            assert {key: type(value) for key, value in device.items() if key in DEVICE_B} == {
                key: type(value) for key, value in DEVICE_B.items()
            }
        assert [device["name"] for device in devices] == ["CUDA0", "CUDA1"]
        assert devices[0]["LibraryPath"][-1].endswith("/lib/ollama/cuda_v12")
        assert ask(port)[1] == body  # and again: it stays


def test_the_runner_has_no_other_path(make: Make) -> None:
    with runner(make("h100-ollama")) as (port, _), pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/other", timeout=LIMIT_S)
    assert caught.value.code == 404
    caught.value.close()


def test_the_runner_sees_what_is_left_visible(make: Make) -> None:
    host = make("h100-ollama")
    with runner(host, CUDA_VISIBLE_DEVICES="") as (port, _):
        assert json.loads(ask(port)[1]) == []  # a Go slice of no element, not null


@pytest.mark.parametrize(
    ("fault", "code"), [("runner.listen", 1), ("runner.exit=3", 3), ("runner.abort", 2), ("runner.killed", -9)]
)
def test_the_runner_ends_as_a_go_program_does(make: Make, fault: str, code: int) -> None:
    with runner(make(f"h100-ollama:{fault}")) as (port, child):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                client.sendall(b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n")
                client.settimeout(LIMIT_S)
                with contextlib.suppress(OSError):
                    client.recv(1)  # until it has ended
        assert child.wait(LIMIT_S) == code
        if code == 2:
            assert child.stderr is not None
            assert "SIGABRT: abort\nPC=" in child.stderr.read()


@pytest.mark.parametrize("status", ["404", "500"])
def test_the_runner_answers_with_another_status(make: Make, status: str) -> None:
    with runner(make(f"h100-ollama:runner.status={status}")) as (port, _):
        assert ask(port)[0] == int(status)


def run(host: SimulatedHost, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, env=environment(host, **more), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def test_llama_server_lists_devices_as_a_real_one(make: Make) -> None:
    host = make("h100-ollama-c")
    lib = install(host)
    more = {"GGML_BACKEND_PATH": f"{lib}/{V12}/libggml-cuda.so"}
    done = run(host, f"{lib}/llama-server", "--list-devices", **more)
    assert (done.returncode, done.stdout) == (0, LISTED)


def test_llama_server_says_system_info_and_then_serves(make: Make) -> None:
    host = make("h100-ollama-c")
    lib = install(host)
    env = environment(host, GGML_BACKEND_PATH=f"{lib}/{V12}/libggml-cuda.so")
    argv = [f"{lib}/llama-server", "--port", str(free_port()), "--offline"]
    with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        line = next((line for line in child.stderr if "system_info:" in line), "")
        child.kill()
    assert "CUDA : ARCHS = " in line


def test_the_native_probe_answers_with_the_keys_of_a_real_one(make: Make) -> None:
    host = make("h100-ollama-c")
    lib = install(host)
    done = run(host, program(host), "gpu-discover", "--lib-dir", lib, "--lib-dir", f"{lib}/{V12}")
    (device,), (real,) = json.loads(done.stdout)["devices"], json.loads(NATIVE)["devices"]
    assert {key: type(value) for key, value in device.items()} == {key: type(value) for key, value in real.items()}
    assert device["device_id"] == real["device_id"]
    assert done.stderr.splitlines()[0] == INIT_C.splitlines()[0]


def test_each_era_has_its_own_commands(make: Make) -> None:
    older, newer = make("h100-ollama"), make("h100-ollama-c")
    assert run(older, program(older), "gpu-discover").returncode == 1
    assert run(newer, program(newer), "runner", "--ollama-engine").returncode == 1


def served(host: SimulatedHost, directory: Path, limit: float = 20.0) -> list[str]:
    """Return the log of a server of HOST until its discovery is over."""
    env = {"PATH": "/usr/bin:/bin", **host.env, "HOME": str(directory), "OLLAMA_MODELS": str(directory / "models")}
    env |= {"OLLAMA_HOST": f"127.0.0.1:{free_port()}", "OLLAMA_DEBUG": "2"}
    lines: list[str] = []
    argv = [program(host), "serve"]
    with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as server:
        assert server.stderr is not None
        until = time.monotonic() + limit
        for line in server.stderr:
            lines.append(line.rstrip("\n"))
            if "total_vram=" in line or time.monotonic() > until:
                break
        os.killpg(server.pid, 9)
    return lines


def shape(lines: list[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return message -> (source, names of its pairs) of what LINES say of devices."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for line in lines:
        pairs: dict[str, Any] = serve_log.fields(line)
        message = pairs.get("msg", "").partition(" 127.0.0.1")[0]
        if message in ("Listening on", "inference compute", "vram-based default context", "entering low vram mode"):
            found[message] = (pairs["source"], tuple(pairs))
    return found


@pytest.mark.parametrize(("host", "real"), [("h100-ollama", HEALTHY_B), ("h100-ollama-c", HEALTHY_C)])
def test_the_server_logs_what_a_real_one_logs(make: Make, tmp_path: Path, host: str, real: list[str]) -> None:
    lines = served(make(host), tmp_path)
    assert shape(lines) == shape(real)
    mine, theirs = serve_log.parse(lines), serve_log.parse(real)
    assert [device.to_json() for device in mine.devices] == [device.to_json() for device in theirs.devices]
    assert (mine.version, mine.total_vram, mine.directories[:2]) == (
        theirs.version,
        theirs.total_vram,
        theirs.directories[:2],
    )


def test_a_server_whose_children_are_too_slow_uses_the_cpu(make: Make, tmp_path: Path) -> None:
    """Its budget for a child is scaled by sim.conf: 30 s are 0.3 s here."""
    lines = served(make("h100-ollama:serve.budget=300,runner.slow=5"), tmp_path)
    log, real = serve_log.parse(lines), serve_log.parse(CPU)
    assert (log.cpu, log.devices, log.total_vram) == (True, (), "0 B")
    assert set(log.reasons) == {
        *real.reasons,
        *(reason.replace("cuda_v12", "cuda_v13") for reason in real.reasons),
    }
