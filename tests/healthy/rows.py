"""The rows of variants.tsv, and one run of the gate for a row. The matrix of faults uses them as its healthy part."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_gpudiscovery import simulate
from pytest_gpudiscovery.simulate import build
from pytest_gpudiscovery.simulate.machines import HOSTS
from pytest_gpudiscovery.simulate.registry import FAULTS
from tests.healthy import contexts

TABLE = Path(__file__).with_name("variants.tsv")
LIMIT_S = 120.0  # of a loaded machine; an idle one needs 1 to 3 s
NOT_PASSED = ("failed", "warned")


@dataclass(frozen=True)
class Row:
    """One healthy variant of a host."""

    name: str
    how: str  # simulated, or real: what the context really makes of the gate's process
    tier: str  # ci: always run; full: on demand
    host: str  # for --gpu-simulate
    target: str  # for --gpu-until
    context: str  # words of contexts.py
    verdict: str  # ready or degraded
    warnings: frozenset[str]  # causes that may be warned of; open:Pnn is a check that is left open

    @property
    def runs_here(self) -> bool:
        """Whether this user can make the row's context and files."""
        return os.geteuid() == 0 or not contexts.needs_root(self.context)


@dataclass(frozen=True)
class Seen:
    """What one run of the gate gave."""

    exit_code: int
    verdict: str
    blockers: tuple[str, ...]
    warnings: frozenset[str]
    seconds: float
    output: str


def rows() -> Iterator[Row]:
    """Yield the rows of the table in its order."""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, how, tier, host, target, context, verdict, warnings = (field.strip() for field in line.split("\t"))
            allowed = frozenset(() if warnings == "-" else warnings.split())
            yield Row(name, how, tier, host, target, "" if context == "-" else context, verdict, allowed)


def gate(row: Row) -> Seen:
    """Run the gate of ROW as a process, and return what it said; raises subprocess.TimeoutExpired."""
    folder = Path(tempfile.mkdtemp(prefix="gpu-healthy-"))
    try:
        folder.chmod(0o755)
        context = contexts.make(row.context, folder)
        host = row.host.replace("{folder}", str(folder))
        _prepare(folder, host, context.uid)
        report = folder / "tmp" / "report"
        asked = ["gate", "--gpu-simulate", host, "--gpu-until", row.target, "--gpu-report", str(report)]
        command = [*context.prefix, *context.python, *asked]
        begun = time.monotonic()
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=context.env,
                cwd=context.cwd,
                start_new_session=True,
            )
            try:
                code = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        seconds = time.monotonic() - begun
        said = (folder / "output").read_text(encoding="utf-8", errors="replace")
        try:
            verdict = json.loads((report / "verdict.json").read_text(encoding="utf-8"))
        except OSError:
            return Seen(code, "no verdict", (), frozenset(), seconds, said)
        causes = tuple(blocker["cause"] for blocker in verdict["blockers"])
        return Seen(code, verdict["verdict"], causes, _complaints(verdict), seconds, said)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(folder: Path, host: str, uid: int) -> None:
    """Make the run's TMPDIR; the simulated libraries, which take seconds to build, are linked from the shared cache."""
    temporary = folder / "tmp"
    own = temporary / f"pytest-gpudiscovery-simulate-{uid}"
    own.mkdir(parents=True, mode=0o755)
    spec = simulate.parse(host)
    world = HOSTS[spec.host].make()
    for name, value in spec.faults:
        FAULTS[name].apply(world, value)
    build.built([(file.source, file.hidden) for file in world.files.values() if file.kind == "built"])
    for path in build.private_directory().glob("*.so"):
        (own / path.name).hardlink_to(path)
    if uid != os.geteuid():
        os.chown(temporary, uid, uid)
        os.chown(own, uid, uid)


def _complaints(verdict: dict[str, Any]) -> frozenset[str]:
    """Return the causes that were warned of, and open:ROW for the checks that make a stage warn without a finding."""
    found = set()
    for stage in verdict["stages"]:
        for check in stage["checks"]:
            if check["outcome"] in NOT_PASSED:
                found.add(
                    check["finding"]["cause"] if check["finding"] else f"{check['outcome']}:{check['prerequisite']}"
                )
            elif check["outcome"] == "unknown" and check["kind"] != "observability":
                found.add(f"open:{check['prerequisite']}")
    return frozenset(found)
