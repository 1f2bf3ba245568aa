"""Test probe: loads a library and calls functions in it, as the native probes do."""

from __future__ import annotations

from typing import Any

from pytest_gpudiscovery.probes import ffi
from pytest_gpudiscovery.probes.journal import Journal


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Load REQUEST's `library`, call each of `symbols`, and say where each was found."""
    try:
        lib = ffi.load(journal, request["library"], linked=request.get("linked", True))
    except OSError as error:
        return {"error": str(error)}
    return {
        "calls": {symbol: ffi.call(journal, lib, symbol) for symbol in request["symbols"]},
        "quiet": {symbol: ffi.invoke(lib, symbol) for symbol in request["symbols"]},
        "provider": {symbol: ffi.provider(lib, symbol) for symbol in request["symbols"]},
        "path": ffi.loaded_path(request["prefix"]),
    }
