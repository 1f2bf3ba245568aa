"""Faults that never come back, or end the process: each place of the native path, each way to be stuck."""

from __future__ import annotations

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate.fault import Fault, answers, library
from pytest_gpudiscovery.simulate.world import File

# Place in a fault's name -> the function, or constructor, whose actions are set.
PLACES = {
    "ctor": "constructor.libcuda",
    "nvmlctor": "constructor.libnvidia-ml",
    "cudartctor": "constructor.libcudart",
    "cuinit": "cuInit",
    "count": "cuDeviceGetCount",
    "device": "cuDeviceGetAttribute",
    "granularity": "cuMemGetAllocationGranularity",
    "context": "cuDevicePrimaryCtxRetain",
    "memcpy": "cuMemcpyHtoD_v2",
    "kernel": "cuCtxSynchronize",
    "managed": "cuMemAllocManaged",
    "nvmlinit": "nvmlInit",
    "nvmlcount": "nvmlDeviceGetCount",
    "nvmlmemory": "nvmlDeviceGetMemoryInfo",
    "runtime": "cudaGetDeviceCount",
    "properties": "cudaGetDeviceProperties",
}
HANGS = {
    "sleep": "sleeps",
    "futex": "waits for its own lock",
    "spin": "burns a CPU",
    "signals": "sleeps with every signal blocked",
    "poll": "polls a pipe that nobody writes to",
}
DEATHS = {"segv": "segv", "abort": "abort", "exit0": "exit 0", "exit3": "exit 3"}


def faults() -> list[Fault]:
    """Return the faults of this table."""
    found = []
    for place, function in PLACES.items():
        found += [
            answers(f"hang.{place}.{kind}", f"{function} {text} for ever", c.act(function, f"hang {kind}"))
            for kind, text in HANGS.items()
        ]
        path = f"{function} opens VALUE.PID, a path on a frozen or mute file system: state D"
        found.append(
            answers(f"hang.{place}.path", path, c.act(function, "hang path {value}"), value="", needs=("value", "root"))
        )
    for place in ("ctor", "nvmlctor", "cuinit", "context", "kernel", "nvmlinit", "nvmlmemory", "runtime", "properties"):
        function = PLACES[place]
        found += [
            answers(f"crash.{place}.{kind}", f"{function} ends the process: {action}", c.act(function, action))
            for kind, action in DEATHS.items()
        ]
    for soname, name in (("libcuda", "libcuda"), ("libnvidia-ml", "nvml"), ("libcudart", "cudart")):
        fifo = f"the file of {soname} is a FIFO: dlopen waits for a writer"
        found.append(library(f"hang.dlopen.{name}", fifo, c.replace(soname, File("fifo"))))
    return found
