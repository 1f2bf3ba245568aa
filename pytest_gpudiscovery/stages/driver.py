"""06 driver: libcuda is found and genuine, cuInit answers (and when), every device can be asked and used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.diagnosis import catalogue, errors
from pytest_gpudiscovery.model import Check, Kind, StageRecord
from pytest_gpudiscovery.stages.driver_work import judge_device
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

REFRESH_BUDGET_S = 3.0  # Ollama's refresh before a model load (discover/runner.go)
DISCOVERY_BUDGET_S = 30.0  # Ollama's limit on one discovery child
GGML_MAX_DEVICES = 16  # GGML_CUDA_MAX_DEVICES
STUB_LIBRARY = 34  # CUDA_ERROR_STUB_LIBRARY
MPS_CONNECTION_FAILED = 805  # CUDA_ERROR_MPS_CONNECTION_FAILED
NOT_ANSWERED = "cuInit gave no success, so this was not asked"
AFTER_CUINIT = ("P47", "P48", "P50", "P52", "P53", "P54")


def plan(
    context: RunContext, prior: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Run one probe, in the context that Ollama's own child would have."""
    if results:
        return None
    nvml = prior["nvml"].facts if "nvml" in prior and isinstance(prior["nvml"].facts, dict) else {}
    # Where another process holds a GPU for itself a context takes nothing from it: whether it can be had is the check.
    held = {str(pci).lower() for pci in nvml.get("held") or ()}
    used = {str(pci).lower(): pids for pci, pids in (nvml.get("in_use") or {}).items()}
    busy = {} if context.allow_busy else {pci: pids for pci, pids in used.items() if pci not in held}
    # The gate must neither warm the service's JIT cache nor miss it unnoticed: its one small kernel is compiled anew.
    env = {**context.env, "CUDA_CACHE_DISABLE": "1"}
    deadline = deadline_for(context, "driver", SPEC.deadline_s)
    return "driver", Probe("driver", {"busy": busy}, env, deadline, context.cwd, context.setup)


def judge(given: StageInput) -> Judgement:
    """Judge what the probe saw, call by call, in the order in which Ollama would meet it."""
    seen = given.observed("driver")
    kernel = given.facts("kernel")
    checks = _library(seen, kernel, given.context.env)
    if not seen or ("dlopen" in seen and "error" in seen["dlopen"]):
        return Judgement(tuple(checks), "libcuda.so.1 cannot be loaded", _facts(seen, None))
    seconds = _seconds(given, "cuInit(0)")
    checks += _cuinit(seen, seconds, kernel)
    code = _rc(seen.get("cuInit"))
    if code != 0:
        checks += [unknown(row, NOT_ANSWERED, Kind.RISK) for row in AFTER_CUINIT if not _has(checks, row)]
        return Judgement(tuple(checks), f"cuInit answered {code}", _facts(seen, seconds))
    checks += _count(seen)
    for device in seen.get("gpus") or []:
        checks += judge_device(device, lambda name: _seconds(given, name))
    return Judgement(tuple(checks), _summary(seen, seconds), _facts(seen, seconds))


def _library(seen: Mapping[str, Any], kernel: Mapping[str, Any], env: Mapping[str, str]) -> list[Check]:
    error = (seen.get("dlopen") or {}).get("error")
    library = seen.get("library") or {}
    path, version, module = library.get("path"), library.get("version"), kernel.get("module_version")
    facts = {
        "error": error,
        "short_error": str(error).rpartition(": ")[2] if error else "",
        "path": path,
        "library_version": version,
        "module_version": module,
        "code": _rc(seen.get("cuInit")),
        "cuinit_in": library.get("cuinit_in"),
    }
    checks: list[Check] = []
    if error:
        facts["file"] = str(error).partition(":")[0] if str(error).startswith("/") else "libcuda.so.1"
        cause = "missing" if str(error).startswith("libcuda.so.1: cannot open shared object file") else "unloadable"
        cause = "directory" if str(error).endswith("Is a directory") else cause
        return [found(f"driver.libcuda.{cause}", facts, expected="libcuda.so.1 loads", observed=error)]
    if not library:
        return checks
    code = _rc(seen.get("cuInit"))
    if "missing" in (seen.get("cuInit") or {}):
        checks.append(found("driver.libcuda.no_cuinit", facts, observed=path))
    elif code == STUB_LIBRARY or "/stubs/" in str(path):
        checks.append(found("driver.libcuda.stub", facts, expected="the driver's libcuda.so.1", observed=path))
    elif module and version and module != version:
        cause = "copied" if code == 0 else "other_version"
        checks.append(found(f"driver.libcuda.{cause}", facts, expected=module, observed=version))
    elif module and not version:
        checks.append(found("driver.libcuda.unversioned", facts, expected=f"libcuda.so.{module}", observed=path))
    else:
        checks.append(passed("P64", reason=f"{path}", observed=library))
    provider = library.get("cuinit_in")
    if provider and path and provider != path:
        checks.append(found("driver.shim.present", facts, expected=path, observed=provider))
    else:
        checks += [not_applicable(row, "no library stands before libcuda", Kind.RISK) for row in ("P74", "P75", "P76")]
    mps = env.get("CUDA_MPS_PIPE_DIRECTORY")
    checks.append(
        passed("P45", reason="no MPS directory is set for this process")
        if mps is None
        else unknown("P45", f"CUDA_MPS_PIPE_DIRECTORY={mps}: cuInit's answer decides", Kind.OBSERVABILITY)
        if code in (0, MPS_CONNECTION_FAILED)
        else found("driver.mps.unreachable", {"mps": mps}, observed=mps)
    )
    # Era A of Ollama (up to 0.12.3) creates its context by this function and gives up without it.
    missing = seen.get("missing") or []
    checks.append(
        found("driver.function.missing", {"functions": ", ".join(missing), "path": path}, observed=missing)
        if missing
        else passed("P63", Kind.OBSERVABILITY, reason="cuCtxCreate_v3 is there")
    )
    return checks


