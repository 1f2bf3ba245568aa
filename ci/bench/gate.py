"""Time the whole gate against its native floor, stage by stage, and against `import torch` where torch is installed.

    python ci/bench/gate.py [--runs 5] [--check] [gate options, e.g. --gpu-simulate h100]

A stage's floor is the least that a fresh process must do for the same answer: the interpreter's start and the bare
native calls. Everything is measured side by side in one run; figures are medians in milliseconds. `--check` exits 1
when a promise is broken: the sum of the stages at most 2.5 floors, the whole process at most 0.4 of torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a clone

from pytest_gpudiscovery.probes.driver import MANAGED_BYTES, PTX, THREADS, WORDS

SUM_LIMIT, TORCH_LIMIT = 2.5, 0.4
START = ""
NVML = """
import ctypes
lib = ctypes.CDLL("libnvidia-ml.so.1"); n = ctypes.c_uint()
assert lib.nvmlInit_v2() == 0 and lib.nvmlDeviceGetCount_v2(ctypes.byref(n)) == 0
lib.nvmlShutdown()
"""
DRIVER = f"""
import ctypes
lib = ctypes.CDLL("libcuda.so.1"); n, p, word = ctypes.c_int(), ctypes.c_uint64(), ctypes.c_uint32 * {WORDS}
context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
size, data, count, none = ctypes.c_size_t({WORDS * 4}), word(), ctypes.c_uint32({WORDS}), ctypes.c_void_p()
image = ctypes.create_string_buffer({PTX.format(version="6.3", target="sm_75").encode()!r})
parameters = (ctypes.c_void_p * 2)(ctypes.addressof(p), ctypes.addressof(count))
assert lib.cuInit(0) == 0 and lib.cuDeviceGetCount(ctypes.byref(n)) == 0
for device in range(n.value):
    assert lib.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    lib.cuCtxSetCurrent(context)
    assert lib.cuMemAlloc_v2(ctypes.byref(p), size) == 0
    assert lib.cuMemcpyHtoD_v2(p, data, size) == 0 and lib.cuMemcpyDtoH_v2(data, p, size) == 0
    assert lib.cuModuleLoadData(ctypes.byref(module), image) == 0
    assert lib.cuModuleGetFunction(ctypes.byref(function), module, b"gate_kernel") == 0
    shape = [ctypes.c_uint(value) for value in ({WORDS // THREADS}, 1, 1, {THREADS}, 1, 1, 0)]
    assert lib.cuLaunchKernel(function, *shape, none, parameters, none) == 0 and lib.cuCtxSynchronize() == 0
    assert lib.cuMemcpyDtoH_v2(data, p, size) == 0
    lib.cuModuleUnload(module); lib.cuMemFree_v2(p)
    if lib.cuMemAllocManaged(ctypes.byref(p), ctypes.c_size_t({MANAGED_BYTES}), ctypes.c_uint(1)) == 0:
        ctypes.memset(p.value, 1, {MANAGED_BYTES}); lib.cuMemFree_v2(p)
    lib.cuDevicePrimaryCtxRelease_v2(device)
"""
RUNTIME = """
import ctypes
for name in ("libcudart.so.13", "libcudart.so.12"):
    try: lib = ctypes.CDLL(name); break
    except OSError: pass
else: raise SystemExit(3)
n = ctypes.c_int()
assert lib.cudaGetDeviceCount(ctypes.byref(n)) == 0
"""
WITNESSES = """
import pynvml; pynvml.nvmlInit(); pynvml.nvmlDeviceGetCount()
try: from cuda.bindings import driver
except ImportError: from cuda import cuda as driver
driver.cuInit(0); driver.cuDeviceGetCount()
"""
# What a stage cannot do without. Stages that only read files need one fresh process.
FLOORS = {
    "package": (START, True),
    "service": (START, True),
    "loopback": (START, True),
    "kernel": (START, True),
    "nvml": (NVML, True),
    "driver": (DRIVER, True),
    "enumeration": (WITNESSES, False),
    "runtime": (RUNTIME, True),
}


def timed(argv: list[str], cwd: str | None = None) -> tuple[float, int]:
    """Return (milliseconds, exit code) of one process whose output is thrown away."""
    begun = time.perf_counter()
    done = subprocess.run(argv, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600, check=False)
    return (time.perf_counter() - begun) * 1000, done.returncode


def floor(code: str, isolated: bool, runs: int) -> float | None:
    """Return the median of CODE in a fresh interpreter, None when it does not run on this host."""
    argv = [sys.executable, *(["-I", "-S"] if isolated else []), "-c", code]
    samples = [timed(argv) for _ in range(runs)]
    return statistics.median(ms for ms, _ in samples) if all(rc == 0 for _, rc in samples) else None


def gate(arguments: list[str], runs: int) -> tuple[dict[str, float], float, str]:
    """Return the median of each stage and of the whole process, and the last verdict."""
    stages: dict[str, list[float]] = {}
    whole, verdict = [], ""
    with tempfile.TemporaryDirectory() as report:
        argv = [sys.executable, "-m", "pytest", "--gpu-discovery", "-q", "--gpu-until", "runtime"]
        argv += ["--gpu-report", report, *arguments]
        for _ in range(runs):
            ms, _ = timed(argv, cwd=report)  # away from this repository's own pytest settings
            whole.append(ms)
            data = json.loads(Path(report, "verdict.json").read_text())
            verdict = data["verdict"]
            for stage in data["stages"]:
                if stage["duration_s"]:
                    stages.setdefault(stage["name"], []).append(stage["duration_s"] * 1000)
    return {name: statistics.median(samples) for name, samples in stages.items()}, statistics.median(whole), verdict


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--torch", default=sys.executable, help="the interpreter that has torch")
    options, rest = parser.parse_known_args()
    stages, whole, verdict = gate(rest, options.runs)
    print(f"verdict {verdict}; medians of {options.runs} runs, ms")
    print(f"{'stage':<14}{'gate':>9}{'floor':>9}{'ratio':>8}")
    total, total_floor = 0.0, 0.0
    for name, ms in stages.items():
        least = floor(*FLOORS[name], options.runs) if name in FLOORS else None
        if least is None:
            print(f"{name:<14}{ms:9.0f}{'-':>9}{'-':>8}")
            continue
        total, total_floor = total + ms, total_floor + least
        print(f"{name:<14}{ms:9.0f}{least:9.0f}{ms / least:8.2f}")
    ratio = total / total_floor if total_floor else float("nan")
    print(f"{'sum':<14}{total:9.0f}{total_floor:9.0f}{ratio:8.2f}  (at most {SUM_LIMIT})")
    plain, _ = timed([sys.executable, "-c", "import pytest"])
    print(
        f"whole process {whole:.0f} ms, of which stages {sum(stages.values()):.0f} ms; `import pytest` {plain:.0f} ms"
    )
    broken = not ratio <= SUM_LIMIT
    torch, code = timed([options.torch, "-c", "import torch; torch.cuda.is_available()"])
    if code == 0:
        samples = [
            torch,
            *(timed([options.torch, "-c", "import torch; torch.cuda.is_available()"])[0] for _ in range(2)),
        ]
        torch = statistics.median(samples)
        print(
            f"torch.cuda.is_available() {torch:.0f} ms: "
            f"the gate takes {whole / torch:.2f} of it (at most {TORCH_LIMIT})"
        )
        broken = broken or whole / torch > TORCH_LIMIT
    else:
        print("torch is not installed here: not compared")
    return int(options.check and broken)


if __name__ == "__main__":
    raise SystemExit(main())
