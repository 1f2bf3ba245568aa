"""Answers the limits that the request names."""

from __future__ import annotations

import resource
from typing import Any

from pytest_gpudiscovery.probes.journal import Journal


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    return {name: resource.getrlimit(getattr(resource, name)) for name in request["names"]}
