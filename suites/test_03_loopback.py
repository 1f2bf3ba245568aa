"""03 loopback: parent and discovery child can talk to each other on this host.

Ollama asks its child over HTTP on 127.0.0.1; its 30 s run while it waits for the name, the port and the answer.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("loopback")


def test_the_child_can_be_talked_to(discovery_stage: StageUnderTest) -> None:
    """lo, the port, the name, TCP and the temporary directory all work."""
    discovery_stage.passes()


def test_lo_is_up_and_a_port_can_be_bound(discovery_stage: StageUnderTest) -> None:
    """127.0.0.1:0 can be bound."""
    discovery_stage.meets("P17")


def test_localhost_resolves_at_once(discovery_stage: StageUnderTest) -> None:
    """No slow resolver stands before the name."""
    discovery_stage.meets("P18")


def test_tcp_is_delivered_over_loopback(discovery_stage: StageUnderTest) -> None:
    """No filter drops or resets it."""
    discovery_stage.meets("P19")


def test_a_port_that_was_free_stays_free(discovery_stage: StageUnderTest) -> None:
    """Nobody takes the port between Ollama's probe of it and the child's bind."""
    discovery_stage.meets("P20")


def test_the_temporary_directory_can_be_used(discovery_stage: StageUnderTest) -> None:
    """It exists, can be written and is not full."""
    discovery_stage.meets("P21")
