"""Simulated hosts as fixtures; what is asked of one runs in a real child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery import simulate
from pytest_gpudiscovery.simulate import build
from pytest_gpudiscovery.simulate.assemble import SimulatedHost

LIMIT_S = 60.0
PRELUDE = "import ctypes, json, os, sys\ndef say(value): print(json.dumps(value)); sys.stdout.flush()\n"

Make = Callable[[str], SimulatedHost]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that prepares the host that a text asks for, each in a directory of its own."""
    made = 0

    def prepare(text: str) -> SimulatedHost:
        nonlocal made
        made += 1
        return simulate.prepare(simulate.parse(text), str(tmp_path / f"host{made}"))

    return prepare


def run(
    host: SimulatedHost, code: str, *, env: dict[str, str] | None = None, packages: bool = False, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run CODE in a child in HOST's environment; PACKAGES lets it import installed ones, STDIN is what it can read."""
    flags = [] if packages else ["-I", "-S"]
    return subprocess.run(
        [sys.executable, *flags, "-c", PRELUDE + code],
        env={
            **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
            **host.env,
            **(env or {}),
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd="/",
        input=stdin,
    )


def ask(
    host: SimulatedHost, code: str, *, env: dict[str, str] | None = None, packages: bool = False, stdin: str = ""
) -> Any:
    """Run CODE as `run` does and return what it said last."""
    done = run(host, code, env=env, packages=packages, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def install(host: SimulatedHost) -> str:
    """Return lib/ollama of HOST's Ollama."""
    assert host.ollama is not None
    return f"{host.ollama}/lib/ollama"


def child_env(host: SimulatedHost, directory: str) -> dict[str, str]:
    """Return the environment that Ollama gives its child for GPU directory DIRECTORY of HOST."""
    lib = install(host)
    return {**host.env, "LD_LIBRARY_PATH": f"{lib}:{lib}/{directory}:{host.env['LD_LIBRARY_PATH']}"}


@pytest.fixture(scope="session")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return layout -> a program that reads a backend by the declarations of that layout (reader.c)."""
    folder = tmp_path_factory.mktemp("readers")
    source = Path(__file__).with_name("reader.c")
    for layout, defines in {"b": ["-DOLLAMA"], "c": []}.items():
        command = [*build.compiler(), "-Wall", "-Wextra", "-Werror", *defines, "-o", str(folder / layout), str(source)]
        subprocess.run([*command, "-ldl"], check=True, timeout=LIMIT_S)
    return {layout: folder / layout for layout in ("b", "c")}


Read = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def read(make: Make, readers: dict[str, Path]) -> Read:
    """Return a function that runs a reader on libggml-cuda.so of simulated host TEXT, in Ollama's environment."""

    def run_reader(
        text: str, directory: str = "cuda_v12", *, layout: str | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        host = make(text)
        own = "c" if text.startswith("h100-ollama-c") else "b"
        return subprocess.run(
            [readers[layout or own], f"{install(host)}/{directory}/libggml-cuda.so"],
            env={"PATH": os.environ["PATH"], **child_env(host, directory), **(env or {})},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            cwd="/",
        )

    return run_reader
