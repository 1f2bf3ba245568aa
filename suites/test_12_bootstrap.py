"""12 bootstrap: Ollama's own discovery children, started and asked as the installed version does it.

Ollama is the oracle: this also runs when stages before it failed, and what Ollama's own children show overrules them.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("bootstrap")


def test_ollama_keeps_every_gpu(discovery_stage: StageUnderTest) -> None:
    """Nothing blocking was found, and every GPU is among the devices that Ollama would use."""
    discovery_stage.passes()


def test_each_child_starts_and_answers(discovery_stage: StageUnderTest) -> None:
    """0.12.4 to 0.24.0: the runner of one directory at least listens and answers GET /info."""
    discovery_stage.meets("P90")


def test_no_gpu_is_missing(discovery_stage: StageUnderTest) -> None:
    """As many GPUs as the stages before saw, by UUID or PCI address."""
    discovery_stage.meets("P91")


def test_what_is_told_of_each_gpu_is_sane(discovery_stage: StageUnderTest) -> None:
    """A compute capability and a PCI address that a GPU can have."""
    discovery_stage.meets("P92")


def test_each_gpu_comes_through_the_second_pass(discovery_stage: StageUnderTest) -> None:
    """Alone visible, each device is found again; all of them are asked at once."""
    discovery_stage.meets("P93")


def test_llama_server_answers(discovery_stage: StageUnderTest) -> None:
    """From 0.30.0: llama-server is there, says system_info and lists the devices in what is left of 30 s."""
    discovery_stage.meets("P66", "P67", "P68")


def test_the_native_probe_answers(discovery_stage: StageUnderTest) -> None:
    """From 0.30.0: `ollama gpu-discover` ends within 15 s."""
    discovery_stage.meets("P69")


def test_the_driver_meets_the_floor(discovery_stage: StageUnderTest) -> None:
    """From 0.30.0: the driver is as new as this version wants it for cuda_v12."""
    discovery_stage.meets("P70")


def test_there_is_time_left(discovery_stage: StageUnderTest) -> None:
    """The answer came in less than half of Ollama's 30 s, and within the 3 s of a refresh."""
    discovery_stage.meets("P94")


def test_the_gate_and_ollama_agree(discovery_stage: StageUnderTest) -> None:
    """No stage before says that a GPU cannot be used which Ollama uses."""
    discovery_stage.meets("P95")


def test_a_preloaded_backend_changes_nothing(discovery_stage: StageUnderTest) -> None:
    """Only with --gpu-experiment preload: the child shows the same when its backend was loaded before it started."""
    discovery_stage.meets("P102")
