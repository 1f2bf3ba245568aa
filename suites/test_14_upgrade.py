"""14 upgrade: the Ollama that is about to be installed keeps every GPU, in the context of the service.

Only with --gpu-ollama-candidate. It runs also where the installed Ollama is broken: the usual reason to upgrade.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("upgrade")


def test_it_is_safe_to_upgrade(discovery_stage: StageUnderTest) -> None:
    """The candidate was asked to the end and nothing blocks."""
    discovery_stage.passes()


def test_no_gpu_is_lost(discovery_stage: StageUnderTest) -> None:
    """Every GPU that the installed Ollama keeps is kept, and there is one."""
    discovery_stage.meets("P98")


def test_an_upgrade_in_place_works(discovery_stage: StageUnderTest) -> None:
    """Files that the installed release would leave do not get in the way."""
    discovery_stage.meets("P99")


def test_variables_keep_their_meaning(discovery_stage: StageUnderTest) -> None:
    """What the service sets means the same for the candidate."""
    discovery_stage.meets("P100")


def test_discovery_does_not_become_slow(discovery_stage: StageUnderTest) -> None:
    """The candidate's discovery is not much slower."""
    discovery_stage.meets("P101")
