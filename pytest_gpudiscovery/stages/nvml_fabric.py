"""The part of stage 05 that judges the NVSwitch fabric (P43): one finding for all GPUs that share a fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.diagnosis import errors
from pytest_gpudiscovery.model import Check, Kind
from pytest_gpudiscovery.stages.identity import integer, mapping, pci
from pytest_gpudiscovery.stages.spec import found, not_applicable, passed, unknown

STATES = {0: "not supported", 1: "not started", 2: "in progress", 3: "completed"}
NOT_SUPPORTED, COMPLETED = 0, 3
# nvmlGpuFabricInfoV healthMask (nvml.h): lowest bit of a two-bit field, what its value 1 (TRUE) means
HEALTH = (
    (0, "degraded bandwidth"),
    (2, "route recovery in progress"),
    (4, "unhealthy route"),
    (6, "access timeout recovery"),
)


def judge_fabric(gpus: list[Mapping[str, Any]]) -> list[Check]:
    """Return a check for each GPU that is well or in no fabric, and one of the host for each fault that is shared."""
    checks: list[Check] = []
    faults: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for gpu in gpus:
        if "fabric" not in gpu:
            continue  # no handle, or the child ended before it got there
        verdict = _one(gpu, f"gpu:{pci(gpu.get('pci')) or gpu.get('index')}")
        if isinstance(verdict, Check):
            checks.append(verdict)
        else:
            faults.setdefault(verdict, []).append(gpu)
    for (cause, words), members in faults.items():
        numbers = ", ".join(str(gpu.get("index")) for gpu in members)
        facts = {"gpus": f"GPU {numbers}", "words": words}
        checks.append(found(cause, facts, expected="completed", observed=[gpu.get("fabric") for gpu in members]))
    return checks


def _one(gpu: Mapping[str, Any], subject: str) -> Check | tuple[str, str]:
    fabric = mapping(gpu.get("fabric"))
    state, status = integer(fabric.get("state")), integer(fabric.get("status"))
    answer = mapping(mapping(gpu.get("calls")).get("nvmlDeviceGetGpuFabricInfoV"))
    if not fabric and "missing" in answer:
        return unknown(
            "P43", "this driver's NVML has no fabric query (before 535)", Kind.OBSERVABILITY, subject=subject
        )
    if not fabric or state == NOT_SUPPORTED:
        return not_applicable("P43", "this GPU is in no NVSwitch fabric", subject=subject)
    if state != COMPLETED:
        return "nvml.fabric.not_ready", STATES.get(state if state is not None else -1, str(state))
    if status != 0:
        return "nvml.fabric.failed", errors.nvml(status).label
    mask = integer(fabric.get("health_mask")) or 0
    ills = [text for bit, text in HEALTH if mask >> bit & 3 == 1]
    if mask >> 8 & 0xF > 1:  # 0 not supported, 1 none, above: which part of the configuration is wrong
        ills.append("incorrect configuration")
    if ills:
        return "nvml.fabric.degraded", ", ".join(ills)
    return passed("P43", subject=subject, reason="fabric state completed", observed=fabric)
