"""Next commands for what was asked about: the catalogue's are for a unit `ollama` and the Ollama on PATH. Pure."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pytest_gpudiscovery.model import Check

# What a systemctl command of the catalogue may have before and behind the name of the unit.
_UNIT = re.compile(r"(\bsystemctl (?:show|cat|status|edit|restart)(?: -[pP] \w+)*) ollama\b(?!\.)")
_GATE = re.compile(r"\bgpu-discovery gate\b(?! --gpu-(?:ollama|as)\b)")
# A process has no unit to ask: what the kernel says of it (proc(5)).
_OF_PROCESS = (
    (re.compile(r"\$\(systemctl show -P MainPID ollama\)"), "{pid}"),
    (
        re.compile(r"systemctl show (?:-[pP] Environment ollama|ollama -p Environment)\b"),
        "xargs -0n1 < /proc/{pid}/environ",
    ),
    (re.compile(r"systemctl show ollama(?: -p Limit\w+)+"), "cat /proc/{pid}/limits"),
)


def to_service(checks: Iterable[Check], service: Mapping[str, Any]) -> tuple[Check, ...]:
    """Return CHECKS, the next commands of their findings made out to SERVICE (RunContext.service)."""
    process = service.get("process")
    pid = process.get("pid") if isinstance(process, Mapping) else None
    unit = service.get("unit")
    if isinstance(pid, int):
        return tuple(_with(check, lambda text: _process(text, pid)) for check in checks)
    if isinstance(unit, str) and unit not in ("ollama", "ollama.service"):
        return tuple(_with(check, lambda text: _UNIT.sub(lambda found: f"{found[1]} {unit}", text)) for check in checks)
    return tuple(checks)


def to_caller(checks: Iterable[Check], named: Sequence[str]) -> tuple[Check, ...]:
    """Return CHECKS, the gates of their next commands with NAMED, options that name an Ollama or a service."""
    if not named:
        return tuple(checks)
    words = shlex.join(named)
    return tuple(_with(check, lambda text: _GATE.sub(lambda found: f"{found[0]} {words}", text)) for check in checks)


def _process(text: str, pid: int) -> str:
    for pattern, instead in _OF_PROCESS:
        text = pattern.sub(instead.format(pid=pid), text)
    return text


def _with(check: Check, change: Callable[[str], str]) -> Check:
    if check.finding is None or (text := change(check.finding.next)) == check.finding.next:
        return check
    return dataclasses.replace(check, finding=dataclasses.replace(check.finding, next=text))
