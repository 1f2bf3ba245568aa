"""What the driver answers under each fault that can be made without breaking a host: the conformance table.

Source: measurements on one H100 80GB HBM3 in a virtual machine, driver 580.159.04, one GPU. The same rows are run on a
real host (`python3 -m pytest_gpudiscovery.simulate.conformance --real`) and, by the tests, on the simulated one.

Three identities: `root`; `root-mknod`, which is root without CAP_MKNOD; `nobody`, uid 65534. Answers are the return
codes of nvmlInit_v2, nvmlDeviceGetHandleByIndex_v2, cuInit, cuDevicePrimaryCtxRetain, cuMemAllocManaged and
cudaGetDeviceCount, and the two counts; what is not named was not called, or is not part of the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ROOT, ROOT_WITHOUT_MKNOD, NOBODY = "root", "root-mknod", "nobody"
IDENTITIES = (ROOT, ROOT_WITHOUT_MKNOD, NOBODY)

Answers = Mapping[str, "int | str"]

HEALTHY: Answers = {
    "nvmlInit": 0,
    "nvmlCount": 1,
    "nvmlHandle": 0,
    "cuInit": 0,
    "context": 0,
    "managed": 0,
    "cudaGetDeviceCount": 0,
    "cudaCount": 1,
}


def nvml_but(code: int) -> Answers:
    """NVML is healthy, cuInit and the runtime answer CODE."""
    return {"nvmlInit": 0, "nvmlCount": 1, "nvmlHandle": 0, "cuInit": code, "cudaGetDeviceCount": code}


def neither(nvml: int, cuda: int) -> Answers:
    """nvmlInit_v2 answers NVML; cuInit and the runtime answer CUDA."""
    return {"nvmlInit": nvml, "cuInit": cuda, "cudaGetDeviceCount": cuda}


# Only this GPU is closed to the user: NVML starts and counts none.
GPU_CLOSED: Answers = {"nvmlInit": 0, "nvmlCount": 0, "cuInit": 100, "cudaGetDeviceCount": 100}


@dataclass(frozen=True)
class Row:
    """One row. `steps` are done in the child's own namespaces on a real host (conformance_child.py), `fault` is their
    likeness in the simulation; `both` are steps that are really done in either. `expected` is by identity; an identity
    that is not there was not measured: what the host says is shown and not judged. `{digits}` in a value of `env` is
    the UUID of the GPU without GPU-.
    """

    name: str
    expected: Mapping[str, Answers]
    steps: tuple[str, ...] = ()
    fault: str = ""
    both: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def everybody(answers: Answers) -> Mapping[str, Answers]:
    """Expect ANSWERS of every identity."""
    return dict.fromkeys(IDENTITIES, answers)


# What the runtime makes of 101 was not measured with these rows.
NONE_LEFT: Answers = {"nvmlInit": 0, "nvmlCount": 1, "nvmlHandle": 0, "cuInit": 101}


def _visible() -> list[Row]:
    """What is read of CUDA_VISIBLE_DEVICES, and of CUDA_DEVICE_ORDER; all of it: stages/visible.py."""
    hidden = nvml_but(100)
    values: dict[str, tuple[str, Answers]] = {
        "empty": ("", hidden),
        "7": ("7", hidden),
        "a UUID of no GPU here": ("GPU-00000000-1111-4000-8000-0000000000ff", hidden),
        "a UUID of no MIG instance here": ("MIG-00000000-1111-4000-8000-0000000000ff", hidden),
        "the UUID": ("GPU-{digits}", HEALTHY),
        "the UUID, gpu- in lower case": ("gpu-{digits}", hidden),
        "the UUID behind a blank": (" GPU-{digits}", hidden),
        "0x1": ("0x1", HEALTHY),
        "0,0": ("0,0", NONE_LEFT),
    }
    rows = [
        Row(f"CUDA_VISIBLE_DEVICES is {text}", everybody(answers), env={"CUDA_VISIBLE_DEVICES": value})
        for text, (value, answers) in values.items()
    ]
    orders = {"empty": "", "pci_bus_id": "pci_bus_id"}
    return rows + [
        Row(f"CUDA_DEVICE_ORDER is {text}", everybody(NONE_LEFT), env={"CUDA_DEVICE_ORDER": value})
        for text, value in orders.items()
    ]


def _nodes() -> list[Row]:
    """As root the driver's user space makes nodes anew; others get what is there."""
    absent = {ROOT: HEALTHY, ROOT_WITHOUT_MKNOD: neither(9, 100), NOBODY: neither(9, 100)}
    no_uvm = {ROOT: HEALTHY, NOBODY: nvml_but(999)}
    return [
        Row("no node at all", absent, ("remove all",), "node.missing.all"),
        Row("no /dev/nvidia0", {ROOT: HEALTHY}, ("remove nvidia0",), "node.missing.nvidia0"),
        Row("no /dev/nvidiactl", {ROOT: HEALTHY}, ("remove nvidiactl",), "node.missing.nvidiactl"),
        Row("no /dev/nvidia-uvm", no_uvm, ("remove nvidia-uvm",), "node.missing.nvidia-uvm"),
        Row("wrong minor of nvidia0", {ROOT: HEALTHY}, ("renumber nvidia0 195 9",), "node.minor.nvidia0"),
        Row("wrong major of nvidiactl", {ROOT: HEALTHY}, ("renumber nvidiactl 511 255",), "node.major.nvidiactl"),
        Row("wrong major of nvidia-uvm", {ROOT: HEALTHY}, ("renumber nvidia-uvm 511 0",), "node.major.nvidia-uvm"),
        Row("a regular file for nvidia0", {ROOT: HEALTHY}, ("file nvidia0",), "node.file.nvidia0"),
        Row("a regular file for nvidiactl", {ROOT: HEALTHY}, ("file nvidiactl",), "node.file.nvidiactl"),
        Row("every node 0600", {ROOT: HEALTHY, NOBODY: neither(4, 100)}, ("mode all 600",), "node.0600.all"),
        Row("nvidia0 0600", {ROOT: HEALTHY, NOBODY: GPU_CLOSED}, ("mode nvidia0 600",), "node.0600.nvidia0"),
        Row("nvidia-uvm 0600", no_uvm, ("mode nvidia-uvm 600",), "node.0600.nvidia-uvm"),
        Row("every node 0444", {ROOT: HEALTHY, NOBODY: neither(999, 100)}, ("mode all 444",), "node.0444.all"),
        Row("/dev mounted nodev", everybody(neither(4, 100)), ("nodev",), "node.nodev"),
    ]


