"""04 kernel: the NVIDIA driver is loaded, of one version, and its device nodes can really be opened.

Looks before anything native runs, because root's driver library creates missing nodes and would hide the fault.
"""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import StageUnderTest

pytestmark = pytest.mark.gpu_stage("kernel")


def test_the_kernel_driver_answers(discovery_stage: StageUnderTest) -> None:
    """Devices, module, nodes, cgroup and kernel log were looked at and nothing blocking was found."""
    discovery_stage.passes()


def test_a_gpu_is_on_the_pci_bus(discovery_stage: StageUnderTest) -> None:
    """At least one NVIDIA GPU, bound to the NVIDIA driver."""
    discovery_stage.meets("P85")


def test_the_module_is_loaded(discovery_stage: StageUnderTest) -> None:
    """/proc/driver/nvidia/version can be read."""
    discovery_stage.meets("P31")


def test_module_and_user_space_are_of_one_version(discovery_stage: StageUnderTest) -> None:
    """Every libcuda and libnvidia-ml that is installed has the module's version."""
    discovery_stage.meets("P32")


def test_the_device_nodes_open(discovery_stage: StageUnderTest) -> None:
    """nvidiactl, nvidiaN and nvidia-uvm: right numbers, no nodev mount, opened read-write by the probing user."""
    discovery_stage.meets("P33", "P62", "P84")


def test_unified_memory_is_ready(discovery_stage: StageUnderTest) -> None:
    """nvidia_uvm was loaded before Ollama starts."""
    discovery_stage.meets("P34")


def test_no_sandbox_withholds_the_devices(discovery_stage: StageUnderTest) -> None:
    """Neither the device cgroup nor a security module denies them."""
    discovery_stage.meets("P35", "P36")


def test_a_container_got_the_driver_files(discovery_stage: StageUnderTest) -> None:
    """The driver capabilities include compute and utility."""
    discovery_stage.meets("P37")


def test_the_kernel_log_has_no_fatal_error(discovery_stage: StageUnderTest) -> None:
    """No fatal Xid or GSP failure since the driver was loaded, no process stuck in the driver."""
    discovery_stage.meets("P38")


def test_log_and_processes_can_be_looked_at(discovery_stage: StageUnderTest) -> None:
    """What nobody may read cannot accuse anybody: said, not judged."""
    discovery_stage.meets("P86", "P87")


def test_it_survived_suspend(discovery_stage: StageUnderTest) -> None:
    """The unified memory driver came back after the last suspend."""
    discovery_stage.meets("P39")


def test_the_nodes_need_nobody_to_make_them(discovery_stage: StageUnderTest) -> None:
    """None is left to be made at the first use, by root or by nvidia-modprobe."""
    discovery_stage.meets("P115")


def test_libcuda_is_the_drivers_own(discovery_stage: StageUnderTest) -> None:
    """It is no forward-compatibility package."""
    discovery_stage.meets("P116")
