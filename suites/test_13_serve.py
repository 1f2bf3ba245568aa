"""13 serve: a private `ollama serve` names every GPU: the sum of all that was asserted before.

It has its own port, home and models, and is ended when its discovery is over; a running service is not touched.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("serve")


def test_the_server_computes_on_every_gpu(discovery_stage: StageUnderTest) -> None:
    """Its log has an "inference compute" line for each GPU, and nothing blocking was found."""
    discovery_stage.passes()


def test_no_gpu_is_missing_in_its_log(discovery_stage: StageUnderTest) -> None:
    """No fallback to the CPU (id=cpu, total_vram="0 B"), no GPU less than the stages before saw."""
    discovery_stage.meets("P96")


def test_nothing_is_left_behind(discovery_stage: StageUnderTest) -> None:
    """No process, port or directory of the private server is left; who ran before still runs."""
    discovery_stage.meets("P97")
