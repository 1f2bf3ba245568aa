"""Which of the crafted cases each tool gets right, the real loader being the judge.

    python ci/loader/peers.py [--python PYTHON_WITH_AUDITWHEEL] [--markdown] [--case NAME]...

Every case of tests/loader/cases_*.py is built, really loaded in a child, predicted, and shown to ldd, ldd -r, lddtree,
libtree and auditwheel in the same environment, working directory, user and mounts. Right means: where the library
loads, the tool finds no fault and names the files that were mapped, no other; where it does not load, the tool says
that something is wrong, whatever it says. The tools cannot be told which process calls dlopen: that is part of what is
compared. A tool that hangs or dies of the case's environment gives no answer; Python tools get LD_LIBRARY_PATH after
their interpreter has started. Exit status 1 when the prediction is wrong anywhere.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.loader.oracle import Answer, Builder, Case, Loader, build_probe, predicted, real, run_case
from tests.loader.test_agreement import ALL

# The variables come after the start of the interpreter, which a library path of broken files would break.
LATE = "import json, os, sys; os.environ.update(json.loads(sys.argv.pop(1)));"
SCRIPT = f"{LATE} import runpy; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
AUDITWHEEL = f"""{LATE}
from pathlib import Path
from auditwheel.lddtree import ldd
for name, found in ldd(Path(sys.argv[1])).libraries.items():
    print(found.path or name + " not found")
