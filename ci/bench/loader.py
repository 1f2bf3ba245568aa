"""Time and memory of predicting a closure with all its symbols, side by side with other tools in one run.

    LD_LIBRARY_PATH=... python ci/bench/loader.py [--runs 15] [--python PYTHON] [--markdown] LIBRARY

Each tool is a fresh process, rounds are interleaved so that a busy moment hits all of them. Wall-clock and CPU (user
and system) time in milliseconds, least and median; peak resident memory in MB; `x start` is the median wall-clock time
as a multiple of Python's own start in the same run. PYTHON is the interpreter that has pyelftools, lief and auditwheel
(default: this one). pyelftools and LIEF have no search rules, so they are given the files of the closure. Budgets are
counted beyond Python's start: 40 ms and 20 MB for the closure; 10 ms for the device code of the largest library, read
in a process that has started, and 20 MB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pytest_gpudiscovery.loader import predict, read_images
from tests.loader.oracle import Loader, build_probe

OURS = f"import sys; sys.path.insert(0, {sys.path[0]!r}); import os, pytest_gpudiscovery.loader as l;"
PREDICT = f"{OURS} c = l.predict(sys.argv[1], env=dict(os.environ)); assert c.loads, c.message"
IMAGES = f"{OURS} l.read_images(sys.argv[1])"
# The least time inside a process: the other rows hold the start of Python and our imports.
INSIDE = f"""{OURS}
import time
images = l.read_images  # imported before the clock starts
def read():
    began = time.perf_counter(); images(sys.argv[1]); return time.perf_counter() - began
first = read()
print(first * 1e3, min(read() for _ in range(9)) * 1e3)
"""
ELFTOOLS_NAMES = """
import sys
from elftools.elf.elffile import ELFFile
for path in sys.argv[1:]:
    with open(path, 'rb') as file:
        {symbol.name for symbol in ELFFile(file).get_section_by_name('.dynsym').iter_symbols()}
"""
ELFTOOLS_RELOCATIONS = """
import sys
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
for path in sys.argv[1:]:
    with open(path, 'rb') as file:
        elf = ELFFile(file)
        named = {r['r_info_sym'] for s in elf.iter_sections() if isinstance(s, RelocationSection)
                 for r in s.iter_relocations()}
        table = elf.get_section_by_name('.dynsym')
        {table.get_symbol(number).name for number in named if number}
"""
LIEF_NAMES = """
import sys, lief
for path in sys.argv[1:]:
    binary = lief.parse(path)  # kept: its symbols do not keep it alive
    [symbol.name for symbol in binary.dynamic_symbols]
"""
LIEF_RELOCATIONS = """
import sys, lief
for path in sys.argv[1:]:
    binary = lief.parse(path)
    {relocation.symbol.name for relocation in binary.relocations if relocation.has_symbol}
