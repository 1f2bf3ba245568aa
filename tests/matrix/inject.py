"""One injection: the gate as a process of its own on a simulated host, and everything about it that is compared."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.simulate import build
from tests.matrix.rows import DATA, NOTHING, SHORT, Injection
from tests.supervise import rigs

LIMIT_S = 300.0  # for one gate: far beyond the sum of all deadlines of a run that is meant
AFTER_S = 4.0  # a stage ends by its deadline plus this
START_S = 20.0  # for the interpreter, the simulated host (compiled once) and the reports, on a loaded machine
GONE_S = 2.0  # for a killed process to be gone
MARK = "MATRIX_RUN"  # an environment variable by which what a run left behind is known
ROOT = Path(__file__).resolve().parents[2]
TERMINATED = 143
RAN = ("passed", "warned", "failed", "timed_out", "crashed", "unkillable", "probe_error", "interrupted")
FOUND = ("failed", "warned")


@dataclass
class Seen:
    """What one run of the gate did."""

    verdict: str = ""  # "": there is no verdict.json
    exit: int | None = None  # None: it did not end within LIMIT_S
    primary: dict[str, str] = field(default_factory=dict)  # stage, outcome, cause, summary, detail, row
    findings: list[dict[str, str]] = field(default_factory=list)  # failed or warned: stage, outcome, cause, row, text
    left_open: list[dict[str, str]] = field(default_factory=list)  # could not be looked at, and why: in the same form
    reached: dict[str, str] = field(default_factory=dict)  # every cause that a check carries -> its row
    seconds: float = 0.0
    bound_s: float = 0.0
    late: list[str] = field(default_factory=list)  # what ended after its bound
    left: list[str] = field(default_factory=list)  # processes that lived on
    traceback: str = ""
    tail: str = ""

    @property
    def in_time(self) -> bool:
        """Whether the verdict came within the sum of the stages' bounds, and each stage within its own."""
        return self.exit is not None and not self.late


@contextlib.contextmanager
def rig(name: str, directory: Path) -> Iterator[str]:
    """Yield a path on a file system that blocks: frozen (create), lookup or write (FUSE). Raises rigs.Unavailable."""
    with rigs.frozen(directory) if name == "frozen" else rigs.fuse(directory, name) as place:
        yield str(place / "x")


def run(injection: Injection, keep: Path | None = None) -> Seen:
    """Run INJECTION and return what was seen; KEEP is where output and verdict.json stay. Raises rigs.Unavailable.

    A gate that was told to end from outside (SIGTERM, exit 143) says nothing about the fault: it is run once more.
    """
    seen = _once(injection, keep)
    return _once(injection, keep) if seen.exit == TERMINATED else seen


