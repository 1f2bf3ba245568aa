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
from pathlib import Path
from typing import Any

import comparable
from ollama_cases import WORK, Case, build, cases

NAMES = "machine, newer (machine code, to 0.24), ptx (PTX only), llama (from 0.30)"
GATE_S, SERVE_S = 240.0, 100.0
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
COMPUTE = re.compile(r'msg="inference compute".* library=(\S+)')


def wrapped(case: Case, argv: list[str], number: int) -> list[str]:
    """Return ARGV as CASE's user, in a mount namespace without the nodes that CASE lacks."""
    argv = [*case.around, *argv]
    user = [*NOBODY, *argv] if case.as_nobody else argv
    if not case.no_nodes and not case.before:
        return user
    lines = ["set -e", f"lib={WORK / str(number)}/lib/ollama", *case.before]
    if case.no_nodes:
        lines += without_nodes(case, WORK / f"{number}-dev")
    lines.append('exec "$@"')
    return ["unshare", "-m", "bash", "-c", "; ".join(lines), "bash", *user]


def without_nodes(case: Case, dev: Path) -> list[str]:
    """Return the shell lines of a /dev without the nodes that CASE lacks."""
    lines = [f"mkdir -p {dev}", f"mount -t tmpfs -o mode=755 dev {dev}"]
    lines += [f"for n in null zero full random urandom tty; do cp -a /dev/$n {dev}/; done"]
    lines += [f"mkdir {dev}/shm; chmod 1777 {dev}/shm; ln -s /proc/self/fd {dev}/fd"]
    lines += [f"for n in /dev/nvidia*; do cp -a $n {dev}/; done"]
    lines += [f"rm -rf {dev}/{name}" for name in case.no_nodes]
    return [*lines, f"mount --move {dev} /dev"]


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
        done = subprocess.run(
            wrapped(case, argv, number),
            env={**os.environ, **case.env},
            capture_output=True,
            text=True,
            timeout=GATE_S,
            check=False,
            cwd="/",
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
    named = (not case.causes or cause in case.causes) and case.stage in ("", primary.get("stage"))
    agree = said == ("gpu" if computes == "gpu" else "cpu")  # a server that does not start computes on no GPU
    shutil.rmtree(install)
    right = agree and case.computes in ("", computes) and (said == "gpu" or named)
    healthy = case.name in ("healthy", "as uid 65534")
    return {
        **comparable.row(
            "ollama",
            f"{case.install}: {case.name}",
            "" if healthy else case.name,
            f"Ollama computes on {case.computes or 'either'} {case.stage} {'/'.join(case.causes)}",
            f"Ollama: {computes}, gate: {verdict['verdict']} {primary.get('stage', '')} {cause}",
            right,
            round(took, 2),
        ),
        "install": case.install,
        "case": case.name,
        "ollama": computes,
        "ollama_s": round(seconds, 2),
        "gate": verdict["verdict"],
        "gate_s": round(took, 2),
        "cause": f"{primary.get('stage', '')} {cause}".strip(),
        "stages": {stage["name"]: [stage["outcome"], stage["duration_s"]] for stage in verdict["stages"]},
        "tail": tail,
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--install",
        action="append",
        default=[],
        metavar="NAME=PREFIX",
        help="machine and newer (machine code, to 0.24), ptx (PTX only), llama (from 0.30)",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    installs = {name: Path(path) for name, _, path in (word.partition("=") for word in options.install)}
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(mode=0o755)
    build()
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
    comparable.write(options.out / "ollama.json", rows)
    return int(right != len(rows))


if __name__ == "__main__":
    raise SystemExit(main())
