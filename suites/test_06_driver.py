"""06 driver: libcuda is found and genuine, cuInit answers in time, and every GPU copies and runs a kernel.

The stage that most often hangs: everything that CUDA does at its first call happens inside cuInit.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("driver")


def test_the_driver_answers(discovery_stage: StageUnderTest) -> None:
    """The probe ended by itself and no blocking call failed."""
    discovery_stage.passes()


def test_libcuda_is_found_and_genuine(discovery_stage: StageUnderTest) -> None:
    """Real, 64-bit, no toolkit stub, exporting what old versions of Ollama need."""
    discovery_stage.meets("P63", "P64")


def test_cuinit_succeeds_in_time(discovery_stage: StageUnderTest) -> None:
    """0, in a fresh process: over 3 s is a warning, over 30 s a failure."""
    discovery_stage.meets("P42")


def test_devices_are_counted(discovery_stage: StageUnderTest) -> None:
    """At least one and at most sixteen."""
    discovery_stage.meets("P47")


def test_virtual_memory_management_works(discovery_stage: StageUnderTest) -> None:
    """Attribute and allocation granularity of every device."""
    discovery_stage.meets("P48")


def test_a_guest_has_unified_memory(discovery_stage: StageUnderTest) -> None:
    """A virtual machine's GPU has it enabled."""
    discovery_stage.meets("P50")


def test_a_context_is_created_quickly(discovery_stage: StageUnderTest) -> None:
    """The primary context, and the one that old versions create."""
    discovery_stage.meets("P52", "P65")


def test_memory_is_there(discovery_stage: StageUnderTest) -> None:
    """Total and free above zero; a copy and a kernel work."""
    discovery_stage.meets("P53", "P54")


def test_mps_is_reachable(discovery_stage: StageUnderTest) -> None:
    """Where MPS is configured, its control daemon answers."""
    discovery_stage.meets("P45")


def test_a_shim_lets_calls_through(discovery_stage: StageUnderTest) -> None:
    """A library before libcuda answers, holds no stale lock and knows this driver."""
    discovery_stage.meets("P74", "P75", "P76")
