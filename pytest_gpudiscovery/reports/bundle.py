"""One .tar.gz with everything that a person who helps from afar needs; redacted unless asked otherwise, and bounded.

verdict.json and evidence/ come from a report directory, the rest from the verdict and from what was asked of the host
when the bundle was made. The directory may be anybody's: only regular files are read, links are not followed. Owner,
mode and times in the archive are fixed, so that two bundles of the same files are equal.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import stat
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pytest_gpudiscovery.model import Outcome, Verdict, to_json
from pytest_gpudiscovery.reports import evidence, verdict_json, wording
from pytest_gpudiscovery.reports.atomic import replace
from pytest_gpudiscovery.reports.bundle_redact import Redactor, kernel_suffix
from pytest_gpudiscovery.reports.html_story import NUMBERS
from pytest_gpudiscovery.reports.html_text import visible

ROOT = "gpu-discovery-bundle"
SUFFIXES = (".tar.gz", ".tgz")
FILE_LIMIT, LIMIT = 1 << 20, 20 << 20  # bytes of one file, of all together (before compression)
FILES = 200  # of evidence/
MARK = 100  # characters that the mark of a cut takes
OLLAMA_LOG = "ollama-log.json"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
NEVER = "verdict.json, evidence/ and the journal are of the run; what was asked afterwards says so with its time."


class Entry(NamedTuple):
    """A file of the bundle: its name in there, its text, and one line that says what it is."""

    name: str
    text: str
    how: str


def gather(directory: str, verdict: Verdict, extracts: Sequence[Entry] = ()) -> list[Entry]:
    """Return the files of a bundle about VERDICT, not redacted; DIRECTORY has verdict.json and evidence/."""
    found = [
        Entry("summary.txt", _summary(verdict), "the verdict, and a block for each stage that failed"),
        Entry("journal.txt", "\n".join(_journal(verdict)) + "\n", "every step of every probe, with its times"),
        Entry("environment.txt", _json(_environment(verdict)), "who probed, on what host, with which versions"),
    ]
    found += extracts
    for name, how in ((OLLAMA_LOG, "the post-mortem of an Ollama log"),):
        text = _read(directory, name)
        if text is not None:
            found.append(Entry(name, text, how))
    place = os.path.join(directory, evidence.DIRECTORY)
    for name in _names(place)[:FILES]:
        text = _read(place, name)
        if text is not None:
            safe = name if NAME.fullmatch(name) else f"{evidence.stem(name)}.txt"
            found.append(Entry(f"{evidence.DIRECTORY}/{safe}", text, "stacks, maps, threads and output of one child"))
    return found


def pack(verdict: Verdict, entries: Sequence[Entry], *, redact: bool = True) -> bytes:
    """Return the archive of ENTRIES and of VERDICT itself, redacted unless REDACT is False."""
    redactor = Redactor() if redact else None
    data = to_json(verdict)
    if redactor is not None:
        _introduce(redactor, verdict)
        for entry in entries:
            redactor.learn(entry.text[:FILE_LIMIT])
        _learn(redactor, data)
    files: dict[str, tuple[bytes, str]] = {}
    files[verdict_json.NAME] = _verdict(redactor.value(data) if redactor is not None else data)
    left = LIMIT - len(files[verdict_json.NAME][0])
    for entry in entries:
        text = _cut(entry.text)
        body = _bounded(redactor.text(text) if redactor is not None else text)
        how = entry.how if redactor is None else redactor.text(entry.how)
        name = entry.name if redactor is None else redactor.text(entry.name)
        if len(body) > left:
            body, how = b"", f"{how}; left out: the bundle would have more than {LIMIT >> 20} MiB"
        left -= len(body)
        files[_free(name, files)] = body, how
    if redactor is not None:
        files["redacted.txt"] = _told(redactor).encode(), "what was replaced: kinds and counts"
    files["about.txt"] = _about(verdict, files, redact=redact).encode(), ""
    return _archive(files)


def write(path: str, data: bytes, *, private: bool = False) -> None:
    """Replace the file PATH by DATA, for its owner alone if PRIVATE; raises OSError and leaves what was there."""
    directory, name = os.path.split(os.path.abspath(path))
    replace(directory, name, data, mode=0o600 if private else 0o644)


def _introduce(redactor: Redactor, verdict: Verdict) -> None:
    host = verdict.host if isinstance(verdict.host, Mapping) else {}
    if verdict.simulated is None:
        redactor.know("host", str(host.get("name") or ""))
        redactor.know("kernel", *kernel_suffix(str(host.get("kernel") or "")))
    context = verdict.context if isinstance(verdict.context, Mapping) else {}
    missing = context.get("not_adopted")
    for item in missing if isinstance(missing, (list, tuple)) else ():
        what, _, name = str(item.get("what") if isinstance(item, Mapping) else "").partition(" ")
        redactor.know("user", name if what == "user" else "")
    machine = os.uname()
    redactor.know("host", machine.nodename, os.environ.get("HOSTNAME", ""))
    redactor.know("kernel", *kernel_suffix(machine.release))
    for name in ("USER", "LOGNAME", "SUDO_USER"):
        redactor.know("user", os.environ.get(name, ""))


def _learn(redactor: Redactor, value: object) -> None:
    if isinstance(value, str):
        redactor.learn(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            redactor.key(str(key), item)
            _learn(redactor, item)
    elif isinstance(value, list):
        for item in value:
            _learn(redactor, item)


def _summary(verdict: Verdict) -> str:
    parts = [wording.last_line(verdict, NUMBERS, None)]
    for record in verdict.stages:
        if record.outcome.blocks or record.outcome is Outcome.PROBE_ERROR:
            lost = [other.name for other in verdict.stages if other.blocked_by == record.name]
            parts.append(wording.failure_block(record, NUMBERS, lost, verdict))
    for blocker in verdict.blockers:
        sure = "" if blocker.confidence is None else f" (confidence {blocker.confidence:g})"
        surer = f"\n   surer     : {blocker.surer}" if blocker.surer else ""
        parts.append(f"blocker {blocker.stage}: {blocker.cause}{sure}{surer}")
    return visible("\n\n".join(parts)) + "\n"


def _journal(verdict: Verdict) -> Iterator[str]:
    for record in verdict.stages:
        yield f"{record.name}: {record.outcome.value} after {record.duration_s:.3f} s of {record.deadline_s:g} s"
        for step in record.steps:
            took = "did not end" if step.duration_s is None else f"{step.duration_s:.3f} s"
            yield visible(f"   {step.started:9.3f}  {took:>12}  {wording.one_line(step.name)}")


def _environment(verdict: Verdict) -> dict[str, object]:
    facts = {record.name: record.facts for record in verdict.stages if isinstance(record.facts, Mapping)}
    return {
        "tool": verdict.tool,
        "host": verdict.host,
        "versions": verdict.versions,
        "context": verdict.context,
        "selection": verdict.selection,
        "service": facts.get("service"),
        "notes": list(verdict.notes),
    }


def _verdict(data: dict[str, Any]) -> tuple[bytes, str]:
    """Return DATA as a file that is still JSON of schema 1 where it had to be shortened, and what it is."""
    how, left_out = "the verdict of the run, schema 1", []
    for what in ("", "closures", "fatbins", "evidence", "facts", "steps"):
        if what in data:
            data = {**data, what: []}
        elif what:
            empty: Any = [] if what == "steps" else None
            data = {**data, "stages": [{**record, what: empty} for record in data["stages"]]}
        left_out += [what] if what else []
        text = _json(data)
        if len(text.encode("utf-8", "backslashreplace")) <= FILE_LIMIT:
            break
    return _bounded(text), how + (f"; too long, without {', '.join(left_out)}" if left_out else "")


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"


def _names(place: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(place) if name.endswith(".txt") and not os.path.islink(place))
    except OSError:
        return []


def _read(directory: str, name: str) -> str | None:
    """Return the text of the regular file NAME, its begin and its end where it is too long; None for anything else."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(os.path.join(directory, name), flags)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size <= FILE_LIMIT:
            return os.pread(fd, FILE_LIMIT, 0).decode("utf-8", "replace")
        half = FILE_LIMIT // 2 - MARK
        head, tail = os.pread(fd, half, 0), os.pread(fd, half, max(half, status.st_size - half))
        return _joined(head.decode("utf-8", "replace"), tail.decode("utf-8", "replace"), status.st_size - 2 * half)
    except OSError:
        return None
    finally:
        os.close(fd)


