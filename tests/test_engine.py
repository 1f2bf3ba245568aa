"""The graph: what runs, how often, what is not reached, and what becomes of every ending of a child."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pytest_gpudiscovery.engine import Engine
from pytest_gpudiscovery.ledger import Ledger, LedgerBusyError
from pytest_gpudiscovery.model import Outcome, Step
from pytest_gpudiscovery.stages.spec import Judgement, StageInput, StageSpec, passed
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe
from tests.fakes import context, hang, result, stage

TABLE = {
    spec.name: spec
    for spec in (
        stage(1, "package"),
        stage(4, "kernel", touches_driver=True),
        stage(5, "nvml", ("kernel",), touches_driver=True),
        stage(6, "driver", ("kernel", "package"), soft_after=("nvml",), touches_driver=True),
        stage(7, "enumeration", ("driver",), soft_after=("nvml",)),
        stage(9, "closure", ("package",)),
    )
}


class Children:
    """Stands in for the supervisor: answers by module name and counts."""

    def __init__(self, **endings: ChildResult) -> None:
        self.endings, self.ran = endings, list[str]()

    def __call__(self, probe: Probe) -> ChildResult:
        self.ran.append(probe.module)
        return self.endings.get(probe.module, result())


def engine(directory: Path, children: Children, **changes: object) -> Engine:
    return Engine(context(**changes), str(directory), TABLE, children)


def test_each_stage_runs_once_and_after_what_it_needs(tmp_path: Path) -> None:
    children = Children()
    first = engine(tmp_path, children, target="enumeration")
    assert first.ensure("enumeration").outcome is Outcome.PASSED
    first.complete()
    assert children.ran == ["kernel", "nvml", "package", "driver", "enumeration"]
    second = engine(tmp_path, children, target="enumeration")  # another process of the same run
    second.complete()
    assert len(children.ran) == 5
    assert second.records() == first.records()


def test_required_are_the_ancestors_and_selected_is_all_up_to_the_target(tmp_path: Path) -> None:
    gate = engine(tmp_path, Children(), target="enumeration")
    assert gate.required == ("package", "kernel", "driver", "enumeration")
    assert gate.selected == ("package", "kernel", "nvml", "driver", "enumeration")


def test_a_failure_names_the_root_and_not_the_direct_parent(tmp_path: Path) -> None:
    children = Children(kernel=result(answer={"bad": True}))
    gate = engine(tmp_path, children)
    record = gate.ensure("enumeration")
    assert (record.outcome, record.blocked_by) == (Outcome.NOT_REACHED, "kernel")
    assert "kernel failed" in record.summary
    assert "driver" not in children.ran


def test_after_a_hung_driver_call_no_child_touches_the_driver_but_files_are_still_read(tmp_path: Path) -> None:
    children = Children(nvml=hang("nvmlInit_v2"))
    gate = engine(tmp_path, children)
    gate.complete()
    records = gate.records()
    assert records["nvml"].outcome is Outcome.TIMED_OUT
    assert (records["driver"].outcome, records["driver"].blocked_by) == (Outcome.NOT_REACHED, "nvml")
    assert records["closure"].outcome is Outcome.PASSED
    assert "driver" not in children.ran


def test_a_hung_second_witness_stops_later_driver_children_too(tmp_path: Path) -> None:
    table = {**TABLE, "nvml": stage(5, "nvml", ("kernel",), touches_driver=True, optional=frozenset({"nvml"}))}
    gate = Engine(context(), str(tmp_path), table, Children(nvml=hang()))
    assert gate.ensure("nvml").outcome is Outcome.PASSED
    assert gate.ensure("driver").blocked_by == "nvml"


@pytest.mark.parametrize(
    ("child", "outcome", "cause"),
    [
        (hang(), Outcome.TIMED_OUT, "engine.probe.hang"),
        (result(Ending.UNKILLABLE), Outcome.UNKILLABLE, "engine.probe.hang"),
        (result(Ending.SIGNALLED, signal=11), Outcome.CRASHED, "engine.probe.crash"),
        (result(Ending.EXITED, exit_code=3), Outcome.CRASHED, "engine.probe.crash"),
        (result(Ending.NO_ANSWER), Outcome.CRASHED, "engine.probe.no_answer"),
        (
            result(Ending.EXITED, exit_code=1, stderr="Traceback (most recent call last):\nKeyError: 1"),
            Outcome.PROBE_ERROR,
            None,
        ),
        (result(Ending.NOT_SPAWNED, notes=("no interpreter",)), Outcome.PROBE_ERROR, None),
    ],
)
def test_every_ending_has_its_own_outcome(
    tmp_path: Path, child: ChildResult, outcome: Outcome, cause: str | None
) -> None:
    record = engine(tmp_path, Children(driver=child)).ensure("driver")
    assert record.outcome is outcome
    assert [finding.cause for _, finding in record.findings] == ([cause] if cause else [])
    assert record.evidence is not None


def test_the_hang_cause_is_looked_up_by_the_longest_prefix_of_the_open_step(tmp_path: Path) -> None:
    causes = {"": "driver.dlopen.hang", "cu": "driver.count.hang", "cuInit": "driver.cuinit.hang"}
    table = {**TABLE, "driver": stage(6, "driver", hang_causes=causes)}
    for step, cause in (("cuInit(0)", "cuinit"), ("cuDevice", "count"), ("dlopen", "dlopen")):
        directory = tmp_path / cause
        record = Engine(context(), str(directory), table, Children(driver=hang(step))).ensure("driver")
        assert record.findings[0][1].cause == f"driver.{cause}.hang"


def test_an_exception_of_our_own_is_a_record_and_never_a_pass(tmp_path: Path) -> None:
    def broken(_: object) -> Judgement:
        raise ZeroDivisionError("ours")

    table = {**TABLE, "kernel": stage(4, "kernel", judge=broken)}
    gate = Engine(context(), str(tmp_path), table, Children())
    record = gate.ensure("driver")
    assert record.outcome is Outcome.NOT_REACHED
    assert gate.records()["kernel"].outcome is Outcome.PROBE_ERROR
    assert "ZeroDivisionError: ours" in gate.records()["kernel"].summary


@pytest.mark.parametrize(
    ("child", "outcome", "said"),
    [
        (hang("statvfs /nfs"), Outcome.TIMED_OUT, "statvfs /nfs did not return within"),
        (
            result(Ending.EXITED, exit_code=1, stderr="Traceback (most recent call last):\nOSError: gone"),
            Outcome.PROBE_ERROR,
            "OSError: gone",
        ),
    ],
)
def test_a_judgement_that_misses_the_answer_hides_not_how_the_probe_ended(
    tmp_path: Path, child: ChildResult, outcome: Outcome, said: str
) -> None:
    def judge(given: StageInput) -> Judgement:
        return Judgement((), f"{given.observed('kernel')['free']} bytes")

    table = {**TABLE, "kernel": stage(4, "kernel", judge=judge)}
    record = Engine(context(), str(tmp_path), table, Children(kernel=child)).ensure("kernel")
    assert record.outcome is outcome
    assert said in record.summary


def test_a_stage_that_checked_nothing_is_no_pass(tmp_path: Path) -> None:
    table = {**TABLE, "kernel": stage(4, "kernel", judge=lambda _: Judgement((), "all fine"))}
    assert Engine(context(), str(tmp_path), table, Children()).ensure("kernel").outcome is Outcome.PROBE_ERROR


def test_the_deadline_of_a_stage_bounds_its_probes_together(tmp_path: Path) -> None:
    asked: list[float] = []

    def slow(probe: Probe) -> ChildResult:
        asked.append(probe.deadline_s)
        time.sleep(0.2)
        return result()

    def two(_: object, __: object, results: dict[str, ChildResult]) -> tuple[str, Probe] | None:
        return (f"p{len(results)}", Probe("x", {}, {}, 99.0)) if len(results) < 2 else None

    table = {"kernel": stage(4, "kernel", plan=two)}
    Engine(context(deadlines={"kernel": 1.0}), str(tmp_path), table, slow).ensure("kernel")
    assert asked[0] <= 1.0
    assert asked[1] <= asked[0] - 0.2


def test_after_the_deadline_of_the_run_no_stage_begins(tmp_path: Path) -> None:
    children = Children()
    gate = engine(tmp_path, children, run_until=time.time() - 1)
    assert gate.ensure("kernel").outcome is Outcome.NOT_SELECTED
    assert children.ran == []


def test_an_interrupted_stage_is_named(tmp_path: Path) -> None:
    def interrupted(_: Probe) -> ChildResult:
        raise KeyboardInterrupt

    gate = Engine(context(), str(tmp_path), TABLE, interrupted)
    with pytest.raises(KeyboardInterrupt):
        gate.ensure("kernel")
    gate.interrupt("SIGINT")
    assert gate.records()["kernel"].outcome is Outcome.INTERRUPTED
    assert gate.records()["kernel"].summary == "SIGINT"


def test_a_record_that_cannot_be_read_is_no_answer(tmp_path: Path) -> None:
    gate = engine(tmp_path, Children())
    gate.ensure("kernel")
    (tmp_path / "stage-kernel.json").write_text('{"name": "kernel", "outcome": "passed"')
    assert "kernel" not in engine(tmp_path, Children()).records()


def test_the_lock_is_not_waited_for_without_a_limit(tmp_path: Path) -> None:
    ledger, started = Ledger(str(tmp_path)), threading.Event()
    release = threading.Event()

    def hold() -> None:
        with ledger.lock(1.0):
            started.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    started.wait(5)
    try:
        with pytest.raises(LedgerBusyError, match="held by another process"), Ledger(str(tmp_path)).lock(0.1):
            pass
    finally:
        release.set()
        holder.join(5)


def test_steps_of_several_probes_keep_their_names_and_order(tmp_path: Path) -> None:
    def two(_: object, __: object, results: dict[str, ChildResult]) -> tuple[str, Probe] | None:
        return (f"p{len(results)}", Probe("x", {}, {}, 9.0)) if len(results) < 2 else None

    spec: StageSpec = stage(4, "kernel", plan=two)
    record = Engine(
        context(), str(tmp_path), {"kernel": spec}, Children(x=result(steps=(Step("read", 0.0, 0.1),)))
    ).ensure("kernel")
    assert [step.name for step in record.steps] == ["p0: read", "p1: read"]


def test_a_probe_that_the_deadline_of_the_run_cut_off_says_nothing_of_the_host(tmp_path: Path) -> None:
    gate = engine(tmp_path, Children(kernel=hang()), run_until=time.time() + 1)
    assert gate.ensure("kernel").outcome is Outcome.INTERRUPTED


def test_a_run_directory_that_is_full_is_no_answer_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = engine(tmp_path, Children())

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gate.ledger, "write", full)
    record = gate.ensure("kernel")
    assert record.outcome is Outcome.PROBE_ERROR
    assert "No space left on device" in record.summary


def turned(asked: list[str], *, directories: int, deadline_s: float) -> StageSpec:
    """Return a stage with a turn for each of DIRECTORIES, each asked for with DEADLINE_S."""

    def plan(_: object, __: object, results: dict[str, ChildResult]) -> tuple[str, Probe] | None:
        name = f"d{len(results)}"
        return (name, Probe(name, {}, {}, deadline_s)) if len(results) < directories else None

    def judge(given: StageInput) -> Judgement:
        asked.extend(given.results)
        return Judgement((passed("P01"),), "fine")

    return stage(4, "kernel", plan=plan, judge=judge, turns=lambda *_: 2, optional=frozenset(("d0", "d1", "d2")))


def test_a_probe_with_less_than_its_turn_left_is_not_started(tmp_path: Path) -> None:
    asked: list[str] = []

    def slow(_: Probe) -> ChildResult:
        time.sleep(0.6)
        return result()

    table = {"kernel": turned(asked, directories=3, deadline_s=1.0)}
    Engine(context(deadlines={"kernel": 1.0}), str(tmp_path), table, slow).ensure("kernel")
    assert asked == ["d0", "d1"]


def test_a_hang_at_the_probes_own_deadline_is_no_cut_of_the_run(tmp_path: Path) -> None:
    asked: list[str] = []
    table = {"kernel": turned(asked, directories=1, deadline_s=0.5)}
    gate = Engine(context(run_until=time.time() + 30), str(tmp_path), table, Children(d0=hang()))
    assert gate.ensure("kernel").outcome is Outcome.PASSED  # as the judgement says: d0 is optional
    assert asked == ["d0"]
