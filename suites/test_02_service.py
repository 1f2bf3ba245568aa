"""02 service: the context in which Ollama starts its discovery child lets that child see a GPU.

The child inherits the service's environment, user and limits; a variable that hides the GPU or a preloaded library
that hangs is invisible in Ollama's log.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("service")


def test_the_context_is_sound(discovery_stage: StageUnderTest) -> None:
    """Environment, preloaded libraries, user, limits and cgroup were read and nothing blocking was found."""
    discovery_stage.passes()


def test_preloaded_libraries_return(discovery_stage: StageUnderTest) -> None:
    """Every object of LD_PRELOAD and /etc/ld.so.preload loads in a child, and in time."""
    discovery_stage.meets("P10")


def test_processes_and_memory_are_available(discovery_stage: StageUnderTest) -> None:
    """pids.max, RLIMIT_NPROC, cpu.max, the freezer and memory leave room for the child."""
    discovery_stage.meets("P11", "P12")


def test_limits_leave_room_for_cuda(discovery_stage: StageUnderTest) -> None:
    """Address space and file descriptors: with too few, cuInit answers that there is no device."""
    discovery_stage.meets("P82", "P83")


def test_it_runs_in_no_foreign_user_namespace(discovery_stage: StageUnderTest) -> None:
    """The driver refuses a user of another namespace, whatever the nodes' permissions."""
    discovery_stage.meets("P81")


def test_no_variable_hides_the_gpu(discovery_stage: StageUnderTest) -> None:
    """OLLAMA_LLM_LIBRARY, CUDA_VISIBLE_DEVICES and its kin, JETSON_JETPACK."""
    discovery_stage.meets("P13", "P14", "P15")


def test_no_other_driver_library_comes_first(discovery_stage: StageUnderTest) -> None:
    """LD_LIBRARY_PATH supplies no stub, conda or foreign libcuda."""
    discovery_stage.meets("P16")


def test_the_gpu_is_open_to_its_user(discovery_stage: StageUnderTest) -> None:
    """The device resource that a shim needs can be reached by the service's user."""
    discovery_stage.meets("P77")


def test_the_debug_level_is_known(discovery_stage: StageUnderTest) -> None:
    """OLLAMA_DEBUG=2 is the only level at which the child's output is seen."""
    discovery_stage.meets("P80")


def test_its_sandbox_leaves_it_the_gpu(discovery_stage: StageUnderTest) -> None:
    """PrivateDevices, DeviceAllow and the device cgroup; address families and loopback; what else hides the driver."""
    discovery_stage.meets("P111", "P112", "P113")


def test_the_shell_is_compared_with_it(discovery_stage: StageUnderTest) -> None:
    """Where a try from the caller's shell would end otherwise than the service does, that is said."""
    discovery_stage.meets("P114")
