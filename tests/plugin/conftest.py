"""Runs pytest as a user does, in a process of its own, over the stages of fakegate.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
LIMIT_S = 90  # for a loaded machine; a run takes about a second


@dataclass(frozen=True)
class Ended:
    """What became of one run."""

    code: int
    out: str
    err: str
    ran: tuple[str, ...]  # stages whose probe was started, in order
    verdict: Mapping[str, Any]  # verdict.json, {} when there is none
    directory: Path

    @property
    def last(self) -> str:
        """The last line of standard output."""
        return self.out.rstrip().rpartition("\n")[2]

    @property
    def outcomes(self) -> dict[str, str]:
        """The outcome of each stage in verdict.json."""
        return {stage["name"]: stage["outcome"] for stage in self.verdict["stages"]}


class Runner:
    """Starts gated runs in DIRECTORY."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "probes.log"
        self.temporary = directory / "tmp"  # also keeps what a killed run leaves behind out of /tmp
        self.temporary.mkdir(exist_ok=True)

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the environment of a run: nothing of the outer pytest, no plugin but those that are named."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "GPU_DISCOVERY_", "FAKE_"))}
        base = {"PYTHONPATH": str(HERE), "FAKE_LOG": str(self.log), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        base["TMPDIR"] = str(self.temporary)
        return {**kept, **base, **changes}

    def command(self, *arguments: str, plugins: tuple[str, ...] = ("pytest_timeout",)) -> list[str]:
        """Return the command of a gated run."""
        named = [part for plugin in ("pytest_gpudiscovery.plugin", "fakegate", *plugins) for part in ("-p", plugin)]
        return [sys.executable, "-m", "pytest", "--gpu-discovery", *named, *arguments]

    def __call__(
        self,
        *arguments: str,
        stages: str = "",
        plugins: tuple[str, ...] = ("pytest_timeout",),
        cwd: Path | None = None,
        command: list[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run the gate with ARGUMENTS over STAGES ("driver=hang"), ENV added to its environment."""
        done = subprocess.run(
            command or self.command(*arguments, plugins=plugins),
            cwd=cwd or self.directory,
            env=self.environment(FAKE_STAGES=stages, **(env or {})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        return self.ended(done.returncode, done.stdout, done.stderr, cwd or self.directory)

    def ended(self, code: int, out: str, err: str, cwd: Path) -> Ended:
        """Collect what a run left behind."""
        ran = tuple(self.log.read_text(encoding="utf-8").split()) if self.log.exists() else ()
        path = cwd / "gpu-discovery-report" / "verdict.json"
        verdict = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return Ended(code, out, err, ran, verdict, cwd)


@pytest.fixture
def gate(tmp_path: Path) -> Runner:
    """A runner in an empty directory."""
    return Runner(tmp_path)


@pytest.fixture(scope="module")
def ahead(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Ended]]:
    """Give results of runs that were all started when the first was asked for, a few at a time.

    The module has RUNS, a mapping of names to functions from Runner to Ended, and each of its tests that uses `ahead`
    is parametrized with `name`; only the names of selected tests are run.
    """
    runs: Mapping[str, Callable[[Runner], Ended]] = request.module.RUNS
    wanted = [
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module and hasattr(item, "callspec")
    ]
    with ThreadPoolExecutor(3) as pool:
        futures: dict[str, Future[Ended]] = {
            name: pool.submit(runs[name], Runner(tmp_path_factory.mktemp("run"))) for name in dict.fromkeys(wanted)
        }
        yield lambda name: futures[name].result()
