"""Break real Ollama installs on a real GPU host; the gate's verdict beside what `ollama serve` itself then does.

    python ci/hardware/ollama.py --install NAME=PREFIX ... --out DIR [--only WORD,...]

Each case runs `ollama serve` of a copy of the install in private directories until its "inference compute" lines, and
`gpu-discovery gate` on the same copy in the same environment. Right is: ready or degraded where Ollama computes on a
GPU, blocked where it computes on the CPU, and then the cause that the fault must lead to. Prints a table and writes
DIR/ollama.json; exit status 1 when a row is wrong. As root; some cases drop to uid 65534.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORK = Path("/tmp/gpu-discovery-ollama")  # noqa: S108  made anew below, removed at the end
GATE_S, SERVE_S = 240.0, 100.0
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
COMPUTE = re.compile(r'msg="inference compute".* library=(\S+)')
CUINIT_999 = "int cuInit(unsigned f) { (void)f; return 999; }\n"


@dataclass(frozen=True)
class Case:
    """One fault of install INSTALL; `computes`: gpu or cpu; `causes`: what may be named first where it is cpu."""

    install: str
    name: str
    computes: str
    causes: tuple[str, ...] = ()
    damage: Callable[[Path], None] = lambda _: None
    env: dict[str, str] = field(default_factory=dict)
    as_nobody: bool = False
    no_nodes: tuple[str, ...] = ()  # device nodes that are missing


def backend(install: Path) -> Path:
    """Return the CUDA backend of INSTALL."""
    return next(iter(sorted((install / "lib/ollama").glob("*/libggml-cuda.so"))))


def gone(pattern: str) -> Callable[[Path], None]:
    """Return a damage that removes the files below lib/ollama that PATTERN names."""

    def damage(install: Path) -> None:
        for path in sorted((install / "lib/ollama").glob(pattern)):
            path.unlink()

    return damage


def cut(install: Path) -> None:
    """Cut libggml-cuda.so off in the middle."""
    path = backend(install)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def lfs(install: Path) -> None:
    """Put a git-lfs pointer in the place of libggml-cuda.so."""
    path = backend(install)
    path.unlink()
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def cases(names: list[str]) -> list[Case]:
    """Return the cases of the installs NAMES (machine, ptx, llama)."""
    hides = ("service.env.cuda_visible_devices_hides_all",)
    wrong = {"CUDA_VISIBLE_DEVICES": "GPU-deadbeef-0000-4000-8000-000000000000"}
    preload = {"LD_PRELOAD": str(WORK / "cuinit999.so")}
    node = ("kernel.node.missing",)
    both = [name for name in ("machine", "llama") if name in names]
    rows = [Case(name, "healthy", "gpu") for name in names]
    for name in both:
        rows += [
            Case(name, "CUDA_VISIBLE_DEVICES empty", "cpu", hides, env={"CUDA_VISIBLE_DEVICES": ""}),
            Case(name, "CUDA_VISIBLE_DEVICES of no GPU", "cpu", hides, env=wrong),
            # The CUDA runtime asks libcuda itself: an interposed cuInit is not called, and Ollama keeps the GPU.
            Case(name, "LD_PRELOAD whose cuInit answers 999", "gpu", env=preload),
            Case(name, "libggml-cuda.so is cut off", "cpu", ("package.library.truncated",), cut),
            Case(name, "libggml-cuda.so is a git-lfs pointer", "cpu", ("package.library.not_elf",), lfs),
            Case(name, "no libggml-cuda.so", "cpu", ("package.gpu_dir.missing",), gone("*/libggml-cuda.so")),
            Case(name, "OLLAMA_LLM_LIBRARY of no directory", "cpu", (), env={"OLLAMA_LLM_LIBRARY": "cuda_v99"}),
            Case(name, "as uid 65534", "gpu", as_nobody=True),
            Case(name, "no /dev/nvidia-uvm, uid 65534", "cpu", node, as_nobody=True, no_nodes=("nvidia-uvm",)),
        ]
    if "machine" in names:
        base = ("closure.base.missing",)
        rows.append(Case("machine", "no libggml-base.so.0", "cpu", base, gone("libggml-base.so*")))
        rows.append(Case("machine", "CUDA_MODULE_LOADING=EAGER", "gpu", env={"CUDA_MODULE_LOADING": "EAGER"}))
    if "ptx" in names:
        eager = ("closure.jit.eager_hang",)
        rows.append(Case("ptx", "CUDA_MODULE_LOADING=EAGER", "cpu", eager, env={"CUDA_MODULE_LOADING": "EAGER"}))
    return rows


def wrapped(case: Case, argv: list[str], number: int) -> list[str]:
    """Return ARGV as CASE's user, in a mount namespace without the nodes that CASE lacks."""
    user = [*NOBODY, *argv] if case.as_nobody else argv
    if not case.no_nodes:
        return user
    dev = WORK / f"{number}-dev"
    lines = [f"mkdir -p {dev}", f"mount -t tmpfs -o mode=755 dev {dev}"]
    lines += [f"for n in null zero full random urandom tty; do cp -a /dev/$n {dev}/; done"]
    lines += [f"mkdir {dev}/shm; chmod 1777 {dev}/shm; ln -s /proc/self/fd {dev}/fd"]
    lines += [f"for n in /dev/nvidia*; do cp -a $n {dev}/; done"]
    lines += [f"rm -rf {dev}/{name}" for name in case.no_nodes]
    lines += [f"mount --move {dev} /dev", 'exec "$@"']
    return ["unshare", "-m", "bash", "-c", "; ".join(lines), "bash", *user]


