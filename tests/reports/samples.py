"""Verdicts of hosts that a person may meet, made of the model's classes: for the reports' tests and for pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pytest_gpudiscovery import stages
from pytest_gpudiscovery.diagnosis.resolver import resolve
from pytest_gpudiscovery.model import Check, CheckOutcome, Kind, Outcome, StageRecord, State, Step, Verdict
from pytest_gpudiscovery.stages.spec import found, not_applicable, passed, unknown

BEGUN = 1795382714.321  # 2026-11-22 21:25:14 UTC
DRIVER = "580.159.04"
NAME = "NVIDIA H100 80GB HBM3"
NUMBERS = {name: number for number, name in enumerate(stages.NAMES, 1)}
REQUIRED = ("package", "service", "kernel", "driver", "enumeration", "runtime")
DEADLINES = {"package": 5, "service": 10, "loopback": 5, "kernel": 10, "nvml": 45, "driver": 45, "enumeration": 10}
CUINIT = "ioctl on /dev/nvidiactl < cuInit (libcuda.so.580.159.04); state D, wchan rwsem_down_read_slowpath"


def record(name: str, outcome: Outcome, summary: str, duration: float = 0.04, **changes: Any) -> StageRecord:
    """Return a record; `at` in CHANGES is its begin in seconds after the run's."""
    at = changes.pop("at", None)
    base = StageRecord(
        name=name,
        subject="host",
        required=name in REQUIRED,
        outcome=outcome,
        summary=summary,
        started=BEGUN + (0.1 * NUMBERS.get(name, 1) if at is None else at),
        duration_s=duration,
        deadline_s=float(DEADLINES.get(name, 20)),
        ollama_budget_s=30.0 if name == "driver" else None,
    )
    return dataclasses.replace(base, **changes)


def gpu(index: int, *views: str) -> dict[str, Any]:
    """Return one GPU as each of VIEWS shows it (default: all of this version)."""
    pci, uuid = f"0000:{0x1B + 0x10 * index:02x}:00.0", f"GPU-3f1c9e2{index}-5b0e-7d43-9c1a-6d2b8a4e9f0{index}"
    total = 85_520_809_984
    known: dict[str, dict[str, Any]] = {
        "sysfs": {"pci": pci, "driver": "nvidia", "model": NAME, "uuid": uuid, "minor": index, "device": "0x2330"},
        "nvml": {
            "index": index,
            "name": NAME,
            "uuid": uuid,
            "pci": pci,
            "minor": index,
            "cc": [9, 0],
            "memory": {"total": total, "free": 84_900_000_000, "used": total - 84_900_000_000},
            "mig": False,
            "instances": [],
            "ecc": True,
            "compute_mode": "Default",
        },
        "cuda": {
            "ordinal": index,
            "name": NAME,
            "uuid": uuid,
            "pci": pci,
            "total_memory": total - 500_000_000,
            "cc": [9, 0],
            "sm_count": 132,
        },
        "pynvml": {"index": index, "name": NAME, "uuid": uuid, "pci": pci},
        "cuda_python": {"ordinal": index, "name": NAME, "uuid": uuid, "pci": pci},
    }
    return {"pci": pci, "uuid": uuid, "mig": False, "views": {name: known[name] for name in views or known}}


def driver_steps(gpus: int = 1) -> tuple[Step, ...]:
    """Return the steps of stage 06 as they were timed on one H100."""
    steps = [Step("dlopen libcuda.so.1", 0.0345, 0.0013, 0), Step("cuInit(0)", 0.0366, 0.0997, 0)]
    steps += [Step("cuDriverGetVersion", 0.1363, 0.00005, 0), Step("cuDeviceGetCount", 0.1364, 0.00002, 0)]
    at = 0.1367
    for ordinal in range(gpus):
        for call, took in (
            (f"cuDevicePrimaryCtxRetain({ordinal})", 0.1141),
            (f"cuMemcpyHtoD_v2({ordinal})", 0.0002),
            (f"cuModuleLoadData({ordinal})", 0.0857),
            (f"cuLaunchKernel({ordinal})", 0.0001),
            (f"cuDevicePrimaryCtxRelease({ordinal})", 0.0604),
        ):
            steps.append(Step(call, round(at, 6), took, 0))
            at += took + 0.0001
    return tuple(steps)


