"""Where a log comes from: a file, a pipe, standard input or the journal. What may block is tried in a child first."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.ollama.logread import Read
from pytest_gpudiscovery.supervise.child import run as supervise
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

STDIN, JOURNAL = "-", "journal"
UNIT = "ollama.service"
FILE_DEADLINE_S, JOURNAL_DEADLINE_S = 10.0, 60.0
JOURNAL_LIMIT = 512 << 20  # bytes
DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/\d+")  # ours, and of no child: <(zcat old.log.gz)
# How files begin that hold a log, but not as text.
PACKED = (
    (b"\x1f\x8b", "compressed (gzip)", "zcat {path}"),
    (b"\xfd7zXZ\0", "compressed (xz)", "xzcat {path}"),
    (b"BZh", "compressed (bzip2)", "bzcat {path}"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "zstdcat {path}"),
    (b"LPKSHHRH", "a journal file", "journalctl --file {path} -o json --no-pager"),
)


class SourceProblem(Exception):
    """The log cannot be read; the text is one line. `usage` says whether the caller asked for something wrong."""

    def __init__(self, text: str, *, usage: bool) -> None:
        super().__init__(text)
        self.usage = usage


@dataclass(frozen=True)
class Source:
    """A log that is open."""

    name: str
    read: Read


@contextlib.contextmanager
def opened(wanted: str) -> Iterator[Source]:
    """Open WANTED: a path, "-", "journal" or "journal:UNIT". Raises SourceProblem."""
    if wanted == STDIN:
        yield Source("standard input", _stdin())
    elif is_journal(wanted):
        unit = wanted.partition(":")[2] or UNIT
        with tempfile.TemporaryDirectory(prefix="gpu-discovery-") as folder, _journal(unit, folder) as source:
            yield source
    else:
        with _file(wanted) as source:
            yield source


def is_journal(wanted: str) -> bool:
    """Return whether WANTED names the journal; a file of that name does not."""
    return (wanted == JOURNAL or wanted.startswith(JOURNAL + ":")) and not os.path.lexists(wanted)


def _stdin() -> Read:
    stream = sys.stdin
    if stream is None or stream.closed or stream.isatty():
        raise SourceProblem("standard input is a terminal: expected a log in a pipe, or a path", usage=True)
    descriptor = stream.fileno()
    return lambda size: os.read(descriptor, size)


@contextlib.contextmanager
def _file(path: str) -> Iterator[Source]:
    if DESCRIPTOR.fullmatch(path) is None:
        found = _ask({"ask": "file", "path": os.path.abspath(path)}, FILE_DEADLINE_S, path)
        if "error" in found:
            raise SourceProblem(f"{path}: {found['error']}", usage=True)
        if found["kind"] == "directory":
            raise SourceProblem(f"{path} is a directory: expected a file", usage=True)
        head = bytes.fromhex(found["head"])
        for magic, what, command in PACKED:
            if head.startswith(magic):
                way = command.format(path=path)
                raise SourceProblem(f"{path} is {what}: {way} | gpu-discovery explain -", usage=True)
    try:
        with open(path, "rb", buffering=0) as file:
            yield Source(path, lambda size: file.read(size) or b"")
    except OSError as error:
        raise SourceProblem(f"{path}: {error.strerror or error}", usage=True) from None


@contextlib.contextmanager
def _journal(unit: str, folder: str) -> Iterator[Source]:
    name = f"the journal of {unit}"
    to = str(Path(folder, "journal.json"))
    request = {"ask": "journal", "unit": unit, "to": to, "limit": JOURNAL_LIMIT}
    found = _ask(request, JOURNAL_DEADLINE_S, name)
    hint = (found.get("said") or "").splitlines()
    if "error" in found:
        raise SourceProblem(f"{name}: {found['error']}; save the log to a file and explain that", usage=False)
    if found["size"] == 0:
        why = f" ({hint[-1].strip()})" if hint else ""
        raise SourceProblem(f"{name} holds no line that you may read{why}: try sudo, or journal:UNIT", usage=False)
    with open(to, "rb", buffering=0) as file:
        name += f" (its first {found['size'] >> 20} MiB)" if found["cut"] else ""
        yield Source(name, lambda size: file.read(size) or b"")


def _ask(request: dict[str, Any], deadline_s: float, name: str) -> dict[str, Any]:
    """Return what the child answers; raises SourceProblem when there is no answer."""
    env = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "LC_ALL", "TZ")}
    result = supervise(Probe("ollama_log", request, env, deadline_s))
    if result.ending is Ending.ANSWERED and isinstance(result.answer, dict):
        return result.answer
    raise SourceProblem(f"{name}: {_ended(result, deadline_s)}", usage=False)


def _ended(result: ChildResult, deadline_s: float) -> str:
    step = result.open_step.name if result.open_step else "reading"
    if result.ending in (Ending.TIMED_OUT, Ending.UNKILLABLE):
        return (
            f"{step} did not end within {deadline_s:g} s (blocked in: {result.evidence.get('blocked_in', 'unknown')})"
        )
    lines = [line for line in (result.stderr.strip().splitlines() or list(result.notes)) if line.strip()]
    return f"{step}: the reading child ended ({result.ending.value}): {(lines or ['no output'])[-1]}"
