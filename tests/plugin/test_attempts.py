"""--gpu-wait, --gpu-repeat and --gpu-deadline."""

from __future__ import annotations

import dataclasses
import time

from pytest_gpudiscovery.attempts import differences
from pytest_gpudiscovery.model import Outcome, State, Verdict
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
