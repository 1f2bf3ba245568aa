"""Stages in the order that a person reads; see spec.py for what a stage is."""

from __future__ import annotations

import functools
import importlib

from pytest_gpudiscovery.stages.spec import StageSpec

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


@functools.cache
def table() -> dict[str, StageSpec]:
    """Return every stage by name, ordered by number."""
    specs = [importlib.import_module(f"pytest_gpudiscovery.stages.{name}").SPEC for name in NAMES]
    return {spec.name: spec for spec in specs}
