"""08 runtime: the CUDA runtime of each GPU directory works with this driver.

A runtime newer than the driver, or one whose struct layout is not what the backend was built with, ends in a crash
or in zero devices.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("runtime")


def test_the_runtime_answers(discovery_stage: StageUnderTest) -> None:
    """Each directory's own libcudart counted the devices and nothing blocking was found."""
    discovery_stage.passes()


def test_the_driver_is_new_enough(discovery_stage: StageUnderTest) -> None:
    """The driver's CUDA version is at least the runtime's."""
    discovery_stage.meets("P46")


def test_device_properties_have_the_right_layout(discovery_stage: StageUnderTest) -> None:
    """cudaGetDeviceProperties fills the struct of the runtime's own major version."""
    discovery_stage.meets("P49")
