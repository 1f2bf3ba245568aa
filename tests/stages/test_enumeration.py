"""Stage 07 judged over the views of the stages before: who is seen by whom, what is sane, what the profile expects."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery import profiles
from pytest_gpudiscovery.model import CheckOutcome, Outcome, Step
from pytest_gpudiscovery.outcome import conclude
from pytest_gpudiscovery.stages import enumeration, identity, visible
from pytest_gpudiscovery.stages.spec import Judgement, StageInput
from pytest_gpudiscovery.supervise.types import ChildResult, Ending
from tests.fakes import context, record, result
from tests.stages.hostile import ANYTHING, is_sound, mutated

NAME = "NVIDIA H100 80GB HBM3"
TOTAL, NVML_TOTAL = 85017624576, 85520809984
MIG_UUID = "MIG-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"


def uuid(index: int) -> str:
    """Return the UUID of GPU number INDEX."""
    return f"GPU-{index:08x}-2222-3333-4444-555555555555"


def slot(index: int) -> str:
    """Return the PCI address of GPU number INDEX as sysfs writes it."""
    return f"0000:00:{6 + index:02x}.0"


def views(count: int = 1) -> dict[str, Any]:
    """Return the facts of the stages before, and what the witnesses say, for a healthy host with COUNT GPUs."""
    numbers = range(count)
    return {
        "kernel": {
            "gpus": [{"pci": slot(i), "driver": "nvidia", "minor": i, "uuid": uuid(i), "model": NAME} for i in numbers],
            "nodes": {f"/dev/nvidia{i}": "ok" for i in numbers},
        },
        "nvml": {
            "init": {"rc": 0},
            "gpus": [
                {
                    "index": i,
                    "name": NAME,
                    "uuid": uuid(i),
                    "pci": slot(i),
                    "minor": i,
                    "cc": [9, 0],
                    "memory": {"total": NVML_TOTAL},
                    "mig": False,
                    "instances": [],
                    "ecc": True,
                }
                for i in numbers
            ],
        },
        "driver": {
            "gpus": [
                {
                    "ordinal": i,
                    "name": NAME,
                    "uuid": uuid(i),
                    "pci": slot(i),
                    "total_memory": TOTAL,
                    "cc": [9, 0],
                    "sm_count": 132,
                    "calls": {},
                }
                for i in numbers
            ]
        },
        "pynvml": {
            "version": "13.0",
            "gpus": [
                {
                    "uuid": uuid(i),
                    "pci": f"0000{slot(i)}",
                    "name": NAME,
                    "memory": NVML_TOTAL,
                    "cc": [9, 0],
                    "lacks": [],
                }
                for i in numbers
            ],
        },
        "cuda_python": {
            "module": "cuda.bindings.driver",
            "version": "13.4.4",
            "gpus": [
                {"uuid": uuid(i), "pci": slot(i), "name": NAME, "memory": TOTAL, "cc": [9, 0], "lacks": []}
                for i in numbers
            ],
        },
    }


def judged(
    seen: dict[str, Any], profile: str = "any", env: dict[str, str] | None = None, witness: ChildResult | None = None
) -> Judgement:
    """Return the judgement over SEEN; WITNESS replaces the child that answered."""
    said = {key: seen[key] for key in ("pynvml", "cuda_python") if key in seen}
    prior = {name: record(name, Outcome.PASSED, facts=seen.get(name)) for name in ("kernel", "nvml", "driver")}
    given_ = StageInput(
        context(profile=profiles.load(profile), env=env or {}), {"witness": witness or result(answer=said)}, prior, 10.0
    )
    return enumeration.judge(given_)


def causes(judgement: Judgement) -> dict[str, str]:
    """Return cause -> outcome of what was found."""
    return {check.finding.cause: check.outcome.value for check in judgement.checks if check.finding}


def outcome(judgement: Judgement) -> Outcome:
    """Return what the engine makes of JUDGEMENT."""
    return conclude(enumeration.SPEC, judgement, {}, started=0.0, deadline_s=10.0).outcome


@pytest.mark.parametrize("count", [1, 2, 8])
def test_views_that_agree(count: int) -> None:
    judgement = judged(views(count), "h100-sxm")
    assert causes(judgement) == {}
    assert outcome(judgement) is Outcome.PASSED
    assert judgement.summary == f"{count} x {NAME}, CC 9.0, 79.2 GiB (sysfs, NVML, CUDA agree)"
    gpus = judgement.facts["gpus"]
    assert [gpu["pci"] for gpu in gpus] == [slot(index) for index in range(count)]
    assert all(set(gpu["views"]) == {"sysfs", "nvml", "cuda", "pynvml", "cuda_python"} for gpu in gpus)
    assert "calls" not in gpus[0]["views"]["cuda"]  # identity, not the whole of a probe


def change(seen: dict[str, Any], where: str, index: int, **fields: Any) -> dict[str, Any]:
    """Return SEEN with FIELDS of GPU number INDEX of view WHERE replaced."""
    copied = copy.deepcopy(seen)
    copied[where]["gpus"][index].update(fields)
    return copied


DISAGREEMENTS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    (
        "PCI address as a wrong layout gives it",
        {"where": "driver", "pci": "99fff950:99fff9:0.0"},
        {"enumeration.pci_garbage": "failed"},
    ),
    ("PCI address of another slot", {"where": "driver", "pci": "0000:65:00.0"}, {"enumeration.pci_differs": "failed"}),
    ("no UUID", {"where": "driver", "uuid": None}, {"enumeration.uuid_garbage": "failed"}),
    (
        "a UUID of zeros",
        {"where": "driver", "uuid": "GPU-" + uuid(0)[4:].translate(str.maketrans("12345", "00000"))},
        {"enumeration.uuid_garbage": "failed", "enumeration.uuid_differs": "failed"},
    ),
    ("another UUID", {"where": "driver", "uuid": uuid(9)}, {"enumeration.uuid_differs": "failed"}),
    ("compute capability 0.0", {"where": "driver", "cc": [0, 0]}, {"enumeration.cc_garbage": "failed"}),
    ("another compute capability", {"where": "nvml", "cc": [8, 0]}, {"enumeration.cc_differs": "failed"}),
    ("no memory", {"where": "driver", "total_memory": 0}, {"enumeration.memory_garbage": "failed"}),
    ("half the memory", {"where": "driver", "total_memory": TOTAL // 2}, {"enumeration.memory_differs": "warned"}),
    ("another name", {"where": "driver", "name": "NVIDIA Graphics Device"}, {"enumeration.name_differs": "warned"}),
]


@pytest.mark.parametrize(("fault", "expected"), [d[1:] for d in DISAGREEMENTS], ids=[d[0] for d in DISAGREEMENTS])
def test_views_that_disagree(fault: dict[str, Any], expected: dict[str, str]) -> None:
    fields = {key: value for key, value in fault.items() if key != "where"}
    seen = change(views(), fault["where"], 0, **fields)
    for witness in ("pynvml", "cuda_python"):  # they repeat what the gate's own calls saw
        seen.pop(witness)
    assert causes(judged(seen)) == expected


def test_a_gpu_that_cuda_does_not_show_is_named_by_its_address() -> None:
    seen = views(2)
    del seen["driver"]["gpus"][1], seen["cuda_python"]["gpus"][1]
    judgement = judged(seen)
    assert causes(judgement) == {"enumeration.gpu_missing": "failed"}
    (check,) = [check for check in judgement.checks if check.finding]
    assert check.subject == f"gpu:{slot(1)}"
    assert check.reason.startswith(f"{slot(1)} ({NAME})")


def test_a_gpu_that_nvml_does_not_show_is_a_warning() -> None:
    seen = views(2)
    del seen["nvml"]["gpus"][1], seen["pynvml"]["gpus"][1]
    assert causes(judged(seen)) == {"enumeration.not_in_nvml": "warned"}


def test_without_nvml_sysfs_and_cuda_are_compared() -> None:
    seen = views(2)
    seen["nvml"] = {"init": None, "gpus": []}
    seen.pop("pynvml")
    judgement = judged(seen)
    assert causes(judgement) == {}
    assert judgement.summary.endswith("(sysfs, CUDA agree)")


@pytest.mark.parametrize("hidden", ["sysfs", "both"])
def test_a_masked_sys_is_no_fault(hidden: str) -> None:
    seen = views()
    seen["kernel"] = {"gpus": [], "nodes": {}}
    if hidden == "both":
        seen["nvml"] = {"gpus": []}
        seen.pop("pynvml")
    assert causes(judged(seen)) == {}


def test_two_devices_that_claim_to_be_one() -> None:
    seen = change(views(2), "driver", 1, uuid=uuid(0), pci=slot(0))
    assert causes(judged(seen))["enumeration.duplicate"] == "failed"


def test_no_gpu_at_all() -> None:
    judgement = judged({"kernel": {"gpus": []}, "nvml": {"gpus": []}, "driver": {"gpus": []}})
    assert causes(judgement) == {"enumeration.no_gpu": "failed"}


# --- GPUs that are on the bus and not ours ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "state", "expected"),
    [
        ({"driver": "vfio-pci"}, "missing", None),
        ({}, "missing", None),  # a container that was given some of the GPUs
        ({}, "cgroup", None),
        ({}, "ok", "enumeration.only_in_sysfs"),
        ({"minor": None}, "ok", "enumeration.only_in_sysfs"),  # the module does not know it
    ],
)
def test_a_gpu_that_only_sysfs_shows(fields: dict[str, Any], state: str, expected: str | None) -> None:
    seen = views(2)
    for view in ("nvml", "driver", "pynvml", "cuda_python"):
        del seen[view]["gpus"][1]
    seen = change(seen, "kernel", 1, **fields)
    seen["kernel"]["nodes"]["/dev/nvidia1"] = state
    judgement = judged(seen)
    assert set(causes(judgement)) == ({expected} if expected else set())
    (check,) = [check for check in judgement.checks if check.subject == f"gpu:{slot(1)}"]
    assert check.outcome is (CheckOutcome.WARNED if expected else CheckOutcome.NOT_APPLICABLE)
    assert check.reason


# --- CUDA_VISIBLE_DEVICES and MIG ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown", "missing"),
    [
        ("1", [1], []),
        ("1,0", [0, 1], []),
        ("0,7,1", [0], []),  # the list ends at the index that is not there
        (uuid(1), [1], []),
        (uuid(1)[:12], [1], []),  # as short as it is unique
        ("0,1", [0], [1]),
        (uuid(1), [0], [1]),
    ],
)
def test_what_cuda_visible_devices_hides_is_not_missing(value: str, shown: list[int], missing: list[int]) -> None:
    seen = views(2)
    for view in ("driver", "cuda_python"):
        seen[view]["gpus"] = [seen[view]["gpus"][index] for index in shown]
    judgement = judged(seen, env={"CUDA_VISIBLE_DEVICES": value})
    found = [check for check in judgement.checks if check.finding]
    assert [(check.subject, check.finding and check.finding.cause) for check in found] == [
        (f"gpu:{slot(index)}", "enumeration.gpu_missing") for index in missing
    ]
    hidden = {check.subject for check in judgement.checks if check.outcome is CheckOutcome.NOT_APPLICABLE}
    assert hidden == {f"gpu:{slot(i)}" for i in (0, 1) if i not in shown and i not in missing}


def test_an_index_among_unlike_gpus_cannot_be_told() -> None:
    seen = change(change(views(2), "nvml", 0, name="NVIDIA A100"), "driver", 0, name="NVIDIA A100")
    gpus = seen["nvml"]["gpus"]
    chosen = visible.parse({"CUDA_VISIBLE_DEVICES": "0"})
    assert visible.left(chosen, gpus, {}) is None
    assert visible.left(chosen, gpus, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == {slot(0)}


def mig_views() -> dict[str, Any]:
    """Return one GPU in MIG mode with two instances; CUDA shows the first."""
    parts = [{"uuid": MIG_UUID, "memory": {"total": 40 << 30}}, {"uuid": "MIG-" + uuid(5)[4:], "memory": {"total": 1}}]
    seen = change(views(), "nvml", 0, mig=True, instances=parts)
    fields = {"name": f"{NAME} MIG 3g.40gb", "uuid": "GPU-" + MIG_UUID[4:]}
    seen = change(seen, "driver", 0, **fields, total_memory=40 << 30, sm_count=60)
    return change(seen, "cuda_python", 0, **fields, memory=40 << 30)


def test_a_mig_instance_is_compared_with_its_instance_and_not_with_the_board() -> None:
    judgement = judged(mig_views(), "h100-sxm")
    assert causes(judgement) == {}
    (gpu,) = judgement.facts["gpus"]
    assert gpu["mig"] is True
    assert gpu["uuid"] == "GPU-" + MIG_UUID[4:]


def test_a_mig_instance_that_nvml_does_not_have() -> None:
    seen = mig_views()
    seen["driver"]["gpus"][0]["uuid"] = uuid(7)
    assert causes(judged(seen))["enumeration.uuid_differs"] == "failed"


def test_further_gpus_in_mig_mode_are_not_missing() -> None:
    seen = mig_views()
    more = change(views(2), "nvml", 1, mig=True, instances=[{"uuid": "MIG-" + uuid(6)[4:]}])
    for view in ("kernel", "nvml", "pynvml"):
        seen[view]["gpus"].append(more[view]["gpus"][1])
    judgement = judged(seen)
    assert causes(judgement) == {}
    assert any("one instance at most" in check.reason for check in judgement.checks)


# --- profiles --------------------------------------------------------------------------------------------------------

EXPECTED: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
    ("right", "h100-sxm", {}, {}),
    ("the family", "h100", {}, {}),
    (
        "another board",
        "h100-pcie",
        {},
        {"enumeration.profile.name": "failed", "enumeration.profile.sm_count": "failed"},
    ),
    (
        "another model",
        "h200",
        {},
        {"enumeration.profile.name": "failed", "enumeration.profile.memory": "failed"},
    ),
    ("fewer SMs", "h100", {"driver": {"sm_count": 78}}, {"enumeration.profile.sm_count": "failed"}),
    (
        "another CC",
        "h100",
        {"driver": {"cc": [8, 0]}, "nvml": {"cc": [8, 0]}},
        {"enumeration.profile.cc": "failed"},
    ),
    ("ECC off", "h100-sxm", {"nvml": {"ecc": False}}, {"enumeration.profile.ecc": "warned"}),
    ("ECC not told", "h100-sxm", {"nvml": {"ecc": None}}, {}),
]


@pytest.mark.parametrize(("profile", "changes", "expected"), [e[1:] for e in EXPECTED], ids=[e[0] for e in EXPECTED])
def test_profiles(profile: str, changes: dict[str, dict[str, Any]], expected: dict[str, str]) -> None:
    seen = views()
    for where, fields in changes.items():
        seen = change(seen, where, 0, **fields)
    for witness in ("pynvml", "cuda_python"):
        seen.pop(witness)
    assert causes(judged(seen, profile)) == expected


@pytest.mark.parametrize(("count", "expected"), [(1, {"enumeration.profile.count": "failed"}), (2, {}), (4, {})])
def test_the_number_of_gpus(count: int, expected: dict[str, str], tmp_path: Any) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "mine"\ncount = [2, 4]\nmig = "off"\n')
    assert causes(judged(views(count), str(path))) == expected


def test_a_profile_that_wants_mig(tmp_path: Any) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "mine"\nmig = "on"\ncount = 1\n')
    assert causes(judged(views(), str(path))) == {"enumeration.profile.mig": "failed"}
    assert causes(judged(mig_views(), str(path))) == {}


def test_memory_by_cuda_stands_in_where_nvml_does_not_tell() -> None:
    seen = views()
    seen["nvml"], _ = {"gpus": []}, seen.pop("pynvml")
    assert causes(judged(seen, "h100-sxm")) == {}
    small = change(seen, "driver", 0, total_memory=40 << 30)
    small.pop("cuda_python")
    assert causes(judged(small, "h100-sxm")) == {"enumeration.profile.memory": "failed"}


# --- the second witnesses --------------------------------------------------------------------------------------------

WITNESSES: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
    ("absent", "pynvml", {"import_error": "ModuleNotFoundError: x"}, {"enumeration.witness.absent": "passed"}),
    ("failed", "cuda_python", {"error": "RuntimeError: x"}, {"enumeration.witness.failed": "passed"}),
    ("fewer GPUs", "pynvml", {"gpus": []}, {"enumeration.witness.differs": "warned"}),
]


@pytest.mark.parametrize(("witness", "said", "expected"), [w[1:] for w in WITNESSES], ids=[w[0] for w in WITNESSES])
def test_a_witness_never_blocks(witness: str, said: dict[str, Any], expected: dict[str, str]) -> None:
    judgement = judged({**views(), witness: said})
    assert causes(judgement) == expected
    assert outcome(judgement).lets_others_run


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "NVIDIA A100"}, "name NVIDIA A100"),
        ({"memory": 1 << 30}, "memory"),
        ({"uuid": uuid(3)}, "uuid"),
        ({"cc": [8, 0]}, "cc 8.0"),
    ],
)
@pytest.mark.parametrize("witness", ["pynvml", "cuda_python"])
def test_a_witness_that_sees_something_else_says_what(witness: str, fields: dict[str, Any], words: str) -> None:
    judgement = judged(change(views(), witness, 0, **fields))
    assert causes(judgement) == {"enumeration.witness.differs": "warned"}
    (finding,) = [check.finding for check in judgement.checks if check.finding]
    assert words in finding.summary


def test_a_function_that_a_binding_lacks_is_a_note() -> None:
    seen = change(views(), "cuda_python", 0, lacks=["uuid: AttributeError: no cuDeviceGetUuid"], uuid=None)
    assert causes(judged(seen)) == {"enumeration.witness.lacks": "passed"}


@pytest.mark.parametrize(
    ("ending", "cause"),
    [
        (Ending.TIMED_OUT, "enumeration.witness.hang"),
        (Ending.UNKILLABLE, "enumeration.witness.hang"),
        (Ending.SIGNALLED, "enumeration.witness.died"),
        (Ending.NOT_SPAWNED, "enumeration.witness.died"),
    ],
)
def test_a_witness_that_hangs_or_dies_is_a_warning_and_what_it_said_counts(ending: Ending, cause: str) -> None:
    seen = views()
    child = result(
        ending, answer=None, observed={"pynvml": seen["pynvml"]}, signal=11, steps=(Step("import cuda", 0.1, None),)
    )
    judgement = judged(seen, witness=child)
    assert causes(judgement) == {cause: "warned"}
    assert any(check.reason == "pynvml 13.0 agrees" for check in judgement.checks)


def test_the_plan_asks_once_and_skips_pynvml_where_nvml_failed() -> None:
    for rc, skipped in ((0, []), (9, ["pynvml"])):
        prior = {"nvml": record("nvml", Outcome.WARNED, facts={"init": {"rc": rc}})}
        planned = enumeration.plan(context(), prior, {})
        assert planned is not None
        assert (planned[0], planned[1].request, planned[1].site) == ("witness", {"skip": skipped}, True)
        assert enumeration.plan(context(), prior, {"witness": result()}) is None


# --- hostile input ---------------------------------------------------------------------------------------------------


@given(mutated(views(2)), st.sampled_from(["any", "h100-sxm"]), st.none() | st.text(max_size=12))
def test_hostile_views_never_raise(seen: dict[str, Any], profile: str, hidden: str | None) -> None:
    judgement = judged(seen, profile, {} if hidden is None else {"CUDA_VISIBLE_DEVICES": hidden})
    is_sound(judgement)
    assert all(set(gpu) == {"pci", "uuid", "mig", "views"} for gpu in judgement.facts["gpus"])


@given(st.dictionaries(st.sampled_from(["kernel", "nvml", "driver", "pynvml", "cuda_python"]), ANYTHING))
def test_any_object_at_all_never_raises(seen: dict[str, Any]) -> None:
    is_sound(judged(seen))


@given(st.text(max_size=40))
def test_visible_devices_of_any_text(value: str) -> None:
    parsed = visible.parse({"CUDA_VISIBLE_DEVICES": value})
    assert parsed.value == value
    assert parsed.hides_everything == (not parsed.indices and not parsed.uuids)
    left = visible.left(parsed, views(2)["nvml"]["gpus"], {})
    assert left is not None
    assert left <= {slot(0), slot(1)}


@pytest.mark.parametrize(
    ("value", "indices", "uuids", "ended"),
    [
        ("", (), (), None),
        ("-1", (), (), "-1"),
        ("0, 2", (0, 2), (), None),
        ("0,-1,1", (0,), (), "-1"),
        ("none", (), (), "none"),
        ("GPU-1a,MIG-2B", (), ("gpu-1a", "mig-2b"), None),
    ],
)
def test_visible_devices(value: str, indices: tuple[int, ...], uuids: tuple[str, ...], ended: str | None) -> None:
    parsed = visible.parse({"CUDA_VISIBLE_DEVICES": value})
    assert (parsed.indices, parsed.uuids, parsed.ended_at) == (indices, uuids, ended)


# --- one spelling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000000:06:00.0", "0000:06:00.0"),
        ("0000:06:00.0", "0000:06:00.0"),
        ("0000:06:00", "0000:06:00.0"),
        ("00010000:0A:00.0", "10000:0a:00.0"),
        ("06:00.0", "0000:06:00.0"),
        ("99fff950:99fff9", None),
        ("0000:06:00.9", None),
        ("", None),
        (None, None),
        (6, None),
    ],
)
def test_pci_addresses_have_one_spelling(text: Any, expected: str | None) -> None:
    assert identity.pci(text) == expected


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 255), st.integers(0, 31))
def test_every_way_to_write_a_pci_address_is_the_same(domain: int, bus: int, device: int) -> None:
    spellings = {f"{domain:08X}:{bus:02X}:{device:02X}.0", f"{domain:04x}:{bus:02x}:{device:02x}.0"}
    assert len({identity.pci(text) for text in spellings}) == 1
    assert identity.pci(spellings.pop()) is not None


@given(st.binary(min_size=16, max_size=16), st.sampled_from(["GPU-", "MIG-", ""]), st.booleans())
def test_every_way_to_write_a_uuid_is_the_same(raw: bytes, prefix: str, upper: bool) -> None:
    digits = raw.hex()
    text = prefix + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    assert identity.uuid(text.upper() if upper else text) == digits
    assert identity.is_null_uuid(text) == (raw == bytes(16))


@given(ANYTHING)
def test_readers_never_raise(value: Any) -> None:
    for reader in (identity.pci, identity.uuid, identity.capability, identity.integer, identity.string):
        reader(value)
    assert isinstance(identity.objects(value), list)
