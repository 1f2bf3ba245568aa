"""Make hosts/NAME.json of a recording: `python3 -m pytest_gpudiscovery.simulate.convert RECORDING.json NAME.json`.

A host file is {"recorded": date, "conf": {key: value of sim.conf}, "entries": host view}. Left out is what must be
true of the machine that simulates (this process's identity and limits), what the simulation brings itself (libraries),
and what no stage reads.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

Entries = dict[str, dict[str, Any]]

DROPPED = (
    "/dev/full /dev/fuse /dev/random /dev/urandom /etc/alternatives /etc/gai.conf /etc/ld.so.conf.d/git "
    "/etc/ld.so.conf.d/gds /etc/ld.so.conf.d/987 /lib /proc/driver/nvidia-caps/mig-minors /proc/self/status "
    "/proc/self/limits /proc/self/uid_map /proc/driver/nvidia/patches /proc/driver/nvidia/warnings "
    "/sys/module/nvidia_uvm/parameters /sys/module/nvidia_uvm/sections /sys/module/nvidia_uvm/notes "
    "/sys/module/nvidia/sections /sys/module/nvidia/notes /usr/bin /usr/lib/lib /usr/local "
)
KEPT = ("/sys/module/nvidia_uvm/parameters/uvm_disable_hmm", "/proc/driver/nvidia/gpus")
UPTIME_S = 400_000  # the recording was made 24 s after boot; an Xid of last week needs a longer past

# sim.conf key -> NVML call (its first result, or the result at an index)
NVML_NUMBERS = {
    "minor": ("nvmlDeviceGetMinorNumber", 0),
    "persistence": ("nvmlDeviceGetPersistenceMode", 0),
    "compute_mode": ("nvmlDeviceGetComputeMode", 0),
    "virtualization": ("nvmlDeviceGetVirtualizationMode", 0),
    "brand": ("nvmlDeviceGetBrand", 0),
    "architecture": ("nvmlDeviceGetArchitecture", 0),
    "cores": ("nvmlDeviceGetNumGpuCores", 0),
    "pcie.generation": ("nvmlDeviceGetCurrPcieLinkGeneration", 0),
    "pcie.width": ("nvmlDeviceGetCurrPcieLinkWidth", 0),
    "mig.current": ("nvmlDeviceGetMigMode", 0),
    "mig.pending": ("nvmlDeviceGetMigMode", 1),
    "mig.max": ("nvmlDeviceGetMaxMigDeviceCount", 0),
    "ecc.current": ("nvmlDeviceGetEccMode", 0),
    "ecc.pending": ("nvmlDeviceGetEccMode", 1),
    "gsp.enabled": ("nvmlDeviceGetGspFirmwareMode", 0),
    "gsp.default": ("nvmlDeviceGetGspFirmwareMode", 1),
    "pci.device_id": ("nvmlDeviceGetPciInfo_v3", 4),
    "pci.subsystem_id": ("nvmlDeviceGetPciInfo_v3", 5),
    "memory.total": ("nvmlDeviceGetMemoryInfo_v2", 1),
    "memory.reserved": ("nvmlDeviceGetMemoryInfo_v2", 2),
    "memory.used": ("nvmlDeviceGetMemoryInfo_v2", 4),
    "rows.corrected": ("nvmlDeviceGetRemappedRows", 0),
    "rows.uncorrected": ("nvmlDeviceGetRemappedRows", 1),
    "rows.pending": ("nvmlDeviceGetRemappedRows", 2),
    "rows.failed": ("nvmlDeviceGetRemappedRows", 3),
    "fabric.state": ("nvmlDeviceGetGpuFabricInfo", 2),
    "fabric.status": ("nvmlDeviceGetGpuFabricInfo", 0),
    "fabric.clique": ("nvmlDeviceGetGpuFabricInfo", 1),
}
ECC = {"corrected.volatile": (0, 0), "corrected.aggregate": (0, 1), "uncorrected.volatile": (1, 0)}
RECOVERY_ACTION = "field.274"  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION; `nvidia-smi -q` says None (0) on that host


def configuration(answers: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Return the sim.conf keys that make the simulated libraries answer as ANSWERS (one GPU) say."""
    nvml = {call["call"]: call for call in answers["nvml"]}
    driver = {call["call"]: call for call in answers["driver"]}
    conf: dict[str, Any] = {
        "driver.cuda": driver["cuDriverGetVersion"]["result"][0],
        "driver.ptx": 90,  # PTX ISA 9.0 came with CUDA 13.0 (its documentation, release table)
        "gpu.count": nvml["nvmlDeviceGetCount_v2"]["result"][0],
        "confcompute.environment": nvml["nvmlSystemGetConfComputeState"]["result"][0],
        "confcompute.feature": nvml["nvmlSystemGetConfComputeState"]["result"][1],
        "confcompute.devtools": nvml["nvmlSystemGetConfComputeState"]["result"][2],
        "confcompute.ready": nvml["nvmlSystemGetConfComputeGpusReadyState"]["result"][0],
        "gpu.0.name": nvml["nvmlDeviceGetName 0"]["result"],
        "gpu.0.uuid": nvml["nvmlDeviceGetUUID 0"]["result"],
        "gpu.0.pci": driver["cuDeviceGetPCIBusId 0"]["result"],
        "gpu.0.gsp.version": nvml["nvmlDeviceGetGspFirmwareVersion 0"]["result"],
        f"gpu.0.{RECOVERY_ACTION}": 0,
    }
    for key, (name, index) in NVML_NUMBERS.items():
        conf[f"gpu.0.{key}"] = nvml[f"{name} 0"]["result"][index]
    for key, (kind, counter) in ECC.items():
        conf[f"gpu.0.ecc.{key}"] = nvml[f"nvmlDeviceGetTotalEccErrors 0 type {kind} counter {counter}"]["result"][0]
    free, total = driver["cuMemGetInfo_v2 0"]["result"]
    conf["gpu.0.memory.cuda"] = driver["cuDeviceTotalMem_v2 0"]["result"]
    conf["gpu.0.memory.context"] = total - free  # what the primary context takes
    for attribute, value in driver["cuDeviceGetAttribute 0"]["result"].items():
        if isinstance(value, int):
            conf[f"gpu.0.attr.{attribute}"] = value
    return {key: str(value) for key, value in conf.items()}


