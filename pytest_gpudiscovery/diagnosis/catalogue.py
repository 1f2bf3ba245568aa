"""The catalogue of causes: `data/causes/STAGE.json`, read once, looked up by id; no stage words a finding itself.

One entry:
    {"id": "driver.cuinit.hang", "prerequisite": "P42", "stages": ["driver"], "kind": "blocking",
     "severity": "blocker", "rank": 10, "summary": "cuInit(0) did not return within {deadline_s:g} s",
     "explanation": "...", "next": "dmesg -T | grep -i xid", "action": "safe",
     "explained_by": ["kernel.xid.fatal"], "sources": ["https://..."]}
The schema is `schema/cause-1.json`. `summary`, `explanation` and `next` are str.format templates over the facts given
to `finding()`. `rank` orders causes inside one stage (smaller is nearer to the root); `explained_by` lists causes (or
prefixes ending in ".", or "*" for whatever failed in an earlier stage) that, when found as well, make this one their
consequence. What an entry leaves out is said once elsewhere: sources and eras by its prerequisite
(`data/prerequisites.json`), what Ollama logs by a family (`ollama_says.py`), what would make a doubtful diagnosis surer
by `certainty.py`.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.diagnosis import layers
from pytest_gpudiscovery.model import SUMMARY_LIMIT, Action, Finding, Kind, Severity

DATA = Path(__file__).parent / "data"
_OLLAMA_FILE = re.compile(r"(?P<tag>v\d+\.\d+\.\d+):(?P<path>[\w./-]+)(?::(?P<lines>\d+(?:-\d+)?))?(?:,.*)?")


@dataclass(frozen=True)
class Cause:
    """One entry of the catalogue, templates not yet filled in."""

    id: str
    prerequisite: str
    stages: tuple[str, ...]
    kind: Kind
    severity: Severity
    rank: int
    summary: str
    explanation: str
    next: str
    action: Action
    explained_by: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    confidence: float = 0.9
    ollama: str = ""  # family of what Ollama logs, where the patterns of ollama_says.json do not fit
    surer: str = ""  # one sentence: what would raise the confidence
    views: tuple[str, ...] = ()  # (a layer that shows the GPU, one that does not): layers.py says which is to blame


class _Missing(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "?"  # a fact that was not seen must not turn a diagnosis into a traceback


@functools.cache
def causes() -> dict[str, Cause]:
    """Return every cause by id, in the order of the file."""
    found: dict[str, Cause] = {}
    entries = [
        entry
        for file in sorted((DATA / "causes").glob("*.json"))
        for entry in json.loads(file.read_text(encoding="utf-8"))
    ]
    for entry in entries:
        if entry["id"] in found:
            raise ValueError(f"cause {entry['id']} is defined twice")
        found[entry["id"]] = Cause(
            **{
                **entry,
                "stages": tuple(entry["stages"]),
                "kind": Kind(entry["kind"]),
                "severity": Severity(entry["severity"]),
                "action": Action(entry["action"]),
                "explained_by": tuple(entry.get("explained_by", ())),
                "sources": tuple(entry.get("sources", ())),
                "views": tuple(entry.get("views", ())),
            }
        )
    return found


@functools.cache
def rows() -> dict[str, dict[str, Any]]:
    """Return every prerequisite by id: stage, kind, title, eras, sources."""
    entries = json.loads((DATA / "prerequisites.json").read_text(encoding="utf-8"))
    return {entry["id"]: entry for entry in entries}


def sources(cause: Cause) -> tuple[str, ...]:
    """Return where CAUSE is known from: its own sources, without any those of its prerequisite."""
    return cause.sources or tuple(rows().get(cause.prerequisite, {}).get("sources", ()))


def link(source: str) -> str | None:
    """Return SOURCE as an address: itself, or Ollama's file for `TAG:path[:first[-last]]`; None when it has none."""
    if source.startswith("https://"):
        return source
    found = _OLLAMA_FILE.fullmatch(source)
    if found is None:
        return None
    lines = re.sub(r"(\d+)", r"L\1", found["lines"] or "")
    return f"https://github.com/ollama/ollama/blob/{found['tag']}/{found['path']}{'#' + lines if lines else ''}"


def finding(
    cause_id: str,
    facts: Mapping[str, Any] | None = None,
    *,
    evidence: Any = None,
    severity: Severity | None = None,
    confidence: float | None = None,
) -> Finding:
    """Return cause CAUSE_ID filled in with FACTS; raises KeyError for an id that the catalogue lacks."""
    cause = causes()[cause_id]
    known = _Missing(facts or {})
    # A template that is nothing but a fact (ld.so's own words) must still say something when the fact is empty.
    summary = _one_line(_fill(cause.summary, known).strip()) or cause.id
    return Finding(
        cause=cause.id,
        severity=severity or cause.severity,
        summary=summary if len(summary) <= SUMMARY_LIMIT else summary[: SUMMARY_LIMIT - 1] + "…",
        detail=" ".join(filter(None, (_fill(cause.explanation, known).strip(), _blame(cause, known)))) or cause.id,
        evidence=evidence,
        next=_command(cause.next, known),
        action=cause.action,
        confidence=cause.confidence if confidence is None else confidence,
    )


def _blame(cause: Cause, known: Mapping[str, Any]) -> str:
    if not cause.views:
        return ""
    # A stage's fact `sees` is more than the entry knows: sysfs alone may show a GPU that NVML was never asked for.
    meant = layers.between(str(known.get("sees") or cause.views[0]), cause.views[1])
    return meant.text if meant is not None else ""


def _fill(template: str, known: Mapping[str, Any]) -> str:
    try:
        return template.format_map(known)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError):
        return template  # a fact of an unexpected type: say the sentence without it


def _one_line(text: str) -> str:
    """Return TEXT with control characters written out: a name of a file may hold a newline, a stage has one line."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _command(template: str, known: _Missing) -> str:
    """Return TEMPLATE filled in as a shell command: whatever a name of a file holds, it stays one word of it.

    A fact inside of single quotes has its own quotes escaped, one outside of them is quoted where it must be.
    """
    inside = _Missing({key: _word(value).replace("'", "'\\''") for key, value in known.items()})
    outside = _Missing({key: shlex.quote(_word(value)) for key, value in known.items()})
    parts = template.split("'")
    return "'".join(_fill(part, inside if number % 2 else outside) for number, part in enumerate(parts))


def _word(value: Any) -> str:
    return _one_line(str(value))
