"""The part of stage 05 that judges one GPU as NVML shows it, and the facts that later stages read of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.diagnosis import errors
from pytest_gpudiscovery.model import Check, CheckOutcome, Kind, Severity
from pytest_gpudiscovery.stages.identity import code_of, integer, mapping, objects, pci, sequence, string
from pytest_gpudiscovery.stages.identity import uuid as digits_of
from pytest_gpudiscovery.stages.spec import found, not_applicable, passed, unknown

EXCLUSIVE = (1, 3)  # NVML_COMPUTEMODE_EXCLUSIVE_THREAD (of old drivers), _PROCESS
COMPUTE_MODES = {0: "Default", 1: "Exclusive_Thread", 2: "Prohibited", 3: "Exclusive_Process"}
# An exclusive mode binds the MPS server that takes the GPU, not the server's clients (docs.nvidia.com/deploy/mps, "When
# to Use MPS", Limitations); NVIDIA's own instructions set the mode before they start MPS (topic_6_1_1_1).
MPS_SERVER = "nvidia-cuda-mps"  # nvidia-cuda-mps-server, as /proc/PID/comm cuts it
OLLAMA_PROCESSES = ("ollama", "llama-server", "ollama_llama_se")  # as /proc/PID/comm shows them, 15 characters at most


def judge_gpu(gpu: Mapping[str, Any]) -> list[Check]:
    """Return the checks of one GPU as the probe saw it."""
    index = integer(gpu.get("index"))
    subject = f"gpu:{pci(gpu.get('pci')) or index}"
    handle = code_of(gpu.get("handle"))
    if handle != 0:
        entry = errors.nvml(handle)
        call = "nvmlDeviceGetHandleByIndex_v2"
        facts = {"index": index, "gpu": f"GPU {index}", "code": handle, "name": entry.name, "call": call}
        facts["discovery"] = entry.discovery
        return [found(entry.cause or "nvml.error", facts, subject=subject, expected=0, observed=gpu.get("handle"))]
    if "compute_mode" not in gpu:
        return []  # the child ended before it got there; the engine says where
    return [
        _memory(gpu, index, subject),
        *_health(gpu, index, subject),
        _compute_mode(gpu, index, subject),
        *_mig(gpu, index, subject),
    ]


def as_warning(check: Check) -> Check:
    """Return CHECK with its failure made a warning."""
    if check.finding is None or check.outcome is not CheckOutcome.FAILED:
        return check
    finding = dataclasses.replace(check.finding, severity=Severity.WARNING)
    return dataclasses.replace(check, outcome=CheckOutcome.WARNED, finding=finding)


def facts(gpu: Mapping[str, Any]) -> dict[str, Any]:
    """Return what later stages and the verdict keep of one GPU; bytes, PCI address as sysfs spells it."""
    mig = sequence(gpu.get("mig_mode"))
    processes = objects(gpu.get("processes"))
    return {
        "index": integer(gpu.get("index")),
        "name": string(gpu.get("name")),
        "uuid": string(gpu.get("uuid")),
        "pci": pci(gpu.get("pci")),
        "minor": integer(gpu.get("minor")),
        "cc": list(sequence(gpu.get("cc"))) or None,
        "cores": integer(gpu.get("cores")),
        "memory": mapping(gpu.get("memory")) or None,
        "persistence": integer(gpu.get("persistence")),
        "compute_mode": COMPUTE_MODES.get(integer(gpu.get("compute_mode")) or 0),
        "mig": integer(mig[0]) == 1 if mig else False,
        "instances": objects(gpu.get("instances")),
        "ecc": integer(sequence(gpu.get("ecc_mode"))[0]) == 1 if sequence(gpu.get("ecc_mode")) else None,
        "fabric": gpu.get("fabric"),
        "virtualization": integer(gpu.get("virtualization")),
        "gsp_firmware": string(gpu.get("gsp_firmware")),
        "processes": processes,
        "pids": [pid for process in processes if (pid := integer(process.get("pid"))) is not None],
    }


def _memory(gpu: Mapping[str, Any], index: int | None, subject: str) -> Check:
    calls = mapping(gpu.get("calls"))
    memory = mapping(gpu.get("memory_by_uuid"))
    details: dict[str, Any] = {"index": index, "uuid": gpu.get("uuid"), "total": memory.get("total")}
    if digits_of(gpu.get("uuid")) is None:
        return found("nvml.memory.no_uuid", details, subject=subject, observed=gpu.get("uuid"))
    if not memory:
        call = "nvmlDeviceGetHandleByUUID" if "nvmlDeviceGetHandleByUUID" in calls else "nvmlDeviceGetMemoryInfo"
        if "missing" in mapping(calls.get(call)):
            return unknown("P51", f"this NVML has no {call}", Kind.OBSERVABILITY, subject=subject)  # a finding already
        entry = errors.nvml(code_of(calls.get(call)))
        details.update(call=call, code=entry.code, name=entry.name, discovery=entry.discovery)
        return found("nvml.memory.by_uuid", details, subject=subject, observed=calls.get(call))
    if (integer(memory.get("total")) or 0) <= 0:
        return found("nvml.memory.zero", details, subject=subject, expected="> 0", observed=memory)
    return passed("P51", Kind.RISK, subject=subject, reason="memory is told by UUID, as Ollama asks", observed=memory)


def _health(gpu: Mapping[str, Any], index: int | None, subject: str) -> list[Check]:
    checks = []
    rows = mapping(gpu.get("remapped_rows"))
    uncorrectable = integer(gpu.get("ecc_uncorrectable")) or 0
    details = {"index": index, "count": uncorrectable}
    if uncorrectable > 0:
        checks.append(found("nvml.ecc.uncorrectable", details, subject=subject, expected=0, observed=uncorrectable))
    if integer(rows.get("failed")):
        checks.append(found("nvml.rows.failed", details, subject=subject, expected=0, observed=rows))
    elif integer(rows.get("pending")):
        checks.append(found("nvml.rows.pending", details, subject=subject, expected=0, observed=rows))
    return checks


def held_by(gpu: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the processes that keep GPU, which is in an exclusive compute mode, from Ollama; none of them Ollama's."""
    if integer(gpu.get("compute_mode")) not in EXCLUSIVE:
        return []
    processes = objects(gpu.get("processes"))
    return [one for one in processes if not str(one.get("name") or "").startswith((*OLLAMA_PROCESSES, MPS_SERVER))]


