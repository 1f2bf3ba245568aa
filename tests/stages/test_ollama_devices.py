"""What Ollama keeps of the devices of several directories, and whether those are the host's GPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.model import Outcome
from pytest_gpudiscovery.stages import ollama_devices
from pytest_gpudiscovery.stages.ollama_devices import Device, Expected
from pytest_gpudiscovery.stages.spec import StageInput, found
from tests.fakes import context, record

V12, V13, VULKAN = "cuda_v12", "cuda_v13", "vulkan"


def device(number: int, directory: str = V13, **changes: Any) -> Device:
    """Return GPU NUMBER as a healthy runner shows it from DIRECTORY."""
    healthy = Device(
        directory,
        f"GPU-{number:08x}-0000-4000-8000-000000000000",
        "CUDA",
        f"CUDA{number}",
        "NVIDIA H100 80GB HBM3",
        f"0000:{number + 6:02x}:00.0",
        85520809984,
        85017493504,
        (9, 0),
        (13, 0),
    )
    return dataclasses.replace(healthy, **changes)


def labels(devices: Sequence[Device]) -> list[str]:
    return [f"{found.name}@{found.directory}" for found in devices]


def kept(devices: Sequence[Device], validated: Sequence[int] | None = None) -> list[str]:
    return labels(ollama_devices.kept(devices, range(len(devices)) if validated is None else validated))


def test_one_directory_keeps_all_that_it_shows() -> None:
    assert kept([device(0), device(1)]) == ["CUDA0@cuda_v13", "CUDA1@cuda_v13"]


def test_what_both_directories_show_is_kept_of_the_newer_one() -> None:
    assert kept([device(0, V12), device(0, V13)]) == ["CUDA0@cuda_v13"]
    assert kept([device(0, V13), device(0, V12)]) == ["CUDA0@cuda_v13"]


def test_what_did_not_come_through_the_second_pass_is_dropped_and_the_older_directory_takes_its_place() -> None:
    assert kept([device(0, V12), device(0, V13)], [0]) == ["CUDA0@cuda_v12"]


def test_where_the_directories_differ_the_last_of_them_keeps_what_is_its_own() -> None:
    """Ollama's own peculiarity: `missing` stays set once it is, so the oldest directory wins."""
    assert kept([device(0, V12), device(1, V12), device(0, V13)]) == ["CUDA0@cuda_v12", "CUDA1@cuda_v12"]
    assert kept([device(0, V12), device(0, V13), device(1, V13)]) == ["CUDA0@cuda_v12", "CUDA1@cuda_v13"]


def test_the_same_gpu_by_vulkan_gives_way_to_cuda_whichever_comes_first() -> None:
    by_vulkan = device(0, VULKAN, id="0", library="Vulkan", name="Vulkan0")
    assert kept([by_vulkan, device(0)]) == ["CUDA0@cuda_v13"]
    assert kept([device(0), by_vulkan]) == ["CUDA0@cuda_v13"]


def test_devices_without_a_pci_address_are_told_apart_by_their_ids() -> None:
    bare = [device(0, pci=""), device(1, pci="")]
    assert len(kept(bare)) == 2
    assert len(kept([bare[0], dataclasses.replace(bare[0])])) == 1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from((V12, V13, "rocm"))), max_size=8, unique=True),
    st.sets(st.integers(0, 7)),
)
@settings(max_examples=300, deadline=None)
def test_kept_devices_are_validated_and_no_gpu_is_there_twice(shown: list[tuple[int, str]], good: set[int]) -> None:
    devices = [device(number, directory) for number, directory in shown]
    validated = [index for index in good if index < len(devices)]
    left = ollama_devices.kept(devices, validated)
    assert all(devices.index(found) in validated for found in left)
    assert len({found.pci for found in left}) == len(left)
    # Whatever was validated anywhere is kept from somewhere.
    assert {found.pci for found in left} == {devices[index].pci for index in validated}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, None),
        ({"compute": (0, 0)}, "compute"),
        ({"compute": (-1, 4)}, "compute"),
        ({"pci": "0"}, "pci"),
        ({"pci": "0000:06:00.0.1"}, "pci"),
        ({"pci": "0000:0A:00.0"}, None),
        ({"pci": ""}, None),
        ({"library": "Vulkan", "compute": (0, 0)}, None),
    ],
)
def test_what_no_gpu_says_of_itself_is_a_problem(changes: Mapping[str, Any], wrong: str | None) -> None:
    assert ollama_devices.problem(device(0, **changes)) == wrong