def early(gpus: int = 1) -> list[StageRecord]:
    """Return stages 01 to 05 of a host where they pass."""
    nodes = [f"/dev/nvidia{index}" for index in range(gpus)] + ["/dev/nvidiactl", "/dev/nvidia-uvm"]
    return [
        record(
            "package",
            Outcome.PASSED,
            "Ollama 0.15.2 in /usr/local, cuda_v12 and cuda_v13",
            0.021,
            checks=(
                passed("P01", reason="/usr/local/bin/ollama may be executed by uid 997"),
                passed("P02", reason="/usr/local/lib/ollama is there"),
                passed(
                    "P05", subject="dir:cuda_v12", reason="libggml-cuda.so is whole", observed={"bytes": 512_734_208}
                ),
                passed(
                    "P05", subject="dir:cuda_v13", reason="libggml-cuda.so is whole", observed={"bytes": 401_133_120}
                ),
                not_applicable("P07", "no second install on this host", Kind.RISK),
            ),
            steps=(Step("read /usr/local/lib/ollama", 0.004, 0.011, 31),),
        ),
        record(
            "service",
            Outcome.PASSED,
            "ollama.service: uid 997, groups render and video",
            0.034,
            checks=(
                passed("P10", Kind.RISK, reason="no LD_PRELOAD"),
                passed("P13", reason="uid 997 (ollama)", observed=[44, 109]),
            ),
        ),
        record(
            "loopback",
            Outcome.PASSED,
            "lo is up, 127.0.0.1 answers in 0.2 ms",
            0.018,
            checks=(passed("P17", reason="lo is up"), passed("P20", reason="TCP delivered in 0.2 ms")),
        ),
        record(
            "kernel",
            Outcome.PASSED,
            f"{gpus} GPU{'s' * (gpus != 1)}, driver {DRIVER} (open module), {len(nodes)} of {len(nodes)} nodes open",
            0.071,
            checks=(
                passed("P31", reason=f"{gpus} on the PCI bus, bound to nvidia"),
                passed("P32", reason=f"module {DRIVER}", observed=DRIVER),
                *(passed("P34", reason=f"{node} opens") for node in nodes),
                unknown("P36", "dmesg is restricted to root (kernel.dmesg_restrict=1)", Kind.RISK),
            ),
            steps=tuple(Step(f"open {node}", 0.03 + 0.004 * index, 0.002, 0) for index, node in enumerate(nodes)),
        ),
        record(
            "nvml",
            Outcome.PASSED,
            f"NVML {DRIVER}, {gpus} x {NAME}",
            0.132,
            checks=(
                passed("P40", reason="libnvidia-ml.so.1 loads"),
                passed("P41", reason="nvmlInit_v2 = 0 in 61 ms"),
                *(passed("P61", subject=f"gpu:{gpu(index)['pci']}", reason="memory by UUID") for index in range(gpus)),
            ),
            steps=(Step("dlopen libnvidia-ml.so.1", 0.028, 0.002, 0), Step("nvmlInit_v2", 0.031, 0.061, 0)),
        ),
    ]


def driver_passed(gpus: int = 1) -> StageRecord:
    """Return stage 06 that passed."""
    steps = driver_steps(gpus)
    return record(
        "driver",
        Outcome.PASSED,
        f"cuInit 100 ms, CUDA 13.0, {gpus} x {NAME}",
        0.05 + steps[-1].started + (steps[-1].duration_s or 0.0),
        checks=(
            passed("P64", reason=f"/usr/lib/x86_64-linux-gnu/libcuda.so.{DRIVER}"),
            passed("P42", reason="cuInit(0) = 0 in 100 ms", observed=0.0997),
            passed("P47", reason=f"{gpus} GPU{'s' * (gpus != 1)}", observed=gpus),
            *(passed("P52", reason=f"device {ordinal}: primary context in 114 ms") for ordinal in range(gpus)),
        ),
        steps=steps,
    )


def late(at: float = 1.2) -> list[StageRecord]:
    """Return stages 07 and 08 of a host where they pass."""
    return [
        record(
            "enumeration",
            Outcome.PASSED,
            f"{NAME}, CC 9.0, 79.2 GiB (sysfs, NVML, CUDA agree)",
            0.21,
            at=at,
            checks=(passed("P59", subject=f"gpu:{gpu(0)['pci']}", reason="sysfs, NVML and CUDA agree"), passed("P78")),
            steps=(Step("import pynvml", 0.05, 0.031, None), Step("import cuda.bindings.driver", 0.09, 0.08, None)),
        ),
        record(
            "runtime",
            Outcome.PASSED,
            "cuda_v13: runtime 13.0 counts 1 GPU; cuda_v12: runtime 12.8 counts 1 GPU",
            0.24,
            at=at + 0.22,
            checks=(
                passed("P46", subject="dir:cuda_v13", reason="runtime 13.0, driver 13.0"),
                passed("P49", subject="dir:cuda_v13", reason="properties are the driver's"),
            ),
        ),
    ]


