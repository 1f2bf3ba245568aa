"""Stage 07: what the profile expects, and what the second witnesses say. The latter never block."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_gpudiscovery.model import Outcome, Step
from pytest_gpudiscovery.stages import enumeration
from pytest_gpudiscovery.supervise.types import Ending
from tests.fakes import context, record, result
from tests.stages.enumeration_views import causes, change, judged, mig_views, outcome, uuid, views

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
