"""`gpu-discovery closure` and `fatbin` as a person runs them: answers, exit codes, hostile files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery import loader_cli
from pytest_gpudiscovery.loader import predict
from tests.stages.closure_install import build

COMMAND = "import sys; from pytest_gpudiscovery.cli import main; sys.exit(main())"
HOST_LIBRARY = next(path for path in ("/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6") if os.path.exists(path))


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(*arguments: str | bytes | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ended:
    """Run the command; nothing that it prints may be a traceback."""
    words: Sequence[Any] = [sys.executable, "-c", COMMAND, *arguments]
    done = subprocess.run(
        words,
        cwd=cwd or "/",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(env or {})},
        capture_output=True,
        timeout=60,
        check=False,
    )
    out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in out + err
    return Ended(done.returncode, out, err)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build(folder)
    return folder


def backend(built: Path, major: int = 12) -> Path:
    return built / f"lib/ollama/cuda_v{major}/libggml-cuda.so"


def library_path(built: Path, *places: str) -> str:
    return f"LD_LIBRARY_PATH={':'.join(str(built / place) for place in places)}"


# --- closure ---------------------------------------------------------------------------------------------------------


def test_a_library_that_loads(built: Path) -> None:
    path = library_path(built, "lib/ollama", "lib/ollama/cuda_v12", "driver")
    ended = run("closure", backend(built), "--env", path, "--exe", built / "bin/ollama")
    assert ended.code == 0, ended.out + ended.err
    lines = ended.out.splitlines()
    assert lines[0] == f"{backend(built)}: loads"
    assert any(line.strip().startswith("libcublasLt.so.12 => ") and "DT_RPATH" in line for line in lines)


def test_the_callers_environment_counts(built: Path) -> None:
    name, _, value = library_path(built, "lib/ollama", "lib/ollama/cuda_v12", "driver").partition("=")
    assert run("closure", backend(built), env={name: value}).code == 0
    assert run("closure", backend(built), "--env", f"{name}=/nowhere", env={name: value}).code == 1


def test_a_library_that_lacks_something_says_so_first(built: Path) -> None:
    ended = run("closure", backend(built), "--env", library_path(built, "lib/ollama", "lib/ollama/cuda_v12"))
    assert ended.code == 1
    assert "libcuda.so.1: cannot open shared object file: No such file or directory" in ended.out.splitlines()[0]
    assert "libcuda.so.1 => NOT FOUND" in ended.out


def test_what_lies_beside_it_is_said(built: Path) -> None:
    """lib/ollama/libggml-base.so.0 is there: only Ollama's own LD_LIBRARY_PATH leads to it."""
    ended = run("closure", backend(built), "--env", library_path(built, "driver"))
    assert ended.code == 1
    assert f"  {built}/lib/ollama/libggml-base.so.0 exists, but nothing leads ld.so there" in ended.out


def test_another_machines_file_is_named(built: Path, tmp_path: Path) -> None:
    whole = backend(built).read_bytes()
    (tmp_path / "arm.so").write_bytes(whole[:18] + b"\xb7\0" + whole[20:])
    ended = run("closure", tmp_path / "arm.so")
    assert (ended.code, "built for another machine: aarch64" in ended.out) == (1, True)


def test_json_is_the_whole_prediction(built: Path) -> None:
    ended = run("closure", backend(built), "--json")
    assert ended.code == 1
    assert ended.json["loads"] is False
    env = {"PATH": "/usr/bin:/bin"}
    assert ended.json["missing"] == list(predict(str(backend(built)), env=env).missing)


def test_explain_names_every_candidate(built: Path) -> None:
    path = library_path(built, "lib/ollama", "lib/ollama/cuda_v12", "driver")
    ended = run("closure", backend(built), "--env", path, "--explain", "libcuda.so.1")
    assert ended.code == 0
    assert f"libcuda.so.1, asked for by libggml-cuda.so => {built}/driver/libcuda.so.1" in ended.out
    assert ended.out.count("tried ") >= 3
    assert run("closure", backend(built), "--explain", "libcuda.so.1").code == 1
    unknown = run("closure", backend(built), "--env", path, "--explain", "libnone.so")
    assert (unknown.code, "nobody asks for it" in unknown.out) == (20, True)


def test_a_name_here_is_a_path_and_another_is_looked_for(built: Path) -> None:
    folder = backend(built).parent
    ended = run("closure", "libggml-cuda.so", cwd=folder)
    assert ended.out.startswith(f"{folder}/libggml-cuda.so: error")
    assert run("closure", "libm.so.6").code == 0
    assert run("closure", "libnone.so.1").code == 1


def test_an_executable_that_cannot_be_used_is_no_answer(built: Path) -> None:
    assert run("closure", HOST_LIBRARY, "--exe", "/nonexistent").code == 20
    assert run("closure", HOST_LIBRARY, "--exe", "/etc/passwd").code in (1, 20)


# --- fatbin ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("major", "words", "code", "says"),
    [
        (12, ["--cc", "9.0"], 0, "runs (native): sm_90 runs on compute capability 9.0"),
        (12, ["--cc", "8.0"], 1, "DOES NOT RUN (no image)"),
        (13, ["--cc", "9.0", "--driver-cuda", "13.0"], 0, "runs (jit)"),
        (13, ["--cc", "9.0", "--driver-cuda", "12.8"], 1, "needs a driver of CUDA 13.0"),
        (13, ["--cc", "10.0", "--driver-cuda", "13.0"], 0, "runs (jit)"),
    ],
)
def test_whether_device_code_runs(built: Path, major: int, words: list[str], code: int, says: str) -> None:
    ended = run("fatbin", backend(built, major), *words)
    assert ended.code == code, ended.out + ended.err
    assert says in ended.out
    assert f"compiled for: {'70, 80, 90' if major == 12 else '90'}" in ended.out


