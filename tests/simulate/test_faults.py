"""Every fault can be injected, and does to the libraries and the view what its name says."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery import simulate
from pytest_gpudiscovery.probes import libraries as found_by
from pytest_gpudiscovery.probes.host import HostView, LiveView, open_view
from pytest_gpudiscovery.probes.recordedview import RecordedView
from pytest_gpudiscovery.simulate.machines import HOSTS
from pytest_gpudiscovery.simulate.registry import FAULTS
from tests.simulate.conftest import Make, ask, run

VALUES = {
    "hang.": "/nowhere/x",
    "runner.loaded.path": "/nowhere/x",
    "tmpdir.path": "/nowhere/x",
    "libcuda.lacks": "cuInit",
    "nvml.lacks": "nvmlInit_v2",
    "cudart.lacks": "cudaSetDevice",
    "variant.driver.by_cache": "/etc",
}
MECHANISMS = {"answers", "library", "view", "environment", "preload"}

CODES = """
def load(name):
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        said.setdefault("dlopen", {})[name] = str(error)
def code(library, name, *arguments):
    try:
        return getattr(library, name)(*arguments) if library else None
    except AttributeError:
        return "absent"
said = {}
nvml, cuda, cudart = load("libnvidia-ml.so.1"), load("libcuda.so.1"), load("libcudart.so.12")
count, handle, context = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
memory = (ctypes.c_uint64 * 3)()
said["nvmlInit"] = code(nvml, "nvmlInit_v2")
code(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
said["nvmlCount"] = count.value
said["handle"] = code(nvml, "nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(handle))
said["memory"] = code(nvml, "nvmlDeviceGetMemoryInfo", handle, memory)
said["cuInit"] = code(cuda, "cuInit", 0)
count.value = 0
code(cuda, "cuDeviceGetCount", ctypes.byref(count))
said["count"] = count.value
said["context"] = code(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
said["runtime"] = code(cudart, "cudaGetDeviceCount", ctypes.byref(count))
say(said)
"""
# fault -> what CODES then says; only what is named is compared
EXPECTED: dict[str, dict[str, Any]] = {
    "driver.cuinit.802": {"nvmlInit": 0, "cuInit": 802, "runtime": 802},
    "driver.context.46": {"cuInit": 0, "context": 46, "runtime": 0},
    "driver.count.zero": {"cuInit": 0, "count": 0, "runtime": 100},
    "driver.count.many": {"cuInit": 0, "count": 17, "nvmlCount": 17},
    "driver.memory.full": {"cuInit": 0, "context": 2},
    "driver.memory.low": {"cuInit": 0, "context": 0},
    "driver.r470": {"nvmlInit": 0, "cuInit": 0, "runtime": 35},
    "driver.reinstalled": {"nvmlInit": 18, "cuInit": 803, "runtime": 803},
    "nvml.init.999": {"nvmlInit": 999, "cuInit": 0},
    "nvml.handle.15": {"nvmlInit": 0, "handle": 15},
    "nvml.memory.999": {"handle": 0, "memory": 999},
    "nvml.foreign_version": {"nvmlInit": 18, "cuInit": 0},
    "nvml.missing": {"nvmlInit": None, "cuInit": 0, "runtime": 0},
    "nvml.lacks=nvmlDeviceGetMemoryInfo": {"nvmlInit": 0, "handle": 0, "memory": "absent"},
    "libcuda.foreign_version": {"nvmlInit": 0, "cuInit": 803, "runtime": 803},
    "libcuda.stub": {"nvmlInit": 0, "cuInit": 34, "runtime": 34},
    "libcuda.unversioned": {"cuInit": 0, "runtime": 0},
    "libcuda.missing": {"cuInit": None, "runtime": 35},
    "libcuda.no_cuinit": {"cuInit": "absent", "runtime": 35},
    "cudart.12_only": {"runtime": 0},
    "cudart.13_only": {"cuInit": 0, "runtime": None},
    "kernel.module.missing": {"nvmlInit": 9, "cuInit": 100, "runtime": 100},
    "kernel.module.version": {"nvmlInit": 18, "cuInit": 803},
    "kernel.uvm.missing": {"nvmlInit": 0, "cuInit": 999, "runtime": 999},
    "kernel.gpu.excluded": {"nvmlInit": 0, "nvmlCount": 0, "cuInit": 100},
    "kernel.gpu.fallen": {"nvmlInit": 0, "handle": 15, "cuInit": 100},
    "mig.no_instances": {"nvmlInit": 0, "nvmlCount": 1, "cuInit": 100},
    "compute.prohibited": {"cuInit": 0, "count": 1, "context": 46},
    "fabric.not_started": {"cuInit": 802},
    "node.nodev": {"nvmlInit": 4, "cuInit": 100},
    "node.cgroup.all": {"nvmlInit": 999, "cuInit": 100},
    "node.lsm.nvidia0": {"nvmlInit": 0, "nvmlCount": 0, "cuInit": 100},
    "env.cuda_visible_devices.uuid": {"nvmlInit": 0, "cuInit": 100},
    "env.cuda_visible_devices.right": {"cuInit": 0, "count": 1},
    "env.cuda_visible_devices_twice": {"nvmlInit": 0, "cuInit": 101},
    "env.cuda_visible_devices.spelled_twice": {"cuInit": 101},
    "env.cuda_visible_devices.blank_uuid": {"cuInit": 100},
    "env.cuda_visible_devices.too_long": {"cuInit": 0, "count": 1},
    "env.cuda_device_order_wrong": {"nvmlInit": 0, "cuInit": 101},
    "env.mps_pipe": {"nvmlInit": 0, "cuInit": 0},
    "shim.hami": {"cuInit": 0, "count": 1},
    "shim.missing": {"cuInit": 0},
    "runtime.count.999": {"cuInit": 0, "runtime": 999},
    "driver.cuinit.slow=0.1": {"cuInit": 0},
    "driver.cuinit.802_after=0.1": {"cuInit": 802},
}
UNLOADABLE = {
    "libcuda.empty": "file too short",
    "libcuda.not_elf": "invalid ELF header",
    "libcuda.elf32": "wrong ELF class|cannot open shared object file",
    "libcuda.other_machine": "cannot open shared object file",
    "libcuda.dangling": "cannot open shared object file",
}


def with_value(name: str) -> str:
    """Return NAME as it is written on the command line, with a value where it needs one."""
    if FAULTS[name].value != "":
        return name
    return f"{name}={next(value for start, value in VALUES.items() if name.startswith(start))}"


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 60
    listed = simulate.faults()
    assert [entry["name"] for entry in listed] == list(FAULTS)
    for entry in listed:
        assert entry["mechanism"] in MECHANISMS
        assert entry["text"]
        assert "\n" not in entry["text"]
        assert re.fullmatch(r"[a-z0-9_]+(\.[A-Za-z0-9_-]+)+", entry["name"]), entry["name"]


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_each_changes_its_host(name: str) -> None:
    needs = FAULTS[name].needs
    base = ("h100x2" if "two GPUs" in needs else "h100") + ("-ollama" if "an Ollama" in needs else "")
    text = with_value(name)
    if name.startswith(("native.", "server.")):
        base += "-c"  # of an Ollama from 0.30 on
    plain, broken = HOSTS[base].make(), HOSTS[base].make()
    FAULTS[name].apply(broken, text.partition("=")[2] or None)
    assert dataclasses.asdict(broken) != dataclasses.asdict(plain)
    RecordedView(broken.entries).listdir("/dev")  # it is still a view


@pytest.mark.parametrize("fault", sorted(EXPECTED))
def test_what_the_libraries_answer(make: Make, fault: str) -> None:
    said = ask(make(f"h100:{fault}"), CODES)
    assert {key: said[key] for key in EXPECTED[fault]} == EXPECTED[fault]


@pytest.mark.parametrize("fault", sorted(UNLOADABLE))
def test_libraries_that_do_not_load(make: Make, fault: str) -> None:
    if found_by.find(LiveView(), "libcuda.so.1", {}) is not None:
        with pytest.raises(simulate.SimulationError, match="machine's own"):
            make(f"h100:{fault}")
        return
    said = ask(make(f"h100:{fault}"), CODES)
    assert re.search(UNLOADABLE[fault], said["dlopen"]["libcuda.so.1"])
    assert said["cuInit"] is None


def test_truncated_library(make: Make) -> None:
    done = run(make("h100:libcuda.truncated"), CODES)
    if done.returncode == 0:  # cut off before the end of the program headers' data: ld.so notices
        assert "libcuda.so.1" in json.loads(done.stdout)["dlopen"]
    else:  # ld.so maps the file and touches a page behind its end
        assert done.returncode == -signal.SIGBUS


def test_faults_add_up(make: Make) -> None:
    host = make("h100:nvml.init.9,driver.cuinit.slow=0.2")
    assert host.describe["host"] == "h100"
    assert host.describe["faults"] == ["nvml.init.9", "driver.cuinit.slow=0.2"]
    began = time.monotonic()
    said = ask(host, CODES)
    assert (said["nvmlInit"], said["cuInit"]) == (9, 0)
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("h100:driver.cuinit.802=3", "takes no value"),
        ("h100:driver.cuinit.slow=abc", "expected a number such as 3.5"),
        ("h100:hang.cuinit.path", "needs a value"),
        ("h100:driver.count.many=99", "not a whole number from 1 to 64"),
        ("h100:kernel.xid.79=soon", "not a whole number"),
        ("h100:runtime.layout.other=11", "CUDA 12 or 13"),
        ("h100:views.count", "two GPUs"),
        ("none:libcuda.truncated", "has no libcuda"),
        ("h100:ggml_cuda.missing", "needs a simulated host with an Ollama: h100-ollama"),
        ("h100:backend.init.null", "needs a simulated host with an Ollama: h100-ollama"),
        ("h100-ollama:ggml_cuda.missing=cuda_v11", "expected all, cuda_v12 or cuda_v13"),
        ("h100-ollama:ollama.only=cuda_v13,cublas.fifo=cuda_v12", "is no GPU directory here"),
        ("h100-ollama:backend.devices.reversed", "h100x2-ollama"),
        ("h100-ollama-c:ctor.mlx.pause", "a simulated release with MLX"),
        ("h100:gpu.name=a\nb", "cannot hold"),
    ],
)
def test_bad_values_are_one_line(make: Make, text: str, why: str) -> None:
    with pytest.raises(simulate.SimulationError, match=why) as caught:
        make(text)
    assert len(str(caught.value).splitlines()) == 1


def test_libraries_are_also_in_the_view(make: Make) -> None:
    host = make("h100:libcuda.truncated")
    view = open_view(host.view)
    found = found_by.find(view, "libcuda.so.1", host.env)
    assert found is not None
    assert found["realpath"] == f"{host.directory}/lib/libcuda.so.580.159.04"
    assert found["version"] == "580.159.04"
    header = found_by.elf(view, found["realpath"])
    assert header["needs"] > header["size"]  # what a check of the file says without loading it


def test_views_of_the_two_apis(make: Make) -> None:
    code = """
nvml, cuda = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.CDLL("libcuda.so.1")
handle, uuid, raw = ctypes.c_void_p(), ctypes.create_string_buffer(96), ctypes.create_string_buffer(16)
nvml.nvmlInit_v2(), nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle))
nvml.nvmlDeviceGetUUID(handle, uuid, 96), cuda.cuInit(0), cuda.cuDeviceGetUuid_v2(raw, 0)
say([uuid.value.decode()[4:].replace("-", ""), raw.raw.hex()])
"""
    nvml, cuda = ask(make("h100"), code)
    assert nvml == cuda
    nvml, cuda = ask(make("h100:views.uuid"), code)
    assert nvml != cuda


def test_kernel_log_and_processes(make: Make) -> None:
    view = open_view(make("h100:kernel.xid.79=120,kernel.xid.48.before_load,kernel.process.stuck").view)
    uptime = float(view.read("/proc/uptime").split()[0])
    lines = view.read("/dev/kmsg").decode().splitlines()
    times = [int(line.split(",")[2]) / 1e6 for line in lines]
    assert times == sorted(times)
    (fresh,) = (line for line in lines if "): 79," in line)
    assert "NVRM: Xid (PCI:0000:00:06): 79, " in fresh
    assert int(fresh.split(",")[2]) / 1e6 == pytest.approx(uptime - 120)
    (load,) = (index for index, line in enumerate(lines) if "NVRM: loading NVIDIA UNIX" in line)
    (old,) = (index for index, line in enumerate(lines) if "): 48," in line)
    assert old < load
    assert view.listdir("/proc/4243/fd") == ["7"]
    assert view.readlink("/proc/4243/fd/7") == "/dev/nvidia0"
    assert b" D " in view.read("/proc/4243/stat")


@pytest.mark.parametrize(
    ("fault", "path", "seen"),
    [
        ("node.missing.nvidia0", "/dev/nvidia0", "ENOENT"),
        ("node.major.nvidiactl", "/dev/nvidiactl", (511, 255)),
        ("node.file.nvidia0", "/dev/nvidia0", "file"),
        ("node.cgroup.nvidia-uvm", "/dev/nvidia-uvm", "EPERM"),
    ],
)
def test_nodes_in_the_view(make: Make, fault: str, path: str, seen: object) -> None:
    assert look(open_view(make(f"h100:{fault}").view), path) == seen
    assert look(open_view(make("h100").view), path) not in ("ENOENT", "EPERM", "file", seen)


def look(view: HostView, path: str) -> object:
    """Return what a probe sees of PATH: an errno's name, a type that is no device, or its numbers."""
    try:
        found = view.stat(path)
        if found["type"] != "char":
            return found["type"]
        view.open_device(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return (found["major"], found["minor"])


def test_preloaded_network_faults(make: Make) -> None:
    code = """
import socket, time
said, began = {}, time.monotonic()
try:
    socket.getaddrinfo("localhost", 0)
    said["localhost"] = "found"
except OSError as error:
    said["localhost"] = error.errno
said["seconds"] = time.monotonic() - began
try:
    socket.socket().bind(("127.0.0.1", 0))
    said["bind"] = 0
except OSError as error:
    said["bind"] = error.errno
try:
    probe = os.environ.get("TMPDIR", "/tmp") + f"/probe-{os.getpid()}"
    fd = os.open(probe, os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x")
    os.unlink(probe)
    said["write"] = 0
except OSError as error:
    said["write"] = error.errno
say(said)
"""
    down = ask(make("h100:loopback.down"), code)
    assert (down["bind"], down["localhost"], down["write"]) == (99, "found", 0)
    assert ask(make("h100:loopback.localhost_missing"), code)["localhost"] == -2
    slow = ask(make("h100:loopback.localhost_slow=0.5"), code)
    assert slow["localhost"] == "found"
    assert slow["seconds"] >= 0.5
    assert ask(make("h100:tmpdir.full"), code)["write"] == 28
    assert ask(make("h100:tmpdir.missing"), code)["write"] == 2
    assert ask(make("h100:tmpdir.unwritable"), code)["write"] in (1, 2, 13)


def test_the_directory_is_readable_by_others(make: Make) -> None:
    host = make("h100:libcuda.stub,shim.hami,tmpdir.full")
    for path in [Path(host.directory), *Path(host.directory).rglob("*")]:
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o004, path
        assert not path.is_dir() or mode & 0o001, path
    assert json.loads(Path(host.view["path"]).read_text())["entries"]


def test_a_directory_that_is_used_again_holds_only_the_new_host(tmp_path: Path) -> None:
    simulate.prepare(simulate.parse("h100:libcuda.stub"), str(tmp_path))
    host = simulate.prepare(simulate.parse("none"), str(tmp_path))
    assert list(Path(host.directory, "lib").iterdir()) == []
    assert not Path(host.directory, "stubs").exists()


def test_the_shim_speaks_and_limits(make: Make) -> None:
    code = """
program, cuda = ctypes.CDLL(None), ctypes.CDLL("libcuda.so.1")
context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
codes = [program.cuInit(0), cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), cuda.cuCtxSetCurrent(context)]
codes.append(program.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
say([codes, total.value])
"""
    host = make("h100:shim.hami")
    assert ask(host, code) == [[0, 0, 0, 0], 16 << 30]
    assert "HAMI-core" in run(host, code).stderr
