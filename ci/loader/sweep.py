"""Compare prediction and loader on every shared object of this machine: outcome, files and message.

    python ci/loader/sweep.py [DIRECTORY ...]        (default: where distributions and Python keep libraries)

Each library is really dlopen()ed in a child with an empty environment, 10 s at most. Prints a table and each
difference; exit status 1 when fewer than 99.9 % agree. What a constructor opens by itself (a library with the CUDA
runtime linked in opens libcuda.so.1) is no part of the dlopen that is predicted: ld.so's own account (LD_DEBUG=files)
has to say so for each such file, and they are counted apart. Constructors run: do not point it at directories that
others can write to.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.loader.oracle import Answer, Case, Loader, build_probe, predicted, real, run_case

PLACES = ("/usr/lib", "/usr/local/lib", "/usr/libexec", "/opt", sys.prefix)
NOT_LIBRARIES = (".py", ".pyi", ".h", ".txt", ".conf", ".json", ".gz", ".ko", ".xz", ".pc", ".html")
SUFFICIENT = 0.999
ASKED = re.compile(r"file=(\S+) \[\d+\];  (dynamically loaded|needed) by (\S+) \[\d+\]")


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


def opened_by_constructors(path: str, probe: str, further: set[str]) -> dict[str, str]:
    """Return FURTHER files of dlopen(PATH) -> the object that opened them itself; {} unless that explains them all."""
    account = run_case(Case(path, {"LD_DEBUG": "files"}), [probe, path])[2]
    openers: dict[str, str] = {}
    for name, how, by in ASKED.findall(account):
        if how == "dynamically loaded" and by != os.path.basename(probe) and by not in ("", probe):
            openers.setdefault(os.path.basename(name), by)
        elif how == "needed" and os.path.basename(by) in openers:
            openers.setdefault(os.path.basename(name), openers[os.path.basename(by)])
    found = {file: openers[os.path.basename(file)] for file in further if os.path.basename(file) in openers}
    return found if len(found) == len(further) else {}


def main() -> int:
    """Run the sweep."""
    places = sys.argv[1:] or [place for place in PLACES if os.path.isdir(place)]
    paths = libraries(places)
    table: collections.Counter[tuple[str, str, bool]] = collections.Counter()
    different: list[tuple[str, Answer, Answer]] = []
    constructors: list[tuple[str, dict[str, str]]] = []
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
            further = set(happened.files) - set(expected.files)
            opened = opened_by_constructors(path, probe, further) if further else {}
            if opened:
                constructors.append((path, opened))
                happened = dataclasses.replace(
                    happened, files=tuple(file for file in happened.files if file not in opened)
                )
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
    for path, opened in constructors:
        for file, by in opened.items():
            print(f"\n{path}\n  beyond the dlopen: {file}, opened by a constructor of {by}")
    agreed = len(paths) - len(different)
    share = agreed / len(paths) if paths else 0.0
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in spent.items())
    print(f"\n{agreed} of {len(paths)} agree: {share:.2%} ({seconds})")
    return 0 if share >= SUFFICIENT else 1


if __name__ == "__main__":
    raise SystemExit(main())
