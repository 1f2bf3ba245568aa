"""What the fuzzer asks about one mutant, what it checks of the answer, and how mutants are made."""

from __future__ import annotations

import collections
import json
import os
import random
import resource
import struct
import time
import zlib

from pytest_gpudiscovery.loader import ProcessModel, predict, read_architectures, read_images, render, will_run
from pytest_gpudiscovery.loader.elf import Elf
from pytest_gpudiscovery.loader.files import Root
from pytest_gpudiscovery.loader.hostld import HostLoader, host_loader
from pytest_gpudiscovery.loader.ldsocache import Cache
from pytest_gpudiscovery.loader.problems import Refused, Skipped
from pytest_gpudiscovery.loader.record import plain
from pytest_gpudiscovery.loader.rules import rules_for
from pytest_gpudiscovery.loader.symbols import Symbols, gnu_hash

SLOW = 1.0  # CPU seconds of one answer
PEAK = 52 << 20  # bytes that one answer may take: with Python's own 12 MB not more than 64 MB
VERSIONS = ((2, 28), (2, 36), (2, 43))
NAMES = ("libc.so.6", "libm.so.6", "libk.so", "libk.so.10", "libnone.so", "ld-linux-x86-64.so.2")
INTERESTING: tuple[int, ...] = (0, 1, 2, 7, 8, 16, 24, 255, 4095, 4096, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
INTERESTING += (1 << 40, (1 << 63) - 1, (1 << 64) - 1)


PROCESSES = (
    ("/mutant.so", ProcessModel()),
    ("/mutant.so", ProcessModel(exe="/bin/program", address_space=1 << 28)),
    ("/mutant.so", ProcessModel(preload=("libprov.so",), opened=(("/lib64/first.so", True), ("libb.so", False)))),
    ("/mutant.so", ProcessModel(exe="/bin/program", secure=True)),
    ("libd.so", ProcessModel(exe="/mutant.so")),
    ("libb.so", ProcessModel(preload=("/mutant.so",))),
    ("libprov.so", ProcessModel(opened=(("/mutant.so", True),))),
)


class Violation(Exception):
    """An answer that took too long or too much."""


def mutate(source: bytes, rng: random.Random, donors: list[bytes]) -> bytes:
    """Return SOURCE with one to eight edits: bits, bytes, integers at aligned places, blocks moved, blocks of one of
    DONORS, the end cut off.
    """
    data = bytearray(source)
    for _ in range(rng.randint(1, 8)):
        if len(data) < 16:
            break
        _edit(data, rng, donors)
    return bytes(data)


def _edit(data: bytearray, rng: random.Random, donors: list[bytes]) -> None:
    # Structure is at the beginning, and where bytes are not zero.
    at = rng.randrange(min(len(data), 1024) if rng.random() < 0.3 else len(data))
    for _ in range(8):
        if data[at]:
            break
        at = rng.randrange(len(data))
    kind = rng.randrange(8)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.randrange(256)
    elif kind in (2, 3, 4):
        form = rng.choice(("<H", "<I", "<Q"))
        size = struct.calcsize(form)
        at = min(at & -size, len(data) - size)
        value = struct.unpack_from(form, data, at)[0] + rng.randint(-64, 64)
        if kind != 2:
            value = rng.choice(INTERESTING)
        struct.pack_into(form, data, at, value & (1 << 8 * size) - 1)
    elif kind == 5:
        to, size = rng.randrange(len(data)), rng.randrange(1, 64)
        data[to : to + size] = data[at : at + size]
    elif kind == 6:
        donor, size = rng.choice(donors), rng.randrange(8, 256)
        data[at : at + size] = donor[at : at + size]
    elif rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]


class Target:
    """Asks the readers about mutants, which it writes below DIRECTORY; ROOT is the small system that dlopen sees.

    `outcomes` counts the answers, `slowest` is in CPU seconds, `most` an upper bound of the bytes that one took.
    """

    def __init__(self, directory: str, root: str | None = None) -> None:
        self.root = root
        self.path = os.path.join(root or directory, "mutant.so")
        known = host_loader()
        self.loaders = [
            HostLoader(**{**known.__dict__, "version": version, "rules": rules_for(version)}) for version in VERSIONS
        ]
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.slow = SLOW
        self.chosen = 0  # a number from the mutant's bytes: which glibc, which process
        self.slowest = 0.0
        self.most = 0
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)

    def _resident(self) -> int:
        return int(os.pread(self._statm, 128, 0).split()[1]) * resource.getpagesize()

    def ask(self, data: bytes, kind: str) -> str:
        """Return the outcome for DATA; raises Violation, and whatever the readers let through."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, data)
        os.close(fd)
        before, started = self._resident(), time.process_time()
        self.chosen = zlib.crc32(data)
        outcome = f"{kind}: {getattr(self, '_' + kind)(self.loaders[self.chosen % len(self.loaders)])}"
        took = time.process_time() - started
        # The high-water mark may be older than this answer: then the difference is too high, never too low.
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, took)
        self.most = max(self.most, grown)
        if took > self.slow or grown > PEAK:
            raise Violation(f"{kind}: {took:.2f} CPU seconds, {grown / 2**20:.0f} MB")
        return outcome

    def _elf(self, loader: HostLoader) -> str:
        """Read every table that a prediction reads, without the process around it."""
        try:
            elf = Elf(Root(), self.path)
        except Skipped:
            return "passed over"
        except Refused as refused:
            return refused.kind
        try:
            symbols = Symbols(elf.load(loader.rules))
            wanted = [(item.name, item.version) for item in symbols.relocations().undefined.values()]
            for name, version in [(b"id", None), (b"f", None), *wanted[:16]]:
                for plt in (True, False):
                    symbols.lookup(name, version, gnu_hash(name), plt, loader.rules, {"libprov.so"})
            return "read"
        except Refused as refused:
            return refused.kind
        except OSError:
            return "unreadable"
        finally:
            elf.close()

    def _dlopen(self, loader: HostLoader) -> str:
        """Predict a whole dlopen and render it."""
        env = {"LD_LIBRARY_PATH": "$ORIGIN:/lib64:/z", "GLIBC_TUNABLES": "glibc.rtld.execstack=2:glibc.rtld.nns=1"}
        library, model = PROCESSES[self.chosen // len(self.loaders) % len(PROCESSES)]
        closure = predict(
            library, env=env, cwd="/z", process=model, root=self.root, loader=loader, bindings=bool(self.chosen & 1)
        )
        text = render.closure_text(closure)
        for item in closure.dependencies[:3]:
            text += render.explain_text(closure, item.name)
        json.dumps(render.closure_json(closure))
        return closure.outcome

    def _cache(self, loader: HostLoader) -> str:
        cache = Cache(Root(), self.path, loader.rules, loader.hwcaps, loader.legacy_mask)
        found = [cache.lookup(name) for name in NAMES]
        cache.close()
        return cache.why if cache.why else f"{sum(map(bool, found))} of {len(NAMES)} names found"

    def _fatbin(self, _: HostLoader) -> str:
        images = read_images(self.path)
        verdict = will_run(images, (9, 0), (13, 0), {"CUDA_FORCE_PTX_JIT": str(len(images.containers) & 1)})
        architectures = read_architectures(self.path)
        json.dumps(plain(render.images_json(images, verdict)))
        render.images_text(images, verdict, architectures)
        return images.problem.partition(" at ")[0] or f"read by {images.found_by or 'nothing'}"
