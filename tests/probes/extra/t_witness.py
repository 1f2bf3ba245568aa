"""Test probe: the second witnesses, with a directory of stand-in modules before everything installed."""

from __future__ import annotations

import sys
from typing import Any

from pytest_gpudiscovery.probes import witness
from pytest_gpudiscovery.probes.journal import Journal


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Ask the witnesses that REQUEST's directory `modules` holds."""
    sys.path.insert(0, request["modules"])
    return witness.probe(request, journal)
