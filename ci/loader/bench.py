"""Time and memory of predicting a closure with all its symbols, beside other tools, each as a fresh process.

    LD_LIBRARY_PATH=... python ci/loader/bench.py [--runs 7] LIBRARY

Prints the median and the least wall-clock time, the least CPU time and the peak memory of each tool that this machine
has. Python's own start is a row, since the prediction's budget (40 ms, 20 MB) is counted beyond it. A peak below this
program's own (about 10 MB) cannot be seen. The other tools do less: ldd checks no symbols, lddtree and libtree
neither symbols nor versions.
"""

from __future__ import annotations

import os
import sys
import time

PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PREDICT = (
    f"import sys; sys.path.insert(0, {PACKAGE!r}); import os, pytest_gpudiscovery.loader as l;"
    "c = l.predict(sys.argv[1], env=dict(os.environ)); assert c.dependencies"
)
IMAGES = (
    f"import sys; sys.path.insert(0, {PACKAGE!r}); import pytest_gpudiscovery.loader as l; l.read_images(sys.argv[1])"
)
ELFTOOLS = (
    "import sys; from elftools.elf.elffile import ELFFile; f = ELFFile(open(sys.argv[1], 'rb'));"
    "[s.name for s in f.get_section_by_name('.dynsym').iter_symbols()]"
)
LIEF = "import sys, lief; b = lief.parse(sys.argv[1]); [s.name for s in b.dynamic_symbols]"
AUDITWHEEL = "import sys; from pathlib import Path; from auditwheel.lddtree import ldd; ldd(Path(sys.argv[1]))"


def tools(library: str) -> dict[str, list[str]]:
    """Return the command of each tool that is here."""
    bare = [sys.executable, "-I", "-S", "-c"]
    found = {
        "python start": [*bare, "pass"],
        "this (closure, symbols, versions)": [*bare, PREDICT, library],
        "this (fatbin list)": [*bare, IMAGES, library],
        "pyelftools (dynsym of one file)": [sys.executable, "-c", ELFTOOLS, library],
        "LIEF (dynsym of one file)": [sys.executable, "-c", LIEF, library],
        "auditwheel lddtree": [sys.executable, "-c", AUDITWHEEL, library],
    }
    for name, words in {"ldd": [], "ldd -r": ["-r"], "lddtree": [], "libtree": ["-vvv"]}.items():
        places = os.environ.get("PATH", "").split(":")
        command = next((path for place in places if os.access(path := f"{place}/{name.split()[0]}", os.X_OK)), None)
        if command is not None:
            found[name] = [command, *words, library]
    return found


def once(words: list[str]) -> tuple[float, float, int, int]:
    """Run WORDS; return (seconds, CPU seconds, peak in kilobytes, exit status)."""
    quiet = os.open(os.devnull, os.O_RDWR)
    started = time.perf_counter()
    actions = [(os.POSIX_SPAWN_DUP2, quiet, number) for number in (0, 1, 2)]
    pid = os.posix_spawn(words[0], words, dict(os.environ), file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    os.close(quiet)
    processor = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - started, processor, usage.ru_maxrss, os.waitstatus_to_exitcode(status)


def main() -> int:
    """Measure each tool, rounds interleaved so that a busy moment hits all of them."""
    words = sys.argv[1:]
    runs = int(words[1]) if words[:1] == ["--runs"] else 7
    words = words[2:] if words[:1] == ["--runs"] else words
    if len(words) != 1:
        print(__doc__)
        return 4
    commands = tools(words[0])
    measured: dict[str, list[tuple[float, float, int]]] = {name: [] for name in commands}
    for number in range(runs + 1):  # the first round warms the page cache and Python's own
        for name, command in list(commands.items()):
            took, processor, peak, status = once(command)
            if status != 0:  # not installed, or it fails on this library
                del commands[name]
            elif number:
                measured[name].append((took, processor, peak))
    for name in commands:
        wall = sorted(took * 1e3 for took, _, _ in measured[name])
        least = min(spent for _, spent, _ in measured[name]) * 1e3
        highest = max(size for _, _, size in measured[name]) / 1024
        times = f"median {wall[len(wall) // 2]:8.1f} ms  least {wall[0]:8.1f} ms  CPU {least:8.1f} ms"
        print(f"{name:36} {times}  peak {highest:7.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
