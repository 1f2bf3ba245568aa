"""Verdicts of hosts that a person may meet, for the reports' tests and for pictures."""

from __future__ import annotations

import dataclasses

from pytest_gpudiscovery import stages
from pytest_gpudiscovery.model import Check, CheckOutcome, Kind, Outcome, StageRecord, State, Step, Verdict
from pytest_gpudiscovery.stages.spec import found, passed, unknown
from tests.reports.hostile import hostile
from tests.reports.parts import (
    CUINIT,
    NAME,
    UNASKED,
    driver_passed,
    early,
    gpu,
    late,
    later,
    not_reached,
    record,
    stuck_child,
    verdict,
)


def healthy() -> Verdict:
    """A host with one H100 that is ready up to `runtime`."""
    return verdict(State.READY, [*early(), driver_passed(), *late(), *later()])


def _hung(cause: str, step: str, outcome: Outcome, blocked_in: str, state: str) -> StageRecord:
    facts = {"stage": "driver", "step": step, "deadline_s": 45.0, "blocked_in": blocked_in, "ending": "timed out"}
    check = found(cause, facts, evidence={"step": step, "blocked_in": blocked_in, "stderr": "retrying ioctl ...\n"})
    return record(
        "driver",
        outcome,
        check.finding.summary if check.finding else "",
        48.9,
        checks=(check, unknown("P47", "not reached: the probe did not come so far"), unknown("P52", "not reached")),
        steps=(Step("dlopen libcuda.so.1", 0.0345, 0.0013, 0), Step(step, 0.3366, None)),
        evidence={"driver": stuck_child(blocked_in, state, ending=outcome.value)},
        facts={"hung_probe": True},
    )


def blocked_in_cuinit() -> Verdict:
    """A host whose driver holds cuInit in state D: SIGKILL does not end it."""
    hung = _hung("driver.cuinit.hang", "cuInit(0)", Outcome.UNKILLABLE, CUINIT, "D")
    records = [*early(), hung, *not_reached(hung, "enumeration", "runtime"), *later()]
    return verdict(State.BLOCKED, records, gpus=(), notes=("py-spy is not installed: no Python stack in the evidence",))


def hung() -> Verdict:
    """A host where a preloaded library waits for ever while libcuda is loaded; SIGKILL ended the probe."""
    where = "futex < gate_wait (libvendor-hook.so); state S, wchan futex_wait_queue"
    stuck = _hung("driver.dlopen.hang", "dlopen libcuda.so.1", Outcome.TIMED_OUT, where, "S")
    stuck = dataclasses.replace(stuck, steps=(Step("dlopen libcuda.so.1", 0.0345, None),))
    warned = early()
    facts = {"code": 31, "pci": "0000:1b:00.0", "age": "2 h", "meaning": "memory page fault"}
    warned[3] = dataclasses.replace(
        warned[3],
        outcome=Outcome.WARNED,
        summary="Xid 31 2 h ago: an application's error, not the GPU's",
        checks=(*warned[3].checks, _as_warning(found("kernel.xid.application", facts))),
    )
    records = [*warned, stuck, *not_reached(stuck, "enumeration", "runtime"), *later()]
    return verdict(State.BLOCKED, records, gpus=())


def _as_warning(check: Check) -> Check:
    return dataclasses.replace(check, outcome=CheckOutcome.WARNED)


def eight_gpus() -> Verdict:
    """A host with eight GPUs of which CUDA shows seven."""
    missing = gpu(6, "sysfs", "nvml")
    facts = {"subject": missing["pci"], "name": NAME, "visible": None, "driver": "nvidia"}
    check = found(
        "enumeration.gpu_missing",
        facts,
        subject=f"gpu:{missing['pci']}",
        expected="shown by CUDA",
        observed=["nvml", "sysfs"],
    )
    rows = [gpu(index) for index in range(6)] + [missing, gpu(7)]
    seen = [
        passed("P59", subject=f"gpu:{row['pci']}", reason="sysfs, NVML and CUDA agree")
        for row in rows
        if row != missing
    ]
    driver = driver_passed(7)
    stage = record(
        "enumeration",
        Outcome.FAILED,
        check.reason,
        0.31,
        at=0.7 + driver.duration_s,
        checks=(*seen, check, passed("P78")),
    )
    runtime = dataclasses.replace(late(0.8 + driver.duration_s)[1], started=stage.started + 0.4)
    return verdict(State.BLOCKED, [*early(8), driver, stage, runtime, *later()], gpus=tuple(rows))


def incomplete() -> Verdict:
    """A run whose time was up before the stages that it was asked for."""
    selection = {"paths": [], "whole": True, "narrowed": False, "until": "upgrade", "required": list(stages.NAMES)}
    return verdict(State.INCOMPLETE, [*early(), driver_passed(), *late(), *later(True)], selection=selection)


def not_allowed() -> Verdict:
    """A host whose device nodes could not be looked at."""
    records = early()
    reason = "/dev may not be listed by uid 1000 (EACCES)"
    records[3] = dataclasses.replace(
        records[3],
        outcome=Outcome.WARNED,
        summary="1 of 12 checks could not be made",
        checks=(passed("P31", reason="1 on the PCI bus"), unknown("P34", reason)),
    )
    return verdict(State.INCOMPLETE, [*records, driver_passed(), *late(), *later()])


