"""`gpu-discovery closure LIB` and `gpu-discovery fatbin LIB`: the loader library for people, problems first.

Exit codes: 0 it would load (its device code runs), 1 it would not, 20 cannot tell, 4 usage. The files are read in a
supervised child, so a path that never answers ends in 20.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from pytest_gpudiscovery.stages import closure_gpu
from pytest_gpudiscovery.supervise.child import run as supervise
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

COMMANDS = {
    "closure": "predict what dlopen of a library will do, and why",
    "fatbin": "list a library's device code, and whether this GPU runs it",
}
YES, NO, USAGE, UNKNOWN = 0, 1, 4, 20
DEADLINE_S = 20.0  # the closure of a CUDA release takes 0.1 s, cold storage a few seconds
SYSFS_LIMIT = 4096  # bytes of a file in sysfs
UNSUPPORTED, LOADS, JIT = "unsupported", "loads", "jit"


class _UsageError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def run(argv: Sequence[str]) -> int:
    """Run command ARGV[0] of COMMANDS; return the exit code."""
    try:
        given = _parse(list(argv))
        return _closure(given) if given.command == "closure" else _fatbin(given)
    except _UsageError as problem:
        print(f"ERROR: {_shown(str(problem))}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:
        # The reader (head, less) has what it wants; what is left in the buffer must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNKNOWN


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog=f"gpu-discovery {argv[0]}", description=COMMANDS[argv[0]], allow_abbrev=False)
    parser.set_defaults(command=argv[0])
    what = "a path, or a name that the loader looks for" if argv[0] == "closure" else "a path"
    parser.add_argument("library", metavar="LIB", help=what)
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of the process (repeatable)"
    )
    if argv[0] == "closure":
        parser.add_argument("--exe", metavar="FILE", help="the executable that calls dlopen")
        parser.add_argument("--explain", metavar="NAME", help="why NAME is this file and no other")
    else:
        parser.add_argument("--cc", metavar="X.Y", help="compute capability (default: this host's GPU, by its PCI id)")
        parser.add_argument("--driver-cuda", metavar="X.Y", help="the driver's CUDA version (default: this host's)")
    given = parser.parse_args(argv[1:])
    if not given.library:
        raise _UsageError("LIB is empty")
    return given


def _closure(given: argparse.Namespace) -> int:
    exe = os.path.join(_cwd(), given.exe) if given.exe else None
    request = {"ask": "closure", "library": given.library, "exe": exe, "explain": given.explain}
    answer = _ask(request, given)
    if answer is None:
        return UNKNOWN
    _print(answer, given.json)
    if given.explain is not None:
        return UNKNOWN if not answer["known"] else YES if answer["used"] else NO
    if answer["outcome"] == UNSUPPORTED:
        return UNKNOWN
    return YES if answer["outcome"] == LOADS else NO


def _fatbin(given: argparse.Namespace) -> int:
    host = closure_gpu.from_sysfs(_text, _entries)
    cc = _pair("--cc", given.cc, "9.0") or (host.ccs[0] if host.ccs else None)
    cuda = _pair("--driver-cuda", given.driver_cuda, "13.0") or host.driver_cuda
    answer = _ask({"ask": "fatbin", "library": given.library, "cc": cc, "driver_cuda": cuda}, given)
    if answer is None:
        return UNKNOWN
    _print(answer, given.json)
    if not answer["readable"]:
        return UNKNOWN
    if cc is None:
        return _cannot_tell("no known GPU on this host; say which one: --cc 9.0")
    if answer["how"] == JIT and cuda is None:
        return _cannot_tell("the driver has to compile it; say which driver: --driver-cuda 13.0")
    return YES if answer["runs"] else NO


def _ask(request: Mapping[str, Any], given: argparse.Namespace) -> dict[str, Any] | None:
    """Return what the child answers; None when there is no answer, which has been said then."""
    env = dict(os.environ)
    for pair in given.env:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise _UsageError(f"--env {pair}: expected NAME=VALUE")
        env[name] = value
    result = supervise(Probe("closure", {**request, "env": env, "cwd": _cwd()}, {}, DEADLINE_S))
    if result.ending is Ending.ANSWERED and isinstance(result.answer, dict):
        return result.answer
    _cannot_tell(_ended(result))
    return None


def _ended(result: ChildResult) -> str:
    step = result.open_step.name if result.open_step else "reading"
    if result.ending in (Ending.TIMED_OUT, Ending.UNKILLABLE):
        where = result.evidence.get("blocked_in", "unknown")
        return f"{step} did not end within {DEADLINE_S:g} s (blocked in: {where})"
    lines = [line for line in (result.stderr.strip().splitlines() or list(result.notes)) if line.strip()]
    return f"{step}: the reading child ended ({result.ending.value}): {(lines or ['no output'])[-1]}"


def _cannot_tell(why: str) -> int:
    print(f"cannot tell: {_shown(why)}", file=sys.stderr)
    return UNKNOWN


def _print(answer: Mapping[str, Any], as_json: bool) -> None:
    print(json.dumps(answer["json"], indent=1) if as_json else _shown(str(answer["text"])), flush=True)


def _shown(text: str) -> str:
    """Return TEXT with what a file could do to a terminal made visible; names in ELF files may hold any byte."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(
        char if char == "\n" or (char.isascii() and char.isprintable()) else char.encode("unicode_escape").decode()
        for char in text
    )


def _pair(option: str, text: str | None, example: str) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,2})\.([0-9])", text, re.ASCII)
    if match is None:
        raise _UsageError(f"{option} {text}: expected two numbers such as {example}")
    return int(match[1]), int(match[2])


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"  # it was removed: relative names cannot be meant


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(SYSFS_LIMIT)
    except OSError:
        return ""


def _entries(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []
