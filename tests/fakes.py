"""Small stage tables and child results for tests that need no process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Outcome, StageRecord, Step
from pytest_gpudiscovery.stages.spec import Judgement, RunContext, StageInput, StageSpec, found, passed
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe, Setup


def result(ending: Ending = Ending.ANSWERED, **changes: Any) -> ChildResult:
    """Return what became of a child that took 0.1 s; CHANGES replace fields."""
    base = ChildResult(
        ending=ending,
        exit_code=0 if ending in (Ending.ANSWERED, Ending.NO_ANSWER) else None,
        signal=None,
        started=1000.0,
        duration_s=0.1,
        steps=(),
        observed={},
        answer={} if ending is Ending.ANSWERED else None,
        stdout="",
        stderr="",
        evidence={},
    )
    return dataclasses.replace(base, **changes)


def context(**changes: Any) -> RunContext:
    """Return a context of the live host; CHANGES replace fields."""
    base = RunContext(env={"PATH": "/usr/bin:/bin"}, cwd="/", setup=Setup(), view={"kind": "live"}, profile={})
    return dataclasses.replace(base, **changes)


def stage(number: int, name: str, after: tuple[str, ...] = (), **changes: Any) -> StageSpec:
    """Return a stage with one probe called NAME; it fails with cause engine.probe.crash when the answer says so."""

    def plan(
        _: RunContext, __: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
    ) -> tuple[str, Probe] | None:
        return None if results else (name, Probe(name, {}, {}, 5.0))

    def judge(given: StageInput) -> Judgement:
        if given.observed(name).get("bad"):
            return Judgement((found("engine.probe.crash", {"step": "x", "ending": "y", "stage": name}),), "bad")
        return Judgement((passed("P01"),), f"{name} is fine", {"seen": name})

    base = StageSpec(number, name, name.title(), after, 5.0, ("P01",), plan, judge)
    return dataclasses.replace(base, **changes)


def hang(step: str = "cuInit(0)", **changes: Any) -> ChildResult:
    """Return a child that was inside STEP at its deadline."""
    return result(Ending.TIMED_OUT, steps=(Step(step, 0.02, None),), duration_s=5.0, **changes)


def record(name: str, outcome: Outcome, **changes: Any) -> StageRecord:
    """Return a record of a required stage."""
    base = StageRecord(name, "host", True, outcome, f"{name} {outcome.value}", 1000.0, 0.1, 5.0)
    return dataclasses.replace(base, **changes)
