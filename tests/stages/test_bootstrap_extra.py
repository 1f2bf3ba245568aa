"""What --gpu-trace and --gpu-experiment preload add to stage 12: further children, a timeline, what changed."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.model import CheckOutcome, Outcome
from pytest_gpudiscovery.probes import timeline
from pytest_gpudiscovery.probes.timeline import Timeline
from pytest_gpudiscovery.stages import bootstrap
from pytest_gpudiscovery.stages.bootstrap_extra import runs
from pytest_gpudiscovery.stages.protocol import of
from pytest_gpudiscovery.stages.spec import Judgement, RunContext, StageInput
from tests.fakes import context
from tests.stages.bootstrap_answers import PACKAGE, RUN_B, prior, process, results, run_c, second
from tests.stages.hostile import ANYTHING, is_sound
from tests.stages.runtime_answers import LIB, directory

BACKEND = f"{LIB}/cuda_v12/libggml-cuda.so"
INSTALL = {**PACKAGE, "gpu_dirs": [directory("cuda_v12")]}


def asked(**changes: Any) -> RunContext:
    return dataclasses.replace(context(), **changes)


def judged(how: RunContext, answers: dict[str, Any]) -> Judgement:
    found = results({"cuda_v12": RUN_B, "second pass": second(), **answers})
    return bootstrap.judge(StageInput(how, found, prior("cuda_v12"), 30.0))


def row(judgement: Judgement, name: str = "P102") -> tuple[CheckOutcome, str | None]:
    (check,) = [check for check in judgement.checks if check.prerequisite == name]
    return check.outcome, check.finding.cause if check.finding else None


def test_nothing_further_is_started_unless_it_was_asked_for() -> None:
    assert list(runs(context(), INSTALL, of(INSTALL, newer=False))) == []


def test_the_experiment_puts_the_backend_before_what_the_operator_preloads() -> None:
    how = asked(experiment="preload", env={"LD_PRELOAD": "/opt/lib/libx.so"})
    ((name, request),) = runs(how, INSTALL, of(INSTALL, newer=False))
    assert name == "preload of cuda_v12"
    assert request["env"]["LD_PRELOAD"] == f"/opt/lib/libx.so {BACKEND}"
    assert request["env"]["OLLAMA_LIBRARY_PATH"] == f"{LIB}:{LIB}/cuda_v12"


def test_a_trace_starts_one_child_more_under_strace() -> None:
    ((name, request),) = runs(asked(trace=True), INSTALL, of(INSTALL, newer=False))
    assert (name, request["trace"]) == ("strace of cuda_v12", "strace")


def test_what_the_experiment_does_not_change_is_said_and_costs_no_verdict() -> None:
    how = asked(experiment="preload")
    judgement = judged(how, {"preload of cuda_v12": RUN_B})
    assert row(judgement)[1] == "bootstrap.experiment.same"
    assert row(judgement)[0] not in (CheckOutcome.FAILED, CheckOutcome.WARNED)
    assert judgement.facts["experiment"][0]["before"] == judgement.facts["experiment"][0]["after"]
    assert row(judged(context(), {}))[0] is CheckOutcome.NOT_APPLICABLE


@pytest.mark.parametrize(
    "after",
    [
        {**RUN_B, "devices": []},
        {**RUN_B, "seconds": 12.0},
        {**RUN_B, "reason": "exited", "exit": 2, "devices": None},
        {**RUN_B, "reason": "timeout", "devices": None, "seconds": 30.0},
    ],
)
def test_what_the_experiment_changes_is_said(after: dict[str, Any]) -> None:
    judgement = judged(asked(experiment="preload"), {"preload of cuda_v12": after})
    assert row(judgement)[1] == "bootstrap.experiment.changes"
    # Neither the experiment nor a trace decides what the stage says of Ollama.
    assert row(judgement, "P91")[0] is CheckOutcome.PASSED


@pytest.mark.parametrize("era", ["B", "C"])
def test_what_ld_so_says_of_the_backend_is_the_answer_of_the_experiment(era: str) -> None:
    words = "ollama: error while loading shared libraries: libcuda.so.1: cannot open shared object file"
    after = {**RUN_B, "reason": "exited", "exit": 127, "devices": None, "output": {"text": words, "dropped": 0}}
    if era == "C":
        after = run_c(start=process("start", err=words, exit=127), list=process("list", "", words, exit=127))
    (check,) = [
        check
        for check in judged(asked(experiment="preload"), {"preload of cuda_v12": after}).checks
        if check.prerequisite == "P102"
    ]
    assert check.finding is not None
    assert ", exit status 127" in check.finding.summary
    assert f"It said: {words}." in check.finding.detail
    assert "status 127: ld.so could not load the backend" in check.finding.detail


def test_a_child_that_was_not_started_leaves_the_experiment_open() -> None:
    assert row(judged(asked(experiment="preload"), {}))[0] is CheckOutcome.UNKNOWN


def test_a_timeline_comes_into_the_record() -> None:
    event = {"at": 0.1, "what": "opened", "name": BACKEND}
    answers = {
        "cuda_v12": {**RUN_B, "timeline": [event]},
        "strace of cuda_v12": {**RUN_B, "timeline": [event, event]},
    }
    judgement = judged(asked(trace=True), answers)
    assert judgement.facts["timeline"] == {"cuda_v12": {"loader": [event], "strace": [event, event]}}


@given(ANYTHING)
def test_whatever_a_further_child_says_is_judged(after: Any) -> None:
    is_sound(judged(asked(experiment="preload", trace=True), {"preload of cuda_v12": {"x": after, "list": after}}))


class Journal:
    """Keeps the names of steps as a probe's journal does."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.result: Any = None

    def step(self, name: str) -> Journal:
        self.steps.append(name)
        return self

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def taken(*lines: str) -> tuple[Timeline, list[tuple[str, str]], Journal]:
    journal = Journal()
    made = Timeline(journal, "cuda_v12: ")  # type: ignore[arg-type]
    for at, line in enumerate(lines):
        made.line(at / 10, line)
    return made, [(event["what"], event["name"]) for event in made.events], journal