def later(required: bool = False) -> list[StageRecord]:
    """Return the stages that this version lacks."""
    text = "not part of this version of the gate" if required else "after the target runtime"
    return [
        record(spec.name, Outcome.NOT_SELECTED, text, 0.0, required=required, started=0.0, deadline_s=0.0)
        for spec in stages.LATER
    ]


def not_reached(root: StageRecord, *names: str) -> list[StageRecord]:
    """Return records of stages that ROOT kept from running."""
    text = f"not reached: {root.name} {root.outcome.value}: {root.summary}"
    return [record(name, Outcome.NOT_REACHED, text, 0.0, blocked_by=root.name) for name in names]


def verdict(state: State, records: Sequence[StageRecord], **changes: Any) -> Verdict:
    """Return a verdict over RECORDS; CHANGES replace fields."""
    base = Verdict(
        schema=1,
        tool={"name": "pytest-gpudiscovery", "version": "0.1.0"},
        started="2026-11-22T21:25:14.321+00:00",
        duration_s=round(
            max([entry.started + entry.duration_s - BEGUN for entry in records if entry.started], default=0.1), 3
        ),
        simulated=None,
        selection={"paths": [], "whole": True, "narrowed": False, "until": "runtime", "required": list(REQUIRED)},
        host={"name": "gpu-node-17", "kernel": "6.8.0-88-generic", "glibc": "2.39", "arch": "x86_64"},
        versions={"driver": DRIVER, "cuda_driver": "13.0", "ollama": "0.15.2", "ollama_era": "C"},
        context={
            "as": "systemd:ollama.service",
            "uid": 997,
            "gid": 997,
            "groups": [44, 109],
            "capabilities": "000001fffeffffff",
            "private_dev": True,
            "adopted": ["user", "groups"],
            "not_adopted": [{"what": "cgroup of ollama.service", "why": "not part of this version"}],
        },
        profile={"profile": "h100", "title": "NVIDIA H100 (SXM, PCIe or NVL)", "name": ["NVIDIA H100*"], "cc": ["9.0"]},
        verdict=state,
        blockers=changes["blockers"] if "blockers" in changes else resolve(records, NUMBERS),
        gpus=(gpu(0),),
        closures=(),
        fatbins=(),
        comparison=None,
        stages=tuple(records),
    )
    return dataclasses.replace(base, **changes)


def healthy() -> Verdict:
    """A host with one H100 that is ready up to `runtime`."""
    return verdict(State.READY, [*early(), driver_passed(), *late(), *later()])


def stuck_child(blocked_in: str, state: str, *, ending: str = "unkillable") -> dict[str, Any]:
    """Return the evidence of a probe that did not come back, as the supervisor leaves it."""
    main = {
        "tid": 48213,
        "name": "python3",
        "state": state,
        "wchan": "rwsem_down_read_slowpath" if state == "D" else "futex_wait_queue",
        "syscall": {
            "name": "ioctl" if state == "D" else "futex",
            "number": 16,
            "args": [5, 3225437738],
            "sp": 1,
            "pc": 2,
        },
        "stack": ["rwsem_down_read_slowpath+0x2c4", "nvidia_ioctl+0x1b2 [nvidia]", "__x64_sys_ioctl+0x9a"],
        "cpu_s": 0.11,
        "voluntary": 41,
        "involuntary": 3,
        "unread": {},
    }
    helper = {
        **main,
        "tid": 48219,
        "name": "cuda00001400006",
        "state": "S",
        "wchan": "do_poll",
        "syscall": None,
        "stack": [],
    }
    frames = [
        {"library": "/usr/lib/x86_64-linux-gnu/libc.so.6", "symbol": "ioctl", "offset": 0x11EC3B},
        {"library": f"/usr/lib/x86_64-linux-gnu/libcuda.so.{DRIVER}", "symbol": "cuInit", "offset": 0x2B4C51},
    ]
    return {
        "ending": ending,
        "exit_code": None,
        "signal": None,
        "stdout": "",
        "stderr": "NVRM: API mismatch suspected\nretrying ioctl NV_ESC_RM_ALLOC ...\n",
        "notes": ["pid 48213 outlived SIGKILL by 1.0 s and was left behind"] if state == "D" else [],
        "at_deadline": {"pid": 48213, "threads": [main, helper], "more_threads": 0},
        "activity": {
            "verdict": "sleeping",
            "window_s": 9.0,
            "cpu_s": 0.0,
            "voluntary": 0,
            "involuntary": 0,
            "steps": 0,
        },
        "forensics": {
            "fds": {"3": "/dev/null", "5": "/dev/nvidiactl"},
            "libraries": [f"/usr/lib/x86_64-linux-gnu/libcuda.so.{DRIVER}"],
            "stacks": {"48213": {"frames": frames, "path": None}},
            "duration_s": 2.0,
            "error": "caught in 'read memory map' for 2.0 s: the process holds its memory map's lock",
        },
        "blocked_in": blocked_in,
    }


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
    """A run without --gpu-until: the stages that this version lacks are required and have no answer."""
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
    check = found("nvml.reset_required", {"index": 0}, subject=f"gpu:{gpu(0)['pci']}", expected=0, observed={"rc": 16})
    check = dataclasses.replace(check, outcome=CheckOutcome.FAILED, kind=Kind.BLOCKING)
    records[4] = dataclasses.replace(
        records[4], outcome=Outcome.FAILED, summary=check.reason, checks=(check,), required=True
    )
    return verdict(State.BLOCKED, [*records, *not_reached(records[4], "driver", "enumeration", "runtime"), *later()])


