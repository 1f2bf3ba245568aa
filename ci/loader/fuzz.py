"""Mutate ELF files, ld.so.cache and fatbins: every mutant must get an answer.

    python ci/loader/fuzz.py [--count 1000000] [--seconds 3600] [--seed 1] [--target elf]... [CUDA_LIBRARY ...]

No exception, no answer that takes over a second of CPU time, no more than 64 MB. Seeds are the files of the crafted
cases (they are built first, which needs a C compiler), this system's cache and what is given. With the package
atheris the search is guided by the branches that mutants reach; without it, or with --blind, mutants are made of the
seeds alone. Prints the answers by kind, the slowest, the memory and, when guided, the lines of each module that the
kept mutants reach. Exit status 1 on the first violation, whose mutant is written to fuzz-failure-KIND.bin.
"""

from __future__ import annotations

import argparse
import dis
import importlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
PACKAGE = "pytest_gpudiscovery.loader"
MODULES = HERE.parents[1] / "pytest_gpudiscovery" / "loader"
SHARES = {"elf": 0.45, "dlopen": 0.1, "cache": 0.2, "fatbin": 0.25}
OPTIMIZED = 1  # CO_OPTIMIZED: set for functions, not for modules and classes
NOT_FUZZED = ("mounts.py", "hostld.py", "record.py", "rules.py", "__init__.py")  # other input, or no input
HANG = 120  # seconds of wall-clock time; libFuzzer then ends the run
SAVED_EVERY = 20_000  # mutants


# --- the child: one kind, guided by atheris --------------------------------------------------------------------------


