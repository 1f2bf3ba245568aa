"""One discovery of era C: the words of real processes parsed as Ollama does, its filters and floors, hostile output."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.model import CheckOutcome, Outcome
from pytest_gpudiscovery.stages import bootstrap, bootstrap_server, protocol
from pytest_gpudiscovery.stages.spec import StageInput
from tests.fakes import context, record, result
from tests.stages.bootstrap_answers import (
    LISTED,
    NATIVE,
    SERVER,
    STARTED,
    causes,
    concluded,
    judged,
    prior,
    process,
    results,
    run_c,
    stuck,
    thread,
)
from tests.stages.hostile import ANYTHING, is_sound, mutated
from tests.stages.runtime_answers import DEVICE, DRIVER

PACKAGE = {"version": "0.32.15", "era": "C"}
FOUND = {"path": SERVER, "executable": True}
NEWEST = protocol.Protocol("C", (0, 32, 15), "index")
FIRST = protocol.Protocol("C", (0, 30, 0), "index")
SECOND = {"children": {"cuda_v12 0": run_c()}, "seconds": 0.2}
OLD = NATIVE.replace('"nvidia_driver_major":580', '"nvidia_driver_major":535')


def judge(first: dict[str, Any], second: Any = SECOND, *names: str, **records: Any) -> Any:
    answers = {"cuda_v12": first, "second pass": second}
    return judged(answers, *(names or ("cuda_v12",)), server=FOUND, package=PACKAGE, **records)


def test_a_healthy_host() -> None:
    judgement = judge(run_c())
    assert causes(judgement) == {}
    answers = {"cuda_v12": run_c(), "second pass": SECOND}
    assert concluded(answers, judgement, FOUND).outcome is Outcome.PASSED
    view = judgement.facts["views"]["0000:00:06.0"]
    assert (view["compute"], view["driver"], view["id"]) == ([9, 0], [13, 0], "0")
    assert view["total_memory"] == 81079 << 20
    rows = {check.prerequisite: check.outcome for check in judgement.checks}
    assert set(rows) == set(bootstrap.ROWS)
    assert rows["P90"] is CheckOutcome.NOT_APPLICABLE
    assert [rows[row] for row in ("P66", "P67", "P68", "P69", "P70", "P91", "P93")] == [CheckOutcome.PASSED] * 7


def hung(name: str) -> dict[str, Any]:
    return process(name, reason="timeout", exit=None, stuck=stuck("/x/libggml-cuda.so", listens=None))


CASES: list[tuple[dict[str, Any], str, str]] = [
    (run_c(start=process("start", problem="EACCES"), list=None, native=None), "bootstrap.spawn", "failed"),
    (run_c(start=hung("start"), list=None, native=None), "bootstrap.start.hang", "failed"),
    (run_c(start=process("start", exit=1)), "bootstrap.start.exit", "warned"),
    (run_c(list=hung("list"), native=None), "bootstrap.list.hang", "failed"),
    (run_c(list=process("list", exit=1, err="CUDA error: unknown\n"), native=None), "bootstrap.list.exit", "failed"),
    (run_c(list=process("list", exit=-6), native=None), "bootstrap.list.exit", "failed"),
    (run_c(native=hung("native")), "bootstrap.native.hang", "warned"),
    (run_c(native=process("native", exit=1)), "bootstrap.native.failed", "warned"),
    (run_c(native=process("native", OLD)), "bootstrap.floor", "failed"),
    (run_c(list=process("list", "Available devices:\n  (none)\n")), "bootstrap.no_device", "failed"),
    (
        run_c(
            list=process(
                "list",
                "Available devices:\n",
                "load_backend: failed to load /x/libggml-cuda.so: libcuda.so.1: cannot open shared object file\n",
            )
        ),
        "bootstrap.load_failed",
        "failed",
    ),
    (
        run_c(list=process("list", "", "0.00.025.644 E ggml_cuda_init: failed to initialize CUDA: unknown error\n")),
        "bootstrap.cuda_failed",
        "failed",
    ),
    (
        run_c(start=process("start", err=STARTED.replace("900,", ""), reason="seen", exit=None)),
        "bootstrap.arch",
        "failed",
    ),
]


@pytest.mark.parametrize(("first", "cause", "outcome"), CASES, ids=[f"{i}-{case[1]}" for i, case in enumerate(CASES)])
def test_what_is_wrong_in_the_only_directory(first: dict[str, Any], cause: str, outcome: str) -> None:
    found = causes(judge(first))
    assert found[cause] == outcome
    assert ("bootstrap.gpus.none" in found) == (outcome == "failed")


@pytest.mark.parametrize(("seconds", "said"), [(15.02, "15 s"), (9.41, "9.4 s")])
def test_the_native_probe_hangs_for_as_long_as_it_was_given(seconds: float, said: str) -> None:
    # Its own limit is 15 s, and all three processes share 30.
    checks = judge(run_c(native={**hung("native"), "seconds": seconds})).checks
    reason = next(check.reason for check in checks if check.prerequisite == "P69")
    assert f"did not end in {said}" in reason


@pytest.mark.parametrize(
    ("exe", "look", "what"),
    [
        (SERVER, stuck("/x/hang.so", frames=("hang.so",), listens=None), "preloaded hang.so keeps it from starting"),
        (SERVER, stuck("/x/libggml-cuda.so", threads=[thread(100, "T")]), "it is stopped"),
        (SERVER, stuck("/x/libggml-cuda.so", listens=None), "it waits in pause"),
        (SERVER, stuck("/x/libggml-cuda.so", threads=[thread(100, "S", "")]), "it did not answer within 30 s"),
        ("/usr/bin/python3", stuck(), "exec of its program did not finish"),
    ],
)
def test_where_llama_server_hangs_is_a_sentence(exe: str, look: dict[str, Any], what: str) -> None:
    look = {**look, "close": {**look["close"], "exe": exe}}
    run = run_c(start=process("start", reason="timeout", exit=None, stuck=look), list=None, native=None)
    found = bootstrap_server.failed(run, ["hang.so"])
    assert found is not None
    assert found[1]["what"] == what


def test_a_preloaded_object_that_ends_llama_server_without_a_word_is_named() -> None:
    ended = run_c(list=process("list", "", exit=-6), native=None)
    found = bootstrap_server.failed(ended, ["libagent.so"])
    assert found is not None
    assert (found[0], found[1]["preloaded"]) == ("bootstrap.list.exit", " Preloaded: libagent.so.")
    assert found[1]["remedy"][0].startswith("env -u LD_PRELOAD")
    spoke = bootstrap_server.failed(run_c(list=process("list", "", "CUDA error\n", exit=1)), ["libagent.so"])
    assert spoke is not None
    assert spoke[1]["preloaded"] == ""


def test_no_llama_server() -> None:
    judgement = judged({}, package=PACKAGE)
    assert causes(judgement) == {"bootstrap.server.missing": "failed"}
    assert bootstrap.plan(context(), prior("cuda_v12", package=PACKAGE), results({})) is None
    judgement = judged({}, server={"path": SERVER, "executable": False}, package=PACKAGE)
    assert causes(judgement) == {"bootstrap.server.not_executable": "failed"}


def test_the_era_of_an_unknown_version_is_seen_by_its_files() -> None:
    unknown = {"version": None, "era": None}
    planned = bootstrap.plan(context(), prior("cuda_v12", package=unknown), results({}, FOUND))
    assert planned is not None
    assert planned[1].request["server"] == SERVER
    planned = bootstrap.plan(context(), prior("cuda_v12", package=unknown), results({}))
    assert planned is not None
    assert "server" not in planned[1].request
    newer = {"layout": result(answer={"server": None, "newer": True})}
    judgement = bootstrap.judge(StageInput(context(), newer, prior("cuda_v12", package=unknown), 90.0))
    assert causes(judgement) == {"bootstrap.server.missing": "failed"}


def test_the_second_pass_is_asked_by_index() -> None:
    facts = prior("cuda_v12", package=PACKAGE)
    planned = bootstrap.plan(context(), facts, results({"cuda_v12": run_c()}, FOUND))
    assert planned is not None
    (child,) = planned[1].request["children"]
    assert (child["name"], child["env"]["CUDA_VISIBLE_DEVICES"]) == ("cuda_v12 0", "0")
    lib = facts["package"].facts["lib_dir"]
    assert child["dirs"] == [lib, f"{lib}/cuda_v12"]


def test_a_gpu_in_use_is_left_alone_and_said() -> None:
    nvml = record("nvml", Outcome.PASSED, facts={"in_use": {"0000:00:06.0": [4711]}})
    facts = prior("cuda_v12", package=PACKAGE, nvml=nvml)
    assert bootstrap.plan(context(), facts, results({}, FOUND)) is None
    judgement = judged({}, server=FOUND, package=PACKAGE, nvml=nvml)
    unknown = {check.prerequisite for check in judgement.checks if check.outcome is CheckOutcome.UNKNOWN}
    assert {"P67", "P68", "P91"} <= unknown
    assert bootstrap.plan(context(allow_busy=True), facts, results({}, FOUND)) is not None


# --- parsing ---------------------------------------------------------------------------------------------------------


def test_two_devices_and_one_that_is_none() -> None:
    text = (
        "Available devices:\n  CUDA0: NVIDIA H100 (81079 MiB, 80552 MiB free)\n  BLAS: OpenBLAS (0 MiB, 0 MiB free)\n"
        "  CUDA1: NVIDIA H100 (81079 MiB, 1 MiB free)\n  Vulkan0: AMD Radeon (RADV) (16 MiB, 15 MiB free)\n"
    )
    kept, skipped = bootstrap_server.shown("cuda_v12", run_c(list=process("list", text), native=None))
    assert [(device.name, device.id, device.library) for device in kept] == [
        ("CUDA0", "0", "CUDA"),
        ("CUDA1", "2", "CUDA"),
        ("Vulkan0", "3", "Vulkan"),
    ]
    assert skipped == []
    assert kept[2].description == "AMD Radeon (RADV)"


def test_the_capability_comes_from_the_log_where_the_native_probe_gives_none() -> None:
    log = "  Device 0: NVIDIA H100 80GB HBM3, compute capability 9.0, VMM: yes, VRAM: 81079 MiB\n"
    kept, _ = bootstrap_server.shown("cuda_v12", run_c(list=process("list", LISTED, log), native=None))
    assert kept[0].compute == (9, 0)
    kept, skipped = bootstrap_server.shown("cuda_v12", run_c(native=None))
    assert (kept[0].compute, skipped) == ((0, 0), [])  # not known: not filtered


FLOORS: list[tuple[protocol.Protocol, int, list[str], tuple[int, int], str, bool]] = [
    (NEWEST, 535, ["libcudart.so.12.8.90"], (9, 0), "cuda_v12", True),
    (NEWEST, 549, ["libcudart.so.12.4.127"], (9, 0), "cuda_v12", True),
    (NEWEST, 550, ["libcudart.so.12.8.90"], (9, 0), "cuda_v12", False),
    (NEWEST, 535, ["libcudart.so.12.2.1"], (9, 0), "cuda_v12", False),
    (NEWEST, 535, ["libcudart.so.12"], (9, 0), "cuda_v12", False),
    (NEWEST, 535, ["libcudart.so.12.8.90"], (9, 0), "cuda_v13", False),
    (NEWEST, 560, ["libcudart.so.12.8.90"], (6, 1), "cuda_v12", True),
    (NEWEST, 570, ["libcudart.so.12.8.90"], (6, 1), "cuda_v12", False),
    (NEWEST, 0, ["libcudart.so.12.8.90"], (9, 0), "cuda_v12", False),
    (FIRST, 535, ["libcudart.so.12.8.90"], (9, 0), "cuda_v12", False),
    (FIRST, 535, ["libcudart.so.12.8.90"], (6, 1), "cuda_v12", True),
]


@pytest.mark.parametrize(("how", "driver", "cudart", "cc", "directory", "dropped"), FLOORS)
def test_the_floor_of_the_driver(
    how: protocol.Protocol, driver: int, cudart: list[str], cc: tuple[int, int], directory: str, dropped: bool
) -> None:
    native = NATIVE.replace(":580}", f":{driver}}}").replace('"compute_major":9', f'"compute_major":{cc[0]}')
    started = process("start", err="", reason="seen", exit=None)  # no list of architectures: none is filtered
    run = run_c(cudart=cudart, native=process("native", native), start=started)
    kept, _ = bootstrap_server.shown(directory, run)
    assert len(kept) == 1
    assert bool(bootstrap_server.below_floor(directory, run, kept, how)) is dropped
    assert len(bootstrap_server.devices(directory, run, how)) == (0 if dropped else 1)


# --- hostile input ---------------------------------------------------------------------------------------------------


@settings(deadline=None)  # a loaded machine is no failure
@given(mutated({"first": run_c(start=hung("start")), "second": SECOND, "driver": DRIVER}))
def test_hostile_observations_never_raise(state: dict[str, Any]) -> None:
    seen = results({"cuda_v12": state.get("first"), "second pass": state.get("second")}, FOUND)
    facts = prior("cuda_v12", package=PACKAGE, driver=state.get("driver") or {})
    is_sound(bootstrap.judge(StageInput(context(), seen, facts, 90.0)))
    bootstrap.plan(context(), facts, {name: seen[name] for name in ("layout", "cuda_v12")})


@settings(deadline=None)
@given(ANYTHING, ANYTHING, ANYTHING)
def test_any_value_at_all_never_raises(start: Any, listed: Any, native: Any) -> None:
    first = {"start": start, "list": listed, "native": native, "seconds": start, "cudart": native}
    for one in (first, listed):
        seen = results({"cuda_v12": one, "second pass": {"children": {"cuda_v12 0": one}}}, FOUND)
        facts = prior("cuda_v12", package=PACKAGE, driver={"gpus": [DEVICE]})
        is_sound(bootstrap.judge(StageInput(context(), seen, facts, 90.0)))


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_any_output_at_all_never_raises(listed: str, started: str, native: str) -> None:
    run = run_c(
        list=process("list", LISTED + listed, started),
        start=process("start", err=STARTED + started),
        native=process("native", native),
    )
    for how in (NEWEST, FIRST):
        bootstrap_server.devices("cuda_v12", run, how)
