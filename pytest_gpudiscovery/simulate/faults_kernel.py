"""Faults on the kernel's side: modules, device nodes, the kernel log, stuck processes."""

from __future__ import annotations

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_host as h
from pytest_gpudiscovery.simulate.changes import Change
from pytest_gpudiscovery.simulate.fault import NO_REAL, UNPRIVILEGED, Fault, host_view
from pytest_gpudiscovery.simulate.world import World

NO_DRIVER = (NO_REAL + "libcuda.so.1", NO_REAL + "libnvidia-ml.so.1")
# Xid -> the rest of its line in the kernel log
XIDS = {
    13: "pid=4243, name=python3, Graphics SM Warp Exception on (GPC 0, TPC 0, SM 0): Out Of Range Address",
    31: "pid=4243, name=python3, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_0 faulted",
    43: "pid=4243, name=python3, Ch 00000008",
    45: "pid=4243, name=python3, Ch 00000008",
    48: "pid='<unknown>', name=<unknown>, An uncorrectable double bit error (DBE) has been detected on GPU",
    62: "pid='<unknown>', name=<unknown>, 1d07 2a30 00000000",
    63: "pid='<unknown>', name=<unknown>, Row Remapper: New row marked for remapping, reset gpu to activate.",
    64: "pid='<unknown>', name=<unknown>, Row Remapper: All reserved rows for bank are remapped",
    74: "pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 4(0x0, 0x0, 0x10000, 0x0, 0x0)",
    79: "pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    94: "pid=4243, name=python3, Contained: SM (0x1). RST: No, D-RST: No",
    95: "pid='<unknown>', name=<unknown>, Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No",
    109: "pid=4243, name=python3, Ch 00000008, errorString CTX SWITCH TIMEOUT, Info 0x4c000",
    119: "pid=4243, name=ollama, Timeout after 6s of waiting for RPC response from GPU0 GSP! Expected function 76",
    120: "pid='<unknown>', name=<unknown>, GSP task exception: store access page fault",
    140: "pid='<unknown>', name=<unknown>, An uncorrectable ECC error detected (possible firmware handling failure)",
    154: "pid='<unknown>', name=<unknown>, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
}
NODES = ("nvidia0", "nvidiactl", "nvidia-uvm", "all")


