"""Split the time of the whole gate, with bootstrap and serve: native floors, Ollama's own discovery, and what is ours.

    python ci/bench/split.py --ollama PREFIX [--runs 5] [--check] [--json FILE] [gate options]

Everything is measured side by side on this host, medians in milliseconds. A stage's floor is the same answer from
bare fresh processes that do nothing else: the interpreter's start and the native calls (gate.py's for stages 01 to 08),
ld.so itself for the closure, dlopen of each library, ggml_backend_init of each directory and of each GPU alone. For 12
and 13 it is one interpreter for each set of children, and the end of what was started: Ollama does not wait until the
driver has taken a killed runner's context down, a gate that leaves nothing behind does.
Ollama's own is what a real `ollama serve` of PREFIX takes: its discovery ("GPU bootstrap discovery took") is the least
that stage 12 can take, its start until the last "inference compute" line the least of stage 13. Starting Python and
importing pytest has a line of its own. What is left is the gate's overhead, and with Python and pytest it must still
be at most a third of the whole: `--check` exits 1 when it is more. How long the disk takes to keep a verdict is printed
beside it: the gate waits for that once a second and at the end, also on a disk that is slow.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gate import FLOORS, RUNTIME, START, floor, timed

SHARE = 1 / 3
SERVE_S = 120.0
LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
COMPUTE, AFTER = 'msg="inference compute"', ('msg="vram-based default context"', 'msg="entering low vram mode"')
TOOK = re.compile(r'msg="GPU bootstrap discovery took" duration=([\d.]+)(ms|s|µs)')
UNITS = {"s": 1000.0, "ms": 1.0, "µs": 0.001}
DLOPEN = "import ctypes, os, sys\nfor path in sys.argv[1:]: ctypes.CDLL(path, mode=os.RTLD_NOW)"
BACKEND = """
import ctypes, os, sys
lib = ctypes.CDLL(sys.argv[1], mode=os.RTLD_NOW); p = ctypes.c_void_p
def f(name, result, *args):
    g = lib[name]; g.restype, g.argtypes = result, args; return g
reg = f("ggml_backend_init", p)()
count, free, total = f("ggml_backend_reg_dev_count", ctypes.c_size_t, p)(reg), ctypes.c_size_t(), ctypes.c_size_t()
for i in range(count):
    dev = f("ggml_backend_reg_dev_get", p, p, ctypes.c_size_t)(reg, i)
    f("ggml_backend_dev_memory", None, p, p, p)(dev, ctypes.byref(free), ctypes.byref(total))
print(count)
"""


def median(measure: Callable[[], float], runs: int) -> float:
    """Return the median of RUNS measurements after one that warms the caches."""
    measure()
    return statistics.median(measure() for _ in range(runs))


def bare(argv: list[str], env: dict[str, str]) -> float:
    """Return the milliseconds of a process that must end with 0."""
    begun = time.perf_counter()
    done = subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=600, check=False)
    spent = (time.perf_counter() - begun) * 1000
    if done.returncode != 0:
        raise SystemExit(f"{argv[:6]} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-600:]}")
    return spent


def backends(prefix: Path) -> list[Path]:
    """Return the CUDA backend of each GPU directory."""
    return sorted((prefix / "lib/ollama").glob("*/libggml-cuda.so"))


def environment(prefix: Path, directory: Path | None) -> dict[str, str]:
    """Return the environment of Ollama's child for DIRECTORY."""
    own = [str(prefix / "lib/ollama"), *([str(directory)] if directory else [])]
    rest = [entry for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join((*own, *rest))}


def python(code: str, *arguments: object) -> list[str]:
    """Return the command that runs CODE in a bare interpreter."""
    return [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)]


def closure_floor(prefix: Path, runs: int) -> float:
    """Return what ld.so takes to name all that each backend needs."""
    loader = next((path for path in LOADERS if os.path.exists(path)), None)
    total = floor(START, True, runs) or 0.0
    for path in backends(prefix) if loader else ():
        argv, env = [str(loader), "--list", str(path)], environment(prefix, path.parent)
        total += median(lambda argv=argv, env=env: bare(argv, env), runs)  # type: ignore[misc]
    return total


def runtime_floor(prefix: Path, runs: int) -> float:
    """Return the device count of each directory's own libcudart; 0 for one that has none."""
    total = 0.0
    for path in backends(prefix):
        argv, env = python(RUNTIME), environment(prefix, path.parent)
        if any(path.parent.glob("libcudart.so*")):
            total += median(lambda argv=argv, env=env: bare(argv, env), runs)  # type: ignore[misc]
    return total


