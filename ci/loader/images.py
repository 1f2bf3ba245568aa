"""Compare read_images with cuobjdump on CUDA libraries: the same images, counted by kind and target.

    python ci/loader/images.py CUOBJDUMP LIBRARY ...       (cuobjdump: package nvidia-cuda-cuobjdump)

cuobjdump names family-specific SASS without the f (sm_120), so both lists are compared without it there. Our time is
the least of five readings. Exit status 1 when a list differs.
"""

from __future__ import annotations

import collections
import re
import subprocess
import sys
import time

from pytest_gpudiscovery.loader import read_images

LINE = re.compile(r"^(ELF|PTX) file +\d+: .*?\.(sm_\d+[af]?)\.(?:cubin|ptx)$", re.MULTILINE)

REPEATED = 5


def ours(path: str) -> tuple[collections.Counter[tuple[str, str]], float]:
    """Return the count of (kind, target) and the least seconds of REPEATED readings."""
    took = float("inf")
    for _ in range(REPEATED):
        started = time.perf_counter()
        found = read_images(path)
        took = min(took, time.perf_counter() - started)
    if found.problem:
        print(f"{path}: {found.problem}")
    counted: collections.Counter[tuple[str, str]] = collections.Counter()
    for image in found.images:
        if image.kind in ("elf", "ptx") and not image.relocatable:
            suffix = "" if image.kind == "elf" and image.suffix == "f" else image.suffix
            counted[image.kind, f"sm_{image.sm}{suffix}"] += 1
    return counted, took


def theirs(tool: str, path: str) -> tuple[collections.Counter[tuple[str, str]], float]:
    """Return the same from cuobjdump."""
    started = time.perf_counter()
    words = [tool, "--list-elf", "--list-ptx", path]
    output = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False).stdout
    counted = collections.Counter((kind.lower(), target) for kind, target in LINE.findall(output))
    return counted, time.perf_counter() - started


def main() -> int:
    """Compare and print."""
    if len(sys.argv) < 3:
        print(__doc__)
        return 4
    failed = False
    for path in sys.argv[2:]:
        mine, my_seconds = ours(path)
        other, seconds = theirs(sys.argv[1], path)
        failed |= mine != other
        verdict = "same" if mine == other else f"DIFFERENT: only here {mine - other}, only there {other - mine}"
        print(f"{path}: {sum(mine.values())} images, {my_seconds * 1e3:.1f} ms, cuobjdump {seconds:.1f} s: {verdict}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
