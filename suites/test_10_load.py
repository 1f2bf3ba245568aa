"""10 load: dlopen(libggml-cuda.so) really happens, in a process that is thrown away, in the child's environment.

Constructors run here for the first time: what hangs, crashes or calls exit() in one is found, and which it was.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("load")


def test_a_backend_loads(discovery_stage: StageUnderTest) -> None:
    """One GPU directory loads and nothing blocking was found."""
    discovery_stage.passes()


def test_every_cpu_variant_answers(discovery_stage: StageUnderTest) -> None:
    """Ollama opens them before it looks at any GPU: none hangs and none crashes."""
    discovery_stage.meets("P23")


def test_the_loader_does_what_was_predicted(discovery_stage: StageUnderTest) -> None:
    """dlopen returns, and maps the files that stage 09 named."""
    discovery_stage.meets("P88")


def test_storage_delivers_in_time(discovery_stage: StageUnderTest) -> None:
    """The libraries are read within a third of Ollama's 30 s, also when nothing is cached."""
    discovery_stage.meets("P28")


def test_mlx_loads_in_time(discovery_stage: StageUnderTest) -> None:
    """MLX libraries, where the install has them, load and return."""
    discovery_stage.meets("P29")
