"""The text after --gpu-simulate: HOST[:FAULT[=VALUE][,FAULT[=VALUE]...]]."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.machines import HOSTS
from pytest_gpudiscovery.simulate.registry import FAULTS


@dataclass(frozen=True)
class SimulationSpec:
    """A host and the faults to inject, in order; a value of None is the fault's default."""

    host: str
    faults: tuple[tuple[str, str | None], ...] = ()

    def __str__(self) -> str:
        words = [name if value is None else f"{name}={value}" for name, value in self.faults]
        return self.host + (":" + ",".join(words) if words else "")


def parse(text: str) -> SimulationSpec:
    """Return what TEXT asks for; raises SimulationError with one line that names the nearest known host or fault.

    A comma ends a fault only where a fault name follows it: `env.cuda_visible_devices=0,1` is one fault.
    """
    host, colon, rest = text.strip().partition(":")
    if host not in HOSTS:
        raise SimulationError(_unknown("host", host, HOSTS))
    faults: list[tuple[str, str | None]] = []
    for word in rest.split(",") if colon else []:
        name, equals, value = word.partition("=")
        name = name.strip()
        if name in FAULTS:
            faults.append((name, value if equals else None))
        elif faults and faults[-1][1] is not None:
            faults[-1] = (faults[-1][0], f"{faults[-1][1]},{word}")
        else:
            raise SimulationError(_unknown("fault", name, FAULTS))
    return SimulationSpec(host, tuple(faults))


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"no simulated {kind} is called {name!r}; {hint}`gpu-discovery faults` lists all"
