"""The part of stage 14 that compares: which GPUs each Ollama keeps, from where, how fast; what stops working. Pure.

The answer is one sentence: "safe to upgrade to 0.32.15", or what is lost and why.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.model import Check, CheckOutcome, Finding, Kind, Outcome, StageRecord
from pytest_gpudiscovery.stages import identity, upgrade_reason
from pytest_gpudiscovery.stages.bootstrap_runner import number
from pytest_gpudiscovery.stages.identity import mapping, objects, sequence, string
from pytest_gpudiscovery.stages.spec import StageInput, found, passed, unknown

Facts = Mapping[str, Any]
SUBJECT = "candidate"
SAFE = "safe to upgrade to "
OF_AN_INSTALL = ("package", "closure", "load", "backend", "bootstrap", "serve")
SLOWER, SLOW_S = 2.0, 5.0  # a discovery that takes twice as long, and longer than this, is worth a word
STALE_SHOWN = 12


@dataclass(frozen=True)
class Said:
    """The checks, the sentence, and what the verdict keeps under `comparison`."""

    checks: tuple[Check, ...]
    sentence: str
    comparison: dict[str, Any]


@dataclass(frozen=True)
class Side:
    """What one install showed. `gpus` is None where it was not asked to the end.

    `computes` is what its private server named in "inference compute" lines, None where none was started or answered;
    where there is an answer, `gpus` is that, because it is what counts.
    """

    version: str
    era: str
    gpus: tuple[Facts, ...] | None
    directories: tuple[str, ...]
    seconds: float | None
    computes: tuple[Facts, ...] | None
    served: float | None  # seconds until the server said so
    mute: bool  # a server was started, and what it computes on is not known
    reason: Finding | None  # its primary cause where it does not keep every GPU
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what the verdict keeps of it."""
        return {
            "version": self.version,
            "era": self.era,
            "gpus": None if self.gpus is None else [dict(gpu) for gpu in self.gpus],
            "directories": list(self.directories),
            "seconds": self.seconds,
            "computes": None if self.computes is None else [dict(gpu) for gpu in self.computes],
            "serve_seconds": self.served,
            "cause": None if self.reason is None else self.reason.cause,
            "warnings": list(self.warnings),
        }


def compare(
    given: StageInput, records: Mapping[str, StageRecord], mixed: Mapping[str, StageRecord] | None, stale: list[str]
) -> Said:
    """Return what the candidate's RECORDS mean beside the installed ones in GIVEN.

    MIXED are those of both releases in one directory, None where unpacking over the installed one leaves nothing.
    """
    old = side(given.prior)
    new = side(records, old.directories)
    mix = None if mixed is None else side(mixed, old.directories)
    package = given.prior.get("package")
    lib = string(mapping(package.facts if package else None).get("lib_dir")) or "lib/ollama"
    kept = _gpus(old, new)
    safe = f"{SAFE}{new.version}; " if kept.outcome is CheckOutcome.PASSED else ""
    checks = [kept, _in_place(new, mix, stale, lib), *_variables(given.context.env, old, new, safe)]
    checks.append(_time(old, new, safe))
    comparison = {
        "installed": old.to_json(),
        "candidate": new.to_json(),
        "in_place": {"stale": stale, **({} if mix is None else mix.to_json())},
        "closures": _closures(given.prior, records),
        "architectures": {"installed": _architectures(given.prior), "candidate": _architectures(records)},
        "stages": [
            {"name": record.name, "outcome": record.outcome.value, "summary": record.summary}
            for record in records.values()
        ],
    }
    sentence = _sentence(checks, old, new)
    comparison["sentence"] = sentence
    return Said(tuple(checks), sentence, comparison)


def side(records: Mapping[str, StageRecord], used: Sequence[str] = ()) -> Side:
    """Return what the RECORDS of one install say together; USED are the directories that the other one's GPUs need."""
    package, bootstrap, serve = (records.get(name) for name in ("package", "bootstrap", "serve"))
    facts = mapping(package.facts if package else None)
    seen = mapping(bootstrap.facts if bootstrap else None)
    kept = _cuda(seen.get("kept"))
    said = mapping(serve.facts if serve else None)
    computes = _cuda(said.get("devices")) if isinstance(said.get("devices"), list) else None
    asked = bootstrap is not None and bootstrap.outcome is not Outcome.NOT_REACHED and "kept" in seen
    times = [run.get("seconds") for run in objects(seen.get("children"))]
    seconds = [float(time) for time in times if isinstance(time, (int, float)) and not isinstance(time, bool)]
    mine = [record for name, record in records.items() if name in OF_AN_INSTALL]
    gpus = kept if computes is None else computes
    return Side(
        version=string(facts.get("version")) or "an unknown version",
        era=string(facts.get("era")) or "",
        gpus=tuple(gpus) if asked else None,
        directories=tuple(dict.fromkeys(str(gpu.get("libdir")) for gpu in gpus)),
        seconds=round(sum(seconds), 3) if seconds else None,
        computes=None if computes is None else tuple(computes),
        served=number(said.get("seconds")),
        mute=serve is not None and serve.outcome is not Outcome.NOT_REACHED and computes is None,
        reason=upgrade_reason.of(mine, used),
        warnings=tuple(
            dict.fromkeys(
                check.finding.cause
                for record in mine
                for check in record.checks
                if check.finding and check.outcome is CheckOutcome.WARNED
            )
        ),
    )


