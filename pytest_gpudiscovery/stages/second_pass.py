"""The part of stage 11 that repeats Ollama's second pass: one process for each device, all at once.

What Ollama gives each of them depends on its version: CUDA_VISIBLE_DEVICES=<UUID> (0.12.4 to 0.12.9 and from 0.13.2),
no filter at all (0.13.1), no second pass for CUDA (0.12.10 to 0.13.0), the device's index (from 0.30.0).
GGML_CUDA_INIT=1 makes ggml assert that it was compiled for the device (0.13.1 to 0.24.0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, Kind
from pytest_gpudiscovery.stages import backend_pass, identity
from pytest_gpudiscovery.stages.endings import HANG_OUTCOMES, defect, signal_words, words
from pytest_gpudiscovery.stages.identity import integer, mapping, objects, string
from pytest_gpudiscovery.stages.spec import found, not_applicable, passed, unknown
from pytest_gpudiscovery.supervise.types import ChildResult, Ending

Facts = Mapping[str, Any]
SLOW_S = 10.0  # of the 30 s that all devices share
NOT_COMPILED = "not compiled with support for this arch"
UUID, INDEX, ALL, NONE = "uuid", "index", "all", "none"


def filter_of(version: str | None) -> str:
    """Return how an Ollama of VERSION tells the children of its second pass apart; UUID for an unknown version."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version or "")
    if match is None:
        return UUID
    number = (int(match[1]), int(match[2]), int(match[3]))
    if number >= (0, 30, 0):
        return INDEX
    if number == (0, 13, 1):
        return ALL
    return NONE if (0, 12, 10) <= number < (0, 13, 1) else UUID


def devices(seen: Facts, driver: Facts, version: str | None, busy: set[int]) -> list[dict[str, Any]]:
    """Return {"name", "env"} of each child, for the devices that the first pass SEEN and that nobody uses."""
    how = filter_of(version)
    if how == NONE or not integer(seen.get("count")):
        return []
    uuids = {integer(gpu.get("ordinal")): string(gpu.get("uuid")) for gpu in objects(driver.get("gpus"))}
    asked = []
    for device in objects(seen.get("devices")):
        ordinal = integer(device.get("ordinal"))
        uuid = string(mapping(device.get("props")).get("id")) or uuids.get(ordinal)
        if ordinal is None or ordinal in busy or (how == UUID and uuid is None):
            continue
        variables = {"GGML_CUDA_INIT": "1"}
        if how != ALL:
            variables["CUDA_VISIBLE_DEVICES"] = str(ordinal if how == INDEX else uuid)
        asked.append({"name": f"device {ordinal}", "env": variables})
    return asked


def judge(
    name: str,
    result: ChildResult | None,
    seen: Facts,
    first: Facts,
    package: Facts,
    busy: Mapping[int, list[int]],
    limit_s: float,
) -> list[Check]:
    """Return the checks P56 and P58 of directory NAME; FIRST is what its first pass saw."""
    subject = f"dir:{name}"
    how = filter_of(string(package.get("version")))
    if result is None:
        return _not_made(how, first, busy, subject)
    if defect(result):
        reason = "the gate's own child failed"
        return [unknown("P56", reason, subject=subject), unknown("P58", reason, Kind.RISK, subject=subject)]
    if result.ending is not Ending.ANSWERED:
        return [_ended(result, subject, limit_s)]
    children = {str(key): mapping(value) for key, value in mapping(seen.get("ended")).items()}
    checks = [check for key, child in children.items() for check in _child(key, child, first, how, result, subject)]
    if not checks and not children:
        checks = [unknown("P56", "no device was asked", subject=subject)]
    if not checks:
        checks = [passed("P56", subject=subject, reason=f"{len(children)} asked, by {how}", observed=list(children))]
    if busy:
        reason = f"{len(busy)} GPU(s) in use by other processes were not asked"
        checks.append(unknown("P56", reason, Kind.RISK, subject=subject))
    return [*checks, _time(seen, len(children), subject)]


