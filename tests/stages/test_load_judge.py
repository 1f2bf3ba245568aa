"""Stage 10 judged over observations: slow storage, differences, hostile answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from pytest_gpudiscovery.model import CheckOutcome, Outcome
from pytest_gpudiscovery.outcome import conclude
from pytest_gpudiscovery.stages import load, load_directory
from pytest_gpudiscovery.stages.spec import Judgement, StageInput
from pytest_gpudiscovery.supervise.types import ChildResult, Ending
from tests.fakes import context, record, result
from tests.stages.hostile import ANYTHING, is_sound, mutated
from tests.stages.runtime_answers import LIB, directory

CHILD = {
    "directory": "cuda_v12",
    "model": "child",
    "exe": "/usr/bin/ollama",
    "names": [{"name": "libcublas.so.12", "path": f"{LIB}/cuda_v12/libcublas.so.12"}],
}
SEEN: dict[str, Any] = {
    "predicted": {"outcome": "loads", "message": ""},
    "storage": {
        "bytes": 1 << 30,
        "cached": 1 << 30,
        "cold_bytes": 13 << 20,
        "delivery": {"bytes": 1 << 24, "seconds": 0.01},
    },
    "load": {"seconds": 0.07, "error": None, "files": ["/x/libggml-cuda.so"], "agrees": True, "differences": []},
    "trace": {
        "files": {"libcublas.so.12": f"{LIB}/cuda_v12/libcublas.so.12"},
        "missing": [],
        "messages": [],
        "status": 0,
    },
}
CPU: dict[str, Any] = {
    "seen": {f"{LIB}/libggml-cpu-x64.so": {"error": None, "seconds": 0.001, "score": 1}},
    "paths": [],
    "at": None,
}


def judged(seen: Any, cpu: Any = None, package: Any = None, child: Any = None) -> Judgement:
    results: dict[str, ChildResult] = {
        "#cpu1": cpu if isinstance(cpu, ChildResult) else result(observed=CPU if cpu is None else cpu),
        "cuda_v12": seen if isinstance(seen, ChildResult) else result(answer=seen),
        "#mlx1": result(observed={"seen": {}, "paths": []}),
    }
    install = {"lib_dir": LIB, "binary": "/usr/bin/ollama", "gpu_dirs": [directory("cuda_v12")]}
    prior = {
        "package": record("package", Outcome.PASSED, facts=install if package is None else package),
        "closure": record("closure", Outcome.PASSED, facts={"closures": [CHILD if child is None else child]}),
    }
    return load.judge(StageInput(context(), results, prior, 60.0))


def causes(judgement: Judgement) -> dict[str, str]:
    return {check.finding.cause: check.outcome.value for check in judgement.checks if check.finding}


def test_a_healthy_directory() -> None:
    judgement = judged(SEEN)
    assert causes(judgement) == {}
    assert conclude(load.SPEC, judgement, {}, started=0.0, deadline_s=60.0).outcome is Outcome.PASSED
    assert judgement.summary == "cuda_v12: libggml-cuda.so in 70 ms; 1 CPU variant"


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"load": {**SEEN["load"], "seconds": 11.0}}, "load.slow"),
        ({"storage": {**SEEN["storage"], "delivery": {"bytes": 1 << 20, "seconds": 1.0}}}, "load.slow_cold"),
        ({"load": {**SEEN["load"], "agrees": False, "differences": ["predicted, not mapped: /y"]}}, "load.differs"),
        ({"trace": {**SEEN["trace"], "files": {"libcublas.so.12": "/old/libcublas.so.12"}}}, "load.child_differs"),
        ({"trace": {**SEEN["trace"], "missing": ["libcublas.so.12"]}}, "load.child_differs"),
        ({"trace": {**SEEN["trace"], "messages": ["undefined symbol: x\t(y.so)"]}}, "load.child_differs"),
    ],
)
def test_what_is_only_a_warning(changes: dict[str, Any], cause: str) -> None:
    judgement = judged({**SEEN, **changes})
    assert causes(judgement) == {cause: "warned"}


@pytest.mark.parametrize("storage", [{}, {"delivery": {"error": "x"}}, {"delivery": {"bytes": 1, "seconds": 0}}])
def test_storage_that_could_not_be_measured_is_said_and_blocks_nothing(storage: dict[str, Any]) -> None:
    judgement = judged({**SEEN, "storage": storage})
    (row,) = [check for check in judgement.checks if check.prerequisite == "P28"]
    assert row.outcome is CheckOutcome.PASSED
    assert row.reason == "70 ms, cold unknown"


def test_a_child_that_ld_so_does_not_start_names_no_library_that_it_never_opened() -> None:
    said = "python3: error while loading shared libraries: /lib/ollama/libm.so.6: file too short\n"
    child = result(Ending.EXITED, exit_code=127, stderr=said)
    judgement = judged(child, cpu=child)
    assert set(causes(judgement)) == {"load.start_refused"}
    findings = [check.finding for check in judgement.checks if check.finding]
    assert all(finding.summary == "not started by ld.so: libm.so.6: file too short" for finding in findings)
    assert not any("?" in finding.next for finding in findings)


def test_an_answer_without_the_dlopen_is_no_pass() -> None:
    judgement = judged({"predicted": SEEN["predicted"]})
    (row,) = [check for check in judgement.checks if check.prerequisite == "P88"]
    assert row.outcome is CheckOutcome.UNKNOWN


def test_a_defect_of_the_gate_is_no_finding_about_the_host() -> None:
    trace = result(Ending.EXITED, exit_code=1, stderr="Traceback (most recent call last):\nValueError: x")
    judgement = judged(trace)
    assert judgement.outcome is Outcome.PROBE_ERROR
    assert causes(judgement) == {}
    assert judged(SEEN, cpu=result(Ending.NOT_SPAWNED)).outcome is Outcome.PROBE_ERROR


def test_a_child_that_cannot_be_killed_is_the_last_one() -> None:
    facts = {
        "package": record(
            "package",
            Outcome.PASSED,
            facts={"lib_dir": LIB, "gpu_dirs": [directory("cuda_v12"), directory("cuda_v13")]},
        )
    }
    done = {"#cpu1": result(observed=CPU)}
    asked = load.plan(context(), facts, done)
    assert asked is not None
    assert asked[0] == "cuda_v12"
    assert load.plan(context(), facts, {**done, "cuda_v12": result(Ending.UNKILLABLE)}) is None
    in_driver = result(Ending.TIMED_OUT, evidence={"blocked_in": "ioctl on /dev/nvidiactl < f (libcuda.so.1)"})
    assert load.plan(context(), facts, {**done, "cuda_v12": in_driver}) is None
    elsewhere = result(Ending.TIMED_OUT, evidence={"blocked_in": "pause < libx.so+0x10"})
    asked = load.plan(context(), facts, {**done, "cuda_v12": elsewhere})
    assert asked is not None
    assert asked[0] == "cuda_v13"


@pytest.mark.parametrize(("blocked_in", "stuck"), [("pause < libmlx.so", None), ("ioctl on /dev/nvidiactl", True)])
def test_only_a_hang_inside_the_driver_stops_the_stages_after_it(blocked_in: str, stuck: bool | None) -> None:
    mlx = result(Ending.TIMED_OUT, evidence={"blocked_in": blocked_in}, observed={"seen": {}, "paths": [], "at": "/m"})
    results = {"#cpu1": result(observed=CPU), "cuda_v12": result(answer=SEEN), "#mlx1": mlx}
    install = {"lib_dir": LIB, "binary": "/usr/bin/ollama", "gpu_dirs": [directory("cuda_v12")]}
    prior = {"package": record("package", Outcome.PASSED, facts=install)}
    judgement = load.judge(StageInput(context(), results, prior, 60.0))
    said = conclude(load.SPEC, judgement, results, started=0.0, deadline_s=60.0)
    assert said.outcome is Outcome.WARNED
    assert said.facts.get("hung_probe") is stuck


@pytest.mark.parametrize("paths", [[[]], [{}], [None], {"a": 1}, "text", [1, "/x/libggml-cpu-b.so"]])
def test_a_list_of_libraries_that_holds_anything_is_answered(paths: Any) -> None:
    is_sound(judged(SEEN, cpu=result(observed={**CPU, "paths": paths})))


def test_the_deadline_is_for_each_directory() -> None:
    facts = {"package": record("package", Outcome.PASSED, facts={"gpu_dirs": [directory("cuda_v12")]})}
    assert load.turns(context(), facts) == 2
    assert load.turns(context(), {}) == 1


@settings(deadline=None)  # a loaded machine is no failure
@given(mutated({"seen": SEEN, "cpu": CPU, "child": CHILD}))
def test_hostile_observations_never_raise(state: dict[str, Any]) -> None:
    observed = state.get("cpu") if isinstance(state.get("cpu"), dict) else {}
    cpu = result(observed=observed)
    is_sound(judged(result(answer=state.get("seen")), cpu=cpu, child=state.get("child") or {}))
    load.plan(context(), {}, {"#cpu1": cpu})


@settings(deadline=None)
@given(ANYTHING, ANYTHING)
def test_any_value_at_all_never_raises(seen: Any, package: Any) -> None:
    is_sound(judged(result(answer=seen), package=package, child=seen))
    for ending in Ending:
        load_directory.judge("cuda_v12", result(ending, answer=seen, stderr=str(seen)), {}, {}, 30.0)


def test_two_hung_variants_are_enough() -> None:
    """Each takes a whole deadline, and the directories want theirs."""
    facts = {"package": record("package", Outcome.PASSED, facts={"lib_dir": LIB, "gpu_dirs": [directory("cuda_v12")]})}
    hung = result(Ending.TIMED_OUT, evidence={"blocked_in": "pause < libx.so"}, observed={"at": "/a"})
    one = load.plan(context(), facts, {"#cpu1": hung})
    two = load.plan(context(), facts, {"#cpu1": hung, "#cpu2": hung})
    assert one is not None
    assert two is not None
    assert (one[0], two[0]) == ("#cpu2", "cuda_v12")


def test_what_a_library_prints_is_no_defect_of_the_gate() -> None:
    begun = {"setup": {"uid": 0}}
    child = result(Ending.EXITED, exit_code=1, stderr="Traceback (most recent call last):\nx", observed=begun)
    assert causes(judged(child)) == {"load.exits": "failed"}
    ours = result(Ending.EXITED, exit_code=1, observed={**begun, "traceback": "ValueError: x"})
    assert judged(ours).outcome is Outcome.PROBE_ERROR