def _cuda(devices: Any) -> list[Facts]:
    return [gpu for gpu in objects(devices) if gpu.get("library") == "CUDA"]


# --- the checks ------------------------------------------------------------------------------------------------------


def _gpus(old: Side, new: Side) -> Check:
    """Judge P98: the candidate keeps every GPU that the installed Ollama keeps, and at least one."""
    if new.gpus is None and new.reason is None:
        return unknown("P98", "the candidate's own discovery could not be asked", subject=SUBJECT)
    if new.mute and new.reason is None:
        return unknown("P98", "the candidate's own server could not be asked", subject=SUBJECT)
    mine = new.gpus or ()
    lost = [gpu for gpu in old.gpus or () if not any(_same(gpu, other) for other in mine)]
    reason = new.reason
    facts: dict[str, Any] = {
        "version": new.version,
        "lost": _names(lost),
        "count": len(lost),
        "reason": reason.summary if reason else "its discovery does not show it",
        "detail": reason.detail if reason else "",
        "installed": old.version,
    }
    expected, observed = [_name(gpu) for gpu in old.gpus or ()], [_name(gpu) for gpu in mine]
    cause = "upgrade.loses_gpu" if lost else "upgrade.some_gpus" if mine else "upgrade.no_gpu"
    if not lost and mine and reason is None:
        return passed("P98", subject=SUBJECT, reason=f"{len(mine)} GPU(s) kept", observed=observed)
    evidence = reason.evidence if reason else None
    check = found(cause, facts, subject=SUBJECT, expected=expected, observed=observed, evidence=evidence)
    if reason is None or check.finding is None:
        return check
    # What to do next about the candidate is what its own blocking finding says.
    nearer = dataclasses.replace(check.finding, next=reason.next, action=reason.action)
    return dataclasses.replace(check, finding=nearer)


def _in_place(new: Side, mix: Side | None, stale: list[str], lib: str) -> Check:
    """Judge P99: what unpacking over the installed release leaves does not get in the way."""
    if mix is None:
        return passed("P99", Kind.RISK, subject=SUBJECT, reason="nothing of the installed release would be left")
    lost = [gpu for gpu in new.gpus or () if not any(_same(gpu, other) for other in mix.gpus or ())]
    facts = {
        "version": new.version,
        "count": len(stale),
        "lib": lib,
        "stale": ", ".join(posixpath.basename(name) for name in stale[:STALE_SHOWN]),
        "reason": mix.reason.summary if mix.reason else "",
        "lost": _names(lost),
    }
    if lost or (mix.reason is not None and new.reason is None):
        return found("upgrade.in_place", facts, subject=SUBJECT, observed=stale)
    reason = f"{len(stale)} file(s) of the installed release would be left and change nothing"
    return passed("P99", Kind.RISK, subject=SUBJECT, reason=reason, observed=stale[:STALE_SHOWN])


def _variables(env: Mapping[str, str], old: Side, new: Side, safe: str) -> list[Check]:
    """Judge P100: variables that the service sets and that mean something else for the candidate."""
    changed = [
        entry
        for entry in meanings()
        if env.get(entry["name"]) and old.era and old.era in entry["from"] and new.era and new.era in entry["to"]
    ]
    checks = [
        found(
            "upgrade.variable",
            {**entry, "value": env[entry["name"]], "safe": safe},
            subject=SUBJECT,
            observed=entry["name"],
        )
        for entry in changed
    ]
    return checks or [passed("P100", Kind.RISK, subject=SUBJECT)]


@functools.cache
def meanings() -> list[dict[str, str]]:
    """Return the variables whose meaning differs between eras: {"name", "from", "to", "meaning", "source"}."""
    text = (catalogue.DATA / "environment.json").read_text(encoding="utf-8")
    return [{key: str(value) for key, value in entry.items()} for entry in json.loads(text)]


