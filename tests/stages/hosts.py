"""Recorded hosts for the tests of the stages: the shape of an H100 virtual machine, and what changes with a fault."""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import tempfile
from typing import Any

from pytest_gpudiscovery.outcome import Conclusion, conclude
from pytest_gpudiscovery.probes.journal import Journal
from pytest_gpudiscovery.stages.spec import RunContext, StageInput, StageSpec, deadline_for
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.types import ChildResult, Ending
from tests import fakes

Entries = dict[str, dict[str, Any]]
VERSION = "580.159.04"
GPU = "0000:00:06.0"
UUID = "GPU-00000000-0000-0000-0000-000000000000"
LIBRARIES = "/usr/local/nvidia/lib64"
PCI = f"/sys/bus/pci/devices/{GPU}"
LOADED = f"4,800,9000000,-;NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  {VERSION}  Release Build  (root@h)"


def file(text: str = "", mode: int = 0o444, **more: Any) -> dict[str, Any]:
    """Return the entry of a file of root's."""
    return {"type": "file", "mode": mode, "uid": 0, "gid": 0, "text": text, **more}


def node(major: int, minor: int, mode: int = 0o666, **more: Any) -> dict[str, Any]:
    """Return the entry of a character device of root's."""
    return {"type": "char", "mode": mode, "uid": 0, "gid": 0, "major": major, "minor": minor, **more}


def kmsg(*messages: str, at: float = 100.0) -> dict[str, Any]:
    """Return the entry of /dev/kmsg: the load of the driver at 9 s, then MESSAGES one second apart from AT on."""
    lines = [f"4,{900 + i},{int((at + i) * 1e6)},-;{text}" for i, text in enumerate(messages)]
    return file("\n".join([LOADED, *lines]) + "\n", 0o644)


def gpu(pci: str, minor: int, uuid: str = UUID) -> Entries:
    """Return the entries of one GPU: sysfs, /proc/driver and its node."""
    where = f"/sys/bus/pci/devices/{pci}"
    information = (
        f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 40\nGPU UUID: \t {uuid}\nVideo BIOS: \t 96.00.da.00.0c\n"
        f"Bus Type: \t PCIe\nBus Location: \t {pci}\nDevice Minor: \t {minor}\nGPU Firmware: \t {VERSION}\n"
        "GPU Excluded:\t No\n"
    )
    return {
        f"{where}/vendor": file("0x10de\n"),
        f"{where}/device": file("0x2330\n"),
        f"{where}/class": file("0x030200\n"),
        f"{where}/subsystem_vendor": file("0x10de\n"),
        f"{where}/subsystem_device": file("0x16c1\n"),
        f"{where}/numa_node": file("-1\n"),
        f"{where}/current_link_width": file("16\n"),
        f"{where}/driver": {"type": "link", "target": "../../../bus/pci/drivers/nvidia"},
        f"/proc/driver/nvidia/gpus/{pci}/information": file(information),
        f"/dev/nvidia{minor}": node(195, minor),
    }


def h100(**changes: dict[str, Any] | None) -> Entries:
    """Return the entries of a healthy host with one H100; CHANGES set (or with None remove) entries by path.

    A path is given as a keyword through ** because it is no identifier: `h100(**{"/dev/nvidia0": None})`.
    """
    entries: Entries = {
        **gpu(GPU, 0),
        "/sys/bus/pci/devices/0000:00:00.0/vendor": file("0x8086\n"),
        "/sys/bus/pci/devices/0000:00:00.0/class": file("0x060000\n"),
        "/sys/module/nvidia/initstate": file("live\n"),
        "/sys/module/nvidia/version": file(f"{VERSION}\n"),
        "/sys/module/nvidia_uvm/initstate": file("live\n"),
        "/proc/modules": file("nvidia_uvm 1 0 - Live 0x0\nnvidia 2 1 nvidia_uvm, Live 0x0\n"),
        "/proc/devices": file(
            "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n238 nvidia-uvm\n240 nvidia-caps\n\n"
            "Block devices:\n  7 loop\n"
        ),
        "/proc/driver/nvidia/version": file(
            f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {VERSION}  Release Build  (root@h)\n"
            "GCC version: gcc 13\n"
        ),
        "/proc/driver/nvidia/params": file(
            "ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 0\nDeviceFileMode: 438\nNvLinkDisable: 1\n"
        ),
        "/proc/uptime": file("7300.25 100.0\n"),
        "/proc/self/mountinfo": file(
            "22 1 0:21 / / rw,relatime - overlay overlay rw\n23 22 0:6 / /dev rw,nosuid - devtmpfs devtmpfs rw\n"
        ),
        "/dev/kmsg": kmsg(),
        "/proc/sys/kernel/dmesg_restrict": file("0\n"),
        "/dev/nvidiactl": node(195, 255),
        "/dev/nvidia-uvm": node(238, 0),
        "/proc/meminfo": file("MemTotal: 131072000 kB\nMemAvailable: 120000000 kB\n"),
        "/proc/self/cgroup": file("0::/\n"),
        "/sys/class/net/lo/operstate": file("unknown\n"),
        "/sys/class/net/lo/flags": file("0x9\n"),
        "/proc/sys/net/ipv4/ip_local_port_range": file("32768\t60999\n"),
        "/etc/hosts": file("127.0.0.1 localhost\n"),
    }
    for name in ("libcuda.so", "libnvidia-ml.so", "libnvidia-ptxjitcompiler.so"):
        entries |= library(LIBRARIES, name)
    for path, entry in changes.items():
        if entry is None:
            entries.pop(path)
        else:
            entries[path] = entry
    return entries


