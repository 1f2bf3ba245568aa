"""Loaded with `-p narrowed`: of the real stages only those that look at an Ollama, without what comes before them."""

from __future__ import annotations

import dataclasses

from pytest_gpudiscovery import stages

NAMES = ("package", "bootstrap", "serve")
TABLE = {
    name: dataclasses.replace(
        spec,
        after=tuple(other for other in spec.after if other in NAMES),
        soft_after=tuple(other for other in spec.soft_after if other in NAMES),
    )
    for name, spec in stages.table().items()
    if name in NAMES
}
vars(stages)["table"] = lambda: TABLE
