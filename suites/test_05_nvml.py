"""05 nvml: the management library loads and answers about every GPU.

Evidence, not a gate: Ollama works without NVML, but then knows no driver version and measures memory differently.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("nvml")


def test_nvml_answers(discovery_stage: StageUnderTest) -> None:
    """nvmlInit_v2 returned in time and nothing blocking was found."""
    discovery_stage.passes()


def test_memory_is_told_by_uuid(discovery_stage: StageUnderTest) -> None:
    """The calls that Ollama makes: handle by UUID, memory."""
    discovery_stage.meets("P51")


def test_the_driver_stays_initialised(discovery_stage: StageUnderTest) -> None:
    """Persistence, or a cold start that fits in Ollama's budget."""
    discovery_stage.meets("P40")


def test_a_context_may_be_created(discovery_stage: StageUnderTest) -> None:
    """The compute mode is neither Prohibited nor Exclusive with somebody else inside."""
    discovery_stage.meets("P41")


def test_the_fabric_is_ready(discovery_stage: StageUnderTest) -> None:
    """NVSwitch systems: fabric state Completed with status Success."""
    discovery_stage.meets("P43")


def test_confidential_computing_is_ready(discovery_stage: StageUnderTest) -> None:
    """A GPU in confidential mode accepts work."""
    discovery_stage.meets("P44")


def test_mig_instances_exist(discovery_stage: StageUnderTest) -> None:
    """With MIG on there are GPU and compute instances to use."""
    discovery_stage.meets("P61")
