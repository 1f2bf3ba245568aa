"""09 closure: what dlopen of libggml-cuda.so will do in Ollama's child, and whether its kernels run on these GPUs.

Ollama drops the loader's message: a missing library, symbol or version is silent. Device code that this GPU cannot run
is not even an error of discovery.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("closure")


def test_the_backend_would_load(discovery_stage: StageUnderTest) -> None:
    """One GPU directory loads in Ollama's child and nothing blocking was found."""
    discovery_stage.passes()


def test_libggml_base_is_found(discovery_stage: StageUnderTest) -> None:
    """The loader finds libggml-base in the directories that Ollama gives it."""
    discovery_stage.meets("P22")


def test_every_symbol_and_version_resolves(discovery_stage: StageUnderTest) -> None:
    """Nothing that the backend and its libraries are linked with is missing."""
    discovery_stage.meets("P24")


def test_the_cuda_libraries_are_of_the_directorys_version(discovery_stage: StageUnderTest) -> None:
    """libcudart and libcublas are there, once, and of the directory's CUDA major."""
    discovery_stage.meets("P25")


def test_the_loader_finds_libcuda(discovery_stage: StageUnderTest) -> None:
    """libcuda.so.1 is found and is no stub."""
    discovery_stage.meets("P26")


def test_nothing_is_compiled_at_start(discovery_stage: StageUnderTest) -> None:
    """No variable makes CUDA compile the whole backend before the first call returns."""
    discovery_stage.meets("P55")


def test_kernels_run_and_ollama_keeps_the_device(discovery_stage: StageUnderTest) -> None:
    """The backend has code for the GPU that this driver takes, and lists its architecture."""
    discovery_stage.meets("P57")


def test_the_backend_path_names_the_cuda_backend(discovery_stage: StageUnderTest) -> None:
    """What llama-server is told to load is libggml-cuda.so, and it loads."""
    discovery_stage.meets("P71")


def test_the_childs_own_libraries_are_known(discovery_stage: StageUnderTest) -> None:
    """Which libcuda and libcudart the child gets; one that stands before Ollama's own is named."""
    discovery_stage.meets("P72")


def test_a_shim_is_complete(discovery_stage: StageUnderTest) -> None:
    """A library from outside exports every symbol with its version."""
    discovery_stage.meets("P73")


def test_cublas_is_the_real_one(discovery_stage: StageUnderTest) -> None:
    """No other cuBLAS stands before the one that Ollama ships."""
    discovery_stage.meets("P79")


def test_what_the_driver_compiles_is_kept(discovery_stage: StageUnderTest) -> None:
    """The JIT cache takes it, where the backend has PTX alone."""
    discovery_stage.meets("P117")