def gpu(number: int, **changes: Any) -> dict[str, Any]:
    found = device(number)
    return {"uuid": found.id, "pci": found.pci, "name": found.description, **changes}


def test_gpus_are_found_by_uuid_then_by_address_then_by_number() -> None:
    wanted = Expected((gpu(0), gpu(1)), "driver")
    by_index = [device(0, id="0"), device(1, id="1")]  # era C has no UUIDs
    assert ollama_devices.missing(wanted, [device(0), device(1)]) == []
    assert ollama_devices.missing(wanted, by_index) == []
    assert ollama_devices.missing(wanted, [device(0)]) == [gpu(1)]
    assert ollama_devices.missing(wanted, []) == [gpu(0), gpu(1)]
    # A MIG instance's UUID is nobody's here: it stands for one GPU, but not for two.
    instance = device(0, id="MIG-0000", pci="")
    assert ollama_devices.missing(Expected((gpu(0),), "driver"), [instance]) == []
    assert ollama_devices.missing(wanted, [instance]) == [gpu(1)]


def test_another_librarys_device_is_no_nvidia_gpu() -> None:
    found = [device(0, VULKAN, library="Vulkan", id="0")]
    assert ollama_devices.missing(Expected((gpu(0),), "driver"), found) == [gpu(0)]


def test_nothing_is_missing_where_nobody_knows_what_should_be_there() -> None:
    assert ollama_devices.missing(Expected(None, ""), []) == []


def facts(**stages: list[dict[str, Any]]) -> StageInput:
    prior = {name: record(name, Outcome.PASSED, facts={"gpus": gpus}) for name, gpus in stages.items()}
    return StageInput(context(), {}, prior, 30.0)


def test_the_driver_says_what_to_expect_else_nvml_less_what_is_hidden() -> None:
    assert ollama_devices.expected(facts(driver=[gpu(0)], nvml=[gpu(0), gpu(1)])) == Expected((gpu(0),), "driver")
    both = ollama_devices.expected(facts(nvml=[gpu(0), gpu(1)]))
    assert (both.source, len(both.gpus or ())) == ("nvml", 2)
    hidden = facts(nvml=[gpu(0), gpu(1)])
    env = {"CUDA_VISIBLE_DEVICES": gpu(1)["uuid"]}
    one = ollama_devices.expected(dataclasses.replace(hidden, context=context(env=env)))
    assert [entry["uuid"] for entry in one.gpus or ()] == [gpu(1)["uuid"]]
    assert ollama_devices.expected(facts()) == Expected(None, "")


@pytest.mark.parametrize(("on_host", "missed"), [(2, ["0000:07:00.0"]), (1, [])])
def test_a_gpu_that_cuda_does_not_show_is_missed_all_the_same(on_host: int, missed: list[str]) -> None:
    """But not one that CUDA shows at another address: then there are as many as on the host."""
    place = gpu(1)["pci"]
    lost = found("enumeration.gpu_missing", {"subject": place, "name": "x"}, subject=f"gpu:{place}")
    given = facts(kernel=[gpu(index) for index in range(on_host)], driver=[gpu(0)], enumeration=[])
    prior = {**given.prior, "enumeration": dataclasses.replace(given.prior["enumeration"], checks=(lost,))}
    wanted = ollama_devices.expected(dataclasses.replace(given, prior=prior))
    assert [entry["pci"] for entry in ollama_devices.missing(wanted, [device(0)])] == missed
    assert wanted.source == ("enumeration" if missed else "driver")


def test_the_answer_of_a_runner_is_read_whatever_it_holds() -> None:
    assert ollama_devices.of_info(V13, None) == ollama_devices.of_info(V13, "x") == []
    found = ollama_devices.of_info(V13, [{"id": 7, "total_memory": "much", "ComputeMajor": None}, 5, None])
    assert [(entry.id, entry.total, entry.compute) for entry in found] == [("7", 0, (0, 0))]
    assert len(ollama_devices.of_info(V13, [{}] * 1000)) == ollama_devices.SHOWN


def test_devices_are_named_in_one_phrase() -> None:
    assert ollama_devices.words([]) == "no GPU"
    assert ollama_devices.words([device(0), device(1)]) == "2 x NVIDIA H100 80GB HBM3 (cuda_v13)"
    assert ollama_devices.names([gpu(0), {"uuid": "GPU-x"}, {}]).count(",") == 2
