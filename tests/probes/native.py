"""Small C libraries and simulated hosts for tests that call real code in real children."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_gpudiscovery import simulate
from pytest_gpudiscovery.simulate.assemble import SimulatedHost
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.types import ChildResult, Probe

DEADLINE_S = 20.0  # far more than any of these needs on a loaded machine
EXTRA = Path(__file__).parent / "extra"


def library(path: Path, source: str, soname: str = "") -> Path:
    """Compile SOURCE into the shared library PATH."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "these tests need a C compiler"
    code = path.with_suffix(".c")
    code.write_text(source)
    name = [f"-Wl,-soname,{soname}"] if soname else []
    subprocess.run([compiler, "-shared", "-fPIC", *name, "-o", str(path), str(code)], check=True)
    return path


def host(text: str, directory: Path) -> SimulatedHost:
    """Return the simulated host that TEXT names, built in DIRECTORY."""
    return simulate.prepare(simulate.parse(text), str(directory))


def child(
    module: str,
    request: Mapping[str, Any],
    env: Mapping[str, str],
    *,
    deadline_s: float = DEADLINE_S,
    site: bool = False,
) -> ChildResult:
    """Run probe MODULE in a supervised child with ENV alone."""
    base = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/"}
    return run(Probe(module, request, {**base, **env}, deadline_s, site=site), extra=EXTRA)


def steps(result: ChildResult) -> dict[str, Any]:
    """Return step name -> result of what RESULT's child did."""
    return {step.name: step.result for step in result.steps}
