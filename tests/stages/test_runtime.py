"""Stage 08 judged over what libcudart answers: versions, counts, properties, several directories, endings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from pytest_gpudiscovery.diagnosis import errors
from pytest_gpudiscovery.model import Outcome, Step
from pytest_gpudiscovery.stages import runtime
from pytest_gpudiscovery.stages.spec import StageInput
from pytest_gpudiscovery.supervise.types import ChildResult, Ending
from tests.fakes import context, record, result
from tests.stages.hostile import ANYTHING, is_sound, mutated
from tests.stages.runtime_answers import (
    DEVICE,
    DRIVER,
    LIB,
    causes,
    directory,
    judged,
    library,
    outcome,
    package,
    packed,
    plan,
)


@pytest.mark.parametrize("major", [12, 13])
def test_a_healthy_directory(major: int) -> None:
    judgement = judged({f"cuda_v{major}": library(major)})
    assert causes(judgement) == {}
    assert outcome(judgement) is Outcome.PASSED
    assert {(check.prerequisite, check.subject) for check in judgement.checks} == {
        ("P46", f"dir:cuda_v{major}"),
        ("P49", f"dir:cuda_v{major}"),
    }
    (entry,) = judgement.facts["directories"]
    assert (entry["name"], entry["count"], entry["covers"]) == (f"cuda_v{major}", 1, True)
    assert judgement.facts["views"]["0000:00:06.0"][f"cuda_v{major}"]["name"] == DEVICE["name"]


FAULTS: list[tuple[str, int, dict[str, Any], str]] = [
    ("driver of an older major", 13, {"driver_version": 12040}, "runtime.driver_too_old"),
    ("35", 12, {"cudaGetDeviceCount": {"rc": 35}, "count": None, "devices": []}, "runtime.driver_too_old"),
    ("100", 12, {"cudaGetDeviceCount": {"rc": 100}, "count": None, "devices": []}, "runtime.no_device"),
    ("999", 12, {"cudaGetDeviceCount": {"rc": 999}, "count": None, "devices": []}, "runtime.error"),
    ("another count", 12, {"count": 0, "devices": []}, "runtime.count_differs"),
    ("no cudaGetDeviceCount", 12, {"cudaGetDeviceCount": {"missing": "x"}, "devices": []}, "runtime.function_missing"),
    (
        "no version",
        12,
        {"cudaRuntimeGetVersion": {"missing": "x"}, "runtime_version": None},
        "runtime.function_missing",
    ),
    ("properties fail", 12, {"devices": [{"ordinal": 0, "rc": 1, "raw": ""}]}, "runtime.error"),
    ("nothing written", 12, {"devices": [{"ordinal": 0, "rc": 0, "raw": ""}]}, "runtime.properties_empty"),
    ("layout of CUDA 13", 12, {"devices": [{"ordinal": 0, "rc": 0, "raw": packed(13).hex()}]}, "runtime.layout"),
    ("longer than CUDA 13's", 13, {"devices": [{"ordinal": 0, "rc": 0, "raw": packed(12).hex()}]}, "runtime.overflow"),
    (
        "another GPU",
        12,
        {"devices": [{"ordinal": 0, "rc": 0, "raw": packed(12, {**DEVICE, "pci": "0000:65:00.0"}).hex()}]},
        "runtime.properties_differ",
    ),
    ("the other major's file", 12, {"runtime_version": 13000}, "runtime.wrong_major"),
    (
        "not loadable",
        12,
        {"errors": {"/x/libcudart.so.12": "/x: file too short"}, "library": None},
        "runtime.unloadable",
    ),
]


@pytest.mark.parametrize(("major", "changes", "cause"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_the_only_directory_fails(major: int, changes: dict[str, Any], cause: str) -> None:
    seen = library(major, **changes)
    driver = {**DRIVER, "driver_version_cuda": seen["driver_version"]}
    judgement = judged({f"cuda_v{major}": seen}, driver=driver)
    assert causes(judgement)[cause] == "failed"
    assert outcome(judgement) is Outcome.FAILED
    for check in judgement.checks:
        if check.finding:
            assert "?" not in check.finding.summary, check.finding
            assert check.subject == f"dir:cuda_v{major}"


@pytest.mark.parametrize(("major", "changes", "cause"), [f[1:] for f in FAULTS if f[1] == 12])
def test_one_directory_that_covers_every_gpu_is_enough(major: int, changes: dict[str, Any], cause: str) -> None:
    judgement = judged({"cuda_v12": library(major, **changes), "cuda_v13": library(13)})
    assert causes(judgement)[cause] == "warned"
    assert outcome(judgement) is Outcome.WARNED
    assert [entry["covers"] for entry in judgement.facts["directories"]] == [False, True]


def test_a_directory_that_this_ollama_would_not_keep_does_not_count() -> None:
    install = {"lib_dir": LIB, "gpu_dirs": [directory("cuda_v12"), directory("cuda_v13", kept=False)]}
    seen = {"cuda_v12": library(12, cudaGetDeviceCount={"rc": 999}, devices=[]), "cuda_v13": library(13)}
    assert outcome(judged(seen, install)) is Outcome.FAILED


def test_a_minor_version_newer_than_the_driver_is_a_note() -> None:
    judgement = judged({"cuda_v12": library(12)}, driver={**DRIVER, "driver_version_cuda": 12020})
    assert causes(judgement) == {"runtime.minor_newer": "passed"}
    assert outcome(judgement) is Outcome.PASSED


@pytest.mark.parametrize("entry", [code for code in errors.codes("runtime") if code.code], ids=lambda code: code.name)
def test_every_error_code_is_named(entry: errors.Code) -> None:
    seen = library(12, cudaGetDeviceCount={"rc": entry.code}, count=None, devices=[])
    judgement = judged({"cuda_v12": seen})
    assert causes(judgement) == {entry.cause or "runtime.error": "failed"}


# --- endings ---------------------------------------------------------------------------------------------------------


def ended(ending: Ending, major: int = 13, **changes: Any) -> ChildResult:
    """Return a child that was inside cudaGetDeviceCount of a libcudart of MAJOR when it ended."""
    step = Step("cudaGetDeviceCount", 0.1, None)
    observed = {key: library(major)[key] for key in ("library", "runtime_version", "driver_version")}
    return result(ending, answer=None, steps=(step,), observed=observed, **changes)


@pytest.mark.parametrize(
    ("ending", "expected"), [(Ending.TIMED_OUT, Outcome.TIMED_OUT), (Ending.UNKILLABLE, Outcome.UNKILLABLE)]
)
def test_a_hang_ends_the_stage_and_nothing_more_is_asked(ending: Ending, expected: Outcome) -> None:
    child = ended(ending, 12)
    assert [name for name, _, _ in plan(package("cuda_v12", "cuda_v13"), answers={"cuda_v12": child})] == ["cuda_v12"]
    judgement = judged({"cuda_v12": child}, package("cuda_v12", "cuda_v13"))
    assert causes(judgement) == {"runtime.hang": "failed"}
    assert judgement.outcome is expected


def test_a_hang_is_not_eased_by_a_directory_that_works() -> None:
    judgement = judged({"cuda_v12": library(12), "cuda_v13": ended(Ending.TIMED_OUT)})
    assert causes(judgement) == {"runtime.hang": "failed"}


def test_a_constructor_that_hangs_outside_of_the_driver_costs_one_directory() -> None:
    step = Step(f"dlopen {LIB}/cuda_v12/libcudart.so.12", 0.1, None)
    place = {"blocked_in": "pause < libcudart.so.12+0x10; state S"}
    child = result(Ending.TIMED_OUT, steps=(step,), evidence=place)
    install = package("cuda_v12", "cuda_v13")
    assert [name for name, _, _ in plan(install, answers={"cuda_v12": child})] == ["cuda_v12", "cuda_v13"]
    judgement = judged({"cuda_v12": child, "cuda_v13": library()}, install)
    assert causes(judgement) == {"runtime.hang": "warned"}
    assert (judgement.outcome, judgement.stuck) == (None, False)
    alone = judged({"cuda_v12": child, "cuda_v13": child}, install)
    assert alone.outcome is Outcome.TIMED_OUT


@pytest.mark.parametrize("ending", [Ending.SIGNALLED, Ending.EXITED, Ending.NO_ANSWER])
def test_a_crash_in_one_directory_is_a_warning_while_another_works(ending: Ending) -> None:
    child = ended(ending, 12, signal=11, exit_code=0)
    names = [name for name, _, _ in plan(package("cuda_v12", "cuda_v13"), answers={"cuda_v12": child})]
    assert names == ["cuda_v12", "cuda_v13"]
    assert causes(judged({"cuda_v12": child, "cuda_v13": library()})) == {"runtime.crash": "warned"}
    assert causes(judged({"cuda_v12": child})) == {"runtime.crash": "failed"}


def test_a_stub_that_only_this_directory_leads_to() -> None:
    seen = library(cudaGetDeviceCount={"rc": 34}, devices=[])
    assert causes(judged({"cuda_v13": seen})) == {"runtime.stub": "failed"}


def test_a_program_that_ld_so_does_not_start_is_no_crash_of_libcudart() -> None:
    said = "python3: error while loading shared libraries: /lib/ollama/libm.so.6: file too short\n"
    judgement = judged({"cuda_v12": result(Ending.EXITED, exit_code=127, stderr=said)})
    assert causes(judgement) == {"runtime.start_refused": "failed"}
    assert "libm.so.6: file too short" in str(judgement.checks[0].finding)


def test_a_variable_that_leaves_only_a_directory_which_does_not_work_is_said() -> None:
    install = package("cuda_v13")
    skipped = directory("cuda_v12", kept=False, skipped="OLLAMA_LLM_LIBRARY=cuda_v13")
    install["gpu_dirs"].append(skipped)
    old = {**DRIVER, "driver_version_cuda": 12020}
    assert causes(judged({"cuda_v13": library()}, install, old)) == {
        "runtime.driver_too_old": "failed",
        "runtime.narrowed": "warned",
    }
    install = {**package("cuda_v13"), "bare_dirs": ["cuda_v12"]}
    assert "runtime.directory_lost" in causes(judged({"cuda_v13": library()}, install, old))
    assert causes(judged({"cuda_v13": library()}, install)) == {}


@pytest.mark.parametrize(
    "child",
    [result(Ending.NOT_SPAWNED), result(Ending.EXITED, exit_code=1, stderr="Traceback (most recent call last):\n")],
    ids=["not spawned", "traceback"],
)
def test_a_defect_of_the_gate_is_never_the_hosts(child: ChildResult) -> None:
    judgement = judged({"cuda_v13": child})
    assert judgement.outcome is Outcome.PROBE_ERROR
    assert causes(judgement) == {}


# --- hostile input ---------------------------------------------------------------------------------------------------

STATE = {
    "package": package("cuda_v12", "cuda_v13"),
    "driver": DRIVER,
    "seen": {"cuda_v12": library(12), "cuda_v13": library(13)},
}


@settings(deadline=None)  # a loaded machine is no failure
@given(mutated(STATE))
def test_hostile_observations_never_raise(state: dict[str, Any]) -> None:
    seen = state.get("seen") if isinstance(state.get("seen"), dict) else {}
    answers = {str(name): result(answer=answer) for name, answer in (seen or {}).items()}
    is_sound(judged(answers, state.get("package") or {}, state.get("driver") or {}))


@settings(deadline=None)  # a loaded machine is no failure
@given(ANYTHING, ANYTHING, ANYTHING)
def test_any_value_at_all_never_raises(seen: Any, install: Any, driver: Any) -> None:
    prior = {
        "package": record("package", Outcome.PASSED, facts=install),
        "driver": record("driver", Outcome.PASSED, facts=driver),
    }
    child = result(answer=seen)
    names = ("libcudart.so.13", "libcudart.so.12", "cuda_v12")
    is_sound(runtime.judge(StageInput(context(), dict.fromkeys(names, child), prior, 20.0)))
    runtime.plan(context(), prior, {"libcudart.so.13": child})
