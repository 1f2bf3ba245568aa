"""Stage 11 judged over what ggml answers: interface, devices, memory, the second pass, GPUs in use, hostile answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from pytest_gpudiscovery.model import CheckOutcome, Kind, Outcome, Step
from pytest_gpudiscovery.outcome import conclude
from pytest_gpudiscovery.stages import backend, second_pass
from pytest_gpudiscovery.stages.spec import Judgement, StageInput
from pytest_gpudiscovery.supervise.types import ChildResult, Ending
from tests.fakes import context, record, result
from tests.stages.hostile import ANYTHING, is_sound, mutated
from tests.stages.runtime_answers import DEVICE, DRIVER, LIB, UUID, directory

PROPS = {"layout": "ollama", "id": UUID, "device_id": "0000:00:06.0", "cc": [9, 0]}
GGML = {
    "ordinal": 0,
    "sound": True,
    "name": "CUDA0",
    "description": DEVICE["name"],
    "left_alone": False,
    "memory_free": 85014085632,
    "memory_total": 85520809984,
    "props": PROPS,
}
FIRST: dict[str, Any] = {
    "error": None,
    "has_init": True,
    "registry": {"api_version": 2, "layout": True},
    "lacks": [],
    "name": "CUDA",
    "count": 1,
    "devices": [GGML],
    "gdb": None,
}
SECOND: dict[str, Any] = {"ended": {"device 0": {**FIRST, "seconds": 0.4}}, "seconds": 0.4}
PACKAGE = {"lib_dir": LIB, "version": "0.16.3", "era": "B", "binary": "/usr/bin/ollama"}


def prior(*names: str, package: Any = None, driver: Any = None, nvml: Any = None) -> dict[str, Any]:
    install = {**PACKAGE, "gpu_dirs": [directory(name) for name in names]} if package is None else package
    loads = {"loads": [{"directory": name, "seconds": 0.1, "error": None} for name in names]}
    return {
        "package": record("package", Outcome.PASSED, facts=install),
        "driver": record("driver", Outcome.PASSED, facts=DRIVER if driver is None else driver),
        "nvml": record("nvml", Outcome.PASSED, facts=nvml or {}),
        "load": record("load", Outcome.PASSED, facts=loads),
    }


def answers(seen: dict[str, Any]) -> dict[str, ChildResult]:
    return {n: a if isinstance(a, ChildResult) else result(answer=a, observed={"gdb": None}) for n, a in seen.items()}


def judged(seen: dict[str, Any], *names: str, **facts: Any) -> Judgement:
    """Return the judgement over SEEN (probe name -> its answer or its end) for the directories NAMES."""
    return backend.judge(StageInput(context(), answers(seen), prior(*(names or ("cuda_v12",)), **facts), 60.0))


def both(first: Any = None, second: Any = None, name: str = "cuda_v12") -> dict[str, Any]:
    return {name: FIRST if first is None else first, f"second pass of {name}": SECOND if second is None else second}


def causes(judgement: Judgement) -> dict[str, str]:
    return {check.finding.cause: check.outcome.value for check in judgement.checks if check.finding}


def outcome(judgement: Judgement, seen: dict[str, Any] | None = None) -> Outcome:
    return conclude(backend.SPEC, judgement, answers(seen or {}), started=0.0, deadline_s=60.0).outcome


def test_a_healthy_directory() -> None:
    judgement = judged(both())
    assert causes(judgement) == {}
    assert outcome(judgement) is Outcome.PASSED
    assert {check.prerequisite for check in judgement.checks} == set(backend.ROWS)
    assert judgement.facts["views"] == {"0000:00:06.0": {"cuda_v12": GGML}}


def changed(**changes: Any) -> dict[str, Any]:
    return {**FIRST, "devices": [{**GGML, **changes}]}


FAULTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("does not load", {"error": "x.so: cannot open"}, "backend.unloadable", "failed"),
    ("no ggml_backend_init", {**FIRST, "has_init": False}, "backend.init.missing", "failed"),
    ("score 0", {**FIRST, "score": 0}, "backend.score.zero", "failed"),
    ("NULL", {**FIRST, "registry": None}, "backend.init.null", "failed"),
    ("version 1", {**FIRST, "registry": {"api_version": 1, "layout": True}}, "backend.api_version", "failed"),
    ("other layout", {**FIRST, "registry": {"api_version": 2, "layout": False}}, "backend.layout", "failed"),
    ("device of another layout", changed(sound=False), "backend.layout", "failed"),
    ("another libggml-base", {**FIRST, "lacks": ["ggml_backend_reg_name"]}, "backend.accessors.missing", "failed"),
    ("no device", {**FIRST, "count": 0, "devices": []}, "backend.no_device", "failed"),
    ("two devices", {**FIRST, "count": 2, "devices": [GGML, GGML]}, "backend.count_differs", "failed"),
    ("no memory", changed(memory_total=0), "backend.memory.zero", "failed"),
    ("half the memory", changed(memory_total=42 << 30), "backend.memory.differs", "warned"),
    ("another name", changed(description="NVIDIA A100"), "backend.device_differs", "warned"),
    ("another UUID", changed(props={**PROPS, "id": UUID[:-1] + "0"}), "backend.device_differs", "warned"),
    ("another address", changed(props={**PROPS, "device_id": "0000:65:00.0"}), "backend.device_differs", "warned"),
    ("compute capability 0.0", changed(props={**PROPS, "cc": [0, 0]}), "backend.device_differs", "warned"),
    ("llama.cpp's layout", changed(props={**PROPS, "layout": "llama.cpp"}), "backend.props_layout", "failed"),
    ("no known layout", changed(props={"layout": None}), "backend.props_layout", "warned"),
]


@pytest.mark.parametrize(("first", "cause", "said"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_the_first_pass_of_the_only_directory(first: dict[str, Any], cause: str, said: str) -> None:
    judgement = judged(both(first))
    assert causes(judgement)[cause] == said
    assert outcome(judgement) is (Outcome.FAILED if said == "failed" else Outcome.WARNED)
    for check in judgement.checks:
        assert check.finding is None or "?" not in check.finding.summary, check.finding


@pytest.mark.parametrize(("first", "cause"), [(row[1], row[2]) for row in FAULTS if row[3] == "failed"])
def test_one_directory_that_covers_every_gpu_is_enough(first: dict[str, Any], cause: str) -> None:
    judgement = judged({**both(first), **both(name="cuda_v13")}, "cuda_v12", "cuda_v13")
    assert causes(judgement)[cause] == "warned"
    assert outcome(judgement) is Outcome.WARNED


ENDS = [
    ("dlopen libggml-cuda.so", "backend.hang", "backend.crash"),
    ("ggml_backend_init", "backend.init.hang", "backend.init.crash"),
    ("ggml_backend_dev_memory(0)", "backend.memory.hang", "backend.memory.crash"),
    ("ggml_backend_dev_get_props(0)", "backend.memory.hang", "backend.memory.crash"),
]


@pytest.mark.parametrize(("step", "hang", "crash"), ENDS)
def test_a_child_that_ends_is_named_by_the_call_that_was_open(step: str, hang: str, crash: str) -> None:
    steps = (Step(step, 0.1, None),)
    hung = {"cuda_v12": result(Ending.TIMED_OUT, steps=steps)}
    assert causes(judged(hung)) == {hang: "failed"}
    assert outcome(judged(hung), hung) is Outcome.TIMED_OUT
    died = {"cuda_v12": result(Ending.SIGNALLED, signal=6, steps=steps, stderr="x\nGGML_ASSERT(n <= 16) failed\nbye")}
    judgement = judged(died)
    assert causes(judgement) == {crash: "failed"}
    assert outcome(judgement, died) is Outcome.CRASHED
    (finding,) = [check.finding for check in judgement.checks if check.finding]
    assert "GGML_ASSERT" in finding.detail
    exited = {"cuda_v12": result(Ending.NO_ANSWER, steps=steps)}
    assert causes(judged(exited)) == {crash: "failed"}


def test_a_crash_where_a_debugger_would_start() -> None:
    died = result(
        Ending.SIGNALLED, signal=6, observed={"gdb": "/usr/bin/gdb"}, steps=(Step("ggml_backend_init", 0, None),)
    )
    assert causes(judged({"cuda_v12": died})) == {"backend.init.crash": "failed", "backend.abort_debugger": "warned"}


def test_a_slow_refresh() -> None:
    slow = result(answer=FIRST, steps=(Step("ggml_backend_init", 0.1, 3.4),))
    assert causes(judged({"cuda_v12": slow, "second pass of cuda_v12": SECOND})) == {"backend.refresh_slow": "warned"}


SECONDS: list[tuple[str, dict[str, Any], str, str]] = [
    ("status 2", {"exit": 2}, "backend.second_pass.crash", "failed"),
    ("SIGKILL", {"exit": -9}, "backend.second_pass.crash", "failed"),
    ("none", {**FIRST, "count": 0, "devices": []}, "backend.second_pass.none", "failed"),
    ("two", {**FIRST, "count": 2}, "backend.second_pass.more", "warned"),
    ("other", changed(props={**PROPS, "id": UUID[:-1] + "0"}), "backend.second_pass.other", "warned"),
]


@pytest.mark.parametrize(("child", "cause", "said"), [row[1:] for row in SECONDS], ids=[row[0] for row in SECONDS])
def test_the_second_pass(child: dict[str, Any], cause: str, said: str) -> None:
    judgement = judged(both(second={"ended": {"device 0": child}, "seconds": 0.5}))
    assert causes(judgement) == {cause: said}
    assert outcome(judgement) is (Outcome.FAILED if said == "failed" else Outcome.WARNED)


def test_a_device_that_ggml_was_not_compiled_for() -> None:
    text = 'GGML_ASSERT(ggml_cuda_has_arch(cc) && "ggml was not compiled with support for this arch") failed'
    second = result(answer={"ended": {"device 0": {"exit": -6}}, "seconds": 0.5}, stderr=text)
    assert causes(judged(both(second=second))) == {"backend.second_pass.arch": "failed"}


def test_a_second_pass_that_hangs_and_one_that_is_slow() -> None:
    hung = both(second=result(Ending.TIMED_OUT, steps=(Step("device 1: ggml_backend_init", 0.1, None),)))
    assert causes(judged(hung)) == {"backend.second_pass.hang": "failed"}
    assert outcome(judged(hung), hung) is Outcome.TIMED_OUT
    assert causes(judged(both(second={**SECOND, "seconds": 12.0}))) == {"backend.second_pass.slow": "warned"}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.12.4", "uuid"),
        ("0.12.9", "uuid"),
        ("0.12.10", "none"),
        ("0.13.0", "none"),
        ("0.13.1", "all"),
        ("0.13.2", "uuid"),
        ("0.24.0", "uuid"),
        ("v0.30.0-rc1", "index"),
        ("0.32.15", "index"),
        (None, "uuid"),
        ("custom", "uuid"),
    ],
)
def test_what_a_version_gives_its_second_children(version: str | None, expected: str) -> None:
    assert second_pass.filter_of(version) == expected


def test_the_environment_of_the_second_children() -> None:
    def asked(version: str, *busy: int) -> list[dict[str, str]]:
        return [child["env"] for child in second_pass.devices(FIRST, DRIVER, version, set(busy))]

    assert asked("0.16.3") == [{"CUDA_VISIBLE_DEVICES": UUID, "GGML_CUDA_INIT": "1"}]
    assert asked("0.13.1") == [{"GGML_CUDA_INIT": "1"}]
    assert asked("0.13.0") == []
    # Its own number of the device, whatever the operator's list says (v0.32.15:discover/runner.go:147).
    assert asked("0.32.15") == [{"CUDA_VISIBLE_DEVICES": "0", "GGML_CUDA_INIT": "1"}]
    assert asked("0.16.3", 0) == []


def test_an_ollama_without_a_second_pass() -> None:
    package = {**PACKAGE, "version": "0.13.0", "gpu_dirs": [directory("cuda_v12")]}
    judgement = judged({"cuda_v12": FIRST}, package=package)
    assert outcome(judgement) is Outcome.PASSED
    rows = {check.prerequisite: check.outcome for check in judgement.checks}
    assert rows["P56"] is rows["P58"] is CheckOutcome.NOT_APPLICABLE


def test_a_gpu_in_use_is_left_alone_and_said() -> None:
    nvml = {"in_use": {"0000:00:06.0": [4711]}}
    facts = prior("cuda_v12", nvml=nvml)
    planned = backend.plan(context(), facts, {})
    assert planned is not None
    assert planned[1].request["leave_alone"] == [0]
    assert backend.plan(context(), facts, answers({"cuda_v12": FIRST})) is None
    judgement = judged({"cuda_v12": changed(left_alone=True)}, nvml=nvml)
    assert outcome(judgement) is Outcome.WARNED
    left = [check for check in judgement.checks if check.outcome is CheckOutcome.UNKNOWN]
    assert {check.prerequisite for check in left} == {"P89", "P56", "P58"}
    assert all("PID 4711" in check.reason and check.kind is Kind.RISK for check in left)
    planned = backend.plan(context(allow_busy=True), facts, {})
    assert planned is not None
    assert planned[1].request["leave_alone"] == []


def test_no_second_child_touches_a_driver_that_hung() -> None:
    hung = {"cuda_v12": result(Ending.TIMED_OUT, steps=(Step("ggml_backend_init", 0.1, None),))}
    assert backend.plan(context(), prior("cuda_v12", "cuda_v13"), hung) is None
    judgement = judged(hung, "cuda_v12", "cuda_v13")
    assert outcome(judgement, hung) is Outcome.TIMED_OUT


def test_a_child_that_compiled_until_it_was_killed_leaves_the_driver_free() -> None:
    steps = (Step("ggml_backend_init", 0.1, None),)
    evidence = {"blocked_in": "running < __cuda_CallJitEntryPoint (libnvidia-ptxjitcompiler.so.1); state R"}
    spun = {"cuda_v12": result(Ending.TIMED_OUT, steps=steps, evidence=evidence)}
    asked = backend.plan(context(), prior("cuda_v12", "cuda_v13"), spun)
    assert asked is not None
    assert asked[0] == "cuda_v13"
    judgement = judged({**spun, **both(name="cuda_v13")}, "cuda_v12", "cuda_v13")
    assert causes(judgement) == {"backend.init.hang": "warned"}
    assert judgement.stuck is False


@pytest.mark.parametrize(
    ("blocked_in", "expected"),
    [
        ("pause < ggml_backend_init (libggml-cuda.so); state S, wchan do_sys_pause", Outcome.WARNED),
        ("running < cuInit (libcuda.so.1); state R", Outcome.TIMED_OUT),
        ("ioctl on /dev/nvidiactl < libggml-cuda.so+0x10; state D", Outcome.TIMED_OUT),
        ("futex < libnvidia-ptxjitcompiler.so.1+0x10; state S", Outcome.TIMED_OUT),
        ("a call that could not be read; state S", Outcome.TIMED_OUT),
        ("unknown", Outcome.TIMED_OUT),
    ],
)
def test_only_a_hang_that_is_shown_outside_of_the_driver_costs_one_directory(
    blocked_in: str, expected: Outcome
) -> None:
    steps = (Step("ggml_backend_init", 0.1, None),)
    hung = result(Ending.TIMED_OUT, steps=steps, evidence={"blocked_in": blocked_in})
    planned = backend.plan(context(), prior("cuda_v12", "cuda_v13"), {"cuda_v12": hung})
    assert (planned is not None and planned[0] == "cuda_v13") is (expected is Outcome.WARNED)
    seen = {"cuda_v12": hung, **(both(name="cuda_v13") if planned else {})}
    judgement = judged(seen, "cuda_v12", "cuda_v13")
    assert outcome(judgement, seen) is expected
    assert judgement.stuck is (expected is not Outcome.WARNED)


def test_a_directory_that_ollama_skips_is_never_the_blocker() -> None:
    install = {
        **PACKAGE,
        "gpu_dirs": [{**directory("cuda_v12"), "kept": False}, {**directory("cuda_v13"), "kept": True}],
    }
    crash = result(Ending.EXITED, exit_code=3, steps=(Step("ggml_backend_init", 0.1, None),))
    seen = {"cuda_v12": crash, "cuda_v13": {**FIRST, "score": 0}}
    judgement = judged(seen, "cuda_v12", "cuda_v13", package=install)
    found = {check.subject: check.outcome.value for check in judgement.checks if check.finding}
    assert found == {"dir:cuda_v12": "warned", "dir:cuda_v13": "failed"}
    assert outcome(judgement, seen) is Outcome.FAILED


def test_the_next_command_names_the_library() -> None:
    judgement = judged(both({**FIRST, "has_init": False, "library": f"{LIB}/cuda_v12/libggml-cuda.so"}))
    (finding,) = [check.finding for check in judgement.checks if check.finding]
    assert f"'{LIB}/cuda_v12/libggml-cuda.so'" in finding.next


def test_nothing_that_loads() -> None:
    facts = prior("cuda_v12")
    facts["load"] = record("load", Outcome.PASSED, facts={"loads": []})
    judgement = backend.judge(StageInput(context(), {}, facts, 60.0))
    assert outcome(judgement) is Outcome.NOT_APPLICABLE


# --- hostile input ---------------------------------------------------------------------------------------------------

STATE: dict[str, Any] = {"first": FIRST, "second": SECOND, "driver": DRIVER, "package": PACKAGE}


@settings(deadline=None)  # a loaded machine is no failure
@given(mutated(STATE))
def test_hostile_observations_never_raise(state: dict[str, Any]) -> None:
    install = state.get("package")
    install = {**(install if isinstance(install, dict) else {}), "gpu_dirs": [directory("cuda_v12")]}
    seen = {
        "cuda_v12": result(answer=state.get("first")),
        "second pass of cuda_v12": result(answer=state.get("second")),
    }
    facts = prior("cuda_v12", package=install, driver=state.get("driver") or {})
    is_sound(backend.judge(StageInput(context(), seen, facts, 60.0)))
    backend.plan(context(), facts, {"cuda_v12": seen["cuda_v12"]})


@settings(deadline=None)
@given(ANYTHING, ANYTHING, ANYTHING)
def test_any_value_at_all_never_raises(first: Any, second: Any, driver: Any) -> None:
    seen = {"cuda_v12": result(answer=first), "second pass of cuda_v12": result(answer=second)}
    facts = prior("cuda_v12", driver=driver, nvml=driver)
    is_sound(backend.judge(StageInput(context(), seen, facts, 60.0)))
    backend.plan(context(), facts, {"cuda_v12": seen["cuda_v12"]})