def load_floor(prefix: Path, runs: int) -> float:
    """Return one process for the CPU variants and one for each GPU directory."""
    variants = sorted(map(str, (prefix / "lib/ollama").glob("libggml-cpu*.so")))
    total = median(lambda: bare(python(DLOPEN, *variants), environment(prefix, None)), runs)
    for path in backends(prefix):
        argv, env = python(DLOPEN, path), environment(prefix, path.parent)
        total += median(lambda argv=argv, env=env: bare(argv, env), runs)  # type: ignore[misc]
    return total


def backend_floor(prefix: Path, runs: int) -> float:
    """Return both passes of each GPU directory: all devices in one process, then each alone, those at once."""
    total = 0.0
    for path in backends(prefix):
        argv, env = python(BACKEND, path), environment(prefix, path.parent)
        total += median(lambda argv=argv, env=env: bare(argv, env), runs)  # type: ignore[misc]
        counted = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=600, check=True).stdout
        count = int(counted.split()[-1])

        def second(argv: list[str] = argv, env: dict[str, str] = env, count: int = count) -> float:
            begun = time.perf_counter()
            alone = [{**env, "CUDA_VISIBLE_DEVICES": str(number), "GGML_CUDA_INIT": "1"} for number in range(count)]
            out = subprocess.DEVNULL
            for child in [subprocess.Popen(argv, env=one, stdout=out, stderr=out) for one in alone]:
                child.wait()
            return (time.perf_counter() - begun) * 1000

        total += median(second, runs)
    return total


