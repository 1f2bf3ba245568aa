"""What Ollama itself logs when a cause stands: the families of `data/ollama_says.json`, one of them for each cause.

Most prerequisites fail without a word at INFO, so what is *not* in the log says as much as what is.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.diagnosis.patterns import longest

ERAS = ("A", "B", "C")  # up to v0.12.3, v0.12.4 to v0.24.0, from v0.30.0
NOTHING = "nothing"


@dataclass(frozen=True)
class Family:
    """What the log holds, level by level. `eras` is () where the prerequisite's own count."""

    name: str
    info: str  # also its WARN lines
    debug: str
    trace: str
    source: str
    eras: tuple[str, ...] = ()


def of(cause_id: str) -> Family | None:
    """Return the family of CAUSE_ID: its entry's own, else the longest pattern's; None for an id that has none."""
    known = catalogue.causes().get(cause_id)
    name = known.ollama if known is not None and known.ollama else longest(cause_id, patterns())
    return families().get(name) if name else None


def eras(cause_id: str) -> tuple[str, ...]:
    """Return the eras of Ollama that CAUSE_ID touches: its family's, else its prerequisite's."""
    family = of(cause_id)
    if family is not None and family.eras:
        return family.eras
    known = catalogue.causes().get(cause_id)
    row = catalogue.rows().get(known.prerequisite) if known is not None else None
    return tuple(row.get("eras", ERAS)) if row else ERAS


@functools.cache
def families() -> dict[str, Family]:
    """Return every family by name."""
    return {
        name: Family(name, **{**entry, "eras": tuple(entry.get("eras", ()))})
        for name, entry in _data()["families"].items()
    }


@functools.cache
def patterns() -> dict[str, str]:
    """Return the family of each pattern: an id, or a prefix that ends in a dot."""
    return dict(_data()["causes"])


@functools.cache
def _data() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((catalogue.DATA / "ollama_says.json").read_text(encoding="utf-8"))
    return loaded