def test_eager_loading_is_said(built: Path) -> None:
    words = ("--cc", "9.0", "--driver-cuda", "13.0", "--env", "CUDA_MODULE_LOADING=EAGER")
    assert "STALLS: eager loading compiles 1 modules" in run("fatbin", backend(built, 13), *words).out


def test_fatbin_json(built: Path) -> None:
    found = run("fatbin", backend(built), "--cc", "9.0", "--json").json
    assert found["targets"] == ["sm_90"]
    assert found["verdict"]["runs"] is True
    assert found["architectures"] == [70, 80, 90]


def test_a_library_without_device_code_runs_nowhere() -> None:
    assert run("fatbin", HOST_LIBRARY, "--cc", "9.0").code == 1


# --- usage, and what a file may do to us -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["closure"], "required: LIB"),
        (["fatbin"], "required: LIB"),
        (["closure", ""], "LIB is empty"),
        (["closure", "a", "b"], "unrecognized arguments: b"),
        (["closure", "a", "--env", "NAME"], "expected NAME=VALUE"),
        (["closure", "a", "--cc", "9.0"], "unrecognized arguments"),
        (["closure", "a", "--expl", "x"], "unrecognized arguments"),
        (["fatbin", "a", "--cc", "nine"], "--cc nine: expected two numbers"),
        (["fatbin", "a", "--cc", "9"], "--cc 9: expected two numbers"),
        (["fatbin", "a", "--driver-cuda", "13.0.1"], "--driver-cuda 13.0.1: expected two numbers"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert loader_cli.run(arguments) == 4
    out, err = capfd.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert says in err


def test_help_lists_both_commands() -> None:
    ended = run("--help")
    assert ended.code == 0
    assert all(text in " ".join(ended.out.split()) for text in loader_cli.COMMANDS.values())
    assert "--explain" in run("closure", "--help").out


def hostile(folder: Path, built: Path) -> dict[str, Path]:
    """Make files that are no libraries, or broken ones, and return them by name."""
    whole = backend(built).read_bytes()
    chance = random.Random(7)
    files = {
        "empty": b"",
        "text": b"not a library\n",
        "noise": bytes(chance.randrange(256) for _ in range(5000)),
        "magic": b"\x7fELF",
        "header": whole[:64],
        "half": whole[: len(whole) // 2],
        "32-bit": whole[:4] + b"\1" + whole[5:],
        "foreign": whole[:18] + b"\xb7\0" + whole[20:],
        "sections": whole[:40] + b"\xff" * 8 + whole[48:],
        "segments": whole[:32] + b"\xff" * 8 + whole[40:],
        "many": whole[:56] + b"\xff\xff" + whole[58:],
    }
    for number in range(4):
        data = bytearray(whole)
        for _ in range(200):
            data[chance.randrange(64, 4096)] = chance.randrange(256)
        files[f"mutated{number}"] = bytes(data)
    made = {}
    for name, content in files.items():
        made[name] = folder / name
        made[name].write_bytes(content)
    os.mkfifo(folder / "fifo")
    (folder / "directory").mkdir()
    (folder / "loop").symlink_to("loop")
    for name in ("fifo", "directory", "loop"):
        made[name] = folder / name
    return {**made, "zero": Path("/dev/zero"), "mem": Path("/proc/self/mem")}


def test_hostile_files_get_an_answer(built: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, path in hostile(tmp_path, built).items():
        assert loader_cli.run(["closure", str(path)]) in (1, 20), name
        assert loader_cli.run(["fatbin", str(path), "--cc", "9.0"]) in (0, 1, 20), name
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err, name
        assert out + err, name


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "libfifo.so")
    ended = run("closure", tmp_path / "libfifo.so")
    assert (ended.code, "blocks" in ended.out) == (1, True)
    assert run("fatbin", tmp_path / "libfifo.so", "--cc", "9.0").code == 20


def test_what_does_not_end_in_time_is_no_answer(
    built: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader_cli, "DEADLINE_S", 0.005)
    assert loader_cli.run(["closure", str(backend(built))]) == 20
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith("cannot tell: ")
    assert "did not end within 0.005 s" in err


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, and escape sequences, are shown as such."""
    name = os.fsencode(tmp_path) + b"/lib\xff\x1b[31m.so"
    with open(name, "wb") as file:
        file.write(b"\x7fELF\2\1\1" + bytes(57))
    for command in ("closure", "fatbin"):
        ended = run(command, name)
        assert ended.code in (1, 20)
        assert "\x1b" not in ended.out + ended.err
        assert "\\udcff\\x1b[31m" in ended.out
        assert json.loads(run(command, name, "--json").out)


def test_a_reader_that_leaves_is_no_error(built: Path) -> None:
    shell = f"{sys.executable} -c '{COMMAND}' closure {backend(built)} | true"
    done = subprocess.run(["sh", "-c", shell], cwd="/", capture_output=True, timeout=60, check=False)
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr
