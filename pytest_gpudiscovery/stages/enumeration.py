"""07 enumeration: every expected GPU is seen alike by sysfs, NVML and CUDA, and what is told of it is sane.

The gate's own calls were made by the stages before; here only the second witnesses run. NVML is evidence: without it
sysfs and CUDA are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, CheckOutcome, StageRecord
from pytest_gpudiscovery.stages import visible as visibility
from pytest_gpudiscovery.stages.compare import judge_device
from pytest_gpudiscovery.stages.identity import capability, integer, mapping, objects, string, uuid
from pytest_gpudiscovery.stages.profile_check import judge_profile
from pytest_gpudiscovery.stages.spec import (
    Judgement,
    RunContext,
    StageInput,
    StageSpec,
    deadline_for,
    found,
    not_applicable,
)
from pytest_gpudiscovery.stages.views import CUDA_KEYS, NVML_KEYS, Row, join, only
from pytest_gpudiscovery.stages.witnesses import WITNESSES, judge_witnesses
from pytest_gpudiscovery.supervise.types import ChildResult, Probe

GIB = 1 << 30


def plan(
    context: RunContext, prior: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Ask the second witnesses, in the environment of the probes before."""
    if results:
        return None
    nvml = prior["nvml"].facts if "nvml" in prior else None
    # Without NVML its witness can only repeat that; the import alone would cost 50 ms.
    skip = [] if mapping(mapping(nvml).get("init")).get("rc") == 0 else ["pynvml"]
    deadline = deadline_for(context, SPEC.name, SPEC.deadline_s)
    return "witness", Probe("witness", {"skip": skip}, context.env, deadline, context.cwd, context.setup, site=True)


def judge(given: StageInput) -> Judgement:
    """Compare the views GPU by GPU, then the profile, then the witnesses."""
    kernel, nvml, driver = given.facts("kernel"), given.facts("nvml"), given.facts("driver")
    said = given.observed("witness")
    rows = join(
        {
            "sysfs": objects(kernel.get("gpus")),
            # Where NVML gave no handle there is nothing to compare; stage 05 has said so.
            "nvml": [only(gpu, NVML_KEYS) for gpu in objects(nvml.get("gpus")) if gpu.get("pci") or gpu.get("uuid")],
            "cuda": [only(gpu, CUDA_KEYS) for gpu in objects(driver.get("gpus"))],
            **{key: objects(mapping(said.get(key)).get("gpus")) for key in WITNESSES},
        }
    )
    visible = visibility.parse(given.context.env)
    seen = [row for row in rows if "cuda" in row.views]
    checks: list[Check] = []
    if not seen:
        checks.append(found("enumeration.no_gpu", {}, expected=">= 1", observed=0))
    for row in seen:
        checks += judge_device(row, rows)
    checks += _absent(rows, seen, visible, given.context.env, mapping(kernel.get("nodes")))
    checks += judge_profile(given.context.profile, rows)
    checks += judge_witnesses(given.results.get("witness"), said, rows)
    facts = {
        "gpus": [row.to_json() for row in rows if row.views.keys() - set(WITNESSES)],
        "visible_devices": visible.value,
    }
    return Judgement(tuple(checks), _summary(seen, checks), facts)


