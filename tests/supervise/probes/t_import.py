"""Says which of the modules in the request can be imported."""

from __future__ import annotations

import importlib
from typing import Any

from pytest_gpudiscovery.probes.journal import Journal


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    return {name: _importable(name) for name in request["names"]}


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
