"""What the stages before 07 see on a healthy host, with one thing changed, and the judgement over it."""

from __future__ import annotations

import copy
from typing import Any

from pytest_gpudiscovery import profiles
from pytest_gpudiscovery.model import Outcome
from pytest_gpudiscovery.outcome import conclude
from pytest_gpudiscovery.stages import enumeration
from pytest_gpudiscovery.stages.spec import Judgement, StageInput
from pytest_gpudiscovery.supervise.types import ChildResult
from tests.fakes import context, record, result

NAME = "NVIDIA H100 80GB HBM3"
TOTAL, NVML_TOTAL = 85017624576, 85520809984
MIG_UUID = "MIG-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"


def uuid(index: int) -> str:
    """Return the UUID of GPU number INDEX."""
    return f"GPU-{index:08x}-2222-3333-4444-555555555555"


def slot(index: int) -> str:
    """Return the PCI address of GPU number INDEX as sysfs writes it."""
    return f"0000:00:{6 + index:02x}.0"


def views(count: int = 1) -> dict[str, Any]:
    """Return the facts of the stages before, and what the witnesses say, for a healthy host with COUNT GPUs."""
    numbers = range(count)
    return {
        "kernel": {
            "gpus": [{"pci": slot(i), "driver": "nvidia", "minor": i, "uuid": uuid(i), "model": NAME} for i in numbers],
            "nodes": {f"/dev/nvidia{i}": "ok" for i in numbers},
        },
        "nvml": {
            "init": {"rc": 0},
            "gpus": [
                {
                    "index": i,
                    "name": NAME,
                    "uuid": uuid(i),
                    "pci": slot(i),
                    "minor": i,
                    "cc": [9, 0],
                    "memory": {"total": NVML_TOTAL},
                    "mig": False,
                    "instances": [],
                    "ecc": True,
                }
                for i in numbers
            ],
        },
        "driver": {
            "gpus": [
                {
                    "ordinal": i,
                    "name": NAME,
                    "uuid": uuid(i),
                    "pci": slot(i),
                    "total_memory": TOTAL,
                    "cc": [9, 0],
                    "sm_count": 132,
                    "calls": {},
                }
                for i in numbers
            ]
        },
        "pynvml": {
            "version": "13.0",
            "gpus": [
                {
                    "uuid": uuid(i),
                    "pci": f"0000{slot(i)}",
                    "name": NAME,
                    "memory": NVML_TOTAL,
                    "cc": [9, 0],
                    "lacks": [],
                }
                for i in numbers
            ],
        },
        "cuda_python": {
            "module": "cuda.bindings.driver",
            "version": "13.4.4",
            "gpus": [
                {"uuid": uuid(i), "pci": slot(i), "name": NAME, "memory": TOTAL, "cc": [9, 0], "lacks": []}
                for i in numbers
            ],
        },
    }


def judged(
    seen: dict[str, Any], profile: str = "any", env: dict[str, str] | None = None, witness: ChildResult | None = None
) -> Judgement:
    """Return the judgement over SEEN; WITNESS replaces the child that answered."""
    said = {key: seen[key] for key in ("pynvml", "cuda_python") if key in seen}
    prior = {name: record(name, Outcome.PASSED, facts=seen.get(name)) for name in ("kernel", "nvml", "driver")}
    given_ = StageInput(
        context(profile=profiles.load(profile), env=env or {}), {"witness": witness or result(answer=said)}, prior, 10.0
    )
    return enumeration.judge(given_)


def causes(judgement: Judgement) -> dict[str, str]:
    """Return cause -> outcome of what was found."""
    return {check.finding.cause: check.outcome.value for check in judgement.checks if check.finding}


def outcome(judgement: Judgement) -> Outcome:
    """Return what the engine makes of JUDGEMENT."""
    return conclude(enumeration.SPEC, judgement, {}, started=0.0, deadline_s=10.0).outcome


def change(seen: dict[str, Any], where: str, index: int, **fields: Any) -> dict[str, Any]:
    """Return SEEN with FIELDS of GPU number INDEX of view WHERE replaced."""
    copied = copy.deepcopy(seen)
    copied[where]["gpus"][index].update(fields)
    return copied


def mig_views() -> dict[str, Any]:
    """Return one GPU in MIG mode with two instances; CUDA shows the first."""
    parts = [{"uuid": MIG_UUID, "memory": {"total": 40 << 30}}, {"uuid": "MIG-" + uuid(5)[4:], "memory": {"total": 1}}]
    seen = change(views(), "nvml", 0, mig=True, instances=parts)
    fields = {"name": f"{NAME} MIG 3g.40gb", "uuid": "GPU-" + MIG_UUID[4:]}
    seen = change(seen, "driver", 0, **fields, total_memory=40 << 30, sm_count=60)
    return change(seen, "cuda_python", 0, **fields, memory=40 << 30)
