"""Simulated hosts: a recorded host view, and driver libraries that are really built, loaded and called.

    spec = simulate.parse("h100:driver.cuinit.802")
    host = simulate.assemble(spec, directory)     # host.view, host.env, host.describe

No probe and no stage knows that it is simulated: everything reaches it through the view and the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_gpudiscovery.simulate.errors import SimulationError

if TYPE_CHECKING:
    from pytest_gpudiscovery.simulate.assemble import SimulatedHost
    from pytest_gpudiscovery.simulate.spec import SimulationSpec

__all__ = ["SimulationError", "faults", "hosts", "parse", "prepare"]


def parse(text: str) -> SimulationSpec:
    """Return what TEXT (HOST[:FAULT[=VALUE],...]) asks for; raises SimulationError with one line."""
    from pytest_gpudiscovery.simulate import spec  # noqa: PLC0415  (a run on a real host imports none of this)

    return spec.parse(text)


def prepare(spec: SimulationSpec, directory: str) -> SimulatedHost:
    """Build the host in DIRECTORY, which is made if absent; raises SimulationError with one line."""
    from pytest_gpudiscovery.simulate import assemble  # noqa: PLC0415

    return assemble.prepare(spec, directory)


def faults() -> list[dict[str, Any]]:
    """Return every fault: {"name", "text", "mechanism", "value", "needs"}."""
    from pytest_gpudiscovery.simulate import registry  # noqa: PLC0415

    return registry.listing()


def hosts() -> dict[str, str]:
    """Return every host: name -> what it is."""
    from pytest_gpudiscovery.simulate.machines import HOSTS  # noqa: PLC0415

    return {host.name: host.text for host in HOSTS.values()}