def _process() -> list[Row]:
    few = {"nvmlInit": 0, "nvmlCount": 1, "cuInit": 100}
    by_root = {**few, "nvmlHandle": 999}  # root's NVML opens more files before: measured 999 for root, 0 for uid 65534
    # What libcudart answers behind the stub was measured as 34 once and as 0 once: it depends on how it was loaded.
    stub = {"nvmlInit": 0, "nvmlCount": 1, "cuInit": 34}
    return [
        Row("new user and pid namespace", everybody(nvml_but(304)), both=("user and pid namespace",)),
        Row("new user namespace", {ROOT: HEALTHY}, both=("user namespace",)),
        Row("new pid namespace with its /proc", {}, both=("pid namespace and its /proc",)),
        Row("ulimit -v 4 GB", everybody(nvml_but(2)), both=("limit AS 4294967296",)),
        Row("ulimit -n 16", {ROOT: by_root, ROOT_WITHOUT_MKNOD: by_root, NOBODY: few}, both=("limit NOFILE 16",)),
        Row("the toolkit's stub first", everybody(stub), ("stub",), "libcuda.stub"),
    ]


def _harmless() -> list[Row]:
    """What changes nothing; a gate that warned of these would be wrong."""
    return [
        Row("healthy", everybody(HEALTHY)),
        Row("/proc/driver hidden", everybody(HEALTHY), ("hide /proc/driver",)),
        Row("/sys hidden", everybody(HEALTHY), ("hide /sys",)),
        Row("no /dev/shm", everybody(HEALTHY), ("hide /dev/shm",)),
        Row("read-only /tmp", everybody(HEALTHY), ("read-only /tmp",)),
        Row("no writable HOME and cache", everybody(HEALTHY), env={"HOME": "/nowhere", "CUDA_CACHE_PATH": "/nowhere"}),
        Row("no locked memory", everybody(HEALTHY), both=("limit MEMLOCK 0",)),
        Row("MPS directory absent", everybody(HEALTHY), env={"CUDA_MPS_PIPE_DIRECTORY": "/nowhere/mps"}),
        Row("new network namespace", everybody(HEALTHY), ("network namespace",)),
    ]


ROWS: tuple[Row, ...] = (*_harmless(), *_visible(), *_nodes(), *_process())