def end_floor(prefix: Path, runs: int) -> float:
    """Return what stage 12 cannot do without beside Ollama's own time: see the text above; ends only of runners."""
    children = len(backends(prefix)) + 1  # one for each directory, one for the second pass
    total = children * (floor(START, True, runs) or 0.0)
    if (prefix / "lib/ollama/llama-server").exists():  # ends by itself, within Ollama's own time
        return total

    def end(argv: list[str], env: dict[str, str]) -> float:
        pipe = subprocess.PIPE
        child = subprocess.Popen(argv, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        assert child.stdout is not None
        child.stdout.readline()  # it has its context now
        begun = time.perf_counter()
        child.kill()
        child.communicate()
        return (time.perf_counter() - begun) * 1000

    for path in backends(prefix):
        argv, env = python(BACKEND + "sys.stdout.flush(); sys.stdin.read()\n", path), environment(prefix, path.parent)
        total += 2 * median(lambda argv=argv, env=env: end(argv, env), runs)  # type: ignore[misc]  # both passes
    return total


def running(group: int) -> bool:
    """Whether anything of process group GROUP runs; a zombie does not, and may wait for an idle init for seconds."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, number = Path(entry, "stat").read_text().rpartition(")")[2].split()[:3]
                if int(number) == group and state != "Z":
                    return True
    return False


def gone(group: int) -> float:
    """Return the milliseconds from the SIGKILL of process group GROUP until nothing of it runs any more."""
    begun = time.perf_counter()
    os.killpg(group, signal.SIGKILL)
    os.waitpid(group, 0)
    while running(group) and time.perf_counter() - begun < SERVE_S:
        time.sleep(0.001)
    return (time.perf_counter() - begun) * 1000


def disk_ms(runs: int) -> float:
    """Return the milliseconds that fsync of a file as large as verdict.json takes."""

    def sync() -> float:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x" * 170_000)
            file.flush()
            begun = time.perf_counter()
            os.fsync(file.fileno())
            return (time.perf_counter() - begun) * 1000

    return median(sync, runs)


def serve(prefix: Path) -> tuple[float, float, float, str]:
    """Run a bare `ollama serve`; (ms of its discovery, until it said its devices, of its end, the lines with them)."""
    with tempfile.TemporaryDirectory() as home, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        env = {**os.environ, "HOME": home, "OLLAMA_MODELS": f"{home}/models", "OLLAMA_HOST": f"127.0.0.1:{port}"}
        env |= {"OLLAMA_DEBUG": "1", "OLLAMA_NO_CLOUD": "1", "HTTPS_PROXY": "http://127.0.0.1:9"}
        log = Path(home, "log")
        begun = time.perf_counter()
        with log.open("wb") as out:
            argv = [str(prefix / "bin/ollama"), "serve"]
            child = subprocess.Popen(argv, env=env, stdout=out, stderr=out, start_new_session=True)
        try:
            text = ""
            while not any(mark in text for mark in AFTER):
                if time.perf_counter() - begun > SERVE_S or child.poll() is not None:
                    raise SystemExit(f"ollama serve did not say on what it computes: {text[-800:]}")
                time.sleep(0.002)
                text = log.read_text(errors="replace")
            spent = (time.perf_counter() - begun) * 1000
        finally:
            ended = gone(child.pid)
    took = TOOK.search(text)
    if took is None:
        raise SystemExit('this ollama does not say "GPU bootstrap discovery took": too old for this measurement')
    lines = "\n".join(line for line in text.splitlines() if COMPUTE in line)
    return float(took[1]) * UNITS[took[2]], spent, ended, lines


def gate(arguments: list[str], runs: int) -> tuple[dict[str, float], float, str]:
    """Return the median of each stage and of the whole process, and the last verdict with its number of stages."""
    stages: dict[str, list[float]] = {}
    whole, said = [], ""
    with tempfile.TemporaryDirectory() as directory:
        argv = [sys.executable, "-m", "pytest_gpudiscovery", "gate", "-q", "--gpu-report", f"{directory}/r", *arguments]
        timed(argv, cwd=directory)
        for _ in range(runs):
            ms, _ = timed(argv, cwd=directory)
            whole.append(ms)
            data = json.loads(Path(directory, "r/verdict.json").read_text())
            ran = [stage for stage in data["stages"] if stage["outcome"] not in ("not_reached", "not_selected")]
            said = f"{data['verdict']}, {len(ran)} stages ran"
            for stage in ran:
                stages.setdefault(stage["name"], []).append(stage["duration_s"] * 1000)
            shutil.rmtree(f"{directory}/r")
    return {name: statistics.median(samples) for name, samples in stages.items()}, statistics.median(whole), said


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ollama", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", type=Path)
    options, rest = parser.parse_known_args()
    prefix, runs = options.ollama.resolve(), options.runs
    for installed in ("pytest_gpudiscovery", "suites"):  # as pip does when it installs
        compileall.compile_dir(Path(__file__).resolve().parents[2] / installed, quiet=2)
    simulated = any(word.startswith("--gpu-simulate") for word in rest)
    stages, whole, said = gate([*rest, *([] if simulated else ["--gpu-ollama", str(prefix)])], runs)
    floors = {name: floor(*FLOORS[name], runs) or 0.0 for name in FLOORS}
    floors |= {"closure": closure_floor(prefix, runs), "load": load_floor(prefix, runs)}
    floors |= {"runtime": runtime_floor(prefix, runs), "backend": backend_floor(prefix, runs)}
    served = [serve(prefix) for _ in range(runs + 1)][1:]
    floors["bootstrap"] = end_floor(prefix, runs)
    floors["serve"] = (floor(START, True, runs) or 0.0) + statistics.median(one[2] for one in served)
    own = {
        "bootstrap": statistics.median(one[0] for one in served),
        "serve": statistics.median(one[1] for one in served),
    }
    pytest_ms = median(lambda: timed([sys.executable, "-c", "import pytest"])[0], runs)
    print(f"verdict {said}; medians of {runs} runs, ms")
    print(f"{'stage':<16}{'gate':>9}{'native':>9}{'Ollama':>9}{'ours':>9}")
    for name, ms in stages.items():
        native, ollamas = floors.get(name, 0.0), own.get(name, 0.0)
        print(f"{name:<16}{ms:9.0f}{native:9.0f}{ollamas:9.0f}{ms - native - ollamas:9.0f}")
    native, ollamas = sum(floors[name] for name in stages if name in floors), sum(own.values())
    around = whole - sum(stages.values())
    print(
        f"{'around them':<16}{around:9.0f}{'':>9}{'':>9}{around - pytest_ms:9.0f}  (and {pytest_ms:.0f} import pytest)"
    )
    ours = whole - native - ollamas - pytest_ms
    print(f"{'whole process':<16}{whole:9.0f}{native:9.0f}{ollamas:9.0f}{ours:9.0f}")
    parts = {"native floors": native, "Ollama's own": ollamas, "python and pytest": pytest_ms, "overhead": ours}
    print("; ".join(f"{name} {ms:.0f} ms = {ms / whole:.0%}" for name, ms in parts.items()))
    share = (ours + pytest_ms) / whole
    print(
        f"overhead with python and pytest {share:.1%} of the whole (at most {SHARE:.1%}); fsync {disk_ms(runs):.1f} ms"
    )
    print(f"a bare ollama serve says:\n{served[-1][3]}")
    if options.json:
        data = {"stages": stages, "whole": whole, "floors": floors, "ollama": own, "pytest": pytest_ms, "ours": ours}
        options.json.write_text(json.dumps(data, indent=1))
    return int(options.check and share > SHARE)


if __name__ == "__main__":
    raise SystemExit(main())
