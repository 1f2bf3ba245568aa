"""Loaded with `-p fakegate` into the pytest runs of these tests: the real engine over stages that do as they are told.

The eight stages have the names, numbers and order of the real ones; what each does comes from the variable
FAKE_STAGES ("driver=hang kernel=warn"), and each start of a probe is a line in the file FAKE_LOG. FAKE_CRASH names a
stage: the first pytest-xdist worker that comes to it is killed. FAKE_MORE names more stages, FAKE_TEXT is what a stage
that fails says, FAKE_FULL makes the reports' disk full ("end": only when the last stage has run).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest_gpudiscovery.run
from pytest_gpudiscovery import stages
from pytest_gpudiscovery.engine import Engine
from pytest_gpudiscovery.model import (
    Action,
    Check,
    CheckOutcome,
    Finding,
    Kind,
    Outcome,
    Severity,
    StageRecord,
    Verdict,
)
from pytest_gpudiscovery.reports import verdict_json
from pytest_gpudiscovery.stages.spec import Judgement, RunContext, StageInput, StageSpec, deadline_for, passed, unknown
from pytest_gpudiscovery.supervise import child
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

PROBES = Path(__file__).parent / "probes"
DEADLINE_S, PLENTY_S = 1.0, 20.0  # of a stage that is told to hang; of one that has to answer
HANGING = ("hang", "stuck", "worse", "unkillable")
GRAPH: Mapping[str, tuple[str, ...]] = {
    "package": (),
    "service": ("package",),
    "loopback": ("service",),
    "kernel": (),
    "nvml": ("kernel",),
    "driver": ("kernel", "package", "service"),
    "enumeration": ("driver",),
    "runtime": ("driver", "package"),
}
GPU = {
    "pci": "0000:00:06.0",
    "mig": None,
    "views": {"cuda": {"name": "NVIDIA H100 PCIe", "cc": [9, 0], "total_memory": 85_000_000_000}, "sysfs": {}},
}


def modes() -> dict[str, str]:
    """Return what each stage was told to do."""
    return dict(word.split("=") for word in os.environ.get("FAKE_STAGES", "").split())


def limit(name: str) -> float:
    """Return the deadline of stage NAME in seconds."""
    return DEADLINE_S if modes().get(name) in HANGING else PLENTY_S


def stage(number: int, name: str, after: tuple[str, ...]) -> StageSpec:
    """Return stage NAME with one probe."""

    def plan(
        context: RunContext, prior: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
    ) -> tuple[str, Probe] | None:
        if results:
            return None
        request = {"stage": name, "mode": modes().get(name, "ok"), "log": os.environ["FAKE_LOG"]}
        return name, Probe("t_gate", request, {"PATH": "/usr/bin:/bin"}, deadline_for(context, name, limit(name)))

    def judge(given: StageInput) -> Judgement:
        seen = given.observed(name)
        facts = {"gpus": [GPU]} if name == "enumeration" else {"version": "0.0.1"} if name == "package" else None
        if seen.get("bad"):
            evil = os.environ.get("FAKE_TEXT", "")
            said, long = f"{name} was told to fail{evil}", evil * (10_000_000 // max(1, len(evil)))
            finding = Finding(
                f"{name}.told{evil}", Severity.BLOCKER, said, long, {evil: evil}, f"look{evil}", Action.SAFE, 0.9
            )
            check = Check("P42", Kind.BLOCKING, "host", CheckOutcome.FAILED, "", 0, 1, finding)
            return Judgement((check,), "bad", facts)
        if seen.get("warn"):
            return Judgement((dataclasses.replace(passed("P42"), outcome=CheckOutcome.WARNED),), f"{name} warns", facts)
        if seen.get("absent"):
            return Judgement((), f"no {name} here", facts, applicable=False)
        if seen.get("unknown"):
            return Judgement((unknown("P42", "not allowed to look"),), f"{name} is unknown", facts)
        return Judgement((passed("P42"),), f"{name} is fine", facts)

    native = name in ("nvml", "driver", "enumeration", "runtime")
    return StageSpec(number, name, name.title(), after, limit(name), ("P42",), plan, judge, touches_driver=native)


def supervise(probe: Probe) -> ChildResult:
    """Run PROBE; one that is told to be unkillable hangs, and is then said to have outlived SIGKILL."""
    if probe.request["mode"] == "raise":
        raise RuntimeError("told to raise")
    if probe.request["stage"] == os.environ.get("FAKE_CRASH") and "PYTEST_XDIST_WORKER" in os.environ:
        with contextlib.suppress(FileExistsError):
            Path(os.environ["FAKE_LOG"] + ".crashed").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    unkillable = probe.request["mode"] == "unkillable"
    if unkillable:
        probe = dataclasses.replace(probe, request={**probe.request, "mode": "hang"})
    result = child.run(probe, extra=PROBES)
    return dataclasses.replace(result, ending=Ending.UNKILLABLE) if unkillable else result


TABLE = {name: stage(number, name, after) for number, (name, after) in enumerate(GRAPH.items(), 1)}
# By name, and not through an interface of the product: no user should be able to put other stages in their place.
if "FAKE_FULL" in os.environ:
    _write = verdict_json.write

    def _full(directory: str, verdict: Verdict, *, so_far: bool = False, sync: bool = True) -> None:
        if os.environ["FAKE_FULL"] == "end" and verdict.stages[-1].outcome is Outcome.NOT_SELECTED:
            _write(directory, verdict, so_far=so_far, sync=sync)
        else:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), directory)

    vars(verdict_json)["write"] = _full
MORE = {name: stage(stages.NAMES.index(name) + 1, name, ()) for name in os.environ.get("FAKE_MORE", "").split()}
if __name__ == "fakegate":  # as the plugin; a test module that imports from here keeps the real table
    vars(stages)["table"] = lambda: {**TABLE, **MORE}
vars(pytest_gpudiscovery.run)["Engine"] = functools.partial(Engine, supervise=supervise)
