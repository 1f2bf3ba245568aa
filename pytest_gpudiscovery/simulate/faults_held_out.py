"""Faults of the held-out rows of the matrix, of the kernel, the GPU and its driver."""

from __future__ import annotations

import base64

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_host as h
from pytest_gpudiscovery.simulate import changes_ollama as o
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.fault import (
    NO_REAL,
    OLLAMA,
    TWO_GPUS,
    UNPRIVILEGED,
    Fault,
    answers,
    host_view,
    library,
)
from pytest_gpudiscovery.simulate.machines import unload
from pytest_gpudiscovery.simulate.world import PCI, PROC, ROOT, File, World

PARAMS = f"{PROC}/params"
# Place in a fault's name -> the call that is stuck; of none of them another table has a hang.
STUCK = {
    "copyback.flock": ("cuMemcpyDtoH_v2", "waits for a lock on a file"),
    "module.futex": ("cuModuleLoadData", "waits for its own lock, in the JIT compiler"),
    "alloc.poll": ("cuMemAlloc_v2", "waits for a pipe"),
    "meminfo.spin": ("cuMemGetInfo_v2", "burns a CPU"),
    "totalmem.sleep": ("cuDeviceTotalMem_v2", "sleeps"),
    "driverversion.poll": ("cuDriverGetVersion", "waits for a pipe"),
    "runtimeversion.spin": ("cudaRuntimeGetVersion", "burns a CPU"),
    "nvmluuid.sleep": ("nvmlDeviceGetHandleByUUID", "sleeps"),
    "fabricinfo.signals": ("nvmlDeviceGetGpuFabricInfoV", "sleeps with every signal blocked"),
    "remappedrows.futex": ("nvmlDeviceGetRemappedRows", "waits for its own lock"),
}
# Place in a fault's name -> the call, the action, the words for it
ENDS = {
    "module.segv": ("cuModuleLoadData", "segv", "makes a bad memory access"),
    "copyback.abort": ("cuMemcpyDtoH_v2", "abort", "calls abort()"),
    "meminfo.exit0": ("cuMemGetInfo_v2", "exit 0", "calls exit(0)"),
    "fabricinfo.segv": ("nvmlDeviceGetGpuFabricInfoV", "segv", "makes a bad memory access"),
    "cuinit.sigsys": ("cuInit", "signal 31", "is ended by SIGSYS, as by a seccomp filter that kills"),
    "nvmlinit.sigbus": ("nvmlInit", "signal 7", "is ended by SIGBUS"),
    "runtimeversion.exit3": ("cudaRuntimeGetVersion", "exit 3", "calls exit(3)"),
}


def faults() -> list[Fault]:
    """Return the faults of this table."""
    return [*_modules(), *_nodes(), *_health(), *_driver(), *_one_gpu(), *_stuck_and_ended()]


# --- the kernel's side -----------------------------------------------------------------------------------------------


def _modules() -> list[Fault]:
    return [
        host_view(
            "kernel.params.modify_off",
            "NVreg_ModifyDeviceFiles=0: udev makes the nodes, the driver does not (healthy)",
            _parameter("ModifyDeviceFiles: 1", "ModifyDeviceFiles: 0"),
        ),
        host_view(
            "kernel.params.device_mode",
            "NVreg_DeviceFileMode=0660 and NVreg_DeviceFileGID=44: the nodes are for group video",
            _parameter("DeviceFileMode: 438", "DeviceFileMode: 432"),
            _parameter("DeviceFileGID: 0", "DeviceFileGID: 44"),
            h.node("all", mode=0o660, gid=44),
            needs=UNPRIVILEGED,
        ),
        host_view(
            "kernel.module.proprietary",
            "the proprietary kernel module with NVreg_EnableGpuFirmware=0: no GSP firmware runs (healthy)",
            _proprietary,
        ),
        host_view(
            "kernel.module.coming", "the module is still being inserted (initstate coming): a race at boot", _coming
        ),
        host_view(
            "kernel.module.unsigned",
            "Secure Boot: the kernel refused the module because of its key",
            h.remove_module,
            h.log("Loading of module with unavailable key is rejected"),
            h.log("Lockdown: modprobe: unsigned module loading is restricted; see man kernel_lockdown.7", age=59),
        ),
        host_view(
            "kernel.gpu.no_bar",
            "a virtual machine without room for BAR1: the module's probe fails and it is not loaded",
            h.remove_module,
            _no_bars,
            h.log("NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:"),
            h.log("NVRM: BAR1 is 0M @ 0x0 (PCI:{pci}.0)", age=59.9),
            h.log("nvidia: probe of {pci}.0 failed with error -1", age=59.8),
            h.log("NVRM: The NVIDIA probe routine failed for 1 device(s).", age=59.7),
            h.log("NVRM: None of the NVIDIA devices were initialized.", age=59.6),
        ),
        host_view(
            "kernel.gpu.d3cold",
            "the GPU does not come back from D3cold: its configuration space reads as all ones",
            _d3cold,
            h.log("nvidia {pci}.0: Unable to change power state from D3cold to D0, device inaccessible"),
            h.log("NVRM: GPU {pci}.0: RmInitAdapter failed! (0x22:0x38:762)", age=59),
            h.node("nvidia0", open="EIO"),
            c.act("cuInit", "return 100"),
            c.conf(nvml__reported_count="0"),
        ),
        host_view(
            "kernel.xid.61",
            "Xid 61, a minute ago: a micro-controller of the GPU stopped at a breakpoint",
            h.log("NVRM: Xid (PCI:{pci}): 61, pid='<unknown>', name=<unknown>, 0cec(3098) 00000000 00000000"),
        ),
        host_view(
            "kernel.xid.foreign_gpu",
            "Xid 79 of a GPU that this host does not show: a container reads the log of the whole machine (healthy)",
            h.log("NVRM: Xid (PCI:0000:b3:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."),
        ),
    ]