def _time(old: Side, new: Side, safe: str) -> Check:
    """Judge P101: how long the candidate's discovery takes beside the installed one's."""
    if new.seconds is None:
        return unknown("P101", "the candidate's discovery was not timed", Kind.RISK, subject=SUBJECT)
    for seconds, before in ((new.seconds, old.seconds), (new.served, old.served)):
        if seconds is None or seconds <= SLOW_S or (before is None and seconds is not new.seconds):
            continue
        if before is None or seconds > SLOWER * before:
            facts = {"seconds": seconds, "before": before or 0.0, "version": new.version, "safe": safe}
            return found("upgrade.slower", facts, subject=SUBJECT, expected=before, observed=seconds)
    text = f"{new.seconds:.2f} s" + ("" if old.seconds is None else f", installed {old.seconds:.2f} s")
    if new.served is not None:
        text += f"; its server {new.served:.2f} s" + ("" if old.served is None else f", installed {old.served:.2f} s")
    return passed("P101", Kind.RISK, subject=SUBJECT, reason=text, observed=new.seconds)


# --- what else changes -----------------------------------------------------------------------------------------------


def _closures(old: Mapping[str, StageRecord], new: Mapping[str, StageRecord]) -> list[dict[str, Any]]:
    """Return, per GPU directory and library name, where the file comes from in either release."""
    sides = [_names_of(records) for records in (old, new)]
    changes = []
    for key in sorted(set(sides[0]) | set(sides[1])):
        before, after = (side.get(key) for side in sides)
        if _file(before) != _file(after):
            changes.append(
                {"directory": key[0], "name": key[1], "installed": _shown(before), "candidate": _shown(after)}
            )
    return changes


def _names_of(records: Mapping[str, StageRecord]) -> dict[tuple[str, str], Facts]:
    closure = records.get("closure")
    facts = mapping(closure.facts if closure else None)
    return {
        (str(item.get("directory")), _below(str(name.get("name")))): name
        for item in objects(facts.get("closures"))
        if item.get("model") == "child"
        for name in objects(item.get("names"))
    }


def _file(name: Facts | None) -> tuple[str, str] | None:
    """What makes a difference: whether it is found, by which rule, and inside or outside of the release."""
    if name is None:
        return None
    return (_below(str(name.get("rule"))), _below(str(name.get("path") or "")))


def _below(text: str) -> str:
    """Return TEXT, a path or a rule that ends in one, without the place of the release: the two lie side by side."""
    return re.sub(r"/\S*/lib/ollama(?=/)", "lib/ollama", text)


def _shown(name: Facts | None) -> Any:
    return None if name is None else {"path": name.get("path"), "rule": name.get("rule")}


def _architectures(records: Mapping[str, StageRecord]) -> dict[str, list[Any]]:
    closure = records.get("closure")
    facts = mapping(closure.facts if closure else None)
    backends: dict[str, list[Any]] = {}
    for item in objects(facts.get("fatbins")):
        backends.setdefault(str(item.get("directory")), list(sequence(item.get("targets"))))
    return backends


# --- words -----------------------------------------------------------------------------------------------------------


def _sentence(checks: list[Check], old: Side, new: Side) -> str:
    worst = next((check for check in checks if check.outcome is CheckOutcome.FAILED and check.finding), None)
    if worst is not None and worst.finding is not None:
        return worst.finding.summary
    if any(check.outcome is CheckOutcome.UNKNOWN and check.kind is Kind.BLOCKING for check in checks):
        return f"cannot tell whether {new.version} keeps the GPUs"
    warned = [check.finding.summary for check in checks if check.outcome is CheckOutcome.WARNED and check.finding]
    gained = len(new.gpus or ()) - len(old.gpus or ()) if old.gpus is not None else 0
    text = f"{SAFE}{new.version}"
    if old.gpus is None or gained > 0:
        text += f": {len(new.gpus or ())} GPU(s)" + (f", {gained} more than {old.version}" if gained > 0 else "")
    return f"{text}; {warned[0].removeprefix(f'{SAFE}{new.version}; ')}" if warned else text


def _same(one: Facts, other: Facts) -> bool:
    """Whether two devices are one GPU: by PCI address, else by UUID, else by name."""
    for key, canonical in (("pci", identity.pci), ("id", identity.uuid)):
        mine, theirs = canonical(one.get(key)), canonical(other.get(key))
        if mine and theirs:
            return bool(mine == theirs)
    return one.get("name") == other.get("name")


def _name(gpu: Facts) -> str:
    return f"{gpu.get('name')} at {gpu.get('pci') or gpu.get('id')}"


def _names(gpus: Sequence[Facts]) -> str:
    return ", ".join(str(gpu.get("pci") or gpu.get("id") or gpu.get("name")) for gpu in gpus) or "no GPU"
