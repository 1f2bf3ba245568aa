"""What the sample verdicts are made of: records, steps, GPUs and evidence as a real H100 gave them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pytest_gpudiscovery import stages
from pytest_gpudiscovery.diagnosis.resolver import resolve
from pytest_gpudiscovery.model import Kind, Outcome, StageRecord, State, Step, Verdict
from pytest_gpudiscovery.stages.spec import not_applicable, passed, unknown

BEGUN = 1795382714.321  # 2026-11-22 21:25:14 UTC
DRIVER = "580.159.04"
NAME = "NVIDIA H100 80GB HBM3"
NUMBERS = {name: number for number, name in enumerate(stages.NAMES, 1)}
REQUIRED = ("package", "service", "kernel", "driver", "enumeration", "runtime")
DEADLINES = {"package": 5, "service": 10, "loopback": 5, "kernel": 10, "nvml": 45, "driver": 45, "enumeration": 10}
UNASKED = ("bootstrap", "serve", "upgrade")  # in the samples
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
    """Return what comes after stage 08: closure to backend ran where the rest is REQUIRED, which never does."""
    lacking = "not begun: the run's deadline had passed" if required else "after the target runtime"
    row = passed("P24", subject="dir:cuda_v12", observed={"symbols_checked": 1201, "objects": 12})
    done = [
        record("closure", Outcome.PASSED, "cuda_v12: loads, native; compute capability 9.0", 0.1, checks=(row,)),
        record("load", Outcome.PASSED, "cuda_v12: libggml-cuda.so in 1.2 s", 1.3),
        record("backend", Outcome.PASSED, "cuda_v12: 1 device in 0.2 s", 1.1),
    ]
    if not required:
        text = "after the target runtime"
        names = ("closure", "load", "backend")
        done = [record(name, Outcome.NOT_SELECTED, text, 0.0, required=False, started=0.0) for name in names]
    return done + [
        record(name, Outcome.NOT_SELECTED, lacking, 0.0, required=required, started=0.0, deadline_s=0.0)
        for name in UNASKED
    ]


def not_reached(root: StageRecord, *names: str) -> list[StageRecord]:
    """Return records of stages that ROOT kept from running."""
    text = f"not reached: {root.name} {root.outcome.value.replace(chr(95), chr(32))}: {root.summary}"
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
        versions={"driver": DRIVER, "cuda_driver": 13000, "ollama": "0.15.2", "ollama_era": "C"},
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
            "verdict": "no progress",
            "pace": "hung",
            "words": "hung: no progress for at least 33.8 s (0.00 s of CPU time, 0 waits in the last 9.0 s)",
            "since_s": 33.8,
            "window_s": 9.0,
            "user_s": 0.0,
            "system_s": 0.0,
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