"""
AUDITWHEEL = "import sys; from pathlib import Path; from auditwheel.lddtree import ldd; ldd(Path(sys.argv[1]))"


@dataclass
class Tool:
    """One command, what it answers, and what was measured: wall-clock and CPU seconds, kilobytes."""

    name: str
    answers: str
    words: list[str]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: int = 0


def tools(library: str, files: list[str], largest: str, python: str, probe: str | None) -> list[Tool]:
    """Return every command; those that are not installed fail in the first round."""
    bare = [sys.executable, "-I", "-S", "-c"]
    other = [python, "-c"]
    found = [
        Tool("python start", "nothing", [*bare, "pass"]),
        Tool("this: closure", "files, rules, versions, symbols", [*bare, PREDICT, library]),
        Tool("this: device code", "images of the largest library", [*bare, IMAGES, largest]),
        Tool("ldd", "files, versions", _command("ldd", library)),
        Tool("ldd -r", "files, versions, symbols", _command("ldd", "-r", library)),
        Tool("lddtree", "files", [_lddtree_python(python), *_command("lddtree", "-l", library)]),
        Tool("libtree", "files", _command("libtree", "-p", "-vvv", library)),
        Tool("auditwheel", "files", [*other, AUDITWHEEL, library]),
        Tool("pyelftools, names", "names in symbol tables", [*other, ELFTOOLS_NAMES, *files]),
        Tool("pyelftools, relocations", "names that are needed", [*other, ELFTOOLS_RELOCATIONS, *files]),
        Tool("LIEF, names", "names in symbol tables", [*other, LIEF_NAMES, *files]),
        Tool("LIEF, relocations", "names that are needed", [*other, LIEF_RELOCATIONS, *files]),
    ]
    if probe is not None:
        found.append(Tool("dlopen itself", "all, by running constructors", [probe, library]))
    return found


def _command(name: str, *words: str) -> list[str]:
    return [shutil.which(name) or f"/nonexistent/{name}", *words]


def _lddtree_python(python: str) -> str:
    """The interpreter that has lddtree's elftools: the system's, where its package comes from the distribution."""
    system = "/usr/bin/python3"
    found = subprocess.run([system, "-c", "import elftools"], capture_output=True, check=False).returncode == 0
    return system if found else python


def once(words: list[str]) -> tuple[float, float, int, int]:
    """Run WORDS; return (seconds, CPU seconds, peak in kilobytes, exit status)."""
    quiet = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, quiet, number) for number in (0, 1, 2)]
    started = time.perf_counter()
    try:
        pid = os.posix_spawn(words[0], words, dict(os.environ), file_actions=actions)
    except OSError:
        return 0.0, 0.0, 0, 127
    finally:
        os.close(quiet)
    _, status, usage = os.wait4(pid, 0)
    took = time.perf_counter() - started
    return took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, os.waitstatus_to_exitcode(status)


def peak(words: list[str], fallback: int) -> int:
    """Return the peak in kilobytes of WORDS started by time(1); without it FALLBACK, which counts this program too."""
    command = shutil.which("time")
    if command is None:
        return fallback
    with tempfile.NamedTemporaryFile("r") as file:
        subprocess.run([command, "-q", "-f", "%M", "-o", file.name, *words], capture_output=True, check=False)
        return int(file.read().split()[-1])


def measure(commands: list[Tool], runs: int) -> list[Tool]:
    """Run everything RUNS times; return the tools that work."""
    working = list(commands)
    for number in range(runs + 1):  # the first round warms the page cache and Python's own
        for tool in list(working):
            took, processor, highest, status = once(tool.words)
            if status != 0:
                print(f"not available here, or it fails on this library: {tool.name}")
                working.remove(tool)
            elif number:
                tool.wall.append(took * 1e3)
                tool.cpu.append(processor * 1e3)
                tool.peak = max(tool.peak, highest)
    for tool in working:
        tool.peak = peak(tool.words, tool.peak)
    return working


def median(values: list[float]) -> float:
    """Return the upper median."""
    return sorted(values)[len(values) // 2]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("library")
    asked = parser.parse_args()
    closure = predict(asked.library, env=dict(os.environ))
    if not closure.loads:
        print(f"{asked.library}: {closure.message}")
        return 1
    sizes = {item.real_path: item.size for item in closure.objects}
    largest = max((path for path in sizes if read_images(path).images), key=sizes.__getitem__, default=asked.library)
    print(f"{len(sizes)} new objects, {sum(sizes.values()) / 1e6:.0f} MB, {closure.symbols_checked} undefined symbols")
    print(f"largest with device code: {os.path.basename(largest)}, {os.path.getsize(largest) / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as directory:
        probe = build_probe(Path(directory), Loader("host", "")) if shutil.which("cc") else None
        working = measure(tools(asked.library, list(sizes), largest, asked.python, probe), asked.runs)
    start = working[0]
    rows = [["tool", "answers", "wall least", "wall median", "CPU least", "CPU median", "x start", "peak MB"]]
    for tool in working:
        times = [
            min(tool.wall),
            median(tool.wall),
            min(tool.cpu),
            median(tool.cpu),
            median(tool.wall) / median(start.wall),
        ]
        rows.append([tool.name, tool.answers, *(f"{value:.1f}" for value in times), f"{tool.peak / 1024:.1f}"])
    _print(rows, asked.markdown)
    for tool in working[1:3]:
        wall, cpu = median(tool.wall) - median(start.wall), median(tool.cpu) - median(start.cpu)
        least = f"{min(tool.wall) - min(start.wall):.1f} ms wall-clock and {min(tool.cpu) - min(start.cpu):.1f} ms CPU"
        print(f"{tool.name}, beyond Python's start: least {least}, median {wall:.1f} and {cpu:.1f}")
    words = [sys.executable, "-I", "-S", "-c", INSIDE, largest]
    pairs = [
        subprocess.run(words, capture_output=True, text=True, check=True).stdout.split() for _ in range(asked.runs)
    ]
    first, repeated = (sorted(float(pair[column]) for pair in pairs) for column in (0, 1))
    print(
        f"reading the device code inside a process: first time {first[0]:.1f} ms least, {median(first):.1f} median;",
        end=" ",
    )
    print(f"again {repeated[0]:.1f} ms least, {median(repeated):.1f} median")
    return 0


def _print(rows: list[list[str]], markdown: bool) -> None:
    if markdown:
        rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        print(*(f"| {' | '.join(row)} |" for row in rows), sep="\n")
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    raise SystemExit(main())
