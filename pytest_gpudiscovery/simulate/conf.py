"""sim.conf: what the simulated libraries read. Lines `key=value`; csrc/sim.h says what the keys mean."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_gpudiscovery.simulate.errors import SimulationError

HEADER = "# A simulated GPU host, written by pytest-gpudiscovery; it describes no real machine."


def write(conf: Mapping[str, str]) -> str:
    """Return CONF as the text of sim.conf; raises SimulationError for what the format cannot hold."""
    lines = [HEADER]
    for key in sorted(conf):
        value = conf[key]
        if not key or key.startswith("#") or any(char in key for char in "=\n\0") or any(c in value for c in "\n\0"):
            raise SimulationError(f"sim.conf cannot hold {key!r} = {value!r}: no line breaks, no `=` in keys")
        lines.append(f"{key}={value}")
    return "\n".join(lines) + "\n"


def parse(text: str) -> dict[str, str]:
    """Return the keys and values of sim.conf TEXT, as the C side reads it."""
    pairs = (line.partition("=") for line in text.split("\n") if not line.startswith("#"))
    return {key: value for key, equals, value in pairs if equals}
