"""Stage 12 judged over what runners of era B do: answers, ends, hangs, second pass, other directories, the oracle."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from pytest_gpudiscovery.model import CheckOutcome, Outcome, Step
from pytest_gpudiscovery.stages import bootstrap, bootstrap_runner
from pytest_gpudiscovery.stages.spec import StageInput
from pytest_gpudiscovery.supervise.types import Ending
from tests.fakes import context, record, result
from tests.stages.bootstrap_answers import (
    DEVICE_B,
    PACKAGE,
    RUN_B,
    causes,
    concluded,
    judged,
    prior,
    results,
    second,
    stuck,
)
from tests.stages.hostile import ANYTHING, is_sound, mutated
from tests.stages.runtime_answers import DEVICE, DRIVER, UUID, directory

HEALTHY = {"cuda_v12": RUN_B, "second pass": second()}


def run(**changes: Any) -> dict[str, Any]:
    return {**RUN_B, **changes}


def no_answer(**changes: Any) -> dict[str, Any]:
    return run(**{"reason": "exited", "status": None, "devices": None, **changes})


def test_a_healthy_host() -> None:
    judgement = judged(HEALTHY)
    assert causes(judgement) == {}
    assert concluded(HEALTHY, judgement).outcome is Outcome.PASSED
    assert judgement.summary.startswith("1 x NVIDIA H100 80GB HBM3 (cuda_v12) kept")
    assert {check.prerequisite for check in judgement.checks} == set(bootstrap.ROWS)
    assert judgement.facts["views"]["0000:00:06.0"]["libdir"] == "cuda_v12"


CASES: list[tuple[dict[str, Any], str, Outcome]] = [
    (run(problem="EACCES", devices=None), "bootstrap.spawn", Outcome.FAILED),
    (no_answer(exit=1, output={"text": "Listen error: listen tcp\n"}), "bootstrap.exit.listen", Outcome.FAILED),
    (no_answer(exit=2, output={"text": "SIGSEGV: segmentation violation\n"}), "bootstrap.exit.fault", Outcome.CRASHED),
    (
        no_answer(exit=127, output={"text": "Inconsistency detected by ld.so\n"}),
        "bootstrap.exit.loader",
        Outcome.FAILED,
    ),
    (no_answer(exit=-9), "bootstrap.exit.killed", Outcome.CRASHED),
    (no_answer(exit=-11), "bootstrap.exit.signal", Outcome.CRASHED),
    (no_answer(exit=3), "bootstrap.exit.other", Outcome.FAILED),
    (run(status=404, devices=None), "bootstrap.http.not_found", Outcome.FAILED),
    (run(status=500, devices=None, body="open /nope/1.bin"), "bootstrap.http.error", Outcome.FAILED),
    (no_answer(reason="timeout", garbage=17, body="<html>"), "bootstrap.garbage", Outcome.TIMED_OUT),
    (no_answer(reason="timeout", stuck=stuck(listens=False)), "bootstrap.hang.start", Outcome.TIMED_OUT),
    (no_answer(reason="stranger"), "bootstrap.hang.port", Outcome.TIMED_OUT),
    (no_answer(reason="timeout", dead=False, stuck=stuck()), "bootstrap.hang.wait", Outcome.UNKILLABLE),
    (run(seconds=31.0), "bootstrap.too_slow", Outcome.FAILED),
    (run(status=None, devices=None), "bootstrap.no_answer", Outcome.FAILED),
    (run(devices=[]), "bootstrap.no_device", Outcome.FAILED),
    (run(devices=[], output={"text": "x\n"}), "bootstrap.not_loaded", Outcome.FAILED),
    (
        run(devices=[], output={"text": "ggml_cuda_init: failed to initialize CUDA: unknown error\n"}),
        "bootstrap.cuda_failed",
        Outcome.FAILED,
    ),
    (run(devices=[{**DEVICE_B, "ComputeMajor": 0}]), "bootstrap.device.compute", Outcome.FAILED),
    (run(devices=[{**DEVICE_B, "pci_id": "99fff950:99fff9"}]), "bootstrap.device.pci", Outcome.FAILED),
]


def test_a_pci_domain_of_more_than_16_bits_is_an_address() -> None:
    first = run(devices=[{**DEVICE_B, "pci_id": "10000:06:00.0"}])
    assert "bootstrap.device.pci" not in causes(judged({"cuda_v12": first, "second pass": second()}))


def test_a_preloaded_object_that_ends_the_child_without_a_word_is_named() -> None:
    silent = no_answer(exit=0, output={"text": ""})
    assert bootstrap_runner.failed(silent, "/bin/ollama", (), 30.0) == (
        "bootstrap.exit.other",
        {"code": 0, "observed": "exit status 0"},
    )
    cause, facts = bootstrap_runner.failed(silent, "/bin/ollama", ("libagent.so",), 30.0) or ("", {})
    assert (cause, facts["object"]) == ("bootstrap.exit.preload", "libagent.so")
    killed = bootstrap_runner.failed(no_answer(exit=-6), "/bin/ollama", ("libagent.so",), 30.0)
    assert killed is not None
    assert (killed[0], killed[1]["preloaded"]) == ("bootstrap.exit.signal", " (libagent.so)")
    spoke = no_answer(exit=3, output={"text": "panic: x\n"})
    assert (bootstrap_runner.failed(spoke, "/bin/ollama", ("libagent.so",), 30.0) or ("",))[0] == "bootstrap.exit.other"


@pytest.mark.parametrize(("first", "cause", "outcome"), CASES, ids=[case[1] for case in CASES])
def test_what_is_wrong_in_the_only_directory(first: dict[str, Any], cause: str, outcome: Outcome) -> None:
    answers = {"cuda_v12": first, "second pass": second()}
    judgement = judged(answers)
    assert causes(judgement)[cause] == "failed"
    assert concluded(answers, judgement).outcome is outcome
    text = " ".join(check.finding.summary for check in judgement.checks if check.finding)
    assert "?" not in text
    assert "{" not in text


@pytest.mark.parametrize(("first", "cause", "outcome"), CASES, ids=[case[1] for case in CASES])
def test_it_is_a_warning_while_another_directory_keeps_every_gpu(
    first: dict[str, Any], cause: str, outcome: Outcome
) -> None:
    answers = {"cuda_v12": RUN_B, "cuda_v13": first, "second pass": second()}
    judgement = judged(answers, "cuda_v12", "cuda_v13")
    found = causes(judgement)
    if cause.startswith("bootstrap.device."):
        return  # that device takes part in Ollama's choice: see the second pass
    assert set(found.values()) == {"warned"}, found
    expected = Outcome.UNKILLABLE if outcome is Outcome.UNKILLABLE else Outcome.WARNED
    assert concluded(answers, judgement).outcome is expected


SECOND: list[tuple[dict[str, Any], str]] = [
    (second(run=run(devices=[])), "bootstrap.second.none"),
    (second(run=no_answer(exit=2)), "bootstrap.second.failed"),
    (second(run=no_answer(reason="timeout", stuck=stuck())), "bootstrap.second.hang"),
    (second(run=run(status=500, devices=None)), "bootstrap.second.failed"),
    (second(run=run(problem="EAGAIN", devices=None)), "bootstrap.second.failed"),
]


@pytest.mark.parametrize(("pass_two", "cause"), SECOND, ids=[f"{i}-{case[1]}" for i, case in enumerate(SECOND)])
def test_a_device_that_the_second_pass_loses(pass_two: dict[str, Any], cause: str) -> None:
    found = causes(judged({"cuda_v12": RUN_B, "second pass": pass_two}))
    assert found == {cause: "failed", "bootstrap.gpus.none": "failed"}


def test_a_gpu_less_than_the_driver_shows() -> None:
    two = {"gpus": [DEVICE, {**DEVICE, "uuid": UUID.replace("1", "2"), "pci": "0000:00:07.0"}]}
    judgement = judged(HEALTHY, driver=two)
    assert causes(judgement) == {"bootstrap.gpus.fewer": "failed"}
    (finding,) = [check.finding for check in judgement.checks if check.finding]
    assert finding.summary == "Ollama finds 1 of 2 GPUs: 0000:00:07.0 missing"


@pytest.mark.parametrize(
    ("seconds", "cause"), [(0.2, None), (3.5, "bootstrap.refresh_slow"), (15.5, "bootstrap.at_risk")]
)
def test_the_time_against_ollamas_own(seconds: float, cause: str | None) -> None:
    found = causes(judged({**HEALTHY, "cuda_v12": run(seconds=seconds)}))
    assert found == ({} if cause is None else {cause: "warned"})


def test_the_time_left_is_said() -> None:
    (finding,) = [c.finding for c in judged({**HEALTHY, "cuda_v12": run(seconds=27.4)}).checks if c.finding]
    assert finding.summary == "cuda_v12: answered in 27.4 s of 30 s: at risk"


def test_ollama_is_the_oracle() -> None:
    broken = record("nvml", Outcome.FAILED, summary="nvmlInit_v2 returned 999")
    judgement = judged(HEALTHY, nvml=broken)
    assert causes(judgement) == {"gate.disagrees": "warned"}
    assert concluded(HEALTHY, judgement).outcome is Outcome.WARNED
    # a stage that only was not reached says nothing
    later = record("backend", Outcome.NOT_REACHED, blocked_by="nvml")
    assert causes(judged(HEALTHY, backend=later)) == {}


def test_it_is_no_oracle_while_a_gpu_is_missing() -> None:
    broken = record("nvml", Outcome.FAILED)
    found = causes(judged({**HEALTHY, "second pass": second(run=run(devices=[]))}, nvml=broken))
    assert "gate.disagrees" not in found


def test_nobody_knows_how_many_gpus_there_are() -> None:
    judgement = judged(HEALTHY, driver={})
    assert causes(judgement) == {}
    (row,) = [check for check in judgement.checks if check.prerequisite == "P91"]
    assert "not known" in row.reason


def test_every_gpu_is_hidden() -> None:
    nvml = record("nvml", Outcome.PASSED, facts={"gpus": [{"pci": "0000:00:06.0", "uuid": UUID, "name": "H100"}]})
    hidden = context(env={"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "-1"})
    answers = {"cuda_v12": run(devices=[]), "second pass": None}
    judgement = judged({"cuda_v12": answers["cuda_v12"]}, given=hidden, driver={}, nvml=nvml)
    assert "bootstrap.gpus.none" in causes(judgement)


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_follows_ollama() -> None:
    facts, given_context = prior("cuda_v13", "cuda_v12"), context(env={"LD_LIBRARY_PATH": "/opt/x", "HOME": "/root"})
    seen = results({})
    asked = []
    for answer in (RUN_B, RUN_B, second()):
        planned = bootstrap.plan(given_context, facts, seen)
        assert planned is not None
        name, probe = planned
        asked.append((name, probe))
        seen[name] = result(answer=answer)
    assert bootstrap.plan(given_context, facts, seen) is None
    assert [name for name, _ in asked] == ["cuda_v13", "cuda_v12", "second pass"]
    env = asked[0][1].request["env"]
    lib = PACKAGE["lib_dir"]
    assert env["LD_LIBRARY_PATH"] == f"{lib}:{lib}/cuda_v13:/opt/x"
    assert env["OLLAMA_LIBRARY_PATH"] == f"{lib}:{lib}/cuda_v13"
    assert env["OLLAMA_DEBUG"] == "2"
    assert "LD_LIBRARY_PATH" not in asked[0][1].env
    children = asked[2][1].request["children"]
    assert [child["name"] for child in children] == [f"cuda_v13 {UUID}", f"cuda_v12 {UUID}"]
    assert children[0]["env"]["CUDA_VISIBLE_DEVICES"] == UUID
    assert children[0]["env"]["GGML_CUDA_INIT"] == "1"


def test_a_child_that_hangs_in_user_space_does_not_stop_the_next_directory() -> None:
    hung = no_answer(reason="timeout", stuck=stuck())
    assert bootstrap.plan(context(), prior("cuda_v12", "cuda_v13"), results({"cuda_v12": hung})) is not None


@pytest.mark.parametrize(
    "look",
    [
        stuck(threads=[{"tid": 1, "stat": "1 (ollama) D 1 1 1 0 -1 0 0 0 0 0 5 1 0 0 20 0 1 0 4000 0"}]),
        stuck(
            threads=[{"tid": 1, "stat": "", "syscall": "16 0x5 0x0 0x0 0x0 0x0 0x0 0x7ffc 0x7f00"}],
            fds={"5": "/dev/nvidiactl"},
        ),
    ],
)
def test_no_further_child_touches_a_driver_that_is_stuck(look: dict[str, Any]) -> None:
    hung = {"cuda_v12": no_answer(reason="timeout", stuck=look)}
    assert bootstrap.plan(context(), prior("cuda_v12", "cuda_v13"), results(hung)) is None
    judgement = judged(hung, "cuda_v12", "cuda_v13")
    assert judgement.facts["hung_probe"] is True
    rows = {(check.prerequisite, check.subject): check.outcome for check in judgement.checks}
    assert rows["P90", "dir:cuda_v13"] is CheckOutcome.UNKNOWN


def test_a_row_that_was_not_asked_about_says_why() -> None:
    checks = judged({"cuda_v12": no_answer(reason="timeout", stuck=stuck())}).checks
    reasons = {check.prerequisite: check.reason for check in checks if check.outcome is CheckOutcome.NOT_APPLICABLE}
    assert "era B" in reasons["P66"]
    assert reasons["P95"] == "not asked: an earlier step of this stage decided"


@pytest.mark.parametrize(
    ("ending", "step", "cause", "outcome"),
    [
        (Ending.TIMED_OUT, "resolve localhost", "bootstrap.hang.resolve", Outcome.TIMED_OUT),
        (Ending.TIMED_OUT, "start /usr/bin/ollama runner", "bootstrap.hang.exec", Outcome.TIMED_OUT),
        (Ending.TIMED_OUT, "look at PID 1", "bootstrap.hang.asker", Outcome.TIMED_OUT),
        (Ending.UNKILLABLE, "GET /info", "bootstrap.hang.asker", Outcome.UNKILLABLE),
    ],
)
def test_the_asker_itself_is_caught(ending: Ending, step: str, cause: str, outcome: Outcome) -> None:
    answers = {"cuda_v12": result(ending, steps=(Step(step, 0.1, None),))}
    assert bootstrap.plan(context(), prior("cuda_v12", "cuda_v13"), results(answers)) is None
    judgement = judged(answers)
    assert causes(judgement)[cause] == "failed"
    assert concluded(answers, judgement).outcome is outcome


def test_a_defect_of_the_gate_is_no_finding() -> None:
    answers = {"cuda_v12": result(Ending.EXITED, exit_code=1, stderr="Traceback (most recent call last)")}
    assert concluded(answers, judged(answers)).outcome is Outcome.PROBE_ERROR


@pytest.mark.parametrize("package", [{"binary": None}, {"lib_dir": None}, {"version": "0.12.3", "era": "A"}])
def test_not_applicable(package: dict[str, Any]) -> None:
    judgement = judged({}, package=package)
    assert concluded({}, judgement).outcome is Outcome.NOT_APPLICABLE
    assert all(check.outcome is CheckOutcome.NOT_APPLICABLE for check in judgement.checks)


def test_an_ollama_without_a_second_pass() -> None:
    judgement = judged({"cuda_v12": RUN_B}, package={"version": "0.13.0"})
    assert causes(judgement) == {}
    assert (
        bootstrap.plan(context(), prior("cuda_v12", package={"version": "0.13.0"}), results({"cuda_v12": RUN_B}))
        is None
    )


def test_directories_that_ollama_skips_are_not_asked() -> None:
    skipped = {"kept": False, "skipped": "OLLAMA_LLM_LIBRARY=cuda_v12"}
    entries = [directory("cuda_v12"), *({**directory(name), **skipped} for name in ("cuda_v13", "cuda_jetpack6"))]
    facts = prior(package={"gpu_dirs": entries})
    only = context(env={"OLLAMA_LLM_LIBRARY": "cuda_v12"})
    planned = bootstrap.plan(only, facts, results({}))
    assert planned is not None
    assert planned[0] == "cuda_v12"
    assert bootstrap.plan(only, facts, results({"cuda_v12": run(devices=[])})) is None


# --- hostile input ---------------------------------------------------------------------------------------------------

STATE: dict[str, Any] = {
    "first": {**RUN_B, "stuck": stuck("/x/libggml-cuda.so", frames=("/x/libcuda.so.1",))},
    "second": second(),
    "driver": DRIVER,
    "package": PACKAGE,
}


@settings(deadline=None)  # a loaded machine is no failure
@given(mutated(STATE))
def test_hostile_observations_never_raise(state: dict[str, Any]) -> None:
    install = state.get("package")
    install = {**(install if isinstance(install, dict) else {}), "gpu_dirs": [directory("cuda_v12")]}
    seen = results({"cuda_v12": state.get("first"), "second pass": state.get("second")})
    facts = prior("cuda_v12", package=install, driver=state.get("driver") or {})
    is_sound(bootstrap.judge(StageInput(context(), seen, facts, 90.0)))
    bootstrap.plan(context(), facts, {name: seen[name] for name in ("layout", "cuda_v12")})


@settings(deadline=None)
@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_any_value_at_all_never_raises(first: Any, pass_two: Any, driver: Any, layout: Any) -> None:
    seen = {**results({"cuda_v12": first, "second pass": pass_two}), "layout": result(answer=layout)}
    kernel = record("kernel", Outcome.PASSED, facts=driver)
    facts = prior("cuda_v12", driver=driver, kernel=kernel)
    is_sound(bootstrap.judge(StageInput(context(), seen, facts, 90.0)))
    bootstrap.plan(context(), facts, {name: seen[name] for name in ("layout", "cuda_v12")})
