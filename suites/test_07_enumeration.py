"""07 enumeration: sysfs, NVML and CUDA see the same GPUs, and they are what the profile says.

Compared per GPU by PCI address and UUID: a GPU that one of the three does not see is named, with the one that lacks it.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("enumeration")


def test_every_expected_gpu_is_seen_alike(discovery_stage: StageUnderTest) -> None:
    """The three views agree with each other and with the profile."""
    discovery_stage.passes()


def test_ids_are_sane(discovery_stage: StageUnderTest) -> None:
    """PCI address and UUID have the right form and are equal in every view."""
    discovery_stage.meets("P59")


def test_the_views_agree(discovery_stage: StageUnderTest) -> None:
    """Name, compute capability, memory and driver version."""
    discovery_stage.meets("P78")
