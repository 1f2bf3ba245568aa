"""`gpu-discovery explain LOG|-` and `--gpu-ollama-log`: the post-mortem of an Ollama log, for people and as JSON.

Exit codes: 0 a GPU was found, 1 none was, 20 cannot tell, 4 usage. Nothing on this host is probed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from pytest_gpudiscovery.ollama import postmortem, render
from pytest_gpudiscovery.ollama.source import SourceProblem, opened

COMMAND = "explain"
HELP = "explain what an Ollama log says about GPU discovery"
YES, NO, USAGE, UNKNOWN = 0, 1, 4, 20
CODES = {postmortem.FOUND: YES, postmortem.NOT_FOUND: NO, postmortem.UNKNOWN: UNKNOWN}
REPORT = "ollama-log.json"


class _UsageError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def run(argv: Sequence[str]) -> int:
    """Run `explain` with ARGV (its own name first); return the exit code."""
    try:
        given = _parse(list(argv[1:]))
        return explain(given.log, as_json=given.json)
    except _UsageError as problem:
        print(f"ERROR: {shown(str(problem))}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:
        # The reader (head, less) has what it wants; what is left in the buffer must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNKNOWN


def explain(log: str, *, as_json: bool) -> int:
    """Print the post-mortem of LOG (a path, "-", "journal" or "journal:UNIT"); return the exit code."""
    found = ask(log)
    if isinstance(found, int):
        return found
    survive_any_text()
    print(json.dumps(found, indent=1) if as_json else shown(render.text(found)), flush=True)
    return CODES[found["answer"]]


def ask(log: str) -> dict[str, Any] | int:
    """Return the post-mortem of LOG, or the exit code after the reason why there is none was printed."""
    try:
        with opened(log) as source:
            return postmortem.explain(source.read, source.name)
    except SourceProblem as problem:
        print(f"{'ERROR' if problem.usage else 'cannot tell'}: {shown(str(problem))}", file=sys.stderr)
        return USAGE if problem.usage else UNKNOWN


def survive_any_text() -> None:
    """Let standard output take what its encoding lacks; a log may hold any character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def last_line(found: Mapping[str, Any], code: int) -> str:
    """Return the line that the whole post-mortem FOUND, which ends with CODE, comes down to."""
    return f"gpu-discovery: {found['summary']} (exit {code})"


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog=f"gpu-discovery {COMMAND}", description=HELP, allow_abbrev=False)
    parser.add_argument("log", metavar="LOG", help='a log file, "-" for standard input, or journal[:UNIT]')
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    given = parser.parse_args(argv)
    if not given.log:
        raise _UsageError("LOG is empty")
    return given


def shown(text: str) -> str:
    """Return TEXT with what a log could do to a terminal made visible."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
