"""05 nvml: NVML loads and answers, and nothing it knows of stops CUDA: fabric, compute mode, MIG, ECC.

NVML is evidence, not a gate: Ollama works without it (it falls back to cudaMemGetInfo). Only states that stop CUDA
itself are of a blocking kind here, and a call that hangs or ends the process, because Ollama's child makes it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.diagnosis import errors
from pytest_gpudiscovery.model import Check, CheckOutcome, Kind, StageRecord
from pytest_gpudiscovery.stages import nvml_fabric, nvml_gpu
from pytest_gpudiscovery.stages.identity import code_of, integer, mapping, objects, pci, sequence, string
from pytest_gpudiscovery.stages.spec import (
    Judgement,
    RunContext,
    StageInput,
    StageSpec,
    deadline_for,
    found,
    not_applicable,
    passed,
    unknown,
)
from pytest_gpudiscovery.supervise.types import ChildResult, Probe

SLOW_INIT_S = 3.0  # Ollama's refresh before a model load gives up after 3 s; persistence off is paid in it each time
GPU_LIMIT = 64  # as in the probe: no host has more
STATE_ROWS = ("P40", "P41", "P43", "P44", "P61")  # what only an initialised NVML can tell


def plan(
    context: RunContext,
    prior: Mapping[str, StageRecord],  # noqa: ARG001 - every plan has this form
    results: Mapping[str, ChildResult],
) -> tuple[str, Probe] | None:
    """Run one probe, in the context that Ollama's own child would have."""
    if results:
        return None
    deadline = deadline_for(context, SPEC.name, SPEC.deadline_s)
    return "nvml", Probe("nvml", {"view": dict(context.view)}, context.env, deadline, context.cwd, context.setup)


def judge(given: StageInput) -> Judgement:
    """Judge the library, nvmlInit_v2, the count, then each GPU and what holds for the whole system."""
    seen = given.observed("nvml")
    module = string(given.facts("kernel").get("module_version"))
    checks, usable = _init(seen, module)
    if not usable:
        checks += [unknown(row, "NVML is not initialised", Kind.OBSERVABILITY) for row in STATE_ROWS]
        return Judgement(tuple(checks), "NVML does not answer", _facts(seen))
    gpus = objects(seen.get("gpus"))
    seconds = _init_seconds(given)
    checks += [_persistence(gpus, seconds), _conf_compute(mapping(seen.get("system")))]
    checks += nvml_fabric.judge_fabric(gpus)
    for gpu in gpus:
        checks += nvml_gpu.judge_gpu(gpu)
    checks = _ease_where_others_are_left(checks, len(gpus))
    return Judgement(tuple(checks), _summary(seen, seconds), _facts(seen))


def _init(seen: Mapping[str, Any], module: str | None) -> tuple[list[Check], bool]:
    """The checks of P51 up to the count, and whether GPUs can be asked at all."""
    error = string(mapping(seen.get("dlopen")).get("error"))
    library = mapping(seen.get("library"))
    facts: dict[str, Any] = {
        "error": error,
        "short_error": str(error).rpartition(": ")[2],
        "path": library.get("path"),
        "library_version": library.get("version"),
        "module_version": module,
    }
    if error:
        cause = "missing" if "libnvidia-ml.so.1: cannot open shared object file" in error else "unloadable"
        return [found(f"nvml.{cause}", facts, expected="libnvidia-ml.so.1 loads", observed=error)], False
    checks = []
    init = mapping(seen.get("nvmlInit_v2"))
    absent = [str(name) for name in sequence(seen.get("missing"))]
    if absent:
        checks.append(found("nvml.function_missing", {**facts, "functions": ", ".join(absent)}, observed=absent))
    code = code_of(init)
    if code is None:
        return checks, False  # missing (said above), or the call that hung or crashed (the engine's to say)
    if code != 0:
        return [*checks, _error(code, "nvmlInit_v2", facts)], False
    count = mapping(seen.get("count"))
    if code_of(count) != 0:
        if "rc" in count or "missing" in count:
            checks.append(_error(code_of(count), "nvmlDeviceGetCount_v2", facts))
        return checks, False
    total = integer(count.get("count")) or 0
    if not 1 <= total <= GPU_LIMIT:
        cause = "nvml.no_gpu" if total == 0 else "nvml.error"
        text = {"code": total, "name": "is no count of GPUs", "call": "nvmlDeviceGetCount_v2", "discovery": ""}
        return [*checks, found(cause, {**facts, **text}, expected=">= 1", observed=total)], False
    return [*checks, passed("P51", Kind.RISK, reason=f"{total} GPU{'s' if total > 1 else ''}", observed=total)], True


