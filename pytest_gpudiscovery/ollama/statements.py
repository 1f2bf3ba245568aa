"""Sentences about a log: data/statements.json, filled in. Nothing else of this package words a conclusion."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.ollama.versions import load


@dataclass(frozen=True)
class Statement:
    """One conclusion: `group` is "so" (it follows) or "not" (it does not follow, though it looks so)."""

    id: str
    group: str
    text: str
    confidence: str  # certain: the source code says so; inferred: from times or from what is absent
    sources: tuple[str, ...]


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in load("statements")["statements"]}


def ids() -> tuple[str, ...]:
    """Return the id of every statement."""
    return tuple(_table())


def say(statement: str, **values: Any) -> Statement:
    """Return STATEMENT filled in with VALUES; raises KeyError for an id or a value that is missing."""
    entry = _table()[statement]
    return Statement(
        statement, entry["group"], entry["text"].format_map(values), entry["confidence"], tuple(entry["sources"])
    )


def advice(era: str | None, **values: Any) -> list[dict[str, Any]]:
    """Return the advice that fits ERA (None: any), its texts and commands filled in with VALUES."""
    found = []
    for entry in load("advice")["advice"]:
        if era is None or era in entry["eras"]:
            commands = [{**command, "command": _fill(command["command"], values)} for command in entry["commands"]]
            found.append({**entry, "text": [_fill(text, values) for text in entry["text"]], "commands": commands})
    return found


def _fill(text: str, values: dict[str, Any]) -> str:
    # Not str.format: shell text is full of braces.
    for name, value in values.items():
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        text = text.replace(f"{{{name}:g}}", shown).replace(f"{{{name}}}", shown)
    return text
