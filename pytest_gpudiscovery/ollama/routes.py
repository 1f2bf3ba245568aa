"""Which causes are left for what a log shows, and how much speaks for each: data/routes.json and data/causes.json.

An entry lists what it needs (`needs`) and what speaks for it (`supports`), both as conditions over named facts:
    {"fact": "directory", "op": "in", "value": ["cuda_v13"], "why": "..."}
A fact that the log does not show (None) excludes nothing and supports nothing. The confidence of an entry is its share
of the weight of all that are left: `weight` (how often it was confirmed in public threads) times the factor of each
condition that speaks for it.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.diagnosis.catalogue import DATA as GATE_DATA
from pytest_gpudiscovery.ollama.attempts import TIMED_OUT
from pytest_gpudiscovery.ollama.versions import load

Facts = Mapping[str, Any]
UNSEEN = "unseen_timeout"  # a child may have timed out, and the log does not show it: the routes without what excludes
# No device, and the beginning is not in the log: how a child failed may have been said there.
CUT = "cut_off"
SAID_EARLIER = {"B": ("no_device", "filtered", "crashed", "http_error", "spawn_failed"),
                "C": ("no_device", "filtered", "c_failed")}  # fmt: skip
USUAL = "/usr/local/lib/ollama"  # what the tables' commands have
LONGEST = 200  # characters of a directory that is named in a command
PLACES = re.compile(re.escape(USUAL) + r"(?:/(cuda_v\d+)\b)?")
CEILING = 0.95  # no log alone makes a cause certain


@dataclass(frozen=True)
class Candidate:
    """A cause that is left."""

    id: str
    title: str
    what: str
    confidence: float  # its share of the weight of all that are left
    weight: float
    speaks_for_it: tuple[str, ...]  # what of this log
    weight_why: str
    prerequisites: tuple[str, ...]
    stages: tuple[str, ...]  # of the gate, that assert them
    next: str
    action: str
    sources: tuple[str, ...]
    not_seen: tuple[str, ...]  # facts that it needs and that the log does not show


@dataclass(frozen=True)
class Excluded:
    """A cause that the log rules out, with the reason."""

    id: str
    title: str
    because: str
    prerequisites: tuple[str, ...]
    sources: tuple[str, ...]


def candidates(outcome: str, facts: Facts) -> tuple[list[Candidate], list[Excluded]]:
    """Return what is left for OUTCOME, likeliest first, and what is not.

    OUTCOME is one of attempts.py, or UNSEEN, CUT, filtered, c_failed or blocked_a (`outcomes` of causes.json).
    """
    left: list[tuple[dict[str, Any], float, list[str]]] = []
    out: list[Excluded] = []
    for entry in _entries(outcome, facts):
        failed = next((need for need in entry["needs"] if _holds(need, facts) is False), None)
        if failed is not None:
            out.append(
                Excluded(
                    entry["id"], entry["title"], failed["why"], tuple(entry["prerequisites"]), tuple(entry["sources"])
                )
            )
            continue
        weight, reasons = float(entry["weight"]), []
        for support in entry["supports"]:
            if _holds(support, facts):
                weight *= support["factor"]
                reasons.append(support["why"])
        left.append((entry, weight, reasons))
    total = sum(weight for _, weight, _ in left) or 1.0
    left.sort(key=lambda item: -item[1])
    return [_candidate(entry, weight, total, reasons, facts) for entry, weight, reasons in left], out


def excluded_by(outcome: str, facts: Facts) -> list[Excluded]:
    """Return what cannot be the cause because an attempt ended with OUTCOME."""
    return [
        Excluded(entry["id"], entry["title"], entry["because"], tuple(entry["prerequisites"]), tuple(entry["sources"]))
        for entry in load("exclusions")["exclusions"]
        if outcome in entry["outcomes"]
        and facts.get("era") in (None, *entry["eras"])
        and facts.get("pass") in (None, *entry["passes"])
    ]


def stages(prerequisites: Sequence[str]) -> tuple[str, ...]:
    """Return the gate's stages that assert PREREQUISITES, in the order given."""
    return tuple(dict.fromkeys(_rows()[row] for row in prerequisites if row in _rows()))


def in_its_directory(command: str, facts: Facts) -> str:
    """Return COMMAND for the install and the directory that the log names, instead of the usual place."""
    # A log may be anybody's: nothing that a shell or a terminal could take for more than the name of a directory.
    lib, directory = facts.get("lib_dir") or "", facts.get("directory") or ""
    top = shlex.quote(lib) if lib.startswith("/") and lib.isprintable() and len(lib) <= LONGEST else USUAL

    def place(found: re.Match[str]) -> str:
        inside = directory if found[1] and re.fullmatch(r"cuda_v[\w.-]{1,40}", directory) else found[1]
        return f"{top}/{inside}" if inside else top

    return PLACES.sub(place, command)


def _candidate(entry: dict[str, Any], weight: float, total: float, reasons: list[str], facts: Facts) -> Candidate:
    return Candidate(
        id=entry["id"],
        title=entry["title"],
        what=entry["what"],
        confidence=round(min(weight / total, CEILING), 3),
        weight=round(weight, 3),
        speaks_for_it=tuple(reasons),
        weight_why=entry["weight_why"],
        prerequisites=tuple(entry["prerequisites"]),
        stages=stages(entry["prerequisites"]),
        next=in_its_directory(entry["next"], facts),
        action=entry["action"],
        sources=tuple(entry["sources"]),
        not_seen=tuple(need["fact"] for need in entry["needs"] if _holds(need, facts) is None),
    )


def _entries(outcome: str, facts: Facts) -> list[dict[str, Any]]:
    if outcome in (TIMED_OUT, UNSEEN):
        return list(load("routes")["routes"])
    wanted = {outcome}
    if outcome == CUT:
        wanted = {one for era, names in SAID_EARLIER.items() if facts.get("era") in (None, era) for one in names}
    return [entry for entry in load("causes")["causes"] if wanted.intersection(entry["outcomes"])]


def _holds(condition: Mapping[str, Any], facts: Facts) -> bool | None:
    """Return whether CONDITION holds, None when the fact is not known."""
    seen, value = facts.get(condition["fact"]), condition["value"]
    if seen is None:
        return None
    if condition["op"] in ("in", "not_in"):
        return bool((seen in value) == (condition["op"] == "in"))
    return bool(seen >= value if condition["op"] == "min" else seen <= value)


@functools.cache
def _rows() -> dict[str, str]:
    return {
        row["id"]: row["stage"] for row in json.loads((GATE_DATA / "prerequisites.json").read_text(encoding="utf-8"))
    }