def _parameter(old: str, new: str) -> c.Change:
    def change(world: World, _: str) -> None:
        world.text(PARAMS, str(world.entries[PARAMS]["text"]).replace(f"{old}\n", f"{new}\n"))

    return change


def _proprietary(world: World, _: str) -> None:
    name, proprietary = "NVIDIA UNIX Open Kernel Module for x86_64", "NVIDIA UNIX x86_64 Kernel Module"
    for path in (f"{PROC}/version", "/dev/kmsg"):
        world.text(path, str(world.entries[path]["text"]).replace(name, proprietary))
    _parameter("EnableGpuFirmware: 18", "EnableGpuFirmware: 0")(world, "")
    world.set_gpus("gsp.enabled", 0)
    world.set_gpus("gsp.default", 0)
    c.unset(*[f"gpu.{gpu}.gsp.version" for gpu in range(world.gpus)])(world, "")


def _coming(world: World, _: str) -> None:
    unload(world)
    world.text("/sys/module/nvidia/initstate", "coming\n")
    world.text("/proc/modules", "nvidia 14299136 1 - Loading 0x0000000000000000 (O+)\n")


def _no_bars(world: World, _: str) -> None:
    world.text(f"{PCI}/{world.pci(0)}/resource", "0x0000000000000000 0x0000000000000000 0x0000000000000000\n" * 7)


def _d3cold(world: World, _: str) -> None:
    where = world.resolve(f"{PCI}/{world.pci(0)}")
    world.text(f"{where}/power_state", "D3cold\n")
    world.text(f"{where}/power/runtime_status", "error\n")
    world.text(f"{where}/current_link_width", "63\n")
    world.text(f"{where}/current_link_speed", "Unknown\n")
    ones = {"size": 64, "b64": base64.b64encode(b"\xff" * 64).decode()}
    world.entries[f"{where}/config"] = {"type": "file", "mode": 0o644, **ROOT, **ones}


def _nodes() -> list[Fault]:
    return [
        host_view(
            "node.uvm.stale_major",
            "nvidia_uvm was loaded again under another major, the node in the container has the old one",
            _uvm_of_other_major,
        ),
        host_view(
            "node.minor.swapped", "/dev/nvidia0 and /dev/nvidia1 have each other's minor", _swapped, needs=TWO_GPUS
        ),
        host_view(
            "node.directory.nvidia0",
            "/dev/nvidia0 is a directory: a container's bind mount of a node that was not there yet",
            _node_directory,
        ),
        host_view("node.leftover.nvidia1", "/dev/nvidia1 is left of a GPU that was taken out (healthy)", _leftover),
    ]


def _uvm_of_other_major(world: World, _: str) -> None:
    text = str(world.entries["/proc/devices"]["text"])
    world.text("/proc/devices", text.replace("238 nvidia-uvm\n", "511 nvidia-uvm\n"))


def _swapped(world: World, _: str) -> None:
    _two(world)
    h.node("nvidia0", minor=1)(world, "")
    h.node("nvidia1", minor=0)(world, "")


def _node_directory(world: World, _: str) -> None:
    world.entries["/dev/nvidia0"] = {"type": "dir", "mode": 0o755, **ROOT}


def _leftover(world: World, _: str) -> None:
    world.entries["/dev/nvidia1"] = {**world.entries["/dev/nvidia0"], "minor": 1, "open": "ENODEV"}


# --- the GPU and its driver ------------------------------------------------------------------------------------------


