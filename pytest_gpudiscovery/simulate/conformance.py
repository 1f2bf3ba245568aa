"""Run the conformance table: `python3 -m pytest_gpudiscovery.simulate.conformance [--real] [--json FILE] [WORD ...]`.

Without --real: on the simulated H100, as every identity that the caller may become. With --real, as root on a host with
one H100: each row in mount namespaces of its own, over a private /dev, under a deadline; the device nodes and mounts of
the host are compared before and after. WORDs choose the rows whose names contain one. Exit code 0 when every answer is
the expected one, 1 when one is not, 20 when a row could not be made.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # also as a plain file, on a host where nothing is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pytest_gpudiscovery import simulate
from pytest_gpudiscovery.simulate import conformance_child
from pytest_gpudiscovery.simulate.conformance_rows import IDENTITIES, ROWS, Row

LIMIT_S = 60.0
CALLER = "caller"
KEPT = ("LD_LIBRARY_PATH", "PATH", "LANG")


@dataclass(frozen=True)
class Cell:
    """One row for one identity."""

    row: str
    identity: str
    expected: Mapping[str, int | str] | None  # None: not measured yet
    said: Mapping[str, Any] | None
    problem: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether everything expected was said; None when nothing was expected or the row could not be made."""
        if self.expected is None or self.said is None:
            return None
        return all(self.said.get(key) == value for key, value in self.expected.items())


def run_row(row: Row, identity: str, *, real: bool, directory: str) -> Cell:
    """Run ROW as IDENTITY, on this host when REAL, else on a simulated one that is written to DIRECTORY."""
    expected = row.expected.get("nobody" if identity == CALLER else identity)
    env = {key: os.environ[key] for key in KEPT if key in os.environ} | {"CUDA_CACHE_DISABLE": "1"}
    steps = [*row.both]
    if real:
        steps = [*row.steps, *row.both]
        runtimes = sorted(glob.glob("/usr/local/cuda*/targets/*/lib/libcudart.so.1?"))
        told = glob.glob("/proc/driver/nvidia/gpus/*/information")
    else:
        spec = simulate.parse("h100" + (f":{row.fault}" if row.fault else ""))
        host = simulate.prepare(spec, directory)
        env |= host.env
        runtimes = ["libcudart.so.13"]
        told = [os.path.join(host.directory, "sim.conf")]
    request = {
        "private": real,
        "steps": steps,
        "identity": identity,
        "libcuda": "libcuda.so.1",
        "cudart": [*runtimes, "libcudart.so.13", "libcudart.so.12"],
    }
    digits = _uuid(told) if any("{digits}" in value for value in row.env.values()) else ""
    own = {name: value.replace("{digits}", digits) for name, value in row.env.items()}
    said, problem = _child(request, {**env, **own})
    return Cell(row.name, identity, expected, said, problem)


def _uuid(paths: list[str]) -> str:
    """Return the UUID of the GPU that one of the files PATHS tells, without GPU-; "none" where none does."""
    found = (re.search(r"GPU-([0-9a-f-]{36})", Path(path).read_text(encoding="utf-8")) for path in paths)
    return next((match[1] for match in found if match), "none")


def _child(request: dict[str, Any], env: dict[str, str]) -> tuple[dict[str, Any] | None, str]:
    source = Path(conformance_child.__file__).read_text(encoding="utf-8")
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", source, json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=env,
            start_new_session=True,
            cwd="/",
        )
        deadline = time.monotonic() + LIMIT_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        late = process.poll() is None
        if late:
            os.killpg(process.pid, 9)  # and not waited for: it may sleep in state D
        out.seek(0)
        text = out.read(1 << 20).decode(errors="replace")
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            answer = json.loads(line)
            return answer.get("said"), answer.get("not_done", "")
    return None, f"no answer within {LIMIT_S:g} s" if late else f"exit {process.returncode}: {text.strip()[-200:]}"


def identities(real: bool) -> tuple[str, ...]:
    """Return who the rows can be run as: everybody for root, else the caller alone."""
    return IDENTITIES if real or os.geteuid() == 0 else (CALLER,)


def host_state() -> dict[str, Any]:
    """Return what a run must leave as it was: device nodes and mounts."""
    nodes = {}
    for path in sorted(glob.glob("/dev/nvidia*") + glob.glob("/dev/nvidia-caps/*")):
        found = os.lstat(path)
        nodes[path] = [found.st_mode, found.st_rdev, found.st_uid, found.st_gid]
    return {"nodes": nodes, "mounts": Path("/proc/self/mounts").read_text(encoding="utf-8")}


def table(cells: list[Cell]) -> list[str]:
    """Return CELLS as lines for a person."""
    words = {True: "as expected", False: "DIFFERS", None: "not judged"}
    lines = []
    for cell in cells:
        seen = " ".join(f"{key}={value}" for key, value in (cell.said or {}).items()) or cell.problem
        lines.append(f"{cell.row:<45} {cell.identity:<10} {words[cell.agrees]:<11} {seen}")
        if cell.agrees is False:
            missed = {k: v for k, v in (cell.expected or {}).items() if (cell.said or {}).get(k) != v}
            lines.append(f"{'':<45} {'':<10} {'':<11} expected {' '.join(f'{k}={v}' for k, v in missed.items())}")
    return lines


def main(arguments: list[str]) -> int:
    """Run the table as ARGUMENTS say; return the exit code."""
    parser = argparse.ArgumentParser(prog="conformance", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--real", action="store_true", help="on this host, as root")
    parser.add_argument("--json", metavar="FILE", help="write every cell to FILE")
    parser.add_argument("words", nargs="*", metavar="WORD", help="only rows whose names contain one of these")
    given = parser.parse_args(arguments)
    if given.real and os.geteuid() != 0:
        print("conformance --real needs root: it makes faults in mount namespaces of its own", file=sys.stderr)
        return 4
    before, cells = host_state(), []
    with tempfile.TemporaryDirectory(prefix="gpu-discovery-conformance-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103  (the unprivileged identity must reach the libraries)
        for row in ROWS:
            if given.words and not any(word.lower() in row.name.lower() for word in given.words):
                continue
            for identity in identities(given.real):
                cells.append(run_row(row, identity, real=given.real, directory=os.path.join(folder, "host")))
                print(table(cells[-1:])[0], flush=True)
    unchanged = host_state() == before
    different = [cell for cell in cells if cell.agrees is False]
    undone = [cell for cell in cells if cell.said is None]
    print()
    for line in table(different):
        print(line)
    print(f"{len(cells)} cells, {len(different)} differ, {len(undone)} could not be made; ", end="")
    print(f"device nodes and mounts of the host {'are as before' if unchanged else 'HAVE CHANGED'}")
    if given.json:
        rows = [{**asdict(cell), "agrees": cell.agrees} for cell in cells]
        document = {"real": given.real, "unchanged": unchanged, "cells": rows}
        Path(given.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if different or not unchanged else 20 if undone else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