def _cuinit(seen: Mapping[str, Any], seconds: float | None, kernel: Mapping[str, Any]) -> list[Check]:
    answer = seen.get("cuInit")
    if answer is None or "missing" in answer:
        return []  # a hang or a crash is the engine's to say; a missing symbol was said above
    code = _rc(answer)
    entry = errors.cuda(-1 if code is None else code)
    facts = {
        "code": code,
        "name": entry.name,
        "text": entry.text,
        "discovery": entry.discovery,
        "seconds": seconds or 0.0,
        "module_version": kernel.get("module_version"),
    }
    if code != 0:
        cause = entry.cause if entry.cause and entry.cause in catalogue.causes() else "driver.cuinit.error"
        return [found(cause, facts, expected=0, observed={"code": code, "name": entry.name, "seconds": seconds})]
    if seconds is not None and seconds > DISCOVERY_BUDGET_S:
        return [found("driver.cuinit.too_slow", facts, expected=f"<= {DISCOVERY_BUDGET_S:g} s", observed=seconds)]
    if seconds is not None and seconds > REFRESH_BUDGET_S:
        return [found("driver.cuinit.slow", facts, expected=f"<= {REFRESH_BUDGET_S:g} s", observed=seconds)]
    return [passed("P42", reason=f"cuInit(0) = 0 in {(seconds or 0) * 1000:.0f} ms", observed=seconds)]


def _count(seen: Mapping[str, Any]) -> list[Check]:
    answer = seen.get("cuDeviceGetCount")
    if answer is None:
        return []
    code, count = _rc(answer), answer.get("count")
    entry = errors.cuda(-1 if code is None else code)
    facts = {"code": code, "name": entry.name, "text": entry.text, "discovery": entry.discovery, "count": count}
    if code != 0:
        return [found("driver.count.error", facts, expected=0, observed=code)]
    if not isinstance(count, int) or count < 1:
        return [found("driver.count.zero", facts, expected=">= 1", observed=count)]
    if count > GGML_MAX_DEVICES:
        return [found("driver.count.too_many", facts, expected=f"<= {GGML_MAX_DEVICES}", observed=count)]
    return [passed("P47", reason=f"{count} GPU{'s' if count > 1 else ''}", observed=count)]


def _facts(seen: Mapping[str, Any], seconds: float | None) -> dict[str, Any]:
    return {
        "library": seen.get("library"),
        "libraries": seen.get("libraries"),
        "driver_version_cuda": seen.get("driver_version_cuda"),
        "cuinit": seen.get("cuInit"),
        "cuinit_s": seconds,
        "gpus": seen.get("gpus") or [],
    }


def _summary(seen: Mapping[str, Any], seconds: float | None) -> str:
    version = seen.get("driver_version_cuda") or 0
    gpus = seen.get("gpus") or []
    names = ", ".join(dict.fromkeys(str(gpu.get("name")) for gpu in gpus))
    return (
        f"cuInit {(seconds or 0) * 1000:.0f} ms, CUDA {version // 1000}.{version % 1000 // 10}, {len(gpus)} x {names}"
    )


def _seconds(given: StageInput, name: str) -> float | None:
    result = given.results.get("driver")
    return next((step.duration_s for step in result.steps if step.name == name), None) if result else None


def _rc(answer: Any) -> int | None:
    code = answer.get("rc") if isinstance(answer, dict) else None
    return code if isinstance(code, int) else None


def _has(checks: list[Check], row: str) -> bool:
    return any(check.prerequisite == row for check in checks)


SPEC = StageSpec(
    number=6,
    name="driver",
    title="cuInit, devices, context, a copy and a kernel",
    after=("kernel", "package", "service"),
    soft_after=("nvml",),  # which GPUs are in use; also: NVML before CUDA, so that a hang there is named first
    deadline_s=45.0,
    rows=("P42", "P45", "P47", "P48", "P50", "P52", "P53", "P54", "P63", "P64", "P65", "P74", "P75", "P76"),
    plan=plan,
    judge=judge,
    touches_driver=True,
    ollama_budget_s=DISCOVERY_BUDGET_S,
    hang_causes={
        "the driver probe": "driver.dlopen.hang",
        "dlopen": "driver.dlopen.hang",
        "cuInit": "driver.cuinit.hang",
        "cuDeviceGetCount": "driver.count.hang",
        "identity": "driver.device.hang",
        "cuMemGetAllocationGranularity": "driver.granularity.hang",
        "cuDevicePrimaryCtx": "driver.context.hang",
        "cuCtxSetCurrent": "driver.context.hang",
        "cuMem": "driver.copy.hang",
        "cuMemAllocManaged": "driver.managed.hang",
        "cuModule": "driver.kernel.hang",
        "cuLaunchKernel": "driver.kernel.hang",
        "cuCtxSynchronize": "driver.kernel.hang",
    },
    crash_causes={
        "dlopen": "driver.dlopen.crash",
        "cuInit": "driver.cuinit.crash",
        "cuDevicePrimaryCtx": "driver.context.crash",
        "cuCtxSetCurrent": "driver.context.crash",
        "cuModule": "driver.kernel.crash",
        "cuLaunchKernel": "driver.kernel.crash",
        "cuCtxSynchronize": "driver.kernel.crash",
    },
)
