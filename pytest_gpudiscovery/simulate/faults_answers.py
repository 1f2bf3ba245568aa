"""Faults in what the driver API, NVML and the runtime answer: codes, slowness, wrong results."""

from __future__ import annotations

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.fault import Fault, answers
from pytest_gpudiscovery.simulate.faults_hang import PLACES
from pytest_gpudiscovery.simulate.world import World

CUDA_CODES = {
    1: "invalid argument",
    2: "out of memory",
    3: "initialization error",
    34: "stub library",
    35: "driver older than the runtime",
    36: "call needs a newer driver",
    46: "device unavailable",
    100: "no device",
    101: "invalid device ordinal",
    201: "invalid context",
    209: "no kernel image",
    214: "uncorrectable ECC error",
    304: "operating system call failed",
    800: "not permitted",
    801: "not supported",
    802: "system not yet initialized (fabric manager)",
    803: "user space and kernel module differ",
    804: "forward compatibility not supported",
    805: "no connection to MPS",
    999: "unknown error",
}
NVML_CODES = {
    1: "uninitialized",
    2: "invalid argument",
    3: "not supported",
    4: "no permission",
    8: "external power missing",
    9: "driver not loaded",
    10: "timeout",
    11: "interrupt problem",
    12: "library not found",
    13: "function not found",
    14: "corrupted infoROM",
    15: "GPU is lost",
    16: "reset required",
    17: "operating system blocked the request",
    18: "library and kernel module differ",
    20: "out of memory",
    27: "system not ready",
    28: "no GPU found",
    999: "unknown error",
}


def faults() -> list[Fault]:
    """Return the faults of this table."""
    return [*_codes(), *_others()]


def _codes() -> list[Fault]:
    found = [
        answers(f"driver.cuinit.{code}", f"cuInit answers {code}: {text}", c.act("cuInit", f"return {code}"))
        for code, text in CUDA_CODES.items()
    ]
    for place, codes in {
        "context": (2, 3, 46, 101, 214, 304, 801, 802, 999),
        "count": (3, 100, 999),
        "device": (1, 101, 999),
        "granularity": (1, 801),
        "managed": (2, 801, 999),
        "memcpy": (1, 700, 719, 999),
        "kernel": (209, 700, 702, 719),
        "runtime": (2, 3, 35, 46, 100, 802, 999),
        "properties": (1, 101, 999),
    }.items():
        function, where = PLACES[place], "runtime" if place in ("runtime", "properties") else "driver"
        name = "count" if place == "runtime" else place
        found += [
            answers(f"{where}.{name}.{code}", f"{function} answers {code}", c.act(function, f"return {code}"))
            for code in codes
        ]
    found += [
        answers(
            f"driver.module.{code}", f"cuModuleLoadData answers {code}", c.act("cuModuleLoadData", f"return {code}")
        )
        for code in (209, 218, 221, 222)
    ]
    found += [
        answers(f"nvml.init.{code}", f"nvmlInit_v2 answers {code}: {text}", c.act("nvmlInit", f"return {code}"))
        for code, text in NVML_CODES.items()
    ]
    for name, function, codes in (
        ("count", "nvmlDeviceGetCount", (9, 15, 999)),
        ("handle", "nvmlDeviceGetHandleByIndex", (2, 15, 16, 999)),
        ("uuid", "nvmlDeviceGetHandleByUUID", (2, 6)),
        ("memory", "nvmlDeviceGetMemoryInfo", (3, 15, 999)),
    ):
        found += [
            answers(f"nvml.{name}.{code}", f"{function} answers {code}", c.act(function, f"return {code}"))
            for code in codes
        ]
    return found


def _others() -> list[Fault]:
    return [
        answers(
            "driver.cuinit.slow",
            "cuInit takes VALUE seconds, then succeeds",
            c.act("cuInit", "sleep {value}"),
            value="3.5",
        ),
        answers(
            "driver.cuinit.too_slow",
            "cuInit takes VALUE seconds (over Ollama's 30), then succeeds",
            c.act("cuInit", "sleep {value}"),
            value="31",
        ),
        answers(
            "driver.cuinit.802_after",
            "cuInit answers 802 after VALUE seconds, as without a fabric manager",
            c.act("cuInit", "sleep {value}; return 802"),
            value="30",
        ),
        answers(
            "driver.cuinit.grandchild",
            "cuInit forks a process that keeps the pipes open for VALUE seconds",
            c.act("cuInit", "fork {value}"),
            value="60",
        ),
        answers(
            "driver.context.slow",
            "the primary context takes VALUE seconds",
            c.act("cuDevicePrimaryCtxRetain", "sleep {value}"),
            value="4",
        ),
        answers("driver.count.zero", "cuDeviceGetCount says 0 with success", c.conf(cuda__reported_count="0")),
        answers("driver.count.many", "VALUE GPUs (ggml aborts above 16)", c.many_gpus, value="17"),
        answers("driver.vmm.unsupported", "no virtual memory management (attribute 102 is 0)", c.gpus(attr__102="0")),
        answers("driver.copy.wrong", "what is copied back differs by one bit", c.conf(cuda__corrupts_copies="1")),
        answers("driver.kernel.wrong", "the kernel writes wrong numbers", c.conf(cuda__kernel_is_wrong="1")),
        answers("driver.memory.full", "others use all device memory: no context fits (2)", c.leave_free(0)),
        answers("driver.memory.low", "8 MiB of device memory are free", c.leave_free(8)),
        answers("driver.memory.zero", "the device says that it has no memory", c.gpus("cuda", memory__shown="0")),
        answers("nvml.slow", "nvmlInit_v2 takes VALUE seconds", c.act("nvmlInit", "sleep {value}"), value="4"),
        answers(
            "nvml.memory.zero",
            "NVML says that the GPU has no memory",
            c.gpus("nvml", memory__total="0", memory__reserved="0"),
        ),
        answers("nvml.count.zero", "NVML counts no GPU, with success", c.conf(nvml__reported_count="0")),
        answers(
            "runtime.newer_than_driver",
            "the driver speaks CUDA 12.2, the only runtime is libcudart.so.13: 35",
            c.remove("libcudart.so.12"),
            c.conf(driver__cuda="12020", driver__ptx="82"),
        ),
        answers(
            "runtime.layout.other",
            "cudaGetDeviceProperties writes the layout of the other CUDA major",
            _other_layout,
            value="12",
        ),
        answers(
            "runtime.layout.garbage", "cudaGetDeviceProperties succeeds and writes nothing", c.conf(runtime__layout="0")
        ),
    ]


def _other_layout(world: World, value: str) -> None:
    if value not in ("12", "13"):
        raise SimulationError(f"runtime.layout.other={value}: the layout is that of CUDA 12 or 13")
    world.conf["runtime.layout"] = value
