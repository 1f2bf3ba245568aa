"""Compare prediction and loader on every shared object of this machine: outcome, files and message.

    python ci/loader/sweep.py [DIRECTORY ...]        (default: where distributions and Python keep libraries)

Each library is really dlopen()ed in a child with an empty environment, 10 s at most. Prints a table and each
difference; exit status 1 when fewer than 99.9 % agree. Constructors run: do not point it at directories that others
can write to.
"""

from __future__ import annotations

import collections
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.loader.oracle import Answer, Case, Loader, build_probe, predicted, real

PLACES = ("/usr/lib", "/usr/local/lib", "/usr/libexec", "/opt", sys.prefix)
NOT_LIBRARIES = (".py", ".pyi", ".h", ".txt", ".conf", ".json", ".gz", ".ko", ".xz", ".pc", ".html")
SUFFICIENT = 0.999


def libraries(places: list[str]) -> list[str]:
    """Return every file below PLACES whose name says shared object, links left out."""
    found = set()
    for place in places:
        for directory, _, names in os.walk(place):
            for name in names:
                path = os.path.join(directory, name)
                likely = (".so" in name or name.endswith(".node")) and not name.endswith(NOT_LIBRARIES)
                if likely and os.path.isfile(path) and not os.path.islink(path):
                    found.add(path)
    return sorted(found)


def main() -> int:
    """Run the sweep."""
    places = sys.argv[1:] or [place for place in PLACES if os.path.isdir(place)]
    paths = libraries(places)
    table: collections.Counter[tuple[str, str, bool]] = collections.Counter()
    different: list[tuple[str, Answer, Answer]] = []
    spent = {"predicting": 0.0, "loading": 0.0}
    with tempfile.TemporaryDirectory() as directory:
        probe = build_probe(Path(directory), Loader("host", ""))
        for path in paths:
            case = Case(path)
            started = time.perf_counter()
            expected = predicted(case, probe)
            spent["predicting"] += time.perf_counter() - started
            started = time.perf_counter()
            happened = real(case, probe)
            spent["loading"] += time.perf_counter() - started
            table[expected.outcome, happened.outcome.split(":")[0], expected == happened] += 1
            if expected != happened:
                different.append((path, expected, happened))
    for (expected_outcome, outcome, same), count in table.most_common():
        print(f"predicted {expected_outcome:12} real {outcome:12} {'same' if same else 'DIFFERENT':10} {count}")
    for path, expected, happened in different:
        print(f"\n{path}\n  predicted: {expected.outcome} {expected.message}")
        print(f"  real     : {happened.outcome} {happened.message}")
        if expected.files != happened.files:
            print(f"  files    : {sorted(set(expected.files) ^ set(happened.files)) or 'another order'}")
    agreed = len(paths) - len(different)
    share = agreed / len(paths) if paths else 0.0
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in spent.items())
    print(f"\n{agreed} of {len(paths)} agree: {share:.2%} ({seconds})")
    return 0 if share >= SUFFICIENT else 1


if __name__ == "__main__":
    raise SystemExit(main())
