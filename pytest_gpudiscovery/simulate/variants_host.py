"""Healthy variants of what the kernel shows: other devices on the bus, containers, masks, old messages, processes.

None of them is a fault: each was seen on hosts whose GPUs work, and the gate must not block for it.
"""

from __future__ import annotations

from typing import Any

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_healthy as y
from pytest_gpudiscovery.simulate import changes_host as h
from pytest_gpudiscovery.simulate.fault import TWO_GPUS, Fault, host_view
from pytest_gpudiscovery.simulate.world import PROC, World

NVIDIA, AMD, ASPEED = 0x10DE, 0x1002, 0x1A03
VGA, DISPLAY_3D, AUDIO, BRIDGE = 0x030000, 0x030200, 0x040300, 0x068000
DAY = 86400.0
Row = tuple[Any, ...]  # name, text, changes


def faults() -> list[Fault]:
    """Return the variants of this table."""
    return [healthy(*row) for row in (*_bus(), *_containers(), *_log(), *_processes(), *_module())] + [
        _given("given", "a container that was given only the GPU with minor VALUE; the others are hidden", masked=True),
        _given("given_nodes", "the same, by its device nodes alone: /proc names every GPU", masked=False),
    ]


def healthy(name: str, text: str, *changes: c.Change) -> Fault:
    """Return a variant called variant.NAME."""
    return host_view(f"variant.{name}", f"{text} (healthy)", *changes)


def _given(name: str, text: str, *, masked: bool) -> Fault:
    return host_view(f"variant.{name}", f"{text} (healthy)", y.given(masked=masked), value="1", needs=TWO_GPUS)


def _bus() -> list[Row]:
    def gpu(address: str, driver: str, **more: str) -> c.Change:
        return y.function(address, vendor=NVIDIA, device=0x2330, kind=DISPLAY_3D, driver=driver, **more)

    return [
        ("bus.vfio", "a second H100 is bound to vfio-pci, for a virtual machine", gpu("0000:81:00.0", "vfio-pci")),
        (
            "bus.virtual",
            "SR-IOV is on: virtual functions of the GPU, some of them given away",
            *(gpu(f"0000:81:00.{n}", "vfio-pci" if n < 3 else "", parent="0000:00:06.0") for n in (1, 2, 3, 4)),
        ),
        (
            "bus.others",
            "an AMD GPU, a BMC's VGA, an NVIDIA audio function and an NVSwitch are on the bus as well",
            y.function("0000:81:00.0", vendor=AMD, device=0x744C, kind=VGA, driver="amdgpu"),
            y.function("0000:82:00.0", vendor=ASPEED, device=0x2000, kind=VGA, driver="ast"),
            y.function("0000:83:00.1", vendor=NVIDIA, device=0x22BA, kind=AUDIO, driver="snd_hda_intel"),
            y.function("0000:84:00.0", vendor=NVIDIA, device=0x22A3, kind=BRIDGE, driver="nvidia-nvswitch"),
        ),
        # the address of a GPU of Azure's NC H100 v5; behind an Intel VMD the domain has five digits
        ("bus.domain", "the GPU is in PCI domain 1, as on a cloud's virtual machine", _at("0001:00:00.0")),
        ("bus.long_domain", "the GPU is in PCI domain 10000, behind an Intel VMD", _at("10000:01:00.0")),
        ("bus.display_gpu", "a small display GPU of another model stands beside", y.display_gpu),
    ]


def _at(address: str) -> c.Change:
    return lambda world, _: y.moved(world, address)