def simulated() -> Verdict:
    """The simulated H100 with a hang in cuInit."""
    made = blocked_in_cuinit()
    return dataclasses.replace(made, simulated={"host": "h100", "faults": ["driver.cuinit.hang"]})


def begun() -> Verdict:
    """What is written before the first probe."""
    records = [record(name, Outcome.NOT_SELECTED, "nothing asked for it", 0.0, started=0.0) for name in stages.BUILT]
    return verdict(State.INCOMPLETE, [*records, *later()], gpus=(), host={}, versions={}, context={}, profile={})


EVIL = (
    "</pre></td><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg/onload=alert(3)> "
    "\x1b[2J\x1b]0;title\x07 \x00\x08\r\n\u202egnp.exe\u202c \u2066\u200b\ud800 "
    "Z\u0335\u0321\u0322\u0327\u0328\u0335\u0321 <!-- --> &lt;b&gt; ]]> ${x} {{x}} "
    "javascript:alert(4) \U000e0041 \u2028 end"
)


def hostile(text: str = EVIL) -> Verdict:
    """A verdict with TEXT in every field that a host can fill."""
    finding = found("driver.cuinit.hang", {"deadline_s": 45.0}, subject=text, expected={text: [text]}, observed=[text])
    assert finding.finding is not None
    check = dataclasses.replace(
        finding,
        prerequisite=text,
        reason=text,
        finding=dataclasses.replace(
            finding.finding,
            cause=text,
            summary=text,
            detail=text,
            next=text,
            evidence={"blocked_in": text, text: {text: text}},
        ),
    )
    stuck = stuck_child(text, "D")
    thread = {
        **stuck["at_deadline"]["threads"][0],
        "name": text,
        "wchan": text,
        "stack": [text],
        "syscall": {"name": text},
    }
    stuck |= {"stderr": text, "stdout": text, "notes": [text], "at_deadline": {"threads": [thread, text]}, text: text}
    bad = record(
        text,
        Outcome.TIMED_OUT,
        text,
        45.0,
        subject=text,
        required=True,
        blocked_by=text,
        steps=(Step(text, 0.1, 0.2, text), Step(text, 0.4, None, {text: text})),
        checks=(check, dataclasses.replace(check, finding=None, outcome=CheckOutcome.UNKNOWN)),
        evidence={text: stuck, "plain": text, f"x/{text}": {"ending": text}},
        facts={text: text},
        ollama_budget_s=30.0,
    )
    views = {"nvml": {text: text, "name": text, "memory": {text: text}}, text: {text: [text]}, "cuda": text}
    return verdict(
        State.BLOCKED,
        [bad, *not_reached(bad, "enumeration"), dataclasses.replace(bad, outcome=Outcome.PASSED, name="driver")],
        blockers=(),
        tool={"name": text, "version": text},
        started=text,
        simulated={"host": text, "faults": [text]},
        selection={"until": text, text: text},
        host={"name": text, "kernel": text, "glibc": text, "arch": [text]},
        versions={"driver": text, "cuda_driver": {text: text}, "ollama": text, "ollama_era": text},
        context={"as": text, "uid": text, text: text, "not_adopted": [{"what": text, "why": text}, text]},
        profile={text: text},
        gpus=({"pci": text, "uuid": text, "mig": text, "views": views}, {"pci": text, "views": {}}),
        closures=({text: text},),
        fatbins=(text,),
        comparison={text: text},
        notes=(text,),
    )


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
    "begun": begun,
    "hostile": hostile,
}