def _error(code: int | None, call: str, facts: Mapping[str, Any]) -> Check:
    entry = errors.nvml(code)
    details = {**facts, "code": code, "name": entry.name, "discovery": entry.discovery, "call": call}
    details.update(gpu="a GPU", index="INDEX")  # which one is not said
    return found(entry.cause or "nvml.error", details, expected=0, observed={"call": call, "code": entry.label})


def _persistence(gpus: list[Mapping[str, Any]], seconds: float | None) -> Check:
    """P40: without persistence every first process initialises the GPU anew, inside Ollama's budget."""
    off = [pci(gpu.get("pci")) or str(gpu.get("index")) for gpu in gpus if integer(gpu.get("persistence")) == 0]
    took = f"nvmlInit_v2 took {(seconds or 0) * 1000:.0f} ms"
    facts = {"seconds": seconds or 0.0, "gpus": ", ".join(off), "budget_s": SLOW_INIT_S}
    if seconds is not None and seconds > SLOW_INIT_S:
        return found("nvml.persistence.slow" if off else "nvml.init.slow", facts, observed=seconds)
    if off:
        return passed("P40", Kind.RISK, reason=f"persistence mode is off ({', '.join(off)}), but {took}", observed=off)
    return passed("P40", Kind.RISK, reason=f"persistence mode is on; {took}", observed=seconds)


def _conf_compute(system: Mapping[str, Any]) -> Check:
    state = mapping(system.get("conf_compute"))
    if integer(state.get("cc_feature")) != 1:
        answer = mapping(mapping(system.get("calls")).get("nvmlSystemGetConfComputeState"))
        reason = "this driver cannot be asked about it" if "missing" in answer else "confidential computing is off"
        return not_applicable("P44", reason)
    ready = integer(system.get("conf_compute_ready"))
    if ready is None:
        return unknown("P44", "confidential computing is on, and its ready state cannot be read")
    if ready == 0:
        return found("nvml.conf.not_ready", {}, expected="ready", observed=state)
    return passed("P44", reason="confidential computing is on and ready", observed=state)


def _ease_where_others_are_left(checks: list[Check], total: int) -> list[Check]:
    """Turn the failures of single GPUs into warnings while another GPU is left for Ollama to use."""
    broken = {
        check.subject
        for check in checks
        if check.outcome is CheckOutcome.FAILED and check.subject != "host" and check.prerequisite in ("P41", "P61")
    }
    if len(broken) >= total:
        return checks
    return [nvml_gpu.as_warning(check) if check.subject in broken else check for check in checks]


def _init_seconds(given: StageInput) -> float | None:
    result = given.results.get("nvml")
    steps = result.steps if result is not None else ()
    return next((step.duration_s for step in steps if step.name == "nvmlInit_v2"), None)


def _facts(seen: Mapping[str, Any]) -> dict[str, Any]:
    raw = objects(seen.get("gpus"))
    gpus = [nvml_gpu.facts(gpu) for gpu in raw]
    system = mapping(seen.get("system"))
    return {
        "library": seen.get("library"),
        "libraries": seen.get("libraries"),
        "init": seen.get("nvmlInit_v2"),
        "driver_version": string(system.get("driver_version")),
        "cuda_driver": integer(system.get("cuda_driver")),
        "gpus": gpus,
        "in_use": {gpu["pci"]: gpu["pids"] for gpu in gpus if gpu["pci"] and gpu["pids"]},
        "held": [gpu["pci"] for gpu, one in zip(gpus, raw, strict=True) if gpu["pci"] and nvml_gpu.held_by(one)],
    }


def _summary(seen: Mapping[str, Any], seconds: float | None) -> str:
    gpus = objects(seen.get("gpus"))
    names = ", ".join(dict.fromkeys(str(gpu.get("name")) for gpu in gpus))
    version = string(mapping(seen.get("system")).get("driver_version"))
    return f"nvmlInit {(seconds or 0) * 1000:.0f} ms, driver {version or '?'}, {len(gpus)} x {names}"


SPEC = StageSpec(
    number=5,
    name="nvml",
    title="NVML loads and answers; fabric, modes, MIG, ECC",
    after=("kernel",),
    deadline_s=45.0,
    rows=("P51", "P40", "P41", "P43", "P44", "P61"),
    plan=plan,
    judge=judge,
    touches_driver=True,
    hang_causes={
        "": "nvml.hang",
        "the nvml probe": "nvml.dlopen.hang",
        "dlopen": "nvml.dlopen.hang",
        "nvmlInit": "nvml.init.hang",
    },
    crash_causes={"": "nvml.crash"},
)
