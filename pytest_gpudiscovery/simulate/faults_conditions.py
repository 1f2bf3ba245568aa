"""Faults in single answers that the other tables lack: nodes, the log, identities, the runtime, Ollama's children."""

from __future__ import annotations

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_host as h
from pytest_gpudiscovery.simulate import changes_ollama as o
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.fatbin import Code
from pytest_gpudiscovery.simulate.fault import OLLAMA, TWO_GPUS, Fault, answers, host_view, library
from pytest_gpudiscovery.simulate.world import World

NODE_ERRORS = {
    "ENODEV": "is gone for the driver",
    "EBUSY": "is being reset or held by somebody else",
    "ENXIO": "has no driver behind it",
}
WAYS = {
    "spin": "burns a CPU",
    "futex": "waits for a lock",
    "flock": "waits for a lock on a file",
    "poll": "waits for a pipe",
    "sleep": "sleeps",
    "signals": "sleeps with every signal blocked",
}
ZERO_UUID = "GPU-00000000-0000-0000-0000-000000000000"


def faults() -> list[Fault]:
    """Return the faults of this table."""
    return [*_kernel(), *_driver(), *_views(), *_code(), *_children()]


def _kernel() -> list[Fault]:
    found = [
        host_view(
            f"node.{name.lower()}.nvidia0",
            f"open of /dev/nvidia0 answers {name}: it {text}",
            h.node("nvidia0", open=name),
        )
        for name, text in NODE_ERRORS.items()
    ]
    return [
        *found,
        host_view("kernel.gpu.all_ones", "the GPU's registers read as all ones, without a line in the log", h.fallen),
        host_view(
            "kernel.init_failed",
            "the log has a failed initialisation of the GPU from a minute ago; it opens now",
            h.log("NVRM: GPU {pci}.0: RmInitAdapter failed! (0x62:0x40:2028)"),
        ),
    ]


def _driver() -> list[Fault]:
    return [
        answers("driver.get.101", "cuDeviceGet answers 101", c.act("cuDeviceGet", "return 101")),
        answers("driver.name.999", "cuDeviceGetName answers 999", c.act("cuDeviceGetName", "return 999")),
        answers(
            "driver.total_memory.999", "cuDeviceTotalMem_v2 answers 999", c.act("cuDeviceTotalMem_v2", "return 999")
        ),
        answers(
            "driver.context.802_after",
            "the primary context answers 802 after VALUE seconds",
            c.act("cuDevicePrimaryCtxRetain", "sleep {value}; return 802"),
            value="2",
        ),
        answers(
            "runtime.minor_newer",
            "the runtime of cuda_v13 is 13.1, the driver speaks 13.0",
            c.conf(runtime__13="13010"),
        ),
        answers("nvml.memory.no_uuid", "NVML has no UUID for the GPU", c.gpus("nvml", uuid="")),
    ]


def _views() -> list[Fault]:
    return [
        answers("views.uuid_zero", "CUDA tells a UUID of zeros", c.gpus("cuda", uuid=ZERO_UUID)),
        answers("views.memory_garbage", "CUDA tells 4 EiB of memory", c.gpus("cuda", memory__shown=str(1 << 62))),
        answers("views.duplicate", "CUDA tells the first GPU's address for both", _same_address, needs=TWO_GPUS),
        answers(
            "views.count_both",
            "CUDA and NVML both miss the last GPU, which sysfs shows",
            c.one_gpu_less("cuda"),
            c.one_gpu_less("nvml"),
            needs=TWO_GPUS,
        ),
    ]


def _same_address(world: World, _: str) -> None:
    if world.gpus < 2:
        raise SimulationError("views.duplicate needs a host with two GPUs: --gpu-simulate h100x2:views.duplicate")
    for key in ("pci", "attr.33", "attr.34", "attr.50", "uuid"):
        world.conf[f"cuda.gpu.1.{key}"] = world.conf[f"gpu.0.{key}"]


def _code() -> list[Fault]:
    def code(name: str, text: str, found: Code) -> Fault:
        said = f"libggml-cuda has {text}"
        return library(f"code.{name}", said, o.holds(found), value=o.ALL, needs=OLLAMA)

    return [
        code("ptx_too_new", "only PTX of ISA 9.9, which this driver does not know", Code(("compute_90",), (9, 9))),
        code("sm_100_only", "only machine code for compute capability 10.0", Code(("sm_100",), (8, 7))),
    ]


def _children() -> list[Fault]:
    def fault(name: str, text: str, function: str, actions: str) -> Fault:
        return answers(name, text, *o.with_ollama(c.act(function, actions)), needs=OLLAMA)

    found = [
        fault(
            f"runner.loaded.{kind}",
            f"Ollama's runner {text} once it has its libraries",
            "ollama.loaded",
            f"hang {kind}",
        )
        for kind, text in WAYS.items()
    ]
    found += [
        fault("runner.info.sleep", "Ollama's runner sleeps before it opens a library", "ollama.info", "hang sleep"),
        fault(
            "runner.begin.futex", "Ollama's runner waits for a lock before it listens", "ollama.runner", "hang futex"
        ),
        fault("runner.stopped", "Ollama's runner is stopped (SIGSTOP) while it is asked", "ollama.info", "signal 19"),
    ]
    found += [
        fault(f"server.list.{kind}", f"llama-server --list-devices {text}", "llama.list", f"hang {kind}")
        for kind, text in WAYS.items()
        if kind in ("spin", "flock")
    ]
    path = "a path on a frozen or mute file system: state D"
    return [
        *found,
        answers(
            "runner.loaded.path",
            f"Ollama's runner opens VALUE.PID once it has its libraries, {path}",
            *o.with_ollama(c.act("ollama.loaded", "hang path {value}")),
            value="",
            needs=(*OLLAMA, "value", "root"),
        ),
        fault("backend.memory.tiny", "ggml tells 1 MB of device memory", "ggml_backend_dev_memory", "return 1000000"),
        answers(
            "load.slow",
            "the constructor of libggml-cuda takes VALUE seconds, then succeeds",
            *o.with_ollama(c.act("constructor.libggml-cuda.so", "sleep {value}")),
            value="11",
            needs=OLLAMA,
        ),
        fault("runner.segv", "Ollama's runner makes a bad memory access while asked", "ollama.info", "segv"),
        fault("runner.closes", "Ollama's runner ends with status 0 while asked", "ollama.info", "_exit 0"),
    ]
