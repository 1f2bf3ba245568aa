"""Mutate ELF files, ld.so.cache and fatbins: every mutant must get an answer.

    python ci/loader/fuzz.py [--count 1000000] [--seed 1] [--coverage] [FILE ...]

No exception, no answer that takes over a second, no more than 64 MB. Mutants that reach lines which none before
reached are kept and mutated further (with --coverage, which traces; about ten times slower). Prints counts by
outcome, the slowest answer, the peak and, with --coverage, the lines of the readers that were reached. Exit status 1
on the first violation, whose mutant is written to fuzz-failure.bin.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from pytest_gpudiscovery.loader import predict, read_images
from pytest_gpudiscovery.loader.elf import Elf
from pytest_gpudiscovery.loader.fatbin import read_architectures
from pytest_gpudiscovery.loader.files import Root
from pytest_gpudiscovery.loader.hostld import HostLoader, host_loader
from pytest_gpudiscovery.loader.kernels import will_run
from pytest_gpudiscovery.loader.ldsocache import Cache
from pytest_gpudiscovery.loader.problems import Refused, Skipped
from pytest_gpudiscovery.loader.symbols import Symbols, gnu_hash

READERS = ("elf.py", "symbols.py", "versions.py", "ldsocache.py", "fatbin.py", "relocate.py", "process.py", "files.py")
SLOW = 1.0  # seconds
HANG = 60  # seconds; SIGALRM then ends the run
PEAK = 64 << 10  # kilobytes above the start
INTERESTING = (
    0,
    1,
    2,
    7,
    8,
    16,
    24,
    255,
    4095,
    4096,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
KEPT = 512
WHOLE = 50  # one mutant in so many is predicted as a whole dlopen
MUTANT_BYTES = 1 << 17


def mutate(source: bytes, rng: random.Random) -> bytes:
    """Return SOURCE with one to eight edits: bits, bytes, integers at aligned places, blocks moved, the end cut off."""
    data = bytearray(source)
    for _ in range(rng.randint(1, 8)):
        if len(data) < 16:
            break
        # Structure is at the beginning: half of the edits go there.
        at = rng.randrange(min(len(data), 1024)) if rng.random() < 0.5 else rng.randrange(len(data))
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind in (2, 3):
            form = rng.choice(("<H", "<I", "<Q"))
            size = struct.calcsize(form)
            at = min(at & -size, len(data) - size)
            struct.pack_into(form, data, at, rng.choice(INTERESTING) & (1 << 8 * size) - 1)
        elif kind == 4:
            form = rng.choice(("<H", "<I", "<Q"))
            size = struct.calcsize(form)
            at = min(at & -size, len(data) - size)
            value = struct.unpack_from(form, data, at)[0] + rng.randint(-64, 64)
            struct.pack_into(form, data, at, value & (1 << 8 * size) - 1)
        elif kind == 5:
            to, size = rng.randrange(len(data)), rng.randrange(1, 64)
            data[to : to + size] = data[at : at + size]
        elif rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
    return bytes(data)


class Target:
    """Asks every reader about one file; `seen` collects lines when coverage is asked for."""

    def __init__(self, directory: str, coverage: bool) -> None:
        self.path = os.path.join(directory, "mutant.so")
        self.loader: HostLoader = host_loader()
        self.asked = 0
        self.coverage = coverage
        self.seen: set[tuple[str, int]] = set()
        self.new = False

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        name = os.path.basename(frame.f_code.co_filename)
        if name not in READERS or "loader" not in frame.f_code.co_filename:
            return None
        if event == "line" and (name, frame.f_lineno) not in self.seen:
            self.seen.add((name, frame.f_lineno))
            self.new = True
        return self._trace

    def ask(self, data: bytes, kind: str) -> str:
        """Return the outcome for DATA."""
        with open(self.path, "wb") as file:
            file.write(data)
        self.new = False
        if self.coverage:
            sys.settrace(self._trace)
        try:
            return self._answer(kind)
        finally:
            sys.settrace(None)

    def _answer(self, kind: str) -> str:
        if kind == "cache":
            cache = Cache(Root(), self.path, self.loader.rules, self.loader.hwcaps, self.loader.legacy_mask)
            found = [cache.lookup(name) for name in ("libc.so.6", "libm.so.6", "libnone.so", "libstdc++.so.6")]
            cache.close()
            return f"cache: {sum(map(bool, found))} found"
        images = read_images(self.path)
        will_run(images, (9, 0), (13, 0))
        read_architectures(self.path)
        if kind == "fatbin":
            return f"fatbin: {images.problem.partition(' at ')[0] or 'read'}"
        self.asked += 1
        if self.asked % WHOLE == 0:
            return f"dlopen: {predict(self.path, env={}, loader=self.loader).outcome}"
        return f"elf: {self._read_elf()}"

    def _read_elf(self) -> str:
        """Read every table that a prediction reads, without the process around it."""
        try:
            elf = Elf(Root(), self.path)
        except Skipped:
            return "passed over"
        except Refused as refused:
            return refused.kind
        try:
            symbols = Symbols(elf.load(self.loader.rules))
            wanted = [(item.name, item.version) for item in symbols.relocations().undefined.values()]
            for name, version in [(b"malloc", None), *wanted[:16]]:
                symbols.lookup(name, version, gnu_hash(name), True, self.loader.rules, {"x"})
            return "read"
        except Refused as refused:
            return refused.kind
        except OSError:
            return "unreadable"
        finally:
            elf.close()


def seeds(paths: list[str]) -> list[tuple[str, bytes]]:
    """Return (kind, content) to start from: FILES, or small libraries, this cache, and a fatbin made here."""
    if paths:
        return [("elf", Path(path).read_bytes()[:MUTANT_BYTES]) for path in paths]
    found = []
    for directory in ("/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64"):
        for path in sorted(Path(directory).glob("lib*.so.*")):
            if not path.is_symlink() and path.stat().st_size <= MUTANT_BYTES // 2:
                found.append(("elf", path.read_bytes()))
    found = found[:: max(1, len(found) // 24)]
    cache = Path("/etc/ld.so.cache")
    if cache.exists():
        found.append(("cache", cache.read_bytes()))
    found.append(("fatbin", fatbin()))
    return found


def fatbin() -> bytes:
    """Return a small ELF file whose only segment is three containers."""
    entries = b""
    for kind, sm, flags in ((2, 90, 0), (2, 90, 0x100000), (1, 80, 0x8000), (2, 120, 0x202000)):
        entries += struct.pack("<HHIQIIHHIIIQQQ", kind, 1, 64, 32, 0, 0, 4, 8, sm, 0, 0, flags, 0, 64) + bytes(32)
    container = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries
    body = (container + bytes(8)) * 3
    size = 64 + 56 + len(body)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, size, size, 4096) + body


def main() -> int:
    """Fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("files", nargs="*")
    asked = parser.parse_args()
    rng = random.Random(asked.seed)  # noqa: S311 (mutants, not secrets)
    corpus = seeds(asked.files)
    outcomes: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as directory:
        target = Target(directory, asked.coverage)
        for kind, data in corpus:
            target.ask(data, kind)
        start_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = start_peak
        for number in range(asked.count):
            kind, source = rng.choice(corpus)
            data = mutate(source, rng)
            began = time.monotonic()
            signal.alarm(HANG)
            try:
                outcomes[target.ask(data, kind)] += 1
            except Exception:
                Path("fuzz-failure.bin").write_bytes(data)
                print(f"mutant {number} ({kind}) raised; written to fuzz-failure.bin", file=sys.stderr)
                raise
            took = time.monotonic() - began
            slowest = max(slowest, took)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if took > SLOW or peak > start_peak + PEAK:
                Path("fuzz-failure.bin").write_bytes(data)
                print(f"mutant {number} ({kind}) took {took:.2f} s, peak {peak / 1024:.0f} MB", file=sys.stderr)
                return 1
            if target.new and len(corpus) < KEPT:
                corpus.append((kind, data))
    signal.alarm(0)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:9} {outcome}")
    print(
        f"{sum(outcomes.values())} mutants, every one answered; "
        f"slowest {slowest * 1e3:.0f} ms, peak {peak / 1024:.0f} MB"
    )
    if asked.coverage:
        print(f"{len(target.seen)} lines of {', '.join(READERS)} reached")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