def serve(case: Case, install: Path, number: int) -> tuple[str, float]:
    """Run the real `ollama serve`; ("gpu" | "cpu" | what else happened, seconds until it said so)."""
    home = WORK / f"{number}-home"
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, **case.env, "HOME": str(home), "OLLAMA_MODELS": str(home / "models")}
    env |= {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_DEBUG": "1"}
    log = home / "log"
    began = time.monotonic()
    with log.open("wb") as out:
        argv = wrapped(case, [str(install / "bin/ollama"), "serve"], number)
        child = subprocess.Popen(
            argv, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        while (spent := time.monotonic() - began) < SERVE_S:
            found = COMPUTE.search(log.read_text(errors="replace"))
            if found:
                return ("cpu" if found[1] == "cpu" else "gpu"), spent
            if child.poll() is not None:
                return f"ended with {child.returncode}", spent
            time.sleep(0.05)
        return "said nothing", SERVE_S
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def gate(case: Case, install: Path, number: int) -> tuple[dict[str, Any], float, str]:
    """Return the gate's verdict on the same install in the same environment, its seconds, and its last words."""
    report = WORK / f"{number}-report"
    report.mkdir(mode=0o777)
    report.chmod(0o777)
    argv = [sys.executable, "-m", "pytest_gpudiscovery", "gate", "--gpu-ollama", str(install)]
    argv += ["--gpu-report", str(report / "r")]
    began = time.monotonic()
    try:
        env = {**os.environ, **case.env}
        done = subprocess.run(
            wrapped(case, argv, number), env=env, capture_output=True, text=True, timeout=GATE_S, check=False, cwd="/"
        )
        tail = (done.stdout + done.stderr)[-1200:]
    except subprocess.TimeoutExpired:
        tail = f"no end within {GATE_S:g} s"
    try:
        verdict = json.loads((report / "r/verdict.json").read_text())
    except (OSError, ValueError) as error:
        verdict = {"verdict": f"none: {error}", "blockers": [], "stages": []}
    return verdict, time.monotonic() - began, tail


def row(case: Case, base: Path, number: int) -> dict[str, Any]:
    """Run CASE and return its row."""
    install = WORK / f"{number}"
    shutil.copytree(base, install, symlinks=True)
    case.damage(install)
    computes, seconds = serve(case, install, number)
    verdict, took, tail = gate(case, install, number)
    primary = (verdict["blockers"] or [{}])[0]
    cause = primary.get("cause", "")
    said = {"ready": "gpu", "degraded": "gpu", "blocked": "cpu"}.get(verdict["verdict"], verdict["verdict"])
    named = not case.causes or cause in case.causes
    shutil.rmtree(install)
    return {
        "install": case.install,
        "case": case.name,
        "right": computes == case.computes == said and (said == "gpu" or named),
        "ollama": computes,
        "ollama_s": round(seconds, 2),
        "gate": verdict["verdict"],
        "gate_s": round(took, 2),
        "cause": f"{primary.get('stage', '')} {cause}".strip(),
        "expected": [case.computes, list(case.causes)],
        "stages": {stage["name"]: [stage["outcome"], stage["duration_s"]] for stage in verdict["stages"]},
        "tail": tail,
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="append", default=[], metavar="NAME=PREFIX", help="machine, ptx or llama")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    installs = {name: Path(path) for name, _, path in (word.partition("=") for word in options.install)}
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(mode=0o755)
    (WORK / "cuinit.c").write_text(CUINIT_999)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", WORK / "cuinit999.so", WORK / "cuinit.c"], check=True)
    wanted = [word for word in options.only.split(",") if word]
    rows = []
    for number, case in enumerate(cases(list(installs))):
        if wanted and not any(word in case.name for word in wanted):
            continue
        said = row(case, installs[case.install], number)
        rows.append(said)
        print(
            f"{'ok   ' if said['right'] else 'WRONG'} {case.install:<8}{case.name:<38} ollama: {said['ollama']:<5}"
            f"{said['ollama_s']:6.1f} s   gate: {said['gate']:<9}{said['gate_s']:6.1f} s  {said['cause']}",
            flush=True,
        )
        if not said["right"]:
            print(f"      expected {said['expected']}\n      {said['tail'][-700:]!r}", flush=True)
    shutil.rmtree(WORK, ignore_errors=True)
    right = sum(said["right"] for said in rows)
    print(f"{right} of {len(rows)}: the gate and Ollama agree, and the cause is the injected one")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ollama.json").write_text(json.dumps(rows, indent=1))
    return int(right != len(rows))


if __name__ == "__main__":
    raise SystemExit(main())
