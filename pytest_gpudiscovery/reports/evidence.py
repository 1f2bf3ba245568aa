"""evidence/STAGE-PROBE.txt: what was captured of each child that hung, crashed or gave no answer, to read or to mail.

The files are for `cat` and `less`: control characters are escaped, sizes are bounded. Only files that carry our first
line are ever removed, and nothing is followed out of the directory: the report directory may be anybody's.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping

from pytest_gpudiscovery.model import Outcome, StageRecord, Verdict
from pytest_gpudiscovery.reports.atomic import replace
from pytest_gpudiscovery.reports.html_text import visible
from pytest_gpudiscovery.reports.html_values import clip, clock, outline, seconds

DIRECTORY = "evidence"
MAGIC = "pytest-gpudiscovery evidence 1"  # the first line of every file that this module wrote
STREAM, WHOLE, FILES = 200_000, 800_000, 100  # characters of one stream, of one file; number of files
TRIVIAL = "answered"  # the ending of a probe that only left a note: the verdict has it
UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def write(directory: str, verdict: Verdict) -> list[str]:
    """Write DIRECTORY/evidence/ anew and return the paths of its files, [] (and no directory) when there is nothing.

    Raises OSError; also when `evidence` is no directory of its own but a link.
    """
    place = os.path.join(directory, DIRECTORY)
    found = dict(texts(verdict))
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if not found:
            return []
        os.makedirs(place)
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in os.listdir(fd):
            if name.endswith(".txt") and _ours(fd, name):
                os.unlink(name, dir_fd=fd)
        for name, text in found.items():
            replace(place, name, text.encode(), dir_fd=fd)
    finally:
        os.close(fd)
    return [os.path.join(place, name) for name in found]


def _ours(directory: int, name: str) -> bool:
    """Whether NAME in DIRECTORY is a regular file that begins as ours do; opens nothing else."""
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            return False
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        return os.read(fd, len(MAGIC)) == MAGIC.encode()
    finally:
        os.close(fd)


def texts(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every file."""
    taken: set[str] = set()
    simulated = verdict.simulated is not None
    for record in verdict.stages:
        evidence = record.evidence if isinstance(record.evidence, Mapping) else {}
        for probe, value in evidence.items():
            if isinstance(value, Mapping) and value.get("ending") == TRIVIAL:
                continue
            if len(taken) == FILES:
                return
            name = _name(record.name, str(probe), taken)
            taken.add(name)
            yield (
                name,
                clip("\n".join(_lines(record, str(probe), value, simulated=simulated)), WHOLE),
            )


def of_record(record: StageRecord, simulated: bool = False) -> Iterator[str]:
    """Yield the text of every file about RECORD."""
    evidence = record.evidence if isinstance(record.evidence, Mapping) else {}
    for probe, value in evidence.items():
        if not (isinstance(value, Mapping) and value.get("ending") == TRIVIAL):
            yield clip("\n".join(_lines(record, str(probe), value, simulated=simulated)), WHOLE)


def _name(stage: str, probe: str, taken: set[str]) -> str:
    """Return a file name of letters, digits and _.- that is not in TAKEN."""
    begin = f"{stem(stage)}-{stem(probe)}"
    number = 1
    while (name := f"{begin}{f'-{number}' if number > 1 else ''}.txt") in taken:
        number += 1
    return name


def stem(name: str) -> str:
    """Return the part of a file's name that stands for stage or probe NAME."""
    return UNSAFE.sub("_", name[:200]).strip(".-")[:40] or "unnamed"


def _lines(record: StageRecord, probe: str, value: object, *, simulated: bool) -> Iterator[str]:
    yield MAGIC
    if simulated:
        yield "SIMULATED: this says nothing about a real machine"
    yield _line("stage", record.name)
    yield _line("probe", probe)
    yield _line("outcome", record.outcome.value.replace("_", " "))
    yield _line("summary", record.summary)
    yield _line("begun", clock(record.started))
    yield _line("took", f"{seconds(record.duration_s)} of {record.deadline_s:g} s")
    step = next((step for step in reversed(record.steps) if step.duration_s is None), None)
    if step is not None and record.outcome is not Outcome.PASSED:
        yield _line("open step", step.name)
    if not isinstance(value, Mapping):
        yield from _section("what was seen", value if isinstance(value, str) else outline(value, STREAM))
        return
    for key in ("ending", "exit_code", "signal", "blocked_in"):
        if value.get(key) is not None:
            yield _line(key.replace("_", " "), str(value[key]))
    for stream in ("stderr", "stdout"):
        yield from _section(stream, value.get(stream) or "(empty)")
    snapshot = value.get("at_deadline")
    threads = snapshot.get("threads") if isinstance(snapshot, Mapping) else None
    if threads:
        yield from _section("threads at the deadline", outline(snapshot, STREAM))
    told = ("ending", "exit_code", "signal", "blocked_in", "stderr", "stdout", "at_deadline" if threads else "")
    rest = {key: item for key, item in value.items() if key not in told and item not in (None, "", [], {})}
    if rest:
        yield from _section("everything else that was seen (JSON)", _json(rest))


def _line(name: str, text: str) -> str:
    return f"{name:<11}: {visible(clip(text, 2_000)).replace(chr(10), ' ')}"


def _section(title: str, text: object) -> Iterator[str]:
    yield f"\n== {title} =="
    yield visible(clip(str(text), STREAM))


def _json(value: object) -> str:
    """Return VALUE as JSON, or its first STREAM characters."""
    parts: list[str] = []
    size = 0
    try:
        for part in json.JSONEncoder(indent=1, ensure_ascii=False, default=str).iterencode(value):
            parts.append(part)
            size += len(part)
            if size > STREAM:
                break
    except (RecursionError, ValueError, TypeError):
        return outline(value, STREAM)  # nested beyond what JSON's writer takes
    return "".join(parts)
