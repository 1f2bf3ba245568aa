"""`gpu-discovery bundle REPORT_DIR` and `--gpu-bundle FILE`: pack the evidence of a run, redacted.

Exit codes: 0 written, 1 could not be written, 4 usage. After the fact it asks this host for its kernel log and
nvidia-smi, each in a supervised child, and says when: `--offline` leaves that out, also where the report directory is
of another host.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Sequence
from typing import NoReturn

from pytest_gpudiscovery import collect
from pytest_gpudiscovery.model import Verdict, verdict_from_json
from pytest_gpudiscovery.reports import bundle, verdict_json

WRITTEN, FAILED, USAGE = 0, 1, 4
VERDICT_LIMIT = 64 << 20  # bytes


class _UsageError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def run(argv: Sequence[str]) -> int:
    """Run `bundle` with ARGV (its own name first); return the exit code."""
    try:
        given = _parse(list(argv[1:]))
        verdict = _verdict(given.directory)
    except _UsageError as problem:
        print(f"ERROR: {_line(problem)}", file=sys.stderr)
        return USAGE
    refused = "--offline" if given.offline else _other_host(verdict)
    try:
        size = make(given.directory, given.output, verdict, refused=refused, redact=not given.no_redact)
    except OSError as error:
        print(f"ERROR: {_line(given.output)} could not be written: {error.strerror or error}", file=sys.stderr)
        return FAILED
    print(_line(f"{given.output}: {size} bytes, {'NOT redacted' if given.no_redact else 'redacted'}"))
    return WRITTEN


def make(directory: str, path: str, verdict: Verdict, *, refused: str = "", redact: bool = True) -> int:
    """Write the bundle of DIRECTORY about VERDICT to PATH and return its size in bytes; raises OSError.

    REFUSED is why this host is asked for nothing more.
    """
    asked = [bundle.Entry(found.name, found.text, found.how) for found in collect.extracts(verdict, refused=refused)]
    data = bundle.pack(verdict, bundle.gather(directory, verdict, asked), redact=redact)
    bundle.write(path, data, private=not redact)
    return len(data)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="gpu-discovery bundle", description="pack a report directory, redacted", allow_abbrev=False)
    parser.add_argument("directory", metavar="REPORT_DIR", help="what --gpu-report named: it has verdict.json")
    parser.add_argument("-o", "--output", metavar="FILE.tar.gz", help="default: bundle.tar.gz in REPORT_DIR")
    parser.add_argument("--no-redact", action="store_true", help="leave host names, ids, paths and secrets as they are")
    parser.add_argument(
        "--offline", action="store_true", help="ask this host for nothing: no nvidia-smi, no kernel log"
    )
    given = parser.parse_args(argv)
    given.output = given.output or os.path.join(given.directory, "bundle.tar.gz")
    if not given.output.endswith(bundle.SUFFIXES) or "\0" in given.output or os.path.isdir(given.output):
        raise _UsageError(f"-o {given.output}: expected a file name that ends in .tar.gz")
    return given


def _verdict(directory: str) -> Verdict:
    path = os.path.join(directory, verdict_json.NAME)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > VERDICT_LIMIT:
                raise _UsageError(f"{path}: no regular file of a verdict")
            data = json.loads(file.read(VERDICT_LIMIT))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no JSON"
        raise _UsageError(f"{path}: {reason or error}; expected a directory that --gpu-report named") from None
    except RecursionError:
        raise _UsageError(f"{path}: nested too deeply for a verdict") from None
    try:
        return verdict_from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        kind = type(error).__name__
        raise _UsageError(f"{path}: not a verdict of schema 1 ({kind}: {error}); written by another version?") from None


def _other_host(verdict: Verdict) -> str:
    """Return why this host is not the verdict's, "" where it is or nothing says so."""
    name = verdict.host.get("name") if isinstance(verdict.host, dict) else None
    here = os.uname().nodename
    return "" if verdict.simulated is not None or name in (None, here) else "the verdict is of another host"


def _line(text: object) -> str:
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))