def degraded() -> Verdict:
    """A host that is usable, but whose cuInit is slower than Ollama's refresh waits."""
    slow = found("driver.cuinit.slow", {"seconds": 8.41}, expected="<= 3 s", observed=8.41)
    steps = (Step("dlopen libcuda.so.1", 0.0345, 0.0013, 0), Step("cuInit(0)", 0.0366, 8.41, 0))
    stage = dataclasses.replace(
        driver_passed(), outcome=Outcome.WARNED, summary=slow.reason, checks=(slow,), steps=steps, duration_s=8.62
    )
    return verdict(State.DEGRADED, [*early(), stage, *late(9.3), *later()])


def needs_reset() -> Verdict:
    """A host whose next command ends work that runs on the GPU."""
    records = early()
    check = found(
        "nvml.reset_required",
        {"index": 0, "gpu": "GPU 0"},
        subject=f"gpu:{gpu(0)['pci']}",
        expected=0,
        observed={"rc": 16},
    )
    check = dataclasses.replace(check, outcome=CheckOutcome.FAILED, kind=Kind.BLOCKING)
    records[4] = dataclasses.replace(
        records[4], outcome=Outcome.FAILED, summary=check.reason, checks=(check,), required=True
    )
    return verdict(State.BLOCKED, [*records, *not_reached(records[4], "driver", "enumeration", "runtime"), *later()])


def simulated() -> Verdict:
    """The simulated H100 with a hang in cuInit."""
    made = blocked_in_cuinit()
    return dataclasses.replace(made, simulated={"host": "h100", "faults": ["driver.cuinit.hang"]})


def hung_child() -> Verdict:
    """A host where Ollama's own child listens and does not answer: the probe ended in time, its child did not."""
    where = "futex < runner_init (ollama); state S, wchan futex_wait_queue"
    facts = {"directory": "cuda_v12", "port": 4711, "step": "GET /info", "blocked_in": where, "reached": "nothing"}
    facts |= {"activity": "sleeping", "said": "nothing", "limit_s": 30.0}
    check = found("bootstrap.hang.mute", facts, subject="dir:cuda_v12", evidence={"stuck": where})
    also = found("bootstrap.hang.mute", {**facts, "directory": "cuda_v13"}, subject="dir:cuda_v13")
    stage = record(
        "bootstrap",
        Outcome.TIMED_OUT,
        check.reason,
        60.4,
        required=True,
        at=4.0,
        deadline_s=100.0,
        ollama_budget_s=30.0,
        checks=(check, also),
        steps=(Step("cuda_v12: start ollama", 0.1, 0.01, 4242), Step("cuda_v12: GET /info", 0.2, 30.0, "timeout")),
    )
    rest = [one for one in later(True) if one.name not in ("bootstrap", "serve", "upgrade")]
    records = [*early(), driver_passed(), *late(), *rest, stage, *not_reached(stage, "serve")]
    return verdict(State.BLOCKED, records)


def upgrade() -> Verdict:
    """A host where the candidate loses the GPU that the installed Ollama keeps."""
    device = {"name": NAME, "pci": gpu(0)["pci"], "id": gpu(0)["uuid"]}
    side = {"version": "0.16.3", "era": "B", "gpus": [device], "directories": ["cuda_v13"], "seconds": 0.15}
    side |= {"cause": None, "warnings": []}
    lost = {**side, "version": "0.32.15", "era": "C", "gpus": [], "directories": [], "cause": "closure.driver_floor"}
    place = {"path": "/usr/local/lib/ollama/cuda_v13/libcublas.so.13", "rule": "LD_LIBRARY_PATH"}
    comparison = {
        "installed": side,
        "candidate": lost,
        "in_place": {"stale": ["libggml-base.so.0.0.0"], **lost},
        "closures": [{"directory": "cuda_v13", "name": "libcublas.so.13", "installed": place, "candidate": None}],
        "architectures": {"installed": {"cuda_v13": ["sm_90", "sm_50"]}, "candidate": {"cuda_v13": ["sm_90"]}},
        "sentence": f"0.32.15 loses {device['pci']}: it wants a driver 580 or newer",
    }
    stage = record("upgrade", Outcome.FAILED, str(comparison["sentence"]), 5.1, required=True, at=6.0)
    records = [*early(), driver_passed(), *late(), stage]
    return verdict(State.BLOCKED, records, blockers=(), comparison=comparison)


def begun() -> Verdict:
    """What is written before the first probe."""
    records = [
        record(name, Outcome.NOT_SELECTED, "nothing asked for it", 0.0, started=0.0)
        for name in stages.NAMES
        if name not in ("closure", "load", "backend", *UNASKED)
    ]
    return verdict(State.INCOMPLETE, [*records, *later()], gpus=(), host={}, versions={}, context={}, profile={})


ALL = {
    "healthy": healthy,
    "blocked": blocked_in_cuinit,
    "hung": hung,
    "eight-gpus": eight_gpus,
    "incomplete": incomplete,
    "not-allowed": not_allowed,
    "degraded": degraded,
    "needs-reset": needs_reset,
    "simulated": simulated,
    "hung-child": hung_child,
    "upgrade": upgrade,
    "begun": begun,
    "hostile": hostile,
}