def _compute_mode(gpu: Mapping[str, Any], index: int | None, subject: str) -> Check:
    mode = integer(gpu.get("compute_mode"))
    if mode is None:
        return unknown("P41", "NVML does not tell the compute mode", Kind.OBSERVABILITY, subject=subject)
    name = COMPUTE_MODES.get(mode, str(mode))
    if mode == 2:
        return found("nvml.compute_mode.prohibited", {"index": index}, subject=subject, observed=name)
    if holders := held_by(gpu):
        pids = ", ".join(f"{process.get('pid')} ({process.get('name') or '?'})" for process in holders)
        details = {"index": index, "mode": name, "pids": pids}
        return found("nvml.compute_mode.held", details, subject=subject, expected="no other process", observed=holders)
    return passed("P41", subject=subject, reason=f"compute mode {name}", observed=name)


def _mig(gpu: Mapping[str, Any], index: int | None, subject: str) -> list[Check]:
    mode = sequence(gpu.get("mig_mode"))
    current = integer(mode[0]) if mode else None
    pending = integer(mode[1]) if len(mode) > 1 else current
    checks = []
    if current != 1:
        checks.append(not_applicable("P61", "MIG is off" if current == 0 else "no MIG on this GPU", subject=subject))
    else:
        instances = objects(gpu.get("instances"))
        uuids = [instance.get("uuid") for instance in instances]
        if uuids:
            reason = f"{len(uuids)} MIG instance{'s' if len(uuids) > 1 else ''}"
            checks.append(passed("P61", subject=subject, reason=reason, observed=uuids))
        elif gpu.get("instances") is None or code_of(_instance_call(gpu)) == 4:
            checks.append(unknown("P61", "MIG is on, and this user may not list its instances", subject=subject))
        else:
            checks.append(found("nvml.mig.no_instances", {"index": index}, subject=subject, observed=[]))
    if pending is not None and current is not None and pending != current:
        words = {0: "off", 1: "on"}
        details = {"index": index, "current": words.get(current, current), "pending": words.get(pending, pending)}
        checks.append(found("nvml.mig.pending", details, subject=subject, expected=current, observed=pending))
    return checks


def _instance_call(gpu: Mapping[str, Any]) -> Any:
    return mapping(gpu.get("calls")).get("nvmlDeviceGetMigDeviceHandleByIndex")
