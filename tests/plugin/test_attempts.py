"""--gpu-wait, --gpu-repeat and --gpu-deadline."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import cast

import pytest

from pytest_gpudiscovery.attempts import Repeats, differences
from pytest_gpudiscovery.model import Outcome, State, Verdict
from pytest_gpudiscovery.reports import wording
from pytest_gpudiscovery.run import Run
from tests import fakes
from tests.plugin.conftest import Runner


def test_wait_asks_until_ready(gate: Runner) -> None:
    ended = gate("--gpu-wait", "60", stages="driver=late")
    assert (ended.code, ended.verdict["verdict"]) == (0, "ready")
    assert ended.ran.count("driver") == 2
    assert "attempt 1: blocked at driver: driver was told to fail" in ended.out
    assert any("ready at attempt 2" in note for note in ended.verdict["notes"])
    assert ended.out.count("06 driver") == 1, "only the attempt that counts is shown in full"


def test_wait_gives_up_when_the_time_is_up(gate: Runner) -> None:
    begin = time.monotonic()
    ended = gate("--gpu-wait", "1.5", "-n", "2", stages="kernel=fail", plugins=("xdist.plugin", "pytest_timeout"))
    assert time.monotonic() - begin < 30
    assert (ended.code, ended.verdict["verdict"]) == (1, "blocked")
    assert 1 <= ended.ran.count("kernel") <= 2


def test_repeat_takes_the_worst_and_says_what_differed(gate: Runner) -> None:
    ended = gate("--gpu-repeat", "3", stages="driver=late")
    assert (ended.code, ended.verdict["verdict"]) == (1, "blocked")
    assert ended.ran.count("driver") == 3
    assert "--gpu-repeat: 3 runs, driver failed, passed, passed" in ended.verdict["notes"][-1]


def test_repeat_of_a_steady_host(gate: Runner) -> None:
    ended = gate("--gpu-repeat", "2", "-q")
    assert ended.code == 0
    assert ended.verdict["notes"][-1] == "--gpu-repeat: 2 runs, all ended alike"
    assert ended.ran.count("runtime") == 2


@pytest.mark.parametrize(
    "arguments",
    [("-k", "test_06"), ("gpu-discovery/test_06_driver.py",), ("test_mine.py",), ("gpu-discovery", "test_mine.py")],
    ids=lambda arguments: arguments[-1],
)
def test_repeat_of_a_part_is_refused(gate: Runner, arguments: tuple[str, ...]) -> None:
    (gate.directory / "test_mine.py").write_text("def test_mine(): pass\n", encoding="utf-8")
    ended = gate("--gpu-repeat", "3", *arguments)
    assert ended.code == 4
    assert ended.err.strip().count("\n") == 0
    assert "--gpu-repeat 3 repeats the whole gate: not together with" in ended.err
    assert (ended.ran, ended.verdict) == ((), {}), "nothing was asked, nothing was written"


def test_repeat_of_what_a_plugin_leaves_is_refused(gate: Runner) -> None:
    text = "def pytest_collection_modifyitems(items):\n    items[:] = [i for i in items if 'driver' in i.nodeid]\n"
    (gate.directory / "dropping.py").write_text(text, encoding="utf-8")
    path = f"{gate.environment()['PYTHONPATH']}:{gate.directory}"
    ended = gate("--gpu-repeat", "3", "-p", "dropping", env={"PYTHONPATH": path})
    assert (ended.code, ended.ran) == (4, ())
    assert "a selection that leaves out stages" in ended.out + ended.err


def test_repeat_ends_at_a_hang(gate: Runner) -> None:
    ended = gate("--gpu-repeat", "4", stages="driver=stuck")
    assert (ended.code, ended.verdict["verdict"]) == (1, "blocked")
    assert ended.ran.count("driver") == 2, "no third child is sent to a driver that hangs"
    assert ended.verdict["notes"][-1].startswith("--gpu-repeat: 2 of 4 runs, driver passed, timed_out")
    assert "the driver probe hung" in ended.verdict["notes"][-1]


def test_wait_ends_at_a_hang(gate: Runner) -> None:
    ended = gate("--gpu-wait", "60", stages="driver=hang")
    assert (ended.code, ended.verdict["verdict"]) == (1, "blocked")
    assert ended.ran.count("driver") == 1
    assert any("the driver probe hung" in note for note in ended.verdict["notes"])


def test_wait_keeps_the_answer_that_was_not_cut_off(gate: Runner) -> None:
    limits = ("--gpu-wait", "60", "--gpu-deadline", "6", "--gpu-stage-timeout", "kernel=60")
    ended = gate(*limits, stages="kernel=worse")
    assert ended.code == 1
    assert "kernel was told to fail" in ended.last
    assert ended.outcomes["kernel"] == "failed", "not timed out, as in the attempt that was cut off"
    assert ended.ran.count("kernel") <= 2


def test_wait_begins_no_attempt_that_cannot_end(gate: Runner) -> None:
    ended = gate("--gpu-wait", "60", "--gpu-deadline", "2.9", stages="kernel=fail")
    assert ended.code == 1
    assert ended.ran.count("kernel") == 1


@dataclasses.dataclass
class Scripted:
    """A run of the gate, as far as Repeats looks at it, whose next ones end with VERDICTS."""

    verdicts: list[Verdict]
    lefts: list[float] = dataclasses.field(default_factory=list)
    started: float = 0.0
    unfinished: str | None = None

    def verdict(self) -> Verdict:
        return self.verdicts[0]

    def apart(self, _: str) -> Scripted:
        return Scripted(self.verdicts[1:], self.lefts[1:])

    def complete(self) -> None:
        """There is nothing to run."""

    def hung(self) -> None:
        return None

    def time_left(self) -> float:
        return self.lefts[0] if self.lefts else math.inf


def repeated(*verdicts: Verdict, left: float = math.inf) -> Verdict:
    """Return what two runs that end with VERDICTS come to, LEFT seconds of the run being left after the second."""
    repeats = Repeats(cast("Run", Scripted(list(verdicts), [math.inf, left])), 2, lambda _: None)
    repeats.go()
    return repeats.verdict(interrupted=False)


def gpu(pci: str, uuid: str) -> dict[str, object]:
    return {"pci": pci, "views": {"cuda": {"uuid": uuid}, "nvml": {"uuid": uuid}}}


def test_runs_that_saw_other_gpus_or_versions_are_degraded() -> None:
    both = dataclasses.replace(EMPTY, gpus=(gpu("0", "GPU-a"), gpu("1", "GPU-b")), versions={"driver": "580"})
    swapped = dataclasses.replace(both, gpus=both.gpus[::-1])
    assert repeated(both, swapped).verdict is State.READY
    one = dataclasses.replace(both, gpus=both.gpus[:1])
    assert repeated(both, one).verdict is State.DEGRADED
    assert repeated(both, one).notes == ("--gpu-repeat: 2 runs, GPUs 0 GPU-a, 1 GPU-b | 0 GPU-a",)
    other = dataclasses.replace(both, gpus=(gpu("0", "GPU-a"), gpu("1", "GPU-c")))
    assert repeated(both, other).verdict is State.DEGRADED
    updated = dataclasses.replace(both, versions={"driver": "590"})
    assert repeated(both, updated).notes == ('--gpu-repeat: 2 runs, version of driver "580", "590"',)
    assert wording.last_line(repeated(both, one), {}, 0).startswith("gpu-discovery: DEGRADED: --gpu-repeat: 2 runs")


def test_a_repeat_that_the_deadline_cuts_off_is_incomplete() -> None:
    blocked = dataclasses.replace(EMPTY, verdict=State.BLOCKED)
    assert repeated(EMPTY, blocked, left=-1.0).verdict is State.INCOMPLETE
    assert repeated(blocked, EMPTY, left=-1.0).verdict is State.BLOCKED, "an answer that was not cut off"


def test_deadline_begins_no_further_stage(gate: Runner) -> None:
    ended = gate("--gpu-deadline", "2", stages="nvml=hang loopback=hang service=hang")
    assert ended.code in (1, 20)
    assert ended.outcomes["runtime"] in ("not_selected", "not_reached")
    assert ended.verdict["duration_s"] < 20


def test_differences_names_every_stage_that_ended_differently() -> None:
    def verdict(**outcomes: Outcome) -> Verdict:
        records = tuple(fakes.record(name, outcome) for name, outcome in outcomes.items())
        return dataclasses.replace(EMPTY, stages=records)

    one = verdict(kernel=Outcome.PASSED, driver=Outcome.PASSED, runtime=Outcome.PASSED)
    two = verdict(kernel=Outcome.PASSED, driver=Outcome.TIMED_OUT, runtime=Outcome.NOT_REACHED)
    assert differences([one, one]) == "--gpu-repeat: 2 runs, all ended alike"
    assert differences([one, two]) == ("--gpu-repeat: 2 runs, driver passed, timed_out; runtime passed, not_reached")


EMPTY = Verdict(
    schema=1,
    tool={},
    started="",
    duration_s=0.0,
    simulated=None,
    selection={},
    host={},
    versions={},
    context={},
    profile={},
    verdict=State.READY,
    blockers=(),
    gpus=(),
    closures=(),
    fatbins=(),
    comparison=None,
    stages=(),
)
