"""Measure what writing the reports costs beyond the run: time and memory, each kind in turn in a process of its own.

    python ci/bench/reports.py [verdict.json] [--times 5]

Without a file the largest sample of the report tests. The process has what a run has loaded (model, verdict); what is
counted is importing the report's modules and writing. Promise: report.html and evidence together 150 ms and 10 MB, as
medians, each given as a ratio of the promise; Allure and GitHub are asked for and counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT_MS, LIMIT_MB = 150.0, 10.0
KINDS = {
    "report directory": "from pytest_gpudiscovery.reports import evidence, html\n"
    "evidence.write(out, verdict); html.write(out, verdict)",
    "allure": "from pytest_gpudiscovery.reports import allure\nallure.write(out, verdict, {})",
    "github": "from pytest_gpudiscovery.reports import github\nlist(github.commands(verdict)); github.summary(verdict)",
}
CHILD = """
import json, sys, time
from pathlib import Path
import pytest
from pytest_gpudiscovery import finish
from pytest_gpudiscovery.model import verdict_from_json
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
verdict = verdict_from_json(json.loads(Path(sys.argv[1]).read_text()))
out, code = sys.argv[2:4]
before, wall, cpu = peak(), time.perf_counter(), time.process_time()
exec(code)
print(json.dumps([(time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3, peak() - before]))
"""


def once(verdict: Path, code: str) -> list[float]:
    """Return wall ms, CPU ms and MB of running CODE in a fresh process."""
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(verdict), out, code],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            timeout=300,
            check=True,
        )
    found: list[float] = json.loads(done.stdout)
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verdict", nargs="?", type=Path)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = given.verdict
        if path is None:
            sys.path.insert(0, str(ROOT))
            from pytest_gpudiscovery.model import to_json  # noqa: PLC0415 - the checkout's, found by the line above
            from tests.reports import samples  # noqa: PLC0415 - likewise

            path = Path(name, "verdict.json")
            path.write_text(json.dumps(to_json(samples.eight_gpus())), encoding="utf-8")
        print(f"verdict.json of {path.stat().st_size / 1024:.0f} KiB, median of {given.times}")
        within = True
        for kind, code in KINDS.items():
            runs = [once(path, code) for _ in range(given.times)]
            wall, cpu, mb = (statistics.median(run[index] for run in runs) for index in range(3))
            print(
                f"{kind:<17} {wall:6.1f} ms ({cpu:5.1f} ms of CPU, {cpu / LIMIT_MS:.2f} of the promise),"
                f" {mb:+5.1f} MB ({mb / LIMIT_MB:.2f})"
            )
            within = within and (kind != "report directory" or (cpu <= LIMIT_MS and mb <= LIMIT_MB))
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
