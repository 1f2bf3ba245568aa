"""The part of stage 06 that judges one device: its identity calls, its context, a copy, a kernel, managed memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pytest_gpudiscovery.diagnosis import errors
from pytest_gpudiscovery.model import Check, Kind
from pytest_gpudiscovery.stages.spec import found, passed, unknown

CONTEXT_WARNING_S = 3.0
MIB = 1 << 20
NEARLY_FULL = 0.02  # a model needs more than what is left below this share
COPY_CALLS = ("cuMemAlloc_v2", "cuMemcpyHtoD_v2", "cuMemcpyDtoH_v2")
KERNEL_CALLS = ("cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel", "cuCtxSynchronize")
DEVICE_UNAVAILABLE = 46  # CUDA_ERROR_DEVICE_UNAVAILABLE
JIT_COMPILER_NOT_FOUND = 221  # CUDA_ERROR_JIT_COMPILER_NOT_FOUND
ESSENTIAL_ATTRIBUTES = tuple(
    f"cuDeviceGetAttribute({number})" for number in (16, 75, 76)
)  # SM count, compute capability
Seconds = Callable[[str], "float | None"]


def judge_device(device: Mapping[str, Any], seconds: Seconds) -> list[Check]:
    """Return the checks of one device as the probe saw it; SECONDS looks up how long a named step took."""
    ordinal = device.get("ordinal")
    subject = f"gpu:{device.get('pci') or ordinal}"
    checks = _identity(device, subject)
    checks += _granularity(device, subject)
    if device.get("in_use_by"):
        # A risk and not a blocker: the process that holds the GPU is itself the proof that contexts can be made.
        reason = f"GPU in use by PID {', '.join(str(pid) for pid in device['in_use_by'])}"
        return [*checks, *(unknown(row, reason, Kind.RISK, subject=subject) for row in ("P52", "P50", "P53", "P54"))]
    if "work" in device:
        checks += _work(device, subject, seconds)
    return checks


def _facts(device: Mapping[str, Any], call: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    code = answer.get("rc")
    entry = errors.cuda(code if isinstance(code, int) else -1)
    if "missing" in answer:
        return {"ordinal": device.get("ordinal"), "call": call, "code": "-", "name": "no such function", "text": ""}
    return {
        "ordinal": device.get("ordinal"),
        "call": call,
        "code": code,
        "name": entry.name,
        "text": entry.text,
        "discovery": entry.discovery,
    }


def _identity(device: Mapping[str, Any], subject: str) -> list[Check]:
    checks = []
    calls = device.get("calls") or {}
    for call in ("cuDeviceGet", "cuDeviceGetName", "cuDeviceGetPCIBusId", "cuDeviceTotalMem_v2"):
        answer = calls.get(call) or {}
        if answer.get("rc") not in (0, None) or "missing" in answer:
            checks.append(found("driver.device.error", _facts(device, call, answer), subject=subject, observed=answer))
    if "uuid" not in device and "handle" in device:
        answer = calls.get("cuDeviceGetUuid") or {}
        checks.append(
            found("driver.device.error", _facts(device, "cuDeviceGetUuid", answer), subject=subject, observed=answer)
        )
    for call, answer in calls.items():
        # An older driver answers 1 for an attribute that it does not know; those that ggml asks for are in every one.
        tolerated = (0,) if call in ESSENTIAL_ATTRIBUTES else (0, 1)
        if call.startswith("cuDeviceGetAttribute(") and answer.get("rc") not in tolerated:
            checks.append(
                found("driver.attribute.error", _facts(device, call, answer), subject=subject, observed=answer)
            )
    return checks


def _granularity(device: Mapping[str, Any], subject: str) -> list[Check]:
    answer = device.get("granularity")
    if not answer:
        return []
    if answer.get("supported") is False:
        return [passed("P48", subject=subject, reason="no virtual memory management: ggml does not ask")]
    if answer.get("rc") == 0:
        return [passed("P48", subject=subject, observed=answer.get("bytes"))]
    facts = _facts(device, "cuMemGetAllocationGranularity", answer)
    return [found("driver.granularity.error", facts, subject=subject, observed=answer)]


def _work(device: Mapping[str, Any], subject: str, seconds: Seconds) -> list[Check]:
    work, ordinal = device.get("work") or {}, device.get("ordinal")
    for call in ("cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuMemGetInfo_v2"):
        answer = work.get(call)
        if answer is None:
            return []  # not reached: a hang there is the engine's to say
        if answer.get("rc") != 0:
            cause = "driver.context.busy" if answer.get("rc") == DEVICE_UNAVAILABLE else "driver.context.error"
            return [found(cause, _facts(device, call, answer), subject=subject, observed=answer)]
    took = seconds(f"cuDevicePrimaryCtxRetain({ordinal})")
    checks = [
        found("driver.context.slow", {"ordinal": ordinal, "seconds": took}, subject=subject, observed=took)
        if took is not None and took > CONTEXT_WARNING_S
        else passed("P52", subject=subject, reason=f"primary context in {(took or 0) * 1000:.0f} ms", observed=took),
        _memory(device, subject),
    ]
    return [*checks, *_copy_and_kernel(device, work, subject), *_managed(device, work, subject)]


def _memory(device: Mapping[str, Any], subject: str) -> Check:
    memory = device.get("memory") or {}
    total, free = memory.get("total") or 0, memory.get("free") or 0
    facts = {
        "ordinal": device.get("ordinal"),
        "total": total,
        "free": free,
        "free_mib": free // MIB,
        "total_mib": total // MIB,
    }
    if total <= 0 or free <= 0:
        return found("driver.memory.zero", facts, subject=subject, expected="> 0", observed=memory)
    if free < total * NEARLY_FULL:
        return found("driver.memory.full", facts, subject=subject, observed=memory)
    return passed("P53", subject=subject, reason=f"{free // MIB} of {total // MIB} MiB free", observed=memory)


def _copy_and_kernel(device: Mapping[str, Any], work: Mapping[str, Any], subject: str) -> list[Check]:
    for call in (*COPY_CALLS, *KERNEL_CALLS):
        answer = work.get(call)
        if answer is None:
            return []
        if answer.get("rc") == 0:
            continue
        facts = _facts(device, call, answer)
        if answer.get("rc") == JIT_COMPILER_NOT_FOUND:
            return [found("driver.kernel.jit_missing", facts, subject=subject, observed=answer)]
        cause = "driver.kernel.error" if call in KERNEL_CALLS else "driver.context.error"
        return [found(cause, facts, subject=subject, observed=answer)]
    facts = {"ordinal": device.get("ordinal")}
    if not work.get("copy_right"):
        return [found("driver.copy.wrong", facts, subject=subject, observed=work.get("copy_right"))]
    if not work.get("kernel_right"):
        return [found("driver.kernel.wrong", facts, subject=subject, observed=work.get("kernel_right"))]
    return [passed("P52", subject=subject, reason="a copy there and back and a kernel from PTX are right")]


def _managed(device: Mapping[str, Any], work: Mapping[str, Any], subject: str) -> list[Check]:
    answer = work.get("cuMemAllocManaged")
    if answer is None:
        return []
    if answer.get("rc") != 0:
        facts = _facts(device, "cuMemAllocManaged", answer)
        return [found("driver.managed.error", facts, subject=subject, observed=answer)]
    if not work.get("managed_right"):
        return [found("driver.managed.wrong", {"ordinal": device.get("ordinal")}, subject=subject)]
    return [passed("P50", Kind.RISK, subject=subject), passed("P54", Kind.RISK, subject=subject)]
