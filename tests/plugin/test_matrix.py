"""Whatever pytest selects, reorders or distributes, and whatever becomes of the driver: the right verdict and code."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable

import pytest

from tests.plugin.conftest import Ended, Runner

STATES = {"ready": "", "failed": "driver=fail", "hung": "driver=hang", "crashed": "driver=crash"}
STATES["unkillable"] = "driver=unkillable"
OUTCOMES = {"failed": "failed", "hung": "timed_out", "crashed": "crashed", "unkillable": "unkillable"}
XDIST = ("pytest_timeout", "xdist.plugin")
RUNTIME = "gpu-discovery/test_08_runtime.py::test_the_runtime_answers"


def last_failed(run: Runner, stages: str) -> Ended:
    """Run with --lf after a run in which only a runtime item failed."""
    cache = run.directory / ".pytest_cache" / "v" / "cache"
    cache.mkdir(parents=True)
    (cache / "lastfailed").write_text(json.dumps({RUNTIME: True}), encoding="utf-8")
    return run("--lf", stages=stages)


def plain(*arguments: str, plugins: tuple[str, ...] = ("pytest_timeout",), crash: str = "") -> Callable[..., Ended]:
    """Return a run with ARGUMENTS."""

    def start(run: Runner, stages: str) -> Ended:
        return run(*arguments, stages=stages, plugins=plugins, env={"FAKE_CRASH": crash})

    return start


ASKING = {  # selections that ask for every required stage
    "plain": plain(),
    "stop at first": plain("-x"),
    "keyword": plain("-k", "the_runtime_answers"),
    "last failed": last_failed,
    "node id": plain(RUNTIME),
    "deselect": plain("--deselect", "gpu-discovery/test_06_driver.py"),
    "randomly": plain(plugins=("pytest_timeout", "pytest_randomly")),
    "random order": plain("--random-order", plugins=("pytest_timeout", "random_order.plugin")),
    "load": plain("-n", "3", plugins=XDIST),
    "worksteal": plain("-n", "3", "--dist", "worksteal", plugins=XDIST),
    "worker crash": plain("-n", "2", plugins=XDIST, crash="kernel"),
}
NOT_ASKING = {  # selections that leave a required stage out
    "nothing": plain("-k", "no_such_item"),
    "early stages": plain("-k", "test_01_package or test_04_kernel"),
}
RUNS = {
    f"{state}-{selection}": functools.partial(run, stages=stages)
    for state, stages in STATES.items()
    for selection, run in {**ASKING, **NOT_ASKING}.items()
}


@pytest.mark.parametrize("name", RUNS)
def test_verdict_and_exit_code(name: str, ahead: Callable[[str], Ended]) -> None:
    ended = ahead(name)
    state, _, selection = name.partition("-")
    assert "Traceback" not in ended.out + ended.err
    assert max(Counter(ended.ran).values(), default=0) <= 1, "a probe was started twice"
    if selection in NOT_ASKING:
        assert (ended.code, ended.verdict["verdict"]) == (20, "incomplete")
        assert ended.outcomes["runtime"] == "not_selected"
    elif state == "ready":
        assert (ended.code, ended.verdict["verdict"]) == (0, "ready")
        assert ended.outcomes["runtime"] == "passed"
    else:
        assert (ended.code, ended.verdict["verdict"]) == (1, "blocked")
        assert ended.outcomes["driver"] == OUTCOMES[state]
        assert ended.outcomes["runtime"] == "not_reached"
        assert ended.verdict["blockers"][0]["stage"] == "driver"
        assert "runtime" in ended.verdict["blockers"][0]["explains"]
        assert "BLOCKED at 06 driver" in ended.last
    assert ended.last.endswith(f"(exit {ended.code})")


@pytest.mark.parametrize("name", [name for name in RUNS if name.endswith("-worker crash")])
def test_a_crashed_worker_is_said(name: str, ahead: Callable[[str], Ended]) -> None:
    ended = ahead(name)
    assert any("crashed while running" in note for note in ended.verdict["notes"])
    assert ended.outcomes["kernel"] == "passed"