def library(directory: str, name: str, version: str = VERSION) -> Entries:
    """Return the entries of a driver library NAME (`libcuda.so`) in DIRECTORY: the file and its soname."""
    return {
        f"{directory}/{name}.{version}": file(size=96_000_000),
        f"{directory}/{name}.1": {"type": "link", "target": f"{name}.{version}"},
    }


def record(entries: Entries) -> str:
    """Write ENTRIES as a recording that any user may read, for as long as this process lives; return its path.

    Not below pytest's tmp_path: every pytest that starts closes that tree to other users again.
    """
    handle, path = tempfile.mkstemp(dir=_public(), suffix=".json")
    with open(handle, "w", encoding="utf-8") as recording:
        json.dump({"entries": entries}, recording)
    os.chmod(path, 0o644)
    return path


@functools.cache
def _public() -> str:
    folder = tempfile.TemporaryDirectory(prefix="recorded-hosts-")
    atexit.register(folder.cleanup)
    os.chmod(folder.name, 0o755)
    return folder.name


def context(entries: Entries | None, **changes: Any) -> RunContext:
    """Return a context over ENTRIES (None: this machine), with the H100 host's library path."""
    usual = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/usr/share/ollama", "LD_LIBRARY_PATH": LIBRARIES}
    env = {**usual, **changes.pop("env", {})}
    view: dict[str, Any] = {"kind": "live"}
    if entries is not None:
        view = {"kind": "recorded", "path": record(entries)}
    return fakes.context(view=view, env=env, **changes)


def probe_all(spec: StageSpec, given: RunContext, prior: dict[str, Any] | None = None) -> dict[str, ChildResult]:
    """Run the probes of SPEC as the engine does, until one that is not optional gives no answer."""
    results: dict[str, ChildResult] = {}
    while (planned := spec.plan(given, prior or {}, results)) is not None:
        name, probe = planned
        results[name] = run(probe)
        if results[name].ending is not Ending.ANSWERED and name not in spec.optional:
            break
    return results


def conclusion(spec: StageSpec, given: RunContext, prior: dict[str, Any] | None = None) -> Conclusion:
    """Run SPEC over GIVEN and return what its record would say."""
    results = probe_all(spec, given, prior)
    return judged(spec, given, results, prior)


def judged(
    spec: StageSpec, given: RunContext, results: dict[str, ChildResult], prior: dict[str, Any] | None = None
) -> Conclusion:
    """Return what the record of SPEC says of RESULTS."""
    deadline = deadline_for(given, spec.name, spec.deadline_s)
    return conclude(
        spec, spec.judge(StageInput(given, results, prior or {}, deadline)), results, started=0.0, deadline_s=deadline
    )


def causes(said: Conclusion, outcome: str | None = None) -> list[str]:
    """Return the causes in SAID, of checks with OUTCOME only when it is given."""
    return [
        check.finding.cause
        for check in said.checks
        if check.finding is not None and (outcome is None or check.outcome.value == outcome)
    ]


def in_process(spec: StageSpec, given: RunContext, prior: dict[str, Any] | None = None) -> dict[str, ChildResult]:
    """Run SPEC's probes in this process, as ordinary functions; only for probes that read a recorded view."""
    results: dict[str, ChildResult] = {}
    with open(os.devnull, "wb") as sink:
        journal = Journal(sink.fileno())
        while (planned := spec.plan(given, prior or {}, results)) is not None:
            name, probe = planned
            module = importlib.import_module(f"pytest_gpudiscovery.probes.{probe.module}")
            answer = json.loads(json.dumps(module.probe(dict(probe.request), journal)))
            results[name] = fakes.result(answer=answer)
    return results