def _containers() -> list[Row]:
    return [
        ("no_uvm_tools", "a container without /dev/nvidia-uvm-tools", y.absent("/dev/nvidia-uvm-tools"), _docker),
        ("wsl", "a WSL machine: /dev/dxg and nothing else of the driver in /dev, /proc and /sys", y.wsl),
        ("preload_comment", "/etc/ld.so.preload holds a comment only", y.text("/etc/ld.so.preload", "# nothing\n\n")),
        ("no_caps", "a container without /dev/nvidia-caps", y.absent("/dev/nvidia-caps"), _docker),
        ("proc_masked", "/proc/driver/nvidia is hidden", y.masked(PROC)),
        ("proc_masked_all", "/proc/driver and /proc/modules are hidden", *_proc_masks()),
        ("sysfs_masked", "/sys/bus and /sys/module are hidden", y.masked("/sys/bus", "/sys/module")),
        ("cgroup_hidden", "/sys/fs/cgroup is not mounted", y.absent("/sys/fs/cgroup")),
        ("no_shm", "a container without /dev/shm", y.absent("/dev/shm")),  # noqa: S108 - a path of the simulated host
        ("cgroup_v1", "cgroup v1, with a limit of memory that is no limit", *_cgroup_v1()),
        ("cgroup_limits", "a pod's limits: 64 GiB, 4 CPUs, 4096 tasks", *_cgroup_limits()),
        ("group", "the nodes are 0660 for the group that the caller is in", h.node("all", mode=0o660, gid=65534)),
    ]


def _docker(world: World, _: str) -> None:
    world.text("/.dockerenv", "")


def _proc_masks() -> tuple[c.Change, ...]:
    return (y.masked("/proc/driver"), y.absent("/proc/modules"))


def _cgroup_v1() -> tuple[c.Change, ...]:
    at, path = "/sys/fs/cgroup", "/docker/0123456789ab"
    names = ("devices", "memory", "pids", "cpu,cpuacct", "freezer")
    lines = [f"{12 - number}:{name}:{path}\n" for number, name in enumerate(names)]
    return (
        y.absent(at),
        y.text("/proc/self/cgroup", "".join([*lines, f"1:name=systemd:{path}\n", "0::/\n"])),
        y.text(f"{at}/memory{path}/memory.limit_in_bytes", "9223372036854771712\n"),
        y.text(f"{at}/memory{path}/memory.usage_in_bytes", "123456789\n"),
        y.text(f"{at}/pids{path}/pids.max", "max\n"),
        y.text(f"{at}/devices{path}/devices.list", "c 195:* rw\nc 238:* rw\n"),
    )


def _cgroup_limits() -> tuple[c.Change, ...]:
    at, path = "/sys/fs/cgroup", "/kubepods.slice/kubepods-pod1.slice/cri-containerd-1.scope"
    limits = {"memory.max": 64 << 30, "memory.current": 9 << 30, "pids.max": 4096, "pids.current": 120}
    return (
        y.text("/proc/self/cgroup", f"0::{path}\n"),
        *(y.text(f"{at}{path}/{name}", f"{value}\n") for name, value in limits.items()),
        y.text(f"{at}{path}/cpu.max", "400000 100000\n"),
        y.text(f"{at}{path}/cpu.stat", "usage_usec 1\nthrottled_usec 52000000\n"),
        y.text("/run/secrets/kubernetes.io/serviceaccount/token", "x"),
    )


