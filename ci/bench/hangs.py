"""Hang N supervised children in every way there is, and check what the supervisor promises about each.

    python ci/bench/hangs.py [--count 1000] [--deadline 0.3]

Promised: `run` is back within deadline + 4 s, whatever the child does; nothing is left behind that SIGKILL could end;
descriptors, memory and processes of this process do not grow: the slope of the least-squares line over the hangs after
the first quarter, in which caches fill. As root also in state D (fsfreeze, FUSE, a locked memory map), STUCK of each
kind: those stay, abandoned, until the cause is removed. Exits 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pytest_gpudiscovery.supervise import procfs, reaper
from pytest_gpudiscovery.supervise.child import EVIDENCE_S, KILL_WAIT_S, run
from pytest_gpudiscovery.supervise.types import Ending
from tests.supervise import rigs

PROMISE_S = EVIDENCE_S + KILL_WAIT_S
WARM = 0.25  # of the hangs: caches fill before growth is measured
STUCK = 20  # children of each kind that SIGKILL cannot end: each keeps 10 MB until its cause is removed
# At most, a hang. A leak of one descriptor, or of a page, in each hang would be 1 and 4.
SLOPES = {"descriptors": 0.01, "processes": 0.01, "memory KiB": 2.0}
FEW = 200  # below this many hangs one step of the allocator is a slope of its own
FEW_KIB = 20.0
DEATH_S = 1.0  # for a killed process to be gone


@dataclass
class Row:
    """What one kind of hang did."""

    late: list[float] = field(default_factory=list)
    endings: dict[str, int] = field(default_factory=dict)
    survivors: int = 0


def kinds(stack: contextlib.ExitStack, directory: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (name, request) of every hang that can be made here; says on stderr which cannot. {index}: the hang's."""
    yield "sleep", {"how": "signals"}
    yield "grandchild", {"how": "grandchild"}
    try:
        library = rigs.library(directory)
        yield "native sleep", {"how": "hang_sleep", "lib": library, "hold_gil": "yes"}
        yield "futex", {"how": "hang_futex", "lib": library, "hold_gil": "yes"}
        yield "spin", {"how": "hang_spin", "lib": library, "hold_gil": "yes"}
    except rigs.Unavailable as why:
        print(f"left out: native hangs: {why}", file=sys.stderr)
    for name, how, rig in (
        ("D: fsfreeze", "create", rigs.frozen),
        ("D: FUSE lookup", "stat", lambda place: rigs.fuse(place, "lookup")),
        ("D: locked map", "mmap", lambda place: rigs.fuse(place, "write")),
    ):
        place = directory / how
        place.mkdir()
        try:
            path = stack.enter_context(rig(place))
        except rigs.Unavailable as why:
            print(f"left out: {name}: {why}", file=sys.stderr)
            continue
        yield name, {"how": how, "path": str(path / "{index}")}


def survivors(pids: list[int]) -> list[int]:
    """Return which of PIDS live on although SIGKILL could end them; those that it cannot end are known: abandoned."""

    def left() -> list[int]:
        abandoned = reaper.reap()
        return [pid for pid in pids if pid not in abandoned and rigs.alive(pid)]

    rigs.wait_for(lambda: not left(), DEATH_S)
    return left()


def own() -> dict[str, float]:
    """Return what this process holds."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": len(set(procfs.descendants(os.getpid())) - reaper.reap()),
        "memory KiB": float(status["VmRSS"].split()[0]),
    }


def slope(values: list[float]) -> float:
    """Return the slope of the least-squares line through VALUES, a step each; 0 for fewer than two."""
    middle = (len(values) - 1) / 2
    mean = sum(values) / max(1, len(values))
    spread = sum((index - middle) ** 2 for index in range(len(values)))
    return sum((index - middle) * (value - mean) for index, value in enumerate(values)) / spread if spread else 0.0


def turns(requests: dict[str, dict[str, str]]) -> Iterator[str]:
    """Yield the kinds of REQUESTS in turn for ever, of those that end in state D STUCK each."""
    left = {name: STUCK for name in requests if name.startswith("D:")}
    while True:
        for name in requests:
            if name in left:
                left[name] -= 1
            if left.get(name, 0) >= 0:
                yield name


def hang(count: int, deadline_s: float, requests: dict[str, dict[str, str]]) -> tuple[dict[str, Row], dict[str, float]]:
    """Hang COUNT children, the kinds in turn; return a row for each kind, and the slope of what this process holds."""
    rows = {name: Row() for name in requests}
    samples: list[dict[str, float]] = []
    for index, name in zip(range(count), turns(requests), strict=False):
        request: dict[str, Any] = {key: value.format(index=index) for key, value in requests[name].items()}
        began = time.monotonic()
        result = run(rigs.probe("t_hang", deadline_s, **request), extra=rigs.PROBES)
        row = rows[name]
        row.late.append(time.monotonic() - began - deadline_s)
        row.endings[result.ending.value] = row.endings.get(result.ending.value, 0) + 1
        pids = [pid for pid in (result.pid, result.observed.get("daemon")) if pid is not None]
        row.survivors += len(survivors(pids))
        samples.append(own())
    warm = samples[max(len(requests), int(WARM * count)) :]
    return rows, {what: slope([sample[what] for sample in warm]) for what in SLOPES}


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--deadline", type=float, default=0.5, help="seconds (default 0.5)")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        rows, growth = hang(options.count, options.deadline, dict(kinds(stack, Path(name))))
    left = sorted(reaper.reap())

    print(f"{options.count} hangs in {time.monotonic() - began:.0f} s, deadline {options.deadline:g} s")
    print(f"{'hang':<16}{'n':>5}{'late: median':>14}{'max':>8}{'survivors':>11}  endings")
    for kind, row in rows.items():
        if row.late:
            endings = ", ".join(f"{ending} {number}" for ending, number in row.endings.items())
            late = f"{statistics.median(row.late):>12.3f} s{max(row.late):>6.3f} s"
            print(f"{kind:<16}{len(row.late):>5}{late}{row.survivors:>11}  {endings}")
    print("slope over the hangs, each: " + ", ".join(f"{what} {value:+.4f}" for what, value in growth.items()))
    print(f"abandoned and still there after their cause was removed: {left or 'none'}")

    limits = {**SLOPES, "memory KiB": FEW_KIB if options.count < FEW else SLOPES["memory KiB"]}
    latest = max(max(row.late, default=0.0) for row in rows.values())
    hung = {Ending.TIMED_OUT.value, Ending.UNKILLABLE.value}
    broken = [
        text
        for text, is_broken in (
            (f"{latest:.3f} s after the deadline, promised are {PROMISE_S} s", latest > PROMISE_S),
            ("a child did not hang, or was not seen to", any(set(row.endings) - hung for row in rows.values())),
            ("survivors that SIGKILL could end", any(row.survivors for row in rows.values())),
            ("children that could end and were not reaped", bool(left)),
            *((f"{what} grow by {growth[what]:.4f} a hang", growth[what] > limit) for what, limit in limits.items()),
        )
        if is_broken
    ]
    for text in broken:
        print(f"BROKEN: {text}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
