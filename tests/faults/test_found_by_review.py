"""Faults that a reviewer who had not seen the catalogue injected, and that the gate named wrongly."""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.simulate import changes, fault, registry
from pytest_gpudiscovery.simulate.fault import Fault
from pytest_gpudiscovery.simulate.ollama import LIB
from pytest_gpudiscovery.simulate.world import File, World
from tests.faults.gate import primary, run_gate, warnings

OLD = "libcuda.so.535.183.01"


def copied_libcuda(world: World, _: str) -> None:
    """Leave a libcuda of another driver in lib/ollama, where a hand put it."""
    world.files[f"{LIB}/{OLD}"] = File("built", "libcuda")
    world.files[f"{LIB}/libcuda.so.1"] = File("link", OLD)


def without_links(world: World, _: str) -> None:
    """Leave the driver's libcuda without the links to it."""
    for name in ("libcuda.so.1", "libcuda.so"):
        del world.files[f"lib/{name}"]


FAULTS = (
    fault.library("review.copied", "a libcuda of another driver lies in lib/ollama", copied_libcuda),
    fault.library("review.unlinked", "libcuda.so.1 is missing, the file of full version is there", without_links),
    fault.environment("review.utility", "utility only", changes.env(NVIDIA_DRIVER_CAPABILITIES="utility")),
    fault.environment("review.home", "no HOME", changes.env(HOME="")),
)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the simulated host know these faults."""
    mine: dict[str, Fault] = {one.name: one for one in FAULTS}
    for name, one in mine.items():
        monkeypatch.setitem(registry.FAULTS, name, one)


@pytest.mark.parametrize(
    ("text", "until", "stage", "cause"),
    [
        ("h100:review.unlinked", "kernel", "kernel", "kernel.user_space.unlinked"),
        ("h100:libcuda.missing,review.utility", "kernel", "kernel", "kernel.user_space.capability"),
        ("h100-ollama:review.home", "service", "service", "service.env.home_missing"),
        ("h100-ollama:review.copied", "runtime", "runtime", "package.stray.library"),
    ],
)
def test_it_is_named_now(text: str, until: str, stage: str, cause: str) -> None:
    found = run_gate(text, until=until)
    assert found.verdict.value == "blocked"
    assert (primary(found)[0], primary(found)[2]) == (stage, cause), warnings(found)