def _health() -> list[Fault]:
    return [
        answers(
            "rows.history",
            "rows were remapped once and nothing waits for a reset (healthy)",
            c.gpus(rows__corrected="2", rows__uncorrected="1"),
        ),
        answers(
            "gpu.graphics_process",
            "a display server has 4 MiB of the GPU, no process computes there (healthy)",
            c.gpus(processes__graphics="2101:4194304", memory__used="4194304"),
        ),
        answers(
            "nvml.health_unsupported",
            "NVML knows neither remapped rows nor the recovery action, as in a vGPU guest (healthy)",
            c.act("nvmlDeviceGetRemappedRows", "return 3"),
            c.gpus(field__274="unsupported"),
        ),
        answers(
            "nvml.uuid.slow",
            "NVML takes VALUE seconds to find the GPU by its UUID",
            c.act("nvmlDeviceGetHandleByUUID", "sleep {value}"),
            value="4",
        ),
        answers(
            "gpu.b200",
            "the GPU is a B200 (10.0): of this Ollama only cuda_v13 was compiled for it (healthy)",
            c.renamed("NVIDIA B200", 0x2901, sms=148, memory_mib=183359, bus_bits=8192, cc=(10, 0)),
            c.gpus(architecture="10"),
        ),
    ]


def _driver() -> list[Fault]:
    return [
        answers("driver.launch.719", "cuLaunchKernel answers 719", c.act("cuLaunchKernel", "return 719")),
        answers("driver.alloc.2", "cuMemAlloc_v2 answers 2 in a good context", c.act("cuMemAlloc_v2", "return 2")),
        answers(
            "driver.copyback.214",
            "cuMemcpyDtoH_v2 answers 214: uncorrectable ECC error",
            c.act("cuMemcpyDtoH_v2", "return 214"),
        ),
        answers("driver.name.empty", "CUDA tells an empty name", c.gpus("cuda", name="")),
        library(
            "libcuda.link_loop",
            "libcuda.so.1 and libcuda.so are links to each other",
            _link_loop,
            needs=(NO_REAL + "libcuda.so.1",),
        ),
        library(
            "libcuda.lib32_first",
            "LD_LIBRARY_PATH begins with the 32-bit driver: ld.so passes over it (healthy)",
            _lib32_first,
        ),
    ]


def _link_loop(world: World, _: str) -> None:
    world.files["lib/libcuda.so.1"] = File("link", "libcuda.so")
    world.files["lib/libcuda.so"] = File("link", "libcuda.so.1")


def _lib32_first(world: World, _: str) -> None:
    for name in ("libcuda", "libnvidia-ml"):
        world.files[f"foreign/lib32/{name}.so.{world.version}"] = File("built", name, mangle=c.other_class)
        world.files[f"foreign/lib32/{name}.so.1"] = File("link", f"{name}.so.{world.version}")
    world.library_path.insert(0, "{dir}/foreign/lib32")


def _one_gpu() -> list[Fault]:
    """Faults of the last GPU alone."""
    return [
        answers(
            "nvml.lost.second",
            "NVML says that the last GPU is lost (15), CUDA counts one less",
            _at_last("nvmlDeviceGetHandle", "return 15"),
            c.one_gpu_less("cuda"),
            needs=TWO_GPUS,
        ),
        answers(
            "driver.get.second",
            "cuDeviceGet answers 101 for the last GPU",
            _at_last("cuDeviceGet", "return 101"),
            needs=TWO_GPUS,
        ),
        answers(
            "driver.context.second",
            "the last GPU gives no primary context: 999",
            _at_last("cuDevicePrimaryCtxRetain", "return 999"),
            needs=TWO_GPUS,
        ),
        answers(
            "mig.second_empty",
            "the last GPU is in MIG mode without an instance",
            _last_gpu(**{"mig.current": "1", "mig.pending": "1", "mig.max": "7", "mig.count": "0"}),
            needs=TWO_GPUS,
        ),
        answers(
            "fabric.one_in_progress",
            "the fabric manager is still at work for the last GPU (802 from cuInit)",
            _last_gpu(**{"fabric.state": "2"}),
            c.act("cuInit", "return 802"),
            needs=TWO_GPUS,
        ),
    ]


def _two(world: World) -> None:
    if world.gpus < 2:
        raise SimulationError("this fault needs a host with two GPUs, such as h100x2")


def _at_last(function: str, actions: str) -> c.Change:
    def change(world: World, _: str) -> None:
        _two(world)
        world.conf[f"at.{function}.{world.gpus - 1}"] = actions

    return change


def _last_gpu(**values: str) -> c.Change:
    def change(world: World, _: str) -> None:
        _two(world)
        world.conf |= {f"gpu.{world.gpus - 1}.{key}": value for key, value in values.items()}

    return change


def _stuck_and_ended() -> list[Fault]:
    found = [
        answers(f"hang.{place}", f"{function} {text} for ever", c.act(function, f"hang {place.partition('.')[2]}"))
        for place, (function, text) in STUCK.items()
    ]
    found += [
        answers(f"crash.{place}", f"{function} {text}", c.act(function, actions))
        for place, (function, actions, text) in ENDS.items()
    ]
    return [
        *found,
        answers(
            "hang.nvmlshutdown.sleep",
            "nvmlShutdown sleeps for ever: ggml calls it after each question for memory",
            *o.with_ollama(c.act("nvmlShutdown", "hang sleep")),
            needs=OLLAMA,
        ),
    ]
