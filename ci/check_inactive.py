"""What the installed plugin costs a pytest run that does not ask for it: modules, and with --time also seconds.

    python ci/check_inactive.py [--time [RUNS]]

Exit code 1 when more than two of our modules are imported, when anything else is imported that pytest alone does not
import, or (--time) when the median of the paired differences is outside of their noise. Prints what it saw.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

OURS = "pytest_gpudiscovery"
OUR_LIMIT = 2  # the package itself and its plugin
RUN = (
    "import json, sys, pytest\n"
    "code = pytest.main(sys.argv[2:])\n"
    "json.dump([int(code), sorted(sys.modules)], open(sys.argv[1], 'w'))\n"
)


def modules(directory: str, *plugins: str) -> set[str]:
    """Return what a pytest run with one passing test in DIRECTORY imports, with PLUGINS and no other."""
    answer = os.path.join(directory, "modules.json")
    command = [sys.executable, "-c", RUN, answer, *arguments(directory, *plugins)]
    subprocess.run(command, check=True, env=environment(), cwd=directory, stdout=subprocess.DEVNULL, timeout=60)
    with open(answer, encoding="utf-8") as file:
        code, names = json.load(file)
    if code != 0:
        raise SystemExit(f"pytest ended with {code}")
    return set(names)


def seconds(directory: str, *plugins: str) -> float:
    """Return how long one pytest run takes, from start to end of the process."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "pytest", *arguments(directory, *plugins)]
    subprocess.run(command, check=True, env=environment(), cwd=directory, stdout=subprocess.DEVNULL, timeout=60)
    return time.perf_counter() - begin


def arguments(directory: str, *plugins: str) -> list[str]:
    """Return pytest's arguments for DIRECTORY."""
    named = [part for plugin in plugins for part in ("-p", plugin)]
    return ["-q", "-p", "no:cacheprovider", *named, os.path.join(directory, "test_one.py")]


def environment() -> dict[str, str]:
    """Return the environment of a run in which only named plugins are loaded."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "GPU_DISCOVERY_"))}
    return {**kept, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def within_noise(differences: list[float]) -> bool:
    """Whether the median of paired DIFFERENCES is below twice the standard error that their spread gives."""
    quartiles = statistics.quantiles(differences, n=4)
    spread = (quartiles[2] - quartiles[0]) / 1.349  # of a normal distribution with these quartiles
    return statistics.median(differences) <= 2 * 1.253 * spread / math.sqrt(len(differences))


def main() -> int:
    """Compare, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", nargs="?", type=int, const=30, default=0, metavar="RUNS")
    runs = parser.parse_args().time
    with tempfile.TemporaryDirectory() as directory:
        with open(os.path.join(directory, "test_one.py"), "w", encoding="utf-8") as file:
            file.write("def test_one():\n    pass\n")
        added = modules(directory, f"{OURS}.plugin") - modules(directory)
        ours = sorted(name for name in added if name.partition(".")[0] == OURS)
        others = sorted(added - set(ours))
        print(f"ours: {', '.join(ours)}\nothers: {', '.join(others) or 'none'}")
        good = len(ours) <= OUR_LIMIT and not others
        if runs:
            pairs = []
            for number in range(runs):
                # Alternating which one comes first keeps a drifting machine out of the difference.
                with_first = number % 2 == 0
                first = seconds(directory, *([f"{OURS}.plugin"] if with_first else []))
                second = seconds(directory, *([] if with_first else [f"{OURS}.plugin"]))
                pairs.append(first - second if with_first else second - first)
            good = good and within_noise(pairs)
            noise = "in the noise" if within_noise(pairs) else "NOT in the noise"
            print(f"{runs} pairs: median {statistics.median(pairs) * 1000:+.1f} ms, {noise}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