def _cut(text: str) -> str:
    """Return TEXT, its begin and its end where it is too long."""
    if len(text) <= FILE_LIMIT:
        return text
    half = FILE_LIMIT // 2 - MARK
    return _joined(text[:half], text[-half:], len(text) - 2 * half)


def _joined(head: str, tail: str, between: int) -> str:
    """Return both with a mark. A word that was cut in two goes: half of a secret is not recognised as one."""
    head = head[: max(head.rfind("\n"), head.rfind(" ")) + 1]
    begins = [place for place in (tail.find("\n"), tail.find(" ")) if place >= 0]
    tail = tail[min(begins) :] if begins else ""
    return f"{head}\n... about {between} characters left out ...\n{tail}"


def _bounded(text: str) -> bytes:
    """Return TEXT in UTF-8 and in bounds: already redacted, so it may be cut anywhere."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= FILE_LIMIT:
        return data
    mark = b"\n... cut: a file of the bundle has at most 1 MiB ...\n"
    half = (FILE_LIMIT - len(mark)) // 2
    whole = data[:half] + mark + data[-half:]
    return whole.decode("utf-8", "ignore").encode()


def _free(name: str, taken: Mapping[str, object]) -> str:
    stem, dot, suffix = name.rpartition(".")
    candidates = (name if number == 1 else f"{stem}-{number}{dot}{suffix}" for number in range(1, FILES + 10))
    return next((candidate for candidate in candidates if candidate not in taken), name)


def _told(redactor: Redactor) -> str:
    lines = [
        "What was replaced by a pseudonym or a mark, and how often; the originals are kept nowhere.",
        "PCI addresses, versions, loopback addresses and null UUIDs were left.",
        "",
        f"{'kind':<22}{'times':>8}{'different':>11}",
    ]
    for kind, count, different in redactor.told():
        lines.append(f"{kind:<22}{count:>8}{different or '-':>11}")
    return "\n".join(lines) + "\n"


def _about(verdict: Verdict, files: Mapping[str, tuple[bytes, str]], *, redact: bool) -> str:
    tool = verdict.tool if isinstance(verdict.tool, Mapping) else {}
    lines = [
        f"A bundle of evidence of {tool.get('name')} {tool.get('version')}.",
        f"The run began {verdict.started} and took {verdict.duration_s:g} s; this was put together {_clock()}.",
        NEVER,
        "Redacted: see redacted.txt."
        if redact
        else "NOT REDACTED: it holds host names, ids, paths and what logs said.",
        "",
    ]
    if verdict.simulated is not None:
        lines.insert(0, "SIMULATED: this says nothing about a real machine.")
    lines += [f"{len(body):>9}  {name:<36}  {how}" for name, (body, how) in sorted(files.items())]
    return visible("\n".join(lines)) + "\n"


def _clock() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _archive(files: Mapping[str, tuple[bytes, str]]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name, (body, _) in sorted(files.items()):
            entry = tarfile.TarInfo(f"{ROOT}/{name}")
            entry.size, entry.mode = len(body), 0o644
            archive.addfile(entry, io.BytesIO(body))
    return packed.getvalue()
