"""A simulated host, and the stages of the driver run on it one after another with real children."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType

from pytest_gpudiscovery import profiles
from pytest_gpudiscovery.model import StageRecord
from pytest_gpudiscovery.outcome import conclude
from pytest_gpudiscovery.stages import driver, enumeration, kernel, nvml, runtime
from pytest_gpudiscovery.stages.spec import StageInput, deadline_for
from tests.fakes import context
from tests.probes.native import host
from tests.stages.hosts import probe_all

ORDER: tuple[ModuleType, ...] = (kernel, nvml, driver, enumeration, runtime)
HANG_S = 1.5  # deadline of every stage where a hang is wanted
ROOMY_S = 20.0


def run(
    text: str, directory: Path, *stages: ModuleType, profile: str = "any", deadline_s: float = ROOMY_S
) -> dict[str, StageRecord]:
    """Run STAGES, in their order, on the simulated host that TEXT names; a stage runs whatever the one before said."""
    made = host(text, directory)
    given = context(
        env={"PATH": "/usr/bin:/bin", **made.env},
        view=made.view,
        profile=profiles.load(profile),
        deadlines={module.SPEC.name: deadline_s for module in ORDER},
    )
    records: dict[str, StageRecord] = {}
    for module in (module for module in ORDER if module in stages):
        spec, started = module.SPEC, time.time()
        results = probe_all(spec, given, records)
        deadline = deadline_for(given, spec.name, spec.deadline_s)
        judgement = spec.judge(StageInput(given, results, records, deadline))
        done = conclude(spec, judgement, results, started=started, deadline_s=deadline)
        records[spec.name] = StageRecord(
            spec.name,
            "host",
            True,
            done.outcome,
            done.summary,
            started,
            0.0,
            deadline,
            checks=done.checks,
            facts=done.facts,
        )
    return records


def causes(record: StageRecord) -> set[str]:
    """Return the causes that RECORD names, notes left out."""
    return {finding.cause for _, finding in record.findings if finding.severity.value != "note"}
