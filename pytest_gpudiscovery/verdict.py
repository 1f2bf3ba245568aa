"""From the stage records to the verdict and the exit code. Pure: no file, no process, no pytest.

Ready means that every required stage has an answer and none of them a complaint. Everything that is not an answer
(not selected, interrupted, a defect of ours, a blocking check that nobody was allowed to make) is incomplete.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from pytest_gpudiscovery import __version__
from pytest_gpudiscovery.diagnosis.resolver import resolve
from pytest_gpudiscovery.engine import Engine
from pytest_gpudiscovery.model import SCHEMA, CheckOutcome, Kind, Outcome, StageRecord, State, Verdict

EXIT_INCOMPLETE = 20
PYTEST_OK, PYTEST_FAILED, PYTEST_NOTHING_COLLECTED = 0, 1, 5


def conclude(engine: Engine, *, started: float, selection: Mapping[str, Any], notes: tuple[str, ...] = ()) -> Verdict:
    """Return the verdict over what has run so far; STARTED is the run's begin in Unix time."""
    records = engine.records()
    stages = tuple(records.get(name) or _not_asked_for(engine, name, name in engine.selected) for name in engine.stages)
    numbers = {name: spec.number for name, spec in engine.stages.items()}
    context = engine.context
    facts = {name: record.facts if isinstance(record.facts, dict) else {} for name, record in records.items()}
    return Verdict(
        schema=SCHEMA,
        tool={"name": "pytest-gpudiscovery", "version": __version__},
        started=datetime.fromtimestamp(started, tz=timezone.utc).isoformat(timespec="milliseconds"),
        duration_s=round(time.time() - started, 3),
        simulated=dict(context.simulated) if context.simulated else None,
        selection={**selection, "until": engine.target, "required": list(engine.required)},
        host=dict(context.host),
        versions=_versions(facts),
        context=dict(context.adopted),
        profile=dict(context.profile),
        verdict=_state(stages, engine.target, bool(context.not_adopted)),
        blockers=resolve(records.values(), numbers),
        gpus=_gpus(facts),
        closures=tuple(facts.get("closure", {}).get("closures") or ()),
        fatbins=tuple(facts.get("closure", {}).get("fatbins") or ()),
        comparison=facts.get("upgrade", {}).get("comparison"),
        stages=stages,
        notes=(*context.notes, *notes),
    )


def exit_code(verdict: Verdict, *, pytest_status: int, strict: bool) -> int:
    """Return the process's exit code: pytest's own 2, 3, 4 and 6 stand, 0, 1 and 5 are replaced by the verdict's."""
    if pytest_status not in (PYTEST_OK, PYTEST_FAILED, PYTEST_NOTHING_COLLECTED):
        return pytest_status
    if verdict.verdict is State.BLOCKED:
        return PYTEST_FAILED
    if verdict.verdict is State.INCOMPLETE:
        return PYTEST_FAILED if pytest_status == PYTEST_FAILED else EXIT_INCOMPLETE
    if verdict.verdict is State.DEGRADED and strict:
        return PYTEST_FAILED
    return PYTEST_FAILED if pytest_status == PYTEST_FAILED else PYTEST_OK


def _state(stages: tuple[StageRecord, ...], target: str, somebody_else: bool) -> State:
    required = [record for record in stages if record.required]
    by_name = {record.name: record for record in stages}
    for record in required:
        root = by_name.get(record.blocked_by or "")
        if record.outcome.blocks or (record.outcome is Outcome.NOT_REACHED and root and root.outcome.blocks):
            return State.BLOCKED
    if not required or any(not record.outcome.lets_others_run for record in required):
        return State.INCOMPLETE
    if any(_unanswered(record) for record in required) or somebody_else:
        return State.INCOMPLETE
    if by_name[target].outcome is Outcome.NOT_APPLICABLE:
        return State.INCOMPLETE  # what was asked for has no answer here
    clean = (Outcome.PASSED, Outcome.NOT_APPLICABLE, Outcome.NOT_SELECTED)
    if any(record.outcome not in clean for record in stages):
        return State.DEGRADED
    return State.READY


def _unanswered(record: StageRecord) -> bool:
    return any(check.outcome is CheckOutcome.UNKNOWN and check.kind is Kind.BLOCKING for check in record.checks)


def _not_asked_for(engine: Engine, name: str, selected: bool) -> StageRecord:
    spec = engine.stages[name]
    return StageRecord(
        name=name,
        subject="host",
        required=name in engine.required,
        outcome=Outcome.NOT_SELECTED,
        summary="nothing asked for it" if selected else f"after the target {engine.target}",
        started=0.0,
        duration_s=0.0,
        deadline_s=spec.deadline_s,
        ollama_budget_s=spec.ollama_budget_s,
    )


def _gpus(facts: Mapping[str, Mapping[str, Any]]) -> tuple[Any, ...]:
    """The GPUs of the enumeration stage; later stages add what each library, and Ollama itself, told of them."""
    sources = {"runtime": "runtime", "ggml": "backend", "ollama": "bootstrap"}
    further = {source: facts.get(stage, {}).get("views") for source, stage in sources.items()}
    found = []
    for gpu in facts.get("enumeration", {}).get("gpus") or ():
        views = dict(gpu.get("views") or {})
        for source, seen in further.items():
            if gpu.get("pci") in (seen or {}):
                views[source] = (seen or {})[gpu["pci"]]
        found.append({**gpu, "views": views})
    return tuple(found)


def _versions(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    package = facts.get("package", {})
    return {
        "driver": facts.get("kernel", {}).get("module_version") or facts.get("nvml", {}).get("driver_version"),
        "cuda_driver": facts.get("driver", {}).get("driver_version_cuda") or facts.get("nvml", {}).get("cuda_driver"),
        "ollama": package.get("version"),
        "ollama_era": package.get("era"),
    }