def _log() -> list[Row]:
    xid = "NVRM: Xid (PCI:{pci}): "
    old = [
        h.log(f"{xid}13, pid=4243, name=python3, Graphics SM Warp Exception on (GPC 0, TPC 0, SM 0)", age=3 * DAY),
        h.log(f"{xid}31, pid=4243, name=python3, Ch 00000008, MMU Fault", age=2.5 * DAY),
        h.log(f"{xid}43, pid=4243, name=python3, Ch 00000008", age=2 * DAY),
        h.log(f"{xid}45, pid=4243, name=python3, Ch 00000008", age=2 * DAY),
    ]
    recovery = f"{xid}154, pid='<unknown>', name=<unknown>, GPU recovery action changed from "
    return [
        ("log.old_xids", "application Xids 13, 31, 43 and 45 of days ago", *old),
        (
            "log.recovered",
            "Xid 119 of a day ago, and the reset that ended it (Xid 154: none)",
            h.log(f"{xid}119, pid=4243, name=ollama, Timeout after 6s of waiting for RPC response from GPU0", age=DAY),
            h.log(f"{recovery}0x0 (None) to 0x1 (GPU Reset Required)", age=DAY - 1),
            h.log(f"{recovery}0x1 (GPU Reset Required) to 0x0 (None)", age=DAY - 600),
        ),
        (
            "log.reset_unsaid",
            "Xid 95 of two days ago, and a reset of which this driver logs nothing",
            h.log(f"{xid}95, pid='<unknown>', name=<unknown>, Uncontained: LTC TAG (0x2,0x0)", age=2 * DAY),
        ),
        (
            "log.chatter",
            "the driver's usual lines: another container's old user space, AppArmor, modeset",
            h.log("NVRM: API mismatch: the client has the version 550.54.15, but this kernel module has", age=900),
            h.log("nvidia-modeset: WARNING: GPU:0: Unable to read EDID for display device DP-0", age=800),
            h.log('audit: type=1400 apparmor="DENIED" operation="open" name="/dev/nvidia-modeset"', age=700),
            h.log("nvidia-uvm: Loaded the UVM driver, major device number 238.", age=600),
            h.log("NVRM: GPU at PCI:{pci}: GPU-00000000-0000-4000-8000-000000000000", age=500),
        ),
        ("log.wrapped", "the kernel log no longer has the driver's load", y.text("/dev/kmsg", "")),
        (
            "log.resumed",
            "a workstation woke up this morning; the driver preserves video memory",
            h.log("PM: suspend exit", age=3600),
            y.replaced(f"{PROC}/params", "PreserveVideoMemoryAllocations: 0", "PreserveVideoMemoryAllocations: 1"),
        ),
    ]


def _processes() -> list[Row]:
    used = c.gpus(processes="4343:64424509440", memory__used="64424509440")
    return [
        (
            "processes.bystanders",
            "a zombie and a process in state D that have nothing of the driver open",
            y.bystander(5001, "sh", "Z"),
            y.bystander(5002, "rsync", "D", "rpc_wait_bit_killable"),
        ),
        ("processes.training", "a training job computes on the GPU", used, h.process(4343, "python3")),
        (
            "processes.loading",
            "a training job waits for its data: state D in the page cache",
            used,
            h.process(4343, "python3", state="D", wchan="folio_wait_bit_common"),
        ),
        (
            "processes.desktop",
            "a display server and a monitoring agent hold the nodes",
            h.process(900, "Xorg", exe="/usr/lib/xorg/Xorg"),
            h.process(901, "nv-hostengine"),
            h.process(902, "nvidia-persiste"),
        ),
    ]


def _module() -> list[Row]:
    return [
        ("module.proprietary", "the proprietary kernel module instead of the open one", _proprietary),
        (
            "module.modeset",
            "nvidia_drm and nvidia_modeset are loaded, /dev/nvidia-modeset is there",
            y.replaced("/proc/modules", "", "nvidia_modeset 1568768 1 nvidia_drm, Live 0x0000000000000000 (O)\n"),
            y.character("/dev/nvidia-modeset", 195, 254),
        ),
        (
            "module.no_modify",
            "ModifyDeviceFiles is 0: nobody makes nodes at the first use",
            y.replaced(f"{PROC}/params", "ModifyDeviceFiles: 1", "ModifyDeviceFiles: 0"),
        ),
        (
            "module.never_initialised",
            "no process has opened the GPU yet: /proc shows a UUID of question marks",
            _unknown,
        ),
        (
            "module.nvlink_on",
            "NVLink is on, and this GPU is in no fabric",
            y.replaced(f"{PROC}/params", "NvLinkDisable: 1", "NvLinkDisable: 0"),
        ),
    ]


def _proprietary(world: World, _: str) -> None:
    version = world.version
    line = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue May 27 03:12:02 UTC 2025\n"
    world.text(f"{PROC}/version", line + "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n")


def _unknown(world: World, _: str) -> None:
    path = f"{PROC}/gpus/{world.pci(0)}/information"
    hidden = "GPU-????????-????-????-????-????????????"
    world.text(path, str(world.entries[path]["text"]).replace(world.conf["gpu.0.uuid"], hidden))
