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
    host: SimulatedHost, code: str, *, env: dict[str, str] | None = None, packages: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run CODE in a child in HOST's environment; PACKAGES lets it import installed ones."""
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
    )


def ask(host: SimulatedHost, code: str, *, env: dict[str, str] | None = None, packages: bool = False) -> Any:
    """Run CODE as `run` does and return what it said last."""
    done = run(host, code, env=env, packages=packages)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
