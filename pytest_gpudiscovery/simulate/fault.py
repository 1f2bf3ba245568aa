"""What a fault is, and short words for its five mechanisms."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_gpudiscovery.simulate.changes import Change
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.world import World

UNPRIVILEGED = ("unprivileged",)  # root is above modes, and makes missing nodes itself
TWO_GPUS = ("two GPUs",)
OLLAMA = ("an Ollama",)  # a simulated host that has one: h100-ollama and its relatives
NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
VARIABLE = "env."  # VALUE is that of a variable, which may be anything
NO_REAL = "no real "  # followed by a soname: ld.so would go on and find the library of this machine


@dataclass(frozen=True)
class Fault:
    """One fault. `needs` holds words: root, unprivileged, two GPUs, an Ollama, value, "no real SONAME"."""

    name: str
    text: str
    mechanism: str  # answers, library, view, environment, preload
    changes: tuple[Change, ...]
    value: str | None = None  # default of the value; None: it takes none; "": it must be given
    needs: tuple[str, ...] = ()

    def apply(self, world: World, value: str | None) -> None:
        """Change WORLD; raises SimulationError for a value that is missing, unwanted or bad."""
        if self.value is None and value is not None:
            raise SimulationError(f"fault {self.name} takes no value, got {value!r}")
        given = self.value if value is None else value
        if self.value == "" and not given:
            raise SimulationError(f"fault {self.name} needs a value: {self.name}=VALUE ({self.text})")
        for change in self.changes:
            change(world, given or "")
        # After the changes, of which some say more exactly what they take.
        number = not self.name.startswith(VARIABLE) and NUMBER.fullmatch(self.value or "")
        if number and not NUMBER.fullmatch(given or ""):
            raise SimulationError(f"fault {self.name}: expected a number such as {self.value}, not {given!r}")


def answers(name: str, text: str, *changes: Change, value: str | None = None, needs: tuple[str, ...] = ()) -> Fault:
    """Return a fault in what the libraries answer (sim.conf)."""
    return Fault(name, text, "answers", changes, value, needs)


def library(name: str, text: str, *changes: Change, value: str | None = None, needs: tuple[str, ...] = ()) -> Fault:
    """Return a fault in the library files."""
    return Fault(name, text, "library", changes, value, needs)


def host_view(name: str, text: str, *changes: Change, value: str | None = None, needs: tuple[str, ...] = ()) -> Fault:
    """Return a fault in what probes read of the host, and what the libraries make of it."""
    return Fault(name, text, "view", changes, value, needs)


def environment(name: str, text: str, *changes: Change, value: str | None = None, needs: tuple[str, ...] = ()) -> Fault:
    """Return a fault in the environment of the probes."""
    return Fault(name, text, "environment", changes, value, needs)


def preload(name: str, text: str, *changes: Change, value: str | None = None, needs: tuple[str, ...] = ()) -> Fault:
    """Return a fault that a preloaded library makes."""
    return Fault(name, text, "preload", changes, value, needs)
