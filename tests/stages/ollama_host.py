"""Stages 01, 12 and 13 on a simulated host with an Ollama: real children, and what is left of them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from pytest_gpudiscovery import context, stages
from pytest_gpudiscovery.engine import Engine
from pytest_gpudiscovery.model import StageRecord
from pytest_gpudiscovery.options import Settings

NAMES = ("package", "bootstrap", "serve")


def run(
    text: str, directory: Path, *, until: str = "bootstrap", env: dict[str, str] | None = None, **changes: Any
) -> dict[str, StageRecord]:
    """Return the records of NAMES up to UNTIL on simulated host TEXT; CHANGES are settings."""
    directory.mkdir(exist_ok=True)
    built = context.build(Settings(until=until, simulate=text, **changes), str(directory))
    built = dataclasses.replace(built, env={**built.env, **(env or {})})
    table = {
        name: dataclasses.replace(
            spec,
            after=tuple(other for other in spec.after if other in NAMES),
            soft_after=tuple(other for other in spec.soft_after if other in NAMES),
        )
        for name, spec in stages.table().items()
        if name in NAMES
    }
    engine = Engine(built, str(directory / "ledger"), table)
    engine.complete()
    return dict(engine.records())


def causes(record: StageRecord) -> set[str]:
    """Return the causes that RECORD names."""
    return {finding.cause for _, finding in record.findings}


def alive(directory: Path) -> list[str]:
    """Return the programs below DIRECTORY that run."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                target = os.readlink(f"/proc/{name}/exe")
            except OSError:
                continue
            if target.startswith(f"{directory}/"):
                found.append(f"{name} {target}")
    return found
