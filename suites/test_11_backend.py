"""11 backend: ggml_backend_init on the library that was just loaded, every device's memory, and the second pass.

What Ollama's child does after the dlopen, call by call and timed, with the answers compared to the driver's own.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("backend")


def test_the_backend_initialises(discovery_stage: StageUnderTest) -> None:
    """One GPU directory initialises, shows every GPU, and nothing blocking was found."""
    discovery_stage.passes()


def test_the_interface_is_ggmls(discovery_stage: StageUnderTest) -> None:
    """ggml_backend_init is there and returns a registry of the version and layout that Ollama knows."""
    discovery_stage.meets("P27")


def test_every_gpu_is_a_device_with_memory(discovery_stage: StageUnderTest) -> None:
    """As many devices as the driver shows, with their names and their memory."""
    discovery_stage.meets("P89")


def test_the_second_pass_keeps_each_device(discovery_stage: StageUnderTest) -> None:
    """Each device is found again when it alone is visible, all of them asked at once, in time."""
    discovery_stage.meets("P56", "P58")


def test_a_refresh_is_quick(discovery_stage: StageUnderTest) -> None:
    """The same child again in less than the 3 s that Ollama allows before it loads a model."""
    discovery_stage.meets("P60")


def test_an_abort_ends(discovery_stage: StageUnderTest) -> None:
    """ggml's abort handler starts no debugger that could block."""
    discovery_stage.meets("P30")