def faults() -> list[Fault]:
    """Return the faults of this table."""
    found = [
        host_view(
            "kernel.module.missing", "no NVIDIA kernel module is loaded; the user space is there", h.remove_module
        ),
        host_view("kernel.module.nouveau", "nouveau holds the GPU", h.other_module("nouveau")),
        host_view("kernel.module.vfio", "vfio-pci holds the GPU", h.other_module("vfio_pci")),
        host_view(
            "kernel.module.version",
            "the loaded module is of version VALUE, the user space is newer: 803 and 18",
            h.module_version,
            value="570.195.03",
        ),
        host_view("kernel.uvm.missing", "nvidia_uvm is not loaded", h.remove_uvm),
        host_view(
            "kernel.gsp.timeout",
            "GSP answers no RPC (Xid 119, then 154); cuInit hangs",
            h.log(_xid(119)),
            h.log(_xid(154), age=50),
            c.act("cuInit", "hang sleep"),
            c.act("nvmlInit", "hang sleep"),
        ),
        host_view(
            "kernel.gsp.failed",
            "the GSP firmware could not be started",
            h.log("NVRM: GPU {pci}.0: RmInitAdapter failed! (0x62:0x40:2028)"),
            h.log("NVRM: _kgspBootGspRm: unexpected WPR2 already up, cannot proceed with booting GSP"),
            h.node("nvidia0", open="EIO"),
            c.act("cuInit", "return 100"),
            c.conf(nvml__reported_count="0"),
        ),
        host_view(
            "kernel.gpu.fallen",
            "the GPU has fallen off the bus",
            h.log(_xid(79)),
            h.log("NVRM: GPU {pci}.0: GPU has fallen off the bus."),
            h.fallen,
            c.act("cuInit", "return 100"),
            c.act("nvmlDeviceGetHandleByIndex", "return 15"),
        ),
        host_view(
            "kernel.gpu.excluded",
            "the module excludes the GPU",
            _excluded,
            h.node("nvidia0", open="EPERM"),
        ),
        host_view(
            "kernel.gpu.unbound",
            "no driver is bound to the GPU",
            _unbound,
            h.node("nvidia0", open="ENODEV"),
        ),
        host_view(
            "kernel.resumed",
            "the machine was suspended since the driver was loaded; cuInit answers 999",
            h.log("PM: suspend exit", age=600),
            c.act("cuInit", "return 999"),
        ),
        host_view("kernel.log.restricted", "nobody may read the kernel log", h.log_restricted),
        host_view(
            "kernel.process.stuck",
            "a killed Ollama (pid 4243) in state D holds /dev/nvidia0",
            h.process(4243, "ollama", state="D", wchan="rwsem_down_write_slowpath", exe="/usr/local/bin/ollama"),
        ),
        host_view(
            "kernel.container.no_gpus",
            "a container that was started without GPUs",
            h.container,
            needs=(NO_REAL + "libcuda.so.1", NO_REAL + "libnvidia-ml.so.1"),
        ),
        host_view("kernel.modprobe.setuid", "a setuid nvidia-modprobe is installed", _modprobe),
    ]
    found += [
        host_view(f"kernel.xid.{code}", f"Xid {code}, VALUE seconds ago", _aged(code), value="60") for code in XIDS
    ]
    found += [
        host_view(
            f"kernel.xid.{code}.before_load", f"Xid {code} before the driver was last loaded", h.log(_xid(code), at=0.3)
        )
        for code in (48, 79, 119)
    ]
    for which in NODES:
        where = "every node" if which == "all" else f"/dev/{which}"
        found += [
            host_view(f"node.missing.{which}", f"{where} is missing", h.no_node(which)),
            host_view(f"node.major.{which}", f"{where} has the wrong major", h.node(which, major=511)),
            host_view(f"node.file.{which}", f"{where} is a regular file", h.file_for_node(which)),
            host_view(f"node.0600.{which}", f"{where} has mode 0600", h.node(which, mode=0o600), needs=UNPRIVILEGED),
            host_view(f"node.0444.{which}", f"{where} has mode 0444", h.node(which, mode=0o444), needs=UNPRIVILEGED),
            host_view(
                f"node.0660.{which}",
                f"{where} is for group 44 only",
                h.node(which, mode=0o660, gid=44),
                needs=UNPRIVILEGED,
            ),
            host_view(f"node.cgroup.{which}", f"the device cgroup forbids {where}", h.node(which, open="EPERM")),
            host_view(
                f"node.lsm.{which}",
                f"a security module forbids {where}: EACCES in spite of its mode",
                h.node(which, open="EACCES"),
            ),
            host_view(f"node.eio.{which}", f"opening {where} gives EIO", h.node(which, open="EIO")),
        ]
    found += [
        host_view("node.minor.nvidia0", "/dev/nvidia0 has the wrong minor", h.node("nvidia0", minor=9)),
        host_view("node.nodev", "/dev is mounted nodev", h.nodev),
    ]
    return found


def _xid(code: int) -> str:
    return f"NVRM: Xid (PCI:{{pci}}): {code}, {XIDS[code]}"


def _aged(code: int) -> Change:
    return lambda world, value: h.log(_xid(code), age=c.number(value, 0, world.uptime))(world, value)


def _excluded(world: World, _: str) -> None:
    path = f"/proc/driver/nvidia/gpus/{world.pci(0)}/information"
    text = str(world.entries[path]["text"])
    world.text(path, text.replace("GPU Excluded:\t No", "GPU Excluded:\t Yes"))


def _unbound(world: World, _: str) -> None:
    pci = world.pci(0)
    world.drop(world.resolve(f"/sys/bus/pci/devices/{pci}") + "/driver", f"/proc/driver/nvidia/gpus/{pci}")


def _modprobe(world: World, _: str) -> None:
    world.text("/usr/bin/nvidia-modprobe", "", 0o4755)
    world.conf["modprobe.setuid"] = "1"
