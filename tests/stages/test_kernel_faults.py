"""04 kernel over recorded hosts, with real supervised probes: one fault at a time, as root and as an ordinary user."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.model import CheckOutcome, Kind, Outcome
from pytest_gpudiscovery.outcome import Conclusion
from pytest_gpudiscovery.stages.kernel import ROWS, SPEC
from pytest_gpudiscovery.supervise.types import Identity, Setup
from tests.stages import hosts

ROOT = "root"
USER = "uid 65534"
NODES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm")
SECOND = "0000:00:07.0"
SECOND_UUID = "GPU-11111111-1111-1111-1111-111111111111"
NODEV = "22 1 0:21 / / rw - overlay overlay rw\n23 22 0:6 / /dev rw,nosuid,nodev - tmpfs tmpfs rw\n"
ARM = base64.b64encode(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x28\x00" + bytes(44)).decode()
MODPROBE = {"/usr/bin/nvidia-modprobe": hosts.file("\x7fELF", 0o4755)}
NO_DRIVER: dict[str, Any] = {
    **dict.fromkeys(NODES),
    "/proc/driver/nvidia/version": None,
    "/proc/driver/nvidia/params": None,
    f"/proc/driver/nvidia/gpus/{hosts.GPU}/information": None,
    "/sys/module/nvidia/initstate": None,
    "/sys/module/nvidia/version": None,
    "/sys/module/nvidia_uvm/initstate": None,
    "/proc/modules": hosts.file("fuse 1 0 - Live 0x0\n"),
    "/proc/devices": hosts.file("Character devices:\n  1 mem\n\nBlock devices:\n  7 loop\n"),
    f"{hosts.PCI}/driver": None,
}
NO_GPU: dict[str, Any] = {
    **NO_DRIVER,
    **dict.fromkeys(path for path in hosts.gpu(hosts.GPU, 0) if path.startswith(hosts.PCI)),
}
NO_UVM: dict[str, Any] = {
    "/dev/nvidia-uvm": None,
    "/sys/module/nvidia_uvm/initstate": None,
    "/proc/modules": hosts.file("nvidia 2 0 - Live 0x0\n"),
    "/proc/devices": hosts.file("Character devices:\n195 nvidia\n195 nvidiactl\n"),
}


def bound_to(driver: str) -> dict[str, Any]:
    """Return the link that says that the GPU is bound to DRIVER."""
    return {f"{hosts.PCI}/driver": {"type": "link", "target": f"../../../bus/pci/drivers/{driver}"}}


def conclude(changes: dict[str, Any], who: str, **context: Any) -> Conclusion:
    """Run the stage over the H100 host with CHANGES as WHO."""
    setup = Setup(identity=Identity(65534, 65534)) if who == USER and os.geteuid() == 0 else Setup()
    return hosts.conclusion(SPEC, hosts.context(hosts.h100(**changes), setup=setup, **context))


def people() -> list[Any]:
    """Return who can be tested: root only by root."""
    return [pytest.param(ROOT, marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")), USER]


@pytest.mark.parametrize("who", people())
def test_a_healthy_host_passes_every_row(who: str) -> None:
    said = conclude({}, who)
    assert said.outcome is Outcome.PASSED
    assert said.summary == "1 GPU, driver 580.159.04 (open module), 3 of 3 nodes open"
    assert {check.prerequisite for check in said.checks} == set(ROWS)
    assert {check.outcome for check in said.checks} == {CheckOutcome.PASSED}
    gpu = said.facts["gpus"][0]
    assert (gpu["pci"], gpu["device_id"], gpu["subsystem"], gpu["driver"], gpu["minor"], gpu["uuid"]) == (
        hosts.GPU,
        "2330",
        "10de:16c1",
        "nvidia",
        0,
        hosts.UUID,
    )
    assert said.facts["module_version"] == hosts.VERSION
    assert said.facts["open_module"] is True
    assert said.facts["nodes"] == dict.fromkeys(NODES, "ok")
    assert [library["version"] for library in said.facts["user_space"]] == [hosts.VERSION] * 3


BLOCKING = [
    # name, changes, who, the causes that fail in any order
    ("no GPU", NO_GPU, USER, {"kernel.pci.none"}),
    ("no GPU", NO_GPU, ROOT, {"kernel.pci.none"}),
    ("no module", NO_DRIVER, ROOT, {"kernel.module.not_loaded", "kernel.pci.unbound"}),
    ("nouveau", {**NO_DRIVER, **bound_to("nouveau")}, USER, {"kernel.module.nouveau", "kernel.pci.unbound"}),
    ("vfio", {**NO_DRIVER, **bound_to("vfio-pci")}, USER, {"kernel.pci.vfio", "kernel.module.not_loaded"}),
    ("no node at all", dict.fromkeys(NODES), USER, {"kernel.node.missing"}),
    ("no nvidia-uvm node", {"/dev/nvidia-uvm": None}, USER, {"kernel.node.missing"}),
    ("no nvidiactl", {"/dev/nvidiactl": None}, USER, {"kernel.node.missing"}),
    ("a file in its place", {"/dev/nvidia0": hosts.file("x", 0o666)}, USER, {"kernel.node.not_char"}),
    ("wrong major", {"/dev/nvidia-uvm": hosts.node(510, 0)}, USER, {"kernel.node.wrong_number"}),
    ("wrong minor", {"/dev/nvidia0": hosts.node(195, 3, open="ENODEV")}, USER, {"kernel.node.wrong_number"}),
    ("stale minor that opens", {"/dev/nvidiactl": hosts.node(195, 3)}, USER, {"kernel.node.wrong_number"}),
    ("nvidia0 0600", {"/dev/nvidia0": hosts.node(195, 0, 0o600)}, USER, {"kernel.node.no_permission"}),
    ("nvidia0 0660", {"/dev/nvidia0": hosts.node(195, 0, 0o660, gid=44)}, USER, {"kernel.node.no_permission"}),
    ("all 0444", {path: hosts.node(195, 0, 0o444) for path in NODES}, USER, {"kernel.node.no_permission"}),
    (
        "nodev",
        {
            "/proc/self/mountinfo": hosts.file(NODEV),
            "/dev/nvidia0": hosts.node(195, 0, open="EACCES"),
            "/dev/nvidiactl": hosts.node(195, 255, open="EACCES"),
            "/dev/nvidia-uvm": hosts.node(238, 0, open="EACCES"),
        },
        USER,
        {"kernel.node.nodev"},
    ),
    ("cgroup", {"/dev/nvidiactl": hosts.node(195, 255, open="EPERM")}, ROOT, {"kernel.node.cgroup_denied"}),
    ("cgroup", {"/dev/nvidiactl": hosts.node(195, 255, open="EPERM")}, USER, {"kernel.node.cgroup_denied"}),
    ("LSM", {"/dev/nvidia-uvm": hosts.node(238, 0, open="EACCES")}, USER, {"kernel.node.lsm_denied"}),
    ("no driver behind uvm", {"/dev/nvidia-uvm": hosts.node(238, 0, open="ENXIO")}, ROOT, {"kernel.node.no_driver"}),
    ("init fails", {"/dev/nvidia0": hosts.node(195, 0, open="EIO")}, ROOT, {"kernel.gpu.init_failed"}),
    ("GPU lost", {"/dev/nvidia0": hosts.node(195, 0, open="ENODEV")}, USER, {"kernel.gpu.gone"}),
    ("GPU reserved", {"/dev/nvidia0": hosts.node(195, 0, open="EBUSY")}, USER, {"kernel.gpu.busy"}),
    ("control node EIO", {"/dev/nvidiactl": hosts.node(195, 255, open="EIO")}, ROOT, {"kernel.node.open_failed"}),
    ("odd errno", {"/dev/nvidiactl": hosts.node(195, 255, open="ENOMEM")}, USER, {"kernel.node.open_failed"}),
    ("uvm module missing", NO_UVM, USER, {"kernel.uvm.not_loaded", "kernel.node.missing"}),
    (
        "no user space",
        {path: None for path in hosts.h100() if path.startswith(hosts.LIBRARIES)},
        USER,
        {"kernel.user_space.missing"},
    ),
    (
        "libcuda for another machine",
        {f"{hosts.LIBRARIES}/libcuda.so.{hosts.VERSION}": {"type": "file", "mode": 0o644, "b64": ARM}},
        USER,
        {"kernel.user_space.unusable"},
    ),
    (
        "libcuda that may not be read",
        {f"{hosts.LIBRARIES}/libcuda.so.{hosts.VERSION}": hosts.file(mode=0o600, size=96_000_000)},
        USER,
        {"kernel.user_space.unusable"},
    ),
    (
        "a dangling libcuda",
        {f"{hosts.LIBRARIES}/libcuda.so.{hosts.VERSION}": None},
        USER,
        {"kernel.user_space.unusable"},
    ),
    (
        "another libcuda",
        {f"{hosts.LIBRARIES}/libcuda.so.1": None, **hosts.library(hosts.LIBRARIES, "libcuda.so", "550.54.14")},
        USER,
        {"kernel.version.mismatch"},
    ),
    (
        "Xid 79",
        {"/dev/kmsg": hosts.kmsg("NVRM: Xid (PCI:0000:00:06): 79, pid='<unknown>', GPU has fallen off the bus.")},
        ROOT,
        {"kernel.xid.fatal"},
    ),
    (
        "off the bus without an Xid",
        {"/dev/kmsg": hosts.kmsg("NVRM: GPU 0000:00:06.0: GPU has fallen off the bus.")},
        ROOT,
        {"kernel.gpu.off_bus"},
    ),
    ("registers are ones", {f"{hosts.PCI}/current_link_width": hosts.file("63\n")}, USER, {"kernel.gpu.off_bus"}),
    (
        "excluded",
        {
            f"/proc/driver/nvidia/gpus/{hosts.GPU}/information": hosts.file("Device Minor: 0\nGPU Excluded:\t Yes\n"),
            "/dev/nvidia0": hosts.node(195, 0, open="EPERM"),
        },
        ROOT,
        {"kernel.gpu.excluded"},
    ),
]


@pytest.mark.parametrize(("name", "changes", "who", "expected"), BLOCKING, ids=[f"{r[0]}-{r[2]}" for r in BLOCKING])
def test_a_blocking_fault_is_named(name: str, changes: dict[str, Any], who: str, expected: set[str]) -> None:
    if who == ROOT and os.geteuid() != 0:
        pytest.skip("needs root")
    said = conclude(changes, who)
    assert set(hosts.causes(said, "failed")) == expected, (name, said.outcome, said.evidence)
    assert said.outcome is Outcome.FAILED
    assert all(check.kind is Kind.BLOCKING for check in said.checks if check.outcome is CheckOutcome.FAILED)


WARNED = [
    ("no node at all", dict.fromkeys(NODES), ROOT, {"kernel.node.missing", "kernel.node.healed_by_root"}),
    (
        "wrong major",
        {"/dev/nvidia-uvm": hosts.node(510, 0)},
        ROOT,
        {"kernel.node.wrong_number", "kernel.node.healed_by_root"},
    ),
    (
        "a file in its place",
        {"/dev/nvidia0": hosts.file("x")},
        ROOT,
        {"kernel.node.not_char", "kernel.node.healed_by_root"},
    ),
    (
        "setuid nvidia-modprobe",
        {"/dev/nvidia0": None, **MODPROBE},
        USER,
        {"kernel.node.missing", "kernel.node.healed_by_modprobe"},
    ),
    ("uvm module missing", {**NO_UVM, **MODPROBE}, USER, {"kernel.uvm.not_loaded", "kernel.node.missing"}),
    (
        "no NVML",
        {f"{hosts.LIBRARIES}/{name}": None for name in ("libnvidia-ml.so.1", f"libnvidia-ml.so.{hosts.VERSION}")},
        USER,
        {"kernel.user_space.no_nvml"},
    ),
    (
        "another NVML",
        {
            f"{hosts.LIBRARIES}/libnvidia-ml.so.1": None,
            **hosts.library(hosts.LIBRARIES, "libnvidia-ml.so", "550.54.14"),
        },
        USER,
        {"kernel.version.nvml_mismatch"},
    ),
    (
        "NVLink error",
        {"/dev/kmsg": hosts.kmsg("NVRM: Xid (PCI:0000:00:06): 74, pid=1, NVLink: fatal error detected on link 4")},
        ROOT,
        {"kernel.xid.hardware"},
    ),
    ("suspended since", {"/dev/kmsg": hosts.kmsg("PM: suspend exit")}, ROOT, {"kernel.resume.since_load"}),
    (
        "initialised at the second try",
        {"/dev/kmsg": hosts.kmsg("NVRM: GPU 0000:00:06.0: RmInitAdapter failed! (0x62:0x65:1792)")},
        ROOT,
        {"kernel.gpu.init_failed_earlier"},
    ),
    (
        "GSP",
        {"/dev/kmsg": hosts.kmsg("NVRM: RmInitAdapter: Cannot initialize GSP firmware RM")},
        ROOT,
        {"kernel.gsp.failed"},
    ),
]


@pytest.mark.parametrize(("name", "changes", "who", "expected"), WARNED, ids=[f"{r[0]}-{r[2]}" for r in WARNED])
def test_what_does_not_stop_discovery_warns(name: str, changes: dict[str, Any], who: str, expected: set[str]) -> None:
    if who == ROOT and os.geteuid() != 0:
        pytest.skip("needs root")
    said = conclude(changes, who)
    assert expected <= set(hosts.causes(said, "warned")), name
    assert hosts.causes(said, "failed") == []
    assert said.outcome is Outcome.WARNED


@pytest.mark.parametrize(
    "changes",
    [
        {"/proc/driver/nvidia/version": None, "/proc/driver/nvidia/params": None},
        {path: None for path in hosts.h100() if path.startswith("/sys/bus/pci")},
        {path: None for path in hosts.h100() if path.startswith(("/sys/bus", "/sys/module"))},
        {f"/proc/driver/nvidia/gpus/{hosts.GPU}/information": None},
        {"/proc/self/mountinfo": None, "/proc/uptime": None, "/proc/sys/kernel/dmesg_restrict": None},
    ],
    ids=["version hidden", "PCI hidden", "sys hidden", "proc gpus hidden", "little things hidden"],
)
def test_hidden_files_do_not_block_a_host_on_which_cuda_works(changes: dict[str, Any]) -> None:
    # Measured on an H100: with /proc/driver or /sys hidden NVML and CUDA go on as before.
    said = conclude(changes, USER)
    assert hosts.causes(said, "failed") == []
    assert said.outcome in (Outcome.PASSED, Outcome.WARNED)


def test_an_unreadable_kernel_log_is_unknown_and_nothing_else() -> None:
    said = conclude({"/dev/kmsg": {"type": "error", "errno": "EPERM"}}, USER)
    log = [check for check in said.checks if check.prerequisite == "P86"]
    assert [(check.outcome, check.kind) for check in log] == [(CheckOutcome.UNKNOWN, Kind.OBSERVABILITY)]
    assert "EPERM" in log[0].reason
    assert said.outcome is Outcome.PASSED


def test_an_old_fatal_xid_before_the_last_driver_load_is_history() -> None:
    kmsg = hosts.kmsg(at=5.0)
    kmsg["text"] = "4,1,1000000,-;NVRM: Xid (PCI:0000:00:06): 79, GPU has fallen off the bus.\n" + kmsg["text"]
    said = conclude({"/dev/kmsg": kmsg}, ROOT if os.geteuid() == 0 else USER)
    assert said.outcome is Outcome.PASSED
    assert said.facts["xids"] == []


def test_an_application_error_is_a_note() -> None:
    line = "NVRM: Xid (PCI:0000:00:06): 31, pid=77, name=python, Ch 00000008, MMU Fault"
    said = conclude({"/dev/kmsg": hosts.kmsg(line, line)}, ROOT if os.geteuid() == 0 else USER)
    assert said.outcome is Outcome.PASSED
    assert hosts.causes(said, "passed") == ["kernel.xid.application"]
    assert [xid["code"] for xid in said.facts["xids"]] == [31, 31]


def test_one_good_gpu_of_two_is_enough_for_the_nodes() -> None:
    two = {**hosts.gpu(SECOND, 1, SECOND_UUID), "/dev/nvidia1": hosts.node(195, 1, 0o600)}
    said = conclude(two, USER)
    assert said.outcome is Outcome.WARNED
    bad = [check for check in said.checks if check.finding is not None]
    assert [(check.subject, check.finding and check.finding.cause) for check in bad] == [
        (f"gpu:{SECOND}", "kernel.node.no_permission")
    ]
    assert len(said.facts["gpus"]) == 2


CONTAINERS = ["/.dockerenv", "/run/.containerenv", "/run/secrets/kubernetes.io/token", "/run/systemd/container"]


@pytest.mark.parametrize("mark", CONTAINERS)
@pytest.mark.parametrize("who", people())
def test_a_gpu_whose_node_a_container_was_not_given_is_no_fault(mark: str, who: str) -> None:
    two = {**hosts.gpu(SECOND, 1, SECOND_UUID), "/dev/nvidia1": None}
    changes = {path: entry for path, entry in two.items() if entry is not None}
    said = conclude({**changes, mark: hosts.file()}, who)
    assert (said.outcome, hosts.causes(said)) == (Outcome.PASSED, [])
    assert [c.subject for c in said.checks if c.outcome is CheckOutcome.NOT_APPLICABLE] == [f"gpu:{SECOND}"]
    assert said.facts["healed_by"] is None
    assert hosts.causes(conclude(changes, USER)) == ["kernel.node.missing"]  # on the host itself it is one


def test_a_gpu_that_was_given_to_a_virtual_machine_is_no_fault() -> None:
    second = {path: entry for path, entry in hosts.gpu(SECOND, 1).items() if path.startswith("/sys")}
    driver = f"/sys/bus/pci/devices/{SECOND}/driver"
    for name, found in (("vfio-pci", []), ("nouveau", ["kernel.module.nouveau", "kernel.pci.unbound"])):
        said = conclude({**second, driver: {"type": "link", "target": f"../../../bus/pci/drivers/{name}"}}, USER)
        assert hosts.causes(said) == found
        assert said.outcome is (Outcome.WARNED if found else Outcome.PASSED)


RESET_DUE = "NVRM: Xid (PCI:0000:00:06): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"


@pytest.mark.parametrize(
    ("changes", "uptime", "failed"),
    [
        ({}, 172_800, False),  # two days ago, and the GPU opens: it may have been reset
        ({}, 7_300, True),  # two hours ago
        ({"/dev/nvidia0": hosts.node(195, 0, open="EIO")}, 172_800, True),
        ({"/dev/kmsg": hosts.kmsg("NVRM: Xid (PCI:0000:00:06): 95, pid=1, Uncontained", RESET_DUE)}, 172_800, True),
    ],
    ids=["long ago", "not so long ago", "does not open", "a reset is still due"],
)
def test_a_fatal_error_of_long_ago_is_left_to_the_driver(changes: dict[str, Any], uptime: int, failed: bool) -> None:
    log = {"/dev/kmsg": hosts.kmsg("NVRM: Xid (PCI:0000:00:06): 95, pid=1, Uncontained"), **changes}
    said = conclude({"/proc/uptime": hosts.file(f"{uptime}.00 1.0\n"), **log}, ROOT if os.geteuid() == 0 else USER)
    assert ("kernel.xid.fatal" in hosts.causes(said, "failed")) is failed
    assert ("kernel.xid.fatal" in hosts.causes(said, "warned")) is not failed


def test_a_resume_with_preserved_memory_is_no_fault() -> None:
    params = hosts.file("ModifyDeviceFiles: 1\nPreserveVideoMemoryAllocations: 1\n")
    log = {"/dev/kmsg": hosts.kmsg("PM: suspend exit"), "/proc/driver/nvidia/params": params}
    said = conclude(log, ROOT if os.geteuid() == 0 else USER)
    assert (said.outcome, hosts.causes(said)) == (Outcome.PASSED, [])


def test_a_container_without_devices_says_how_it_was_started() -> None:
    changes = {**dict.fromkeys(NODES), "/.dockerenv": hosts.file()}
    said = conclude(changes, USER, env={"NVIDIA_VISIBLE_DEVICES": "none"})
    assert "kernel.container.no_devices" in hosts.causes(said, "failed")
    finding = next(check.finding for check in said.checks if check.finding)
    assert finding is not None
    assert "NVIDIA_VISIBLE_DEVICES=none" in finding.detail


def test_root_without_the_drivers_libraries_makes_no_node_in_a_container() -> None:
    libraries = {path: None for path in hosts.h100() if path.startswith(hosts.LIBRARIES)}
    who = ROOT if os.geteuid() == 0 else USER
    said = conclude({**dict.fromkeys(NODES), **libraries, "/.dockerenv": hosts.file()}, who)
    assert "kernel.node.healed_by_root" not in hosts.causes(said)
    # Its next command, `docker run --gpus all`, is the one that is shown: it stands before the consequences.
    assert hosts.causes(said, "failed")[0] == "kernel.container.no_devices"
    assert said.summary == "this container was started without the GPU's device nodes"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_who_makes_nodes_is_told_by_the_capabilities_of_the_process_that_is_probed_as() -> None:
    without_mknod = {"process": {"effective": "00000000800405fb"}}  # what Podman gives
    said = conclude(dict.fromkeys(NODES), ROOT, service=without_mknod)
    assert "kernel.node.missing" in hosts.causes(said, "failed")
    assert "kernel.node.healed_by_root" not in hosts.causes(said)


def test_forward_compatibility_is_not_called_a_mismatch() -> None:
    compat = hosts.library("/usr/local/cuda/compat", "libcuda.so", "590.44.01")
    path = f"/usr/local/cuda/compat:{hosts.LIBRARIES}"
    said = conclude(compat, USER, env={"LD_LIBRARY_PATH": path})
    assert hosts.causes(said) == ["kernel.version.compat"]
    assert said.outcome is Outcome.WARNED


def test_this_machine_without_a_gpu_says_so_clearly() -> None:
    if Path("/proc/driver/nvidia/version").exists() or any(
        (device / "vendor").read_text().strip() == "0x10de" for device in Path("/sys/bus/pci/devices").glob("*")
    ):
        pytest.skip("this machine has an NVIDIA GPU")
    for setup in (Setup(), Setup(identity=Identity(65534, 65534)) if os.geteuid() == 0 else Setup()):
        said = hosts.conclusion(SPEC, hosts.context(None, setup=setup))
        assert said.outcome is Outcome.FAILED
        assert said.summary == "no NVIDIA GPU on the PCI bus"
        assert hosts.causes(said) == ["kernel.pci.none"]