"""
VERSION = re.compile(r"[0-9]+(?:\.[0-9]+)+")
SECONDS = 20  # a tool that takes longer hangs
RIGHT, FILES, OUTCOME, SILENT = "right", "files", "outcome", "no answer"


@dataclass(frozen=True)
class Said:
    """What a tool says: whether it finds a fault, and the files that it names."""

    fault: bool
    files: frozenset[str]


@dataclass(frozen=True)
class Tool:
    """A peer: `words` come before the library, `late` is whether the environment travels as an argument."""

    name: str
    version: str
    words: tuple[str, ...]
    late: bool
    read: Callable[[str, int], Said]


def _ldd(output: str, status: int) -> Said:
    fault = status != 0 or "not found" in output or "undefined symbol" in output
    files = re.findall(r"^\t(?:.* => )?(\S+) \(0x", output, re.MULTILINE)
    return Said(fault, frozenset(files))


def _lddtree(output: str, status: int) -> Said:
    lines = output.splitlines()[1:]
    return Said(status != 0 or any("/" not in line for line in lines), frozenset(line for line in lines if "/" in line))


def _libtree(output: str, status: int) -> Said:
    files = re.findall(r"^[ │]*[├└]── (\S+) \[", output, re.MULTILINE)
    return Said(status != 0 or "not found" in output, frozenset(files))


def _auditwheel(output: str, status: int) -> Said:
    lines = output.splitlines()
    files = frozenset(line for line in lines if not line.endswith("not found"))
    return Said(status != 0 or len(files) < len(lines), files)


def _version(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return ""
    found = VERSION.search(done.stdout + done.stderr)
    return found[0] if found else "?"


def tools(python: str) -> list[Tool]:
    """Return the tools that this machine has; PYTHON is the interpreter that has auditwheel."""
    found = []
    if ldd := shutil.which("ldd"):
        version = f"glibc {_version(ldd, '--version')}"
        found += [Tool("ldd", version, (ldd,), False, _ldd), Tool("ldd -r", version, (ldd, "-r"), False, _ldd)]
    if lddtree := shutil.which("lddtree"):
        for system in ("/usr/bin/python3", python):  # the one that has its elftools
            done = subprocess.run([system, lddtree, "--version"], capture_output=True, timeout=20, check=False)
            if done.returncode == 0:
                version = _version("dpkg-query", "--show", "pax-utils") or "?"  # it does not tell its own
                words = (system, "-c", SCRIPT, "{env}", lddtree, "-l")
                found.append(Tool("lddtree", f"pax-utils {version}", words, True, _lddtree))
                break
    if libtree := shutil.which("libtree"):
        # Started through the loader with a path of its own, so that the case's does not break it.
        words = ("/lib64/ld-linux-x86-64.so.2", "--library-path", "/lib/x86_64-linux-gnu:/lib64", libtree, "-p", "-vvv")
        found.append(Tool("libtree", _version(libtree, "--version"), words, False, _libtree))
    version = _version(python, "-c", "from importlib.metadata import version; print(version('auditwheel'))")
    if version not in ("", "?"):
        found.append(Tool("auditwheel", version, (python, "-c", AUDITWHEEL, "{env}"), True, _auditwheel))
    return found


def ask(tool: Tool, case: Case) -> Said | None:
    """Return what TOOL says of CASE, None for no answer."""
    env = json.dumps(case.env)
    words = [env if word == "{env}" else word for word in tool.words]
    inside = replace(case, env={} if tool.late else case.env)
    inside = replace(inside, env={**inside.env, "PATH": os.environ["PATH"]})
    try:
        status, output, errors = run_case(inside, [*words, case.library], SECONDS)
    except PermissionError as problem:
        raise SystemExit(f"{problem.filename} cannot be run by the user of a case: use --python") from None
    if status is None or status < 0:
        return None
    return tool.read(output + errors if tool.read is _ldd else output, status)


def judge(case: Case, happened: Answer, said: Said | None, before: frozenset[str]) -> str:
    """Return RIGHT, or what is wrong with what a tool SAID; BEFORE are files that the process has already."""
    if said is None:
        return SILENT
    loads = happened.outcome == "loads"
    if said.fault == loads:
        return OUTCOME
    files = {os.path.realpath(os.path.join(case.cwd, path)) for path in happened.files}
    named = {os.path.realpath(os.path.join(case.cwd, path)) for path in said.files if "vdso" not in path}
    ours = {os.path.realpath(os.path.join(case.cwd, case.library))} | before
    return RIGHT if not loads or files - ours == named - ours else FILES


def before(case: Case, probe: str) -> frozenset[str]:
    """Return the files that the process of CASE has before its dlopen, preloaded ones too."""
    words = [case.exe or probe]
    for path, into_global in case.opened:
        words += ["-g" if into_global else "-p", path]
    _, output, _ = run_case(case, [*words, case.library], SECONDS)
    return frozenset(os.path.realpath(line[4:]) for line in output.splitlines() if line.startswith("old /"))


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--case", action="append")
    asked = parser.parse_args()
    peers = tools(asked.python)
    rows: list[list[str]] = []
    right: collections.Counter[tuple[str, str]] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    place = Path(tempfile.mkdtemp(prefix="loader-peers-"))
    place.chmod(0o755)
    try:
        probe = build_probe(place, Loader("host", ""))
        for build in ALL:
            if asked.case and build.__name__ not in asked.case:
                continue
            directory = place / build.__name__
            directory.mkdir()
            case = build(Builder(directory, probe))
            if (case.mounts or case.uid is not None) and os.geteuid() != 0:
                continue
            happened = real(case, probe)
            verdicts = [RIGHT if predicted(case, probe) == happened else "DIFFERENT"]
            present = before(case, probe)
            verdicts += [judge(case, happened, ask(tool, case), present) for tool in peers]
            kind = build.__module__.rpartition("_")[2]
            kinds[kind] += 1
            for name, verdict in zip(("this", *_names(peers)), verdicts, strict=True):
                right[kind, name] += verdict == RIGHT
            rows.append([build.__name__, happened.outcome.split(":")[0], *verdicts])
    finally:
        shutil.rmtree(place)
    names = ["this", *_names(peers)]
    totals = {name: sum(right[kind, name] for kind in kinds) for name in names}
    print(*(f"{tool.name}: {tool.version}" for tool in peers), sep="\n")
    if absent := sorted({"ldd", "lddtree", "libtree", "auditwheel"} - set(names)):
        print(f"not available here: {', '.join(absent)}")
    print("\nright answers by kind of case (tests/loader/cases_KIND.py)\n")
    summary = [[kind, str(kinds[kind]), *(str(right[kind, name]) for name in names)] for kind in sorted(kinds)]
    _print(
        [["kind", "cases", *names], *summary, ["all", str(len(rows)), *(str(totals[name]) for name in names)]],
        asked.markdown,
    )
    print()
    _print([["case", "real", *names], *rows], asked.markdown)
    return int(totals["this"] != len(rows))


def _names(peers: list[Tool]) -> list[str]:
    return [tool.name for tool in peers]


def _print(rows: list[list[str]], markdown: bool) -> None:
    if markdown:
        rows.insert(1, ["---"] * len(rows[0]))
        print(*(f"| {' | '.join(row)} |" for row in rows), sep="\n")
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    raise SystemExit(main())
