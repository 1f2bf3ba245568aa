"""Stages in the order that a person reads; see spec.py for what a stage is."""

from __future__ import annotations

import functools
import importlib

from pytest_gpudiscovery.stages.spec import Judgement, Plan, StageInput, StageSpec

# Every stage of the contract, for checking options without importing one.
NAMES = (
    "package",
    "service",
    "loopback",
    "kernel",
    "nvml",
    "driver",
    "enumeration",
    "runtime",
    "closure",
    "load",
    "backend",
    "bootstrap",
    "serve",
    "upgrade",
)


def _nothing_to_run(*_: object) -> None:
    return None


def _no_judgement(_: StageInput) -> Judgement:
    return Judgement((), "")


def _later(number: int, name: str, title: str, after: tuple[str, ...]) -> StageSpec:
    """A stage that the contract names and this version lacks: it has no answer, so it can never make a green."""
    plan: Plan = _nothing_to_run
    return StageSpec(number, name, title, after, 0.0, (), plan, _no_judgement, built=False)


LATER: tuple[StageSpec, ...] = ()
BUILT = tuple(name for name in NAMES if name not in {stage.name for stage in LATER})


@functools.cache
def table() -> dict[str, StageSpec]:
    """Return every stage by name, ordered by number."""
    built = [importlib.import_module(f"pytest_gpudiscovery.stages.{name}").SPEC for name in BUILT]
    return {stage.name: stage for stage in sorted((*built, *LATER), key=lambda stage: stage.number)}
