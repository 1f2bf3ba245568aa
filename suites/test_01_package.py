"""01 package: the Ollama that is installed here is whole, reachable by its user and of one version.

The install is what every later stage looks for libraries in: a link that leads nowhere, a directory that the glob
does not match or a file of another version makes Ollama fall back to the CPU without a word.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("package")


def test_ollama_is_installed_and_whole(discovery_stage: StageUnderTest) -> None:
    """The binary, lib/ollama and its GPU directories were found and nothing blocking is wrong with them."""
    discovery_stage.passes()


def test_the_binary_can_be_executed_again(discovery_stage: StageUnderTest) -> None:
    """Ollama starts itself once more as its discovery child, as the service's user."""
    discovery_stage.meets("P01")


def test_the_libraries_lie_where_ollama_looks(discovery_stage: StageUnderTest) -> None:
    """../lib/ollama beside the real path of the binary, and a working directory that can be read."""
    discovery_stage.meets("P02", "P03", "P04")


def test_a_gpu_directory_is_there(discovery_stage: StageUnderTest) -> None:
    """At least one cuda_v* directory that Ollama's glob matches."""
    discovery_stage.meets("P05")


def test_the_backend_is_complete(discovery_stage: StageUnderTest) -> None:
    """libggml-cuda.so and the CUDA libraries beside it, not truncated, readable."""
    discovery_stage.meets("P06")


def test_nothing_of_another_version_is_left(discovery_stage: StageUnderTest) -> None:
    """No library of an older Ollama, no stray backend in the top directory."""
    discovery_stage.meets("P07", "P08")


def test_its_libraries_may_be_executed(discovery_stage: StageUnderTest) -> None:
    """Neither noexec nor a security module forbids to map them."""
    discovery_stage.meets("P09")