def _not_made(how: str, first: Facts, busy: Mapping[int, list[int]], subject: str) -> list[Check]:
    if how == NONE:
        reason = "this Ollama makes no second pass for CUDA (0.12.10 to 0.13.0)"
        return [
            not_applicable("P56", reason, subject=subject),
            not_applicable("P58", reason, Kind.RISK, subject=subject),
        ]
    if busy and len(busy) >= (integer(first.get("count")) or 0) > 0:
        pids = ", ".join(str(pid) for own in busy.values() for pid in own)
        reason = f"GPU in use by PID {pids}: no context was made"
        return [unknown(row, reason, Kind.RISK, subject=subject) for row in ("P56", "P58")]
    reason = "the first pass showed no device to ask"
    return [unknown("P56", reason, subject=subject), unknown("P58", reason, Kind.RISK, subject=subject)]


def _ended(result: ChildResult, subject: str, limit_s: float) -> Check:
    step = result.open_step.name if result.open_step else "the child's start"
    hung = result.ending in HANG_OUTCOMES
    facts = {
        "step": step,
        "deadline_s": round(limit_s, 3),
        "blocked_in": result.evidence.get("blocked_in", "unknown"),
        "ending": words(result),
        "said": backend_pass.said(result),
    }
    evidence = {"step": step, "blocked_in": facts["blocked_in"], "stderr": result.stderr[-backend_pass.TAIL :]}
    cause = "backend.second_pass.hang" if hung else "backend.second_pass.crash"
    return found(cause, facts, subject=subject, evidence=evidence)


def _child(name: str, child: Facts, first: Facts, how: str, result: ChildResult, subject: str) -> list[Check]:
    """Judge one device's process."""
    facts: dict[str, Any] = {"device": name, "said": backend_pass.said(result), "how": how}
    facts["library"] = backend_pass.library(first)
    ended = integer(child.get("exit"))
    if ended is not None:
        facts["ending"] = signal_words(-ended) if ended < 0 else f"exit status {ended}"
        cause = "backend.second_pass.arch" if NOT_COMPILED in result.stderr else "backend.second_pass.crash"
        facts |= {"step": f"second pass of {name}"}
        return [found(cause, facts, subject=subject, observed=ended, evidence=result.stderr[-backend_pass.TAIL :])]
    count = integer(child.get("count")) or 0
    expected = (integer(first.get("count")) or 0) if how == ALL else 1
    if count == 0:
        return [found("backend.second_pass.none", facts, subject=subject, expected=expected, observed=0)]
    if count != expected:
        facts["count"] = count
        return [found("backend.second_pass.more", facts, subject=subject, expected=expected, observed=count)]
    if how == ALL:
        return []
    same = next((item for item in objects(first.get("devices")) if name == f"device {item.get('ordinal')}"), {})
    mine = objects(child.get("devices"))[:1]
    if mine and _id(mine[0]) and _id(same) and _id(mine[0]) != _id(same):
        facts |= {"got": _id(mine[0]), "wanted": _id(same)}
        return [found("backend.second_pass.other", facts, subject=subject, expected=_id(same), observed=_id(mine[0]))]
    return []


def _id(device: Facts) -> str | None:
    props = mapping(device.get("props"))
    return identity.uuid(props.get("id")) or identity.pci(props.get("device_id"))


def _time(seen: Facts, count: int, subject: str) -> Check:
    seconds = seen.get("seconds")
    if not isinstance(seconds, (int, float)):
        return unknown("P58", "the second pass was not timed", Kind.RISK, subject=subject)
    if seconds > SLOW_S:
        facts = {"seconds": float(seconds), "count": count}
        return found("backend.second_pass.slow", facts, subject=subject, expected=f"<= {SLOW_S:g} s", observed=seconds)
    return passed("P58", Kind.RISK, subject=subject, reason=f"{count} at once in {seconds:.2f} s", observed=seconds)