def _absent(
    rows: list[Row],
    seen: list[Row],
    visible: visibility.Visible,
    env: Mapping[str, str],
    nodes: Mapping[str, Any],
) -> list[Check]:
    """The GPUs that NVML or sysfs shows and CUDA does not."""
    left = visibility.addresses(visible, [row.views["nvml"] for row in rows if "nvml" in row.views], env)
    found_elsewhere = {uuid(row.views["cuda"].get("uuid")) for row in seen}
    nvml_told = any("nvml" in row.views for row in rows)
    checks = []
    for row in rows:
        if "cuda" in row.views or not row.views.keys() & {"nvml", "sysfs"}:
            continue
        facts = {"subject": row.pci, "name": _name(row), "visible": visible.value, "driver": _driver(row)}
        facts["sees"] = "nvml" if "nvml" in row.views else "sysfs"
        if row.uuid and uuid(row.uuid) in found_elsewhere:
            continue  # CUDA shows it at another address: said there
        if "nvml" in row.views:
            checks.append(_hidden_or_missing(row, left, visible, bool(seen), facts))
        elif _driver(row) not in (None, "nvidia"):
            reason = f"bound to the kernel driver {_driver(row)}, not to nvidia"
            checks.append(not_applicable("P59", reason, subject=row.subject))
        elif not visible.hides_nothing:
            reason = f"{visibility.NAME}={visible.value}"
            checks.append(not_applicable("P59", reason, subject=row.subject))
        elif (state := _node_state(row, nodes)) not in (None, "ok"):
            reason = f"its device node cannot be used here ({state}; 04 kernel): not given to this container or user"
            checks.append(not_applicable("P59", reason, subject=row.subject))
        elif _withheld(row, rows):
            reason = "the module bound it, and its entry in /proc is hidden: not given to this container"
            checks.append(not_applicable("P59", reason, subject=row.subject))
        elif nvml_told or seen:
            checks.append(found("enumeration.only_in_sysfs", facts, subject=row.subject, observed=sorted(row.views)))
        else:
            checks.append(found("enumeration.gpu_missing", facts, subject=row.subject, observed=sorted(row.views)))
    return checks


def _hidden_or_missing(
    row: Row, left: set[str] | None, visible: visibility.Visible, others: bool, facts: Mapping[str, Any]
) -> Check:
    if left is None or row.pci not in left:
        if visible.hides_nothing:
            return found("enumeration.gpu_missing", facts, subject=row.subject, observed=sorted(row.views))
        return not_applicable("P59", f"hidden by {visibility.NAME}={visible.value}", subject=row.subject)
    if row.mig and others:
        reason = "in MIG mode: CUDA shows a process one instance at most, and shows another device"
        return not_applicable("P59", reason, subject=row.subject)
    return found("enumeration.gpu_missing", facts, subject=row.subject, observed=sorted(row.views))


def _withheld(row: Row, rows: list[Row]) -> bool:
    """Whether /proc/driver/nvidia/gpus was cut down to other GPUs than this one, as libnvidia-container does.

    The module makes that entry when it binds a GPU (open-gpu-kernel-modules, kernel-open/nvidia/nv-pci.c,
    nv_pci_probe): one that sysfs shows bound, and that is not listed while others are, was taken out of the list.
    """
    listed = [other for other in rows if integer(mapping(other.views.get("sysfs")).get("minor")) is not None]
    return bool(listed) and row not in listed and _driver(row) == "nvidia"


def _node_state(row: Row, nodes: Mapping[str, Any]) -> str | None:
    """What stage 04 saw of this GPU's node ("ok", "missing", ...), None when the module does not know the GPU."""
    minor = integer(mapping(row.views.get("sysfs")).get("minor"))
    return None if minor is None else string(nodes.get(f"/dev/nvidia{minor}"))


def _driver(row: Row) -> str | None:
    return string(mapping(row.views.get("sysfs")).get("driver"))


def _name(row: Row) -> str:
    names = (string(mapping(row.views.get(s)).get(key)) for s, key in (("nvml", "name"), ("sysfs", "model")))
    return next((name for name in names if name), "an NVIDIA GPU")


def _summary(seen: list[Row], checks: list[Check]) -> str:
    words = []
    for row in seen:
        cuda = row.views["cuda"]
        memory = (integer(cuda.get("total_memory")) or 0) / GIB
        words.append(f"{cuda.get('name')}, CC {capability(cuda.get('cc'))}, {memory:.1f} GiB")
    sources = [source for source in ("sysfs", "NVML", "CUDA") if any(source.lower() in row.views for row in seen)]
    agree = all(check.outcome in (CheckOutcome.PASSED, CheckOutcome.NOT_APPLICABLE) for check in checks)
    kinds = [f"{words.count(text)} x {text}" for text in dict.fromkeys(words)]
    return f"{'; '.join(kinds) or 'no GPU'} ({', '.join(sources)} {'agree' if agree else 'compared'})"


SPEC = StageSpec(
    number=7,
    name="enumeration",
    title="every expected GPU, seen alike by sysfs, NVML and CUDA",
    after=("driver",),
    deadline_s=10.0,
    rows=("P59", "P78"),
    plan=plan,
    judge=judge,
    touches_driver=True,
    soft_after=("nvml",),
    optional=frozenset({"witness"}),
)
