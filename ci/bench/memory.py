"""Measure what the gate adds to pytest's own memory: peak resident size of the pytest process, children apart.

    python ci/bench/memory.py [gate options, e.g. --gpu-simulate h100]

Prints the peak (VmHWM) of an empty pytest run and of the gate, medians of 3, and the difference (promise: 15 MB).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PLUGIN = """
def pytest_unconfigure(config):
    with open("/proc/self/status") as status, open(config.getoption("peak_file"), "w") as out:
        out.write(next(line.split()[1] for line in status if line.startswith("VmHWM:")))

def pytest_addoption(parser):
    parser.addoption("--peak-file")
"""
LIMIT_MB = 15.0


def peak(directory: Path, arguments: list[str]) -> float:
    """Return the peak resident size in MB of one pytest process with ARGUMENTS."""
    (directory / "peak_plugin.py").write_text(PLUGIN)
    out = directory / "peak"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "peak_plugin", "--peak-file", str(out), "-q", *arguments],
        cwd=directory,
        # An installed plugin or a source tree: what this interpreter can import, the child can too.
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), *(path for path in sys.path if path)])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )
    return int(out.read_text()) / 1024


def main() -> int:
    """Run the command line."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
        plain = statistics.median(peak(directory, ["test_nothing.py"]) for _ in range(3))
        asked = ["--gpu-discovery", "--gpu-until", "runtime", "--gpu-report", str(directory / "report"), *sys.argv[1:]]
        gate = statistics.median(peak(directory, asked) for _ in range(3))
    print(f"plain pytest {plain:.1f} MB, the gate {gate:.1f} MB: {gate - plain:+.1f} MB (at most {LIMIT_MB:g})")
    return int(gate - plain > LIMIT_MB)


if __name__ == "__main__":
    raise SystemExit(main())
