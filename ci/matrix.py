"""The fault matrix: inject every fault, run the gate as a process on each, compare what it names with what is right.

    python ci/matrix.py [--tier ci|full] [--only WORD] [--origin ORIGIN,...] [--jobs 2] [--out DIR]
                        [--reuse FILE] [--real FILE ...] [--evidence]

The rows are in tests/matrix/data (tests/matrix/rows.py says what a row is); `ci` is the choice that the tests run,
`full` is every row. Prints one line for each row and a table at the end, and writes DIR/matrix.json and DIR/matrix.md.
DIR/seen.json holds what each run showed: with --reuse it is judged again, and only what it lacks is run.
--real adds results of ci/hardware/*.py on real GPUs; --evidence stamps both files into docs/evidence/fault-matrix.*.
Exit status 1 when a number that is promised is not reached: stage right in every row, cause right first in 98 %, no
false green, no false block (neither of a row nor of a variant of tests/healthy), every verdict in time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import evidence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pytest_gpudiscovery.simulate import registry  # noqa: E402
from tests.matrix import hardware, inject, markdown, rows, tally, tiers, variants  # noqa: E402
from tests.matrix.judge import Judged, judge  # noqa: E402
from tests.supervise import rigs  # noqa: E402

NAME = "fault-matrix"


def measure(
    todo: Sequence[rows.Injection], jobs: int, keep: Path | None
) -> Iterator[tuple[rows.Injection, inject.Seen | str]]:
    """Yield (injection, what was seen or why it cannot be run here) for each of TODO, as it ends."""

    def one(number: int, injection: rows.Injection) -> tuple[rows.Injection, inject.Seen | str]:
        if not injection.runs_here:
            return injection, "needs root"
        try:
            return injection, inject.run(injection, keep / f"{number:04}" if keep is not None else None)
        except rigs.Unavailable as why:
            return injection, str(why)

    with concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = [pool.submit(one, number, injection) for number, injection in enumerate(todo)]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def chosen(options: argparse.Namespace) -> list[rows.Row]:
    """Return the rows that OPTIONS ask for."""
    found = rows.read(*([word for word in options.origin.split(",") if word] or ()))
    if options.tier == "ci":
        found = tiers.ci(found)
    words = [word for word in options.only.split(",") if word]
    return [row for row in found if not words or any(word in row.name for word in words)]


def reused(file: Path | None) -> dict[str, inject.Seen]:
    """Return what FILE, a seen.json, holds by the name of the injection."""
    found = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
    return {name: inject.Seen(**seen) for name, seen in found.items()}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run what OPTIONS ask for, printing each row; return tally.summary's data."""
    wanted = chosen(options)
    by: dict[rows.Injection, list[rows.Row]] = {}
    for row in wanted:
        by.setdefault(row.injection, []).append(row)
    judged: list[Judged] = []
    left_out: dict[str, str] = {}
    known = reused(options.reuse)
    todo = [injection for injection in by if str(injection) not in known]
    again = ((injection, known[str(injection)]) for injection in by if str(injection) in known)
    fresh = measure(todo, options.jobs, options.out / "runs" if options.keep else None)
    record: dict[str, Any] = {}
    for injection, seen in itertools.chain(again, fresh):
        if isinstance(seen, inject.Seen):
            record[str(injection)] = dataclasses.asdict(seen)
        if isinstance(seen, str):
            left_out[str(injection)] = seen
            continue
        for row in by[injection]:
            judged.append(judge(row, seen))
            print(tally.show(judged[-1]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "seen.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    place = {row: number for number, row in enumerate(wanted)}
    judged.sort(key=lambda one: place[one.row])
    whole = options.tier == "full" and not options.only
    if whole:
        ran = {name for one in judged for name in one.row.injection.each} | variants.faults()
        for name in registry.FAULTS:
            if name not in ran:
                left_out.setdefault(name, tiers.NOT_RUN.get(name, "no row"))
    healthy = []
    for variant in variants.measure(options.jobs) if whole and not options.origin else ():
        mark = "skip " if "skipped" in variant else "ok   " if variant["right"] else "WRONG"
        print(f"{mark} variant    {variant['name']:<64} {variant.get('seen', variant.get('skipped'))}", flush=True)
        healthy.append(variant)
    return tally.summary(judged, left_out, hardware.read(options.real), healthy)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=("ci", "full"), default="ci")
    parser.add_argument("--origin", default="", help=f"only rows of: {', '.join(rows.ORIGINS)}")
    parser.add_argument("--only", default="", metavar="WORD[,WORD]", help="only rows whose name contains a word")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/matrix"))
    parser.add_argument("--keep", action="store_true", help="keep output and verdict.json of every run below DIR/runs")
    parser.add_argument("--reuse", type=Path, metavar="FILE", help="a seen.json of this commit: run only what it lacks")
    parser.add_argument("--real", type=Path, action="append", default=[], metavar="FILE", help="results of ci/hardware")
    parser.add_argument("--evidence", action="store_true", help="also write docs/evidence/fault-matrix.md and .json")
    options = parser.parse_args()
    began = time.monotonic()
    data = run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "matrix.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (options.out / "matrix.md").write_text(markdown.page(data), encoding="utf-8")
    if options.evidence:
        command = f"python ci/matrix.py --tier {options.tier}" + "".join(
            f" --real {file.name}" for file in options.real
        )
        machine = f"simulated hosts, {os.cpu_count()} processors, {'root' if os.geteuid() == 0 else 'not root'}"
        for suffix, text in (("json", json.dumps(data, indent=1) + "\n"), ("md", markdown.page(data))):
            print(evidence.write(NAME, text, command, machine, suffix=suffix))
    before, after = tally.Counts(**data["counts"]), tally.Counts(**data["counts_after_corrections"])
    print(f"\n{'':<22}{'as written':>12}{'corrected':>12}")
    for name in markdown.COLUMNS:
        print(f"{name.replace('_', ' '):<22}{getattr(before, name):>12}{getattr(after, name):>12}")
    print(f"left out: {len(data['left_out'])}; {time.monotonic() - began:.0f} s")
    blocked = [row["name"] for row in data["variants"] if row.get("false_block")]
    broken = after.broken + ([f"healthy variants that are blocked: {', '.join(blocked)}"] if blocked else [])
    for text in broken:
        print(f"BROKEN: {text}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