def _once(injection: Injection, keep: Path | None) -> Seen:
    with tempfile.TemporaryDirectory(prefix="matrix-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        blocking = next((text for kind, text in injection.given if kind == "rig"), None)
        path = stack.enter_context(rig(blocking, directory)) if blocking else ""
        report = directory / "report"
        argv, env = command(injection, report, path)
        seen = _gate(argv, env, directory / "output", bool(blocking))
        _read(seen, report / "verdict.json")
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for file in (directory / "output", report / "verdict.json"):
                if file.exists():
                    shutil.copy(file, keep / file.name)
    return seen


def command(injection: Injection, report: Path, path: str) -> tuple[list[str], dict[str, str]]:
    """Return the gate's command for INJECTION, and its environment; PATH takes the place of {rig}."""
    nobody = injection.as_user in ("nobody", "dropped") and os.geteuid() == 0
    module = [str(Path(__file__).with_name("as_nobody.py"))] if nobody else ["-m", "pytest_gpudiscovery"]
    simulated = f"{injection.host}:{injection.names}" if injection.names else injection.host
    simulated = simulated.replace("{rigdir}", os.path.dirname(path)).replace("{rig}", path)
    argv = [sys.executable, *module, "gate", f"--gpu-simulate={simulated}", f"--gpu-report={report}"]
    if injection.target != NOTHING:
        argv.append(f"--gpu-until={injection.target}")
    if injection.hangs:
        argv += [f"--gpu-stage-timeout={stage}={seconds}" for stage, seconds in SHORT.items()]
    env = {**os.environ, MARK: uuid.uuid4().hex, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": compiled()}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    for kind, text in injection.given:
        if kind == "env":
            key, _, value = text.partition("=")
            env[key] = value
        elif kind == "wrap":
            argv = [*shlex.split(text), *argv]
        elif kind == "option":
            argv += shlex.split(text.replace("{data}", str(DATA)))
    return argv, env


@functools.cache
def compiled() -> str:
    """Return a directory of this user's alone for compiled modules: a fifth of a short run is compiling the gate."""
    return str(build.private_directory() / "pycache")


def _gate(argv: list[str], env: dict[str, str], output: Path, blocked: bool) -> Seen:
    """Run ARGV in a process group of its own, its output in a file, for LIMIT_S at most."""
    seen = Seen()
    began = time.monotonic()
    with output.open("wb") as sink:
        gate = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, cwd="/", start_new_session=True
        )
    try:
        seen.exit = gate.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        seen.late.append(f"the gate did not end within {LIMIT_S:g} s")
    seen.seconds = round(time.monotonic() - began, 3)
    if not blocked:  # what sleeps in state D until the rig is taken down cannot be ended, and is in the verdict
        seen.left = _left(gate.pid, env[MARK])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(gate.pid, signal.SIGKILL)
    gate.wait(GONE_S)
    text = output.read_text(encoding="utf-8", errors="replace")
    seen.tail = text[-1500:]
    found = re.search(r"^Traceback \(most recent call last\)|INTERNALERROR", text, re.MULTILINE)
    seen.traceback = text[found.start() : found.start() + 1500] if found else ""
    return seen


def _left(group: int, mark: str) -> list[str]:
    """Return which processes of GROUP, or with MARK in their environment, live on after the gate ended."""
    wanted = f"{MARK}={mark}".encode()

    def alive() -> list[str]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            stat = Path(f"/proc/{name}/stat")
            try:
                words = stat.read_text().rpartition(")")[2].split()
                state, pgrp = words[0], int(words[2])
                if state == "Z" or (state == "D" and pgrp != group):
                    continue  # reading the environment of a task in state D may block for ever
                if pgrp == group or wanted in (stat.parent / "environ").read_bytes():
                    found.append(f"pid {stat.parent.name}, state {state}: {stat.parent.joinpath('comm').read_text()}")
            except (OSError, IndexError, ValueError):
                continue
        return found

    rigs.wait_for(lambda: not alive(), GONE_S)
    return alive()


def _read(seen: Seen, path: Path) -> None:
    """Fill SEEN with what verdict.json at PATH says."""
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    seen.verdict = verdict["verdict"]
    for stage in verdict["stages"]:
        for check in stage["checks"]:
            if check["finding"]:
                seen.reached.setdefault(check["finding"]["cause"], check["prerequisite"])
            if check["outcome"] == "unknown":
                reason = {"cause": "", "row": check["prerequisite"], "text": check["reason"] or ""}
                seen.left_open.append({"stage": stage["name"], "outcome": "unknown", **reason})
            if check["finding"] and check["outcome"] in FOUND:
                seen.findings.append(_finding(stage["name"], check))
        if stage["outcome"] in RAN:
            bound = stage["deadline_s"] + AFTER_S
            seen.bound_s += bound
            if stage["duration_s"] > bound:
                seen.late.append(f"{stage['name']} took {stage['duration_s']} s of {bound:g} s")
    seen.bound_s = round(seen.bound_s + START_S, 1)
    if seen.seconds > seen.bound_s:
        seen.late.append(f"the gate took {seen.seconds} s of {seen.bound_s:g} s")
    if verdict["blockers"]:
        seen.primary = _primary(verdict["blockers"][0], seen.findings)


def _finding(stage: str, check: dict[str, Any]) -> dict[str, str]:
    finding = check["finding"]
    more = [
        json.dumps(what, default=str) for what in (finding["evidence"], check["observed"], check["expected"]) if what
    ]
    text = "\n".join((finding["summary"], finding["detail"], *more))
    return {
        "stage": stage,
        "outcome": check["outcome"],
        "cause": finding["cause"],
        "row": check["prerequisite"],
        "text": text,
    }


def _primary(blocker: dict[str, Any], findings: list[dict[str, str]]) -> dict[str, str]:
    own = [one for one in findings if one["cause"] == blocker["cause"]]
    own.sort(key=lambda one: one["stage"] != blocker["stage"])
    found = own[0] if own else {"row": "", "text": blocker["summary"]}
    return {
        "stage": blocker["stage"],
        "outcome": blocker["outcome"],
        "cause": blocker["cause"],
        "row": found["row"],
        "text": found["text"],
    }