def guided(kind: str, directory: Path, count: int, seconds: int, seed: int) -> None:
    """Fuzz one KIND until COUNT or SECONDS; the corpus and `KIND.json` in DIRECTORY are the result."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=[PACKAGE]):
        for path in sorted(MODULES.glob("[a-z]*.py")):
            importlib.import_module(f"{PACKAGE}.{path.stem}")
    targets = importlib.import_module("fuzz_target")
    target = targets.Target(str(directory), str(directory / "root") if kind == "dlopen" else None)
    rng = random.Random(seed)  # noqa: S311 (mutants, not secrets)
    donors = [path.read_bytes() for path in sorted((directory / kind).iterdir())]
    asked = 0

    def save() -> None:
        found = {"outcomes": dict(target.outcomes), "slowest": target.slowest, "most": target.most}
        (directory / f"{kind}.json").write_text(json.dumps(found))

    def one(data: bytes) -> None:
        nonlocal asked
        target.ask(data, kind)
        asked += 1
        if asked % SAVED_EVERY == 0 or asked >= count:
            save()

    def mutant(data: bytes, size: int, _: int) -> bytes:
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, size))
        return bytes(targets.mutate(data, rng, donors))[:size]

    largest = max(map(len, donors))
    options = [f"-atheris_runs={count}", f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={largest + 256}"]
    options += [f"-timeout={HANG}", f"-artifact_prefix={directory}/{kind}-", "-rss_limit_mb=2048", "-reload=0"]
    atheris.Setup(["fuzz", *options, str(directory / kind)], one, custom_mutator=mutant)
    try:
        atheris.Fuzz()
    finally:
        save()


# --- without atheris -------------------------------------------------------------------------------------------------


def blind(kind: str, directory: Path, seeds: list[bytes], count: int, rng: random.Random) -> dict[str, Any]:
    """Ask about COUNT mutants of SEEDS."""
    targets = importlib.import_module("fuzz_target")
    target = targets.Target(str(directory), str(directory / "root") if kind == "dlopen" else None)
    for _ in range(count):
        data = targets.mutate(rng.choice(seeds), rng, seeds)
        try:
            target.ask(data, kind)
        except Exception:
            _keep(kind, data)
            raise
    return {"outcomes": dict(target.outcomes), "slowest": target.slowest, "most": target.most}


def _keep(kind: str, data: bytes) -> None:
    name = f"fuzz-failure-{kind}.bin"
    Path(name).write_bytes(data)
    print(f"the mutant is in {name}", file=sys.stderr)


# --- coverage --------------------------------------------------------------------------------------------------------


def _functions(code: CodeType) -> Iterator[CodeType]:
    if code.co_flags & OPTIMIZED:
        yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _functions(constant)


def lines_of(path: Path) -> set[int]:
    """Return the lines inside functions of the module at PATH that can be executed."""
    module = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    found: set[int] = set()
    for code in _functions(module):
        found |= {line for _, line in dis.findlinestarts(code) if line and line != code.co_firstlineno}
    return found


def replay(kinds: list[str], directory: Path) -> dict[str, set[int]]:
    """Return the lines of each module that the corpora below DIRECTORY reach."""
    targets = importlib.import_module("fuzz_target")
    seen: dict[str, set[int]] = {str(path): set() for path in MODULES.glob("*.py")}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        lines = seen.get(frame.f_code.co_filename)
        if lines is None:
            return None
        if event == "line":
            lines.add(frame.f_lineno)
        return trace

    for kind in kinds:
        target = targets.Target(str(directory), str(directory / "root") if kind == "dlopen" else None)
        target.slow = float("inf")  # tracing is slow
        for path in sorted((directory / kind).iterdir()):
            sys.settrace(trace)
            try:
                target.ask(path.read_bytes(), kind)
            finally:
                sys.settrace(None)
    return {os.path.basename(path): lines for path, lines in seen.items()}


def table(seen: dict[str, set[int]]) -> str:
    """Return reached and possible lines per module, and which were not reached."""
    rows = []
    all_reached = all_lines = 0
    for path in sorted(MODULES.glob("*.py")):
        lines = lines_of(path)
        if not lines or path.name in NOT_FUZZED:
            continue
        reached = lines & seen[path.name]
        all_reached, all_lines = all_reached + len(reached), all_lines + len(lines)
        missed = " ".join(map(str, sorted(lines - reached)))
        rows.append(
            f"{path.name:16} {len(reached):4} of {len(lines):4} lines {len(reached) / len(lines):6.1%}  not: {missed}"
        )
    rows.append(f"{'together':16} {all_reached:4} of {all_lines:4} lines {all_reached / all_lines:6.1%}")
    return "\n".join(rows)


# --- the command -----------------------------------------------------------------------------------------------------


def _run_guided(kind: str, directory: Path, asked: argparse.Namespace, count: int) -> dict[str, Any] | None:
    """Fuzz KIND in a child; None after a violation, which has been said."""
    words = [sys.executable, str(Path(__file__).resolve()), "--child", kind, "--directory", str(directory)]
    words += [
        "--count",
        str(count),
        "--seconds",
        str(int(asked.seconds * SHARES[kind]) or 1),
        "--seed",
        str(asked.seed),
    ]
    log = directory / f"{kind}.log"
    with open(log, "wb") as output:
        status = subprocess.run(words, stdout=output, stderr=output, check=False).returncode
    artifacts = sorted(directory.glob(f"{kind}-*"))
    if status or artifacts:
        print("\n".join(log.read_text(errors="replace").splitlines()[-40:]), file=sys.stderr)
        if artifacts:
            _keep(kind, artifacts[0].read_bytes())
        return None
    found: dict[str, Any] = json.loads((directory / f"{kind}.json").read_text())
    return found


def main() -> int:
    """Fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=6 * 3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", choices=sorted(SHARES))
    parser.add_argument("--blind", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*")
    asked = parser.parse_args()
    if asked.child:
        guided(asked.child, asked.directory, asked.count, asked.seconds, asked.seed)
        return 0
    is_guided = not asked.blind and importlib.util.find_spec("atheris") is not None
    kinds = asked.target or list(SHARES)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108 (a directory in memory)
    with tempfile.TemporaryDirectory(dir=memory) as place:
        directory = Path(place)
        seeds = importlib.import_module("fuzz_seeds").build(directory, asked.files)
        print(f"{'guided by branches' if is_guided else 'blind'}, seed {asked.seed}, Python {sys.version.split()[0]}")
        results: dict[str, dict[str, Any]] = {}
        for kind in kinds:
            (directory / kind).mkdir()
            for number, data in enumerate(seeds[kind]):
                (directory / kind / f"seed{number:04}").write_bytes(data)
            count = round(asked.count * SHARES[kind] / sum(SHARES[name] for name in kinds))
            started = time.monotonic()
            if is_guided:
                found = _run_guided(kind, directory, asked, count)
                if found is None:
                    return 1
            else:
                rng = random.Random(asked.seed)  # noqa: S311
                found = blind(kind, directory, seeds[kind], count, rng)
            results[kind] = found
            _say(kind, found, len(seeds[kind]), len(list((directory / kind).iterdir())), time.monotonic() - started)
        total = sum(sum(found["outcomes"].values()) for found in results.values())
        slowest = max(found["slowest"] for found in results.values())
        most = max(found["most"] for found in results.values())
        print(f"{total} mutants, every one answered; slowest {slowest * 1e3:.0f} ms of CPU, most {most / 2**20:.1f} MB")
        if is_guided:
            print(f"\nlines that the kept mutants reach\n{table(replay(kinds, directory))}")
    return 0


def _say(kind: str, found: dict[str, Any], seeds: int, kept: int, seconds: float) -> None:
    count = sum(found["outcomes"].values())
    print(f"\n{kind}: {count} mutants of {seeds} seeds in {seconds:.0f} s, {kept - seeds} kept;", end=" ")
    print(f"slowest {found['slowest'] * 1e3:.0f} ms of CPU, most {found['most'] / 2**20:.1f} MB")
    for outcome, number in sorted(found["outcomes"].items(), key=lambda item: -item[1]):
        print(f"{number:9} {outcome}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
