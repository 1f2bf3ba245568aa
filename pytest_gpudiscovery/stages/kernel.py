"""04 kernel: the GPU is on the bus, the module answers and matches the libraries, the nodes open, the log is clean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.diagnosis.xid import KernelLog
from pytest_gpudiscovery.model import Check, Kind, StageRecord
from pytest_gpudiscovery.probes.kernel import expected, loaded
from pytest_gpudiscovery.stages import kernel_driver, kernel_log, kernel_nodes
from pytest_gpudiscovery.stages.looking import in_order, loader_env, look
from pytest_gpudiscovery.stages.spec import (
    Judgement,
    RunContext,
    StageInput,
    StageSpec,
    deadline_for,
    not_applicable,
    unknown,
)
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

SCAN_S = 2.0  # for the scan over other processes; a healthy host needs 0.02
ROWS = (
    "P31",
    "P32",
    "P33",
    "P34",
    "P35",
    "P36",
    "P37",
    "P38",
    "P39",
    "P62",
    "P84",
    "P85",
    "P86",
    "P87",
    "P115",
    "P116",
)


def plan(
    context: RunContext, _: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Read the host's files, then open the nodes as the service's identity, then scan the other processes."""
    deadline = deadline_for(context, SPEC.name, SPEC.deadline_s)
    somebody_else = context.setup.identity is not None
    if "look" not in results:
        request = {"env": None if somebody_else else loader_env(context)}
        return "look", look(context, "kernel", request, deadline, as_caller=True)
    seen = results["look"].answer
    if not isinstance(seen, dict) or not loaded(seen):
        return None  # no driver: there is nothing to open and nobody who could hold it
    if somebody_else and "nodes" not in results:
        return "nodes", look(context, "nodes", {"env": loader_env(context), **expected(seen)}, deadline)
    if "processes" not in results:
        return "processes", look(context, "processes", {}, min(SCAN_S * context.scale, deadline), as_caller=True)
    return None


def judge(given: StageInput) -> Judgement:
    """Judge what was seen; a part that was not reached leaves its rows out, the hang or crash stands for them."""
    seen = given.observed("look")
    opened = {**seen, **given.observed("nodes")}
    if not seen:
        return Judgement((), "nothing was seen")
    # A look that hung has said less: what it did not reach must not be taken for absent.
    complete = all(key in seen for key in ("pci", "modules", "devices", "platform", "version"))
    present = loaded(seen)
    nodes = opened.get("nodes") or []
    log = kernel_log.read(seen)
    checks = kernel_driver.judge_devices(seen, log) if complete else []
    healing = kernel_nodes.healing({**opened, "identity": _who(opened, given.context.service)}, seen)
    if present and complete:
        checks += kernel_driver.judge_uvm(seen, opened, healing)
        if "libraries" in opened:
            checks += kernel_driver.judge_libraries(seen, opened["libraries"], given.context.env)
        if "nodes" in opened:
            finished = given.results.get("nodes", given.results["look"]).ending is Ending.ANSWERED
            checks += kernel_nodes.judge(seen, opened, healing, log, given.context.env, finished=finished)
            checks = _in_its_own_cgroup(checks, given.context.service)
        if "log" in seen:
            checks += kernel_log.judge(seen, log, nodes, given.results.get("processes"))
    checks += _without(checks, present or not complete)
    return Judgement(in_order(checks), _summary(seen, nodes), _facts(seen, opened, healing, log, given))


def _who(opened: Mapping[str, Any], service: Mapping[str, Any]) -> dict[str, Any]:
    """Return who opened the nodes, with the capabilities of the process that is probed as: ours may be more."""
    held = (service.get("process") or {}).get("effective")
    return {**(opened.get("identity") or {}), **({"effective": held} if held else {})}


def _in_its_own_cgroup(checks: list[Check], service: Mapping[str, Any]) -> list[Check]:
    """Return CHECKS with P35 open where the nodes were opened from another device cgroup than the service's."""
    if not service or service.get("applied"):
        return checks
    reason = "opened from the gate's own cgroup; that of the service is judged in stage 02 (P111)"
    return [
        unknown("P35", reason, Kind.OBSERVABILITY) if c.prerequisite == "P35" and c.finding is None else c
        for c in checks
    ]


def _without(checks: list[Check], due: bool) -> list[Check]:
    """Return a check for each row that nothing was said about; DUE: it would have been, had the probe gone on."""
    rows = [row for row in ROWS if row not in {check.prerequisite for check in checks}]
    if due:
        return [unknown(row, "not reached: the probe ended before", Kind.RISK) for row in rows]
    kinds = {"P39": Kind.RISK, "P86": Kind.OBSERVABILITY, "P87": Kind.OBSERVABILITY}
    return [not_applicable(row, "no NVIDIA driver is loaded", kinds.get(row, Kind.BLOCKING)) for row in rows]


def _summary(seen: Mapping[str, Any], nodes: list[Mapping[str, Any]]) -> str:
    version = kernel_driver.module_version(seen)
    open_module = " (open module)" if seen.get("version", {}).get("open") else ""
    count = len(kernel_driver.gpus(seen))
    ok = sum(node.get("open") == "ok" for node in nodes)
    return (
        f"{count} GPU{'s' * (count != 1)}, driver {version or 'unknown'}{open_module}, {ok} of {len(nodes)} nodes open"
    )


def _facts(
    seen: Mapping[str, Any],
    opened: Mapping[str, Any],
    healing: str | None,
    log: KernelLog,
    given: StageInput,
) -> dict[str, Any]:
    states = kernel_nodes.states(opened.get("nodes") or [], seen, opened.get("identity"))
    withheld = kernel_nodes.withheld(states, seen)
    broken = [path for path, state in states.items() if state in kernel_nodes.HEALABLE and path not in withheld]
    return {
        "gpus": kernel_driver.gpus(seen),
        "module_version": kernel_driver.module_version(seen),
        "open_module": seen.get("version", {}).get("open"),
        "user_space": opened.get("libraries") or [],
        "nodes": states,
        "uvm_loaded": kernel_driver.uvm_loaded(seen, opened),
        "healed_by": healing if broken else None,
        "healed_by_root": bool(broken) and healing == "root",
        "xids": [
            {"code": xid.code, "pci": xid.pci, "age_s": log.age(xid.at), "fatal": xid.fatal, "meaning": xid.meaning}
            for xid in log.current()
        ],
        "mig": bool(seen.get("mig")),
        "platform": seen.get("platform") or {},
        "holders": given.observed("processes").get("holders") or [],
    }


SPEC = StageSpec(
    number=4,
    name="kernel",
    title="the kernel's side of the driver",
    after=(),
    deadline_s=10.0,
    rows=ROWS,
    plan=plan,
    judge=judge,
    # False although nodes are opened: every stage that calls the driver comes after this one, so a hung open() stops
    # them anyway, while a hung scan over /proc says nothing about the driver and must not.
    touches_driver=False,
    hang_causes={"open /dev/nvidia": "kernel.node.open_hang", "read /proc/driver/nvidia": "kernel.proc.read_hang"},
    optional=frozenset({"processes"}),
)