def test_the_account_of_the_loader_becomes_events() -> None:
    made, events, journal = taken(
        f"      4711:\tfile={BACKEND} [0];  dynamically loaded by {LIB}/libggml-base.so [0]",
        f"      4711:\tfile={BACKEND} [0];  generating link map",
        f"      4711:\trelocation processing: {BACKEND} (lazy)",
        f"      4711:\tcalling init: {BACKEND}",
        "ggml_cuda_init: found 1 CUDA devices:",
        "something else",
    )
    # A library that was asked for by its path has that path; constructors begin in the order of their lines.
    assert events == [
        ("opened", BACKEND),
        ("initialised", BACKEND),
        ("said", "ggml_cuda_init: found 1 CUDA devices:"),
    ]
    assert made.events[1]["at"] == 0.3
    assert made.rest == "ggml_cuda_init: found 1 CUDA devices:\nsomething else\n"
    assert journal.steps[0] == f"cuda_v12: opened {BACKEND}"


def test_opens_of_libraries_and_nodes_that_strace_shows_become_events() -> None:
    _, events, _ = taken(
        '[pid  4711] 1764030656.101 openat(AT_FDCWD, "/usr/lib/libcuda.so.1", O_RDONLY|O_CLOEXEC) = 3',
        '1764030656.102 openat(AT_FDCWD, "/usr/lib/libcuda.so.1", O_RDONLY|O_CLOEXEC) = 3',
        '1764030656.103 openat(AT_FDCWD, "/dev/nvidiactl", O_RDWR) = 4',
        '1764030656.104 openat(AT_FDCWD, "/dev/nvidia0", O_RDWR) = -1 EPERM (Operation not permitted)',
        '1764030656.105 openat(AT_FDCWD, "/usr/lib/libx.so.1", O_RDONLY) = -1 ENOENT (No such file or directory)',
        '1764030656.106 open("/etc/ld.so.cache", O_RDONLY) = 5',
        '1764030656.107 openat(AT_FDCWD, "/dev/nvi',
        "strace: Process 4712 attached",
    )
    assert events == [
        ("opened", "/usr/lib/libcuda.so.1"),
        ("opened", "/dev/nvidiactl"),
        ("could not open (EPERM)", "/dev/nvidia0"),
    ]


@given(st.lists(st.text(max_size=200), max_size=30))
def test_no_line_is_an_error_and_the_number_of_events_is_bounded(lines: list[str]) -> None:
    made, events, _ = taken(*lines, *("1:\tcalling init: /x.so",) * (timeline.EVENTS + 5))
    assert len(events) <= timeline.EVENTS
    assert len(made.rest) <= timeline.REST


def test_nodes_are_seen_as_descriptors_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "NODES", "/dev/nul")
    made = Timeline(Journal(), "")  # type: ignore[arg-type]
    with open("/dev/null"):
        made.tick(os.getpid(), 0.1)
        made.tick(os.getpid(), 0.2)
    made.tick(2**22 + 1, 0.3)  # nobody
    assert made.events == [{"at": 0.1, "what": "has open", "name": "/dev/null"}]


def test_strace_is_found_on_the_path_or_in_its_place_and_gives_the_childs_variables_to_the_child(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "PLACES", (str(tmp_path / "usr"),))
    assert timeline.strace({"PATH": f"relative:{tmp_path}"}) is None
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/strace").write_text("")
    (tmp_path / "usr/strace").chmod(0o755)
    assert timeline.strace({"PATH": f"relative:{tmp_path}"}) == f"{tmp_path}/usr/strace"
    (tmp_path / "strace").write_text("")
    (tmp_path / "strace").chmod(0o755)
    program = timeline.strace({"PATH": f"relative:{tmp_path}"})
    assert program == f"{tmp_path}/strace"
    argv, env = timeline.under_strace(program, {"LD_PRELOAD": "x", "LD_LIBRARY_PATH": "y", "HOME": "/"})
    assert env == {"HOME": "/"}
    assert argv[-4:] == ["-E", "LD_PRELOAD=x", "-E", "LD_LIBRARY_PATH=y"]


def test_the_outcome_of_the_stage_is_that_of_the_children_that_ollama_starts() -> None:
    hung = {**RUN_B, "reason": "timeout", "devices": None, "seconds": 30.0}
    assert judged(asked(experiment="preload"), {"preload of cuda_v12": hung}).outcome in (None, Outcome.PASSED)
