"""The results of the scripts in this directory in one form, which ci/matrix.py reads (--real FILE).

One row is one run of the gate: {source, machine, name, fault, expected, seen, right, time}. `fault` is what was
injected, the same for another user or another install; empty for a healthy host.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LIMIT_S = 20.0  # for nvidia-smi, which hangs where the driver does
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")


def machine() -> str:
    """Return the GPUs and the driver of this host in words, "unknown" where nvidia-smi does not tell in time."""
    program = shutil.which(QUERY[0])
    if program is None:
        return "unknown"
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen([program, *QUERY[1:]], stdout=out, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            child.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return "unknown"
        out.seek(0)
        lines = out.read().decode(errors="replace").splitlines()
    name, _, version = lines[0].partition(", ") if lines else ("unknown", "", "unknown")
    return f"{len(lines)} x {name}, driver {version}"


def row(source: str, name: str, fault: str, expected: str, seen: str, right: bool, seconds: float) -> dict[str, Any]:
    """Return one row; EXPECTED and SEEN are words, "VERDICT STAGE CAUSE"."""
    found = {"source": source, "name": name, "fault": fault, "expected": " ".join(expected.split())}
    return {**found, "seen": " ".join(seen.split()), "right": right, "time": seconds}


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ROWS to PATH, each with the machine's name."""
    here = machine()
    path.write_text(json.dumps([{"machine": here, **row} for row in rows], indent=1) + "\n", encoding="utf-8")
