"""Stage 06 judged over what a probe can see: each call that fails, in the order in which Ollama would meet it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.model import Check, CheckOutcome, Outcome, Step
from pytest_gpudiscovery.stages import driver
from pytest_gpudiscovery.stages.spec import StageInput
from tests.fakes import context, record, result

PATH = "/usr/local/nvidia/lib64/libcuda.so.580.159.04"
CALLS = (
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemcpyHtoD_v2",
    "cuMemcpyDtoH_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuLaunchKernel",
    "cuCtxSynchronize",
    "cuMemAllocManaged",
)
HEALTHY: dict[str, Any] = {
    "dlopen": {"rc": 0},
    "library": {"path": PATH, "version": "580.159.04", "cuinit_in": PATH},
    "missing": [],
    "cuInit": {"rc": 0},
    "driver_version_cuda": 13000,
    "cuDeviceGetCount": {"rc": 0, "count": 1},
    "gpus": [
        {
            "ordinal": 0,
            "handle": 0,
            "name": "NVIDIA H100 80GB HBM3",
            "uuid": "GPU-00000000-0000-4000-8000-000000000000",
            "pci": "0000:00:06.0",
            "total_memory": 85017624576,
            "cc": [9, 0],
            "sm_count": 132,
            "attributes": {"virtual_memory_management": 1},
            "calls": {name: {"rc": 0} for name in ("cuDeviceGet", "cuDeviceGetName", "cuDeviceGetUuid_v2")},
            "granularity": {"rc": 0, "bytes": 2097152},
            "work": {
                **{name: {"rc": 0} for name in CALLS},
                "copy_right": True,
                "kernel_right": True,
                "managed_right": True,
            },
            "memory": {"free": 84464893952, "total": 85017624576},
        }
    ],
}


def checks_of(seen: dict[str, Any], *, seconds: float = 0.1, module: str = "580.159.04", **changes: Any) -> list[Check]:
    steps = (Step("cuInit(0)", 0.02, seconds), Step("cuDevicePrimaryCtxRetain(0)", 0.2, 0.11))
    prior = {"kernel": record("kernel", Outcome.PASSED, facts={"module_version": module})}
    given_ = StageInput(context(**changes), {"driver": result(answer=seen, steps=steps)}, prior, 45.0)
    return list(driver.judge(given_).checks)


def bad(checks: list[Check]) -> list[str]:
    return [
        check.finding.cause
        for check in checks
        if check.finding and check.outcome in (CheckOutcome.FAILED, CheckOutcome.WARNED)
    ]


def changed(path: str, value: Any) -> dict[str, Any]:
    seen = copy.deepcopy(HEALTHY)
    where: Any = seen
    *keys, last = path.split("/")
    for key in keys:
        where = where[int(key) if isinstance(where, list) else key]
    where[last] = value
    return seen


def test_a_healthy_h100_has_no_finding_and_says_each_row() -> None:
    checks = checks_of(HEALTHY)
    assert bad(checks) == []
    assert {check.prerequisite for check in checks} >= {
        "P42",
        "P45",
        "P47",
        "P48",
        "P50",
        "P52",
        "P53",
        "P54",
        "P63",
        "P64",
    }


@pytest.mark.parametrize(
    ("path", "value", "cause"),
    [
        ("dlopen", {"error": "libcuda.so.1: cannot open shared object file: No such file"}, "driver.libcuda.missing"),
        ("dlopen", {"error": "libcuda.so.1: wrong ELF class: ELFCLASS32"}, "driver.libcuda.unloadable"),
        (
            "dlopen",
            {"error": "/x/libcuda.so.1: cannot open shared object file: Permission denied"},
            "driver.libcuda.unloadable",
        ),
        ("dlopen", {"error": "/x/libcuda.so.1: cannot read file data: Is a directory"}, "driver.libcuda.directory"),
        ("library", {"path": "/usr/local/cuda/lib64/stubs/libcuda.so", "version": None}, "driver.libcuda.stub"),
        ("library", {"path": "/x/libcuda.so.535.1.2", "version": "535.1.2"}, "driver.libcuda.copied"),
        ("library", {"path": "/opt/vgpu/libcuda.so.1", "version": None}, "driver.libcuda.unversioned"),
        ("library", {"path": PATH, "version": "580.159.04", "cuinit_in": "/opt/shim.so"}, "driver.shim.present"),
        ("cuInit", {"missing": "cuInit"}, "driver.libcuda.no_cuinit"),
        ("cuDeviceGetCount", {"rc": 0, "count": 0}, "driver.count.zero"),
        ("cuDeviceGetCount", {"rc": 0, "count": 17}, "driver.count.too_many"),
        ("cuDeviceGetCount", {"rc": 999, "count": -1}, "driver.count.error"),
        ("gpus/0/granularity", {"rc": 801, "bytes": 0}, "driver.granularity.error"),
        ("gpus/0/work/cuDevicePrimaryCtxRetain", {"rc": 46}, "driver.context.busy"),
        ("gpus/0/work/cuDevicePrimaryCtxRetain", {"rc": 2}, "driver.context.error"),
        ("gpus/0/work/cuModuleLoadData", {"rc": 221}, "driver.kernel.jit_missing"),
        ("gpus/0/work/cuModuleLoadData", {"rc": 209}, "driver.kernel.error"),
        ("gpus/0/work/cuCtxSynchronize", {"rc": 700}, "driver.kernel.error"),
        ("gpus/0/work/copy_right", False, "driver.copy.wrong"),
        ("gpus/0/work/kernel_right", False, "driver.kernel.wrong"),
        ("gpus/0/work/managed_right", False, "driver.managed.wrong"),
        ("gpus/0/work/cuMemAllocManaged", {"rc": 801}, "driver.managed.error"),
        ("gpus/0/memory", {"free": 0, "total": 0}, "driver.memory.zero"),
        ("gpus/0/memory", {"free": 1 << 20, "total": 85017624576}, "driver.memory.full"),
        ("gpus/0/calls/cuDeviceGetName", {"rc": 999}, "driver.device.error"),
    ],
)
def test_each_fault_has_its_cause(path: str, value: Any, cause: str) -> None:
    assert bad(checks_of(changed(path, value))) == [cause]


@pytest.mark.parametrize("code", [1, 2, 3, 34, 35, 46, 100, 101, 304, 800, 801, 802, 803, 804, 805, 999, 12345])
def test_each_code_of_cuinit_blocks_with_a_cause_of_its_own(code: int) -> None:
    seen = {**HEALTHY, "cuInit": {"rc": code}}
    causes = bad(checks_of(seen))
    known = f"driver.cuinit.{code}"
    assert (known if known in catalogue.causes() else "driver.cuinit.error") in causes


def test_cuinit_is_slow_over_3_s_and_too_slow_over_30_s() -> None:
    assert bad(checks_of(HEALTHY, seconds=3.5)) == ["driver.cuinit.slow"]
    assert bad(checks_of(HEALTHY, seconds=30.5)) == ["driver.cuinit.too_slow"]


def test_another_version_of_user_space_is_named_when_cuinit_refuses() -> None:
    seen = {**HEALTHY, "cuInit": {"rc": 803}}
    assert "driver.libcuda.other_version" in bad(checks_of(seen, module="535.1.2"))


def test_a_gpu_in_use_gets_no_context_and_no_block() -> None:
    seen = copy.deepcopy(HEALTHY)
    del seen["gpus"][0]["work"]
    seen["gpus"][0]["in_use_by"] = [4711]
    checks = checks_of(seen)
    assert bad(checks) == []
    assert {check.prerequisite for check in checks if check.outcome is CheckOutcome.UNKNOWN} == {
        "P50",
        "P52",
        "P53",
        "P54",
    }
    assert any("4711" in check.reason for check in checks)


def test_the_plan_leaves_busy_gpus_alone_unless_told() -> None:
    prior = {"nvml": record("nvml", Outcome.PASSED, facts={"in_use": {"0000:00:06.0": [1]}})}
    for allow, busy in ((False, {"0000:00:06.0": [1]}), (True, {})):
        planned = driver.plan(context(allow_busy=allow), prior, {})
        assert planned is not None
        assert planned[1].request["busy"] == busy
        assert planned[1].env["CUDA_CACHE_DISABLE"] == "1"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rc", "count", "pci", "work"]), inner),
    max_leaves=8,
)


@given(path=st.sampled_from([key for key in HEALTHY if key != "gpus"]), value=JSON)
def test_an_answer_of_any_shape_is_judged_or_is_our_error_but_never_a_silent_pass(path: str, value: Any) -> None:
    seen = changed(path, value)
    try:
        checks = checks_of(seen)
    except (TypeError, AttributeError, KeyError, ValueError):
        return  # the engine turns this into probe_error
    if path == "cuInit" and (not isinstance(value, dict) or value.get("rc") != 0):
        assert not any(check.prerequisite == "P42" and check.outcome is CheckOutcome.PASSED for check in checks)