def host_entries(entries: Entries) -> Entries:
    """Return the entries that a simulated host keeps, with a longer uptime and a plain kernel release."""
    kept = {
        path: {key: value for key, value in entry.items() if key != "size" or not entry.get("text")}
        for path, entry in entries.items()
        if path in KEPT or not any(path.startswith(name) for name in DROPPED.split())
    }
    for entry in kept.values():
        if "text" in entry:
            entry["text"] = re.sub(r"(\d+\.\d+\.\d+)-[\w.-]*gpu\b", r"\1", entry["text"])
    kept["/proc/uptime"]["text"] = f"{UPTIME_S}.00 {UPTIME_S * 8}.00\n"
    return kept


def main(arguments: list[str]) -> int:
    """Convert ARGUMENTS[0] into ARGUMENTS[1]."""
    with open(arguments[0], encoding="utf-8") as file:
        recording = json.load(file)
    conf = configuration(recording["answers"])
    entries = host_entries(recording["entries"])
    lines = ["{", f'"recorded": {json.dumps(recording["recorded"])},', '"conf": {']
    lines.append(",\n".join(f"{json.dumps(key)}: {json.dumps(conf[key])}" for key in sorted(conf)))
    lines += ["},", '"entries": {']
    lines.append(",\n".join(f"{json.dumps(path)}: {json.dumps(entries[path])}" for path in sorted(entries)))
    lines += ["}", "}"]
    with open(arguments[1], "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
