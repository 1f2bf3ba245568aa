"""State D: SIGKILL does not end it, and some of it catches whoever looks too closely. Needs root."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_gpudiscovery.probes import holders
from pytest_gpudiscovery.supervise import activity, evidence, reaper
from pytest_gpudiscovery.supervise.child import EVIDENCE_S, KILL_WAIT_S, run
from pytest_gpudiscovery.supervise.types import ChildResult, Ending
from tests.supervise import rigs

DEADLINE_S = 1.0
PROMISE_S = DEADLINE_S + EVIDENCE_S + KILL_WAIT_S
SLACK_S = 1.0  # of a loaded machine, for what is promised of an idle one


def hang(how: str, path: Path) -> ChildResult:
    began = time.monotonic()
    result = run(rigs.probe("t_hang", DEADLINE_S, how=how, path=str(path)), extra=rigs.PROBES)
    assert time.monotonic() - began < PROMISE_S + SLACK_S
    assert result.pid is not None
    return result


def test_frozen_file_system(frozen: Path) -> None:
    result = hang("create", frozen / "x")
    assert result.ending is Ending.UNKILLABLE
    assert f"PID {result.pid} outlived SIGKILL and was abandoned" in result.notes
    assert result.evidence["blocked_in"].startswith(f"openat of {frozen / 'x'}; state D, wchan ")
    assert result.evidence["activity"]["verdict"] == "no progress"
    assert "percpu_rwsem_wait" in result.evidence["at_deadline"]["threads"][0]["stack"]
    assert result.evidence["after_sigkill"]["threads"][0]["state"] == "D"
    assert result.evidence["forensics"]["stacks"]  # the stack scan does not stop the task, so D is no obstacle
    assert result.pid in reaper.reap()


def test_abandoned_child_is_reaped_once_it_can_end(frozen: Path) -> None:
    result = hang("create", frozen / "x")
    assert result.pid in reaper.reap()
    subprocess.run(["fsfreeze", "-u", frozen.parent], check=True)
    try:
        assert rigs.wait_for(lambda: result.pid not in reaper.reap())
        assert not rigs.alive(result.pid or 0)
    finally:
        subprocess.run(["fsfreeze", "-f", frozen.parent], check=True)  # as the rig left it


def test_lookup_that_is_never_answered(silent_lookup: Path) -> None:
    result = hang("stat", silent_lookup)
    assert result.ending is Ending.UNKILLABLE
    assert f" of {silent_lookup}; state " in result.evidence["blocked_in"]
    assert result.evidence["after_sigkill"]["threads"][0]["state"] == "D"


def test_working_directory_that_is_never_answered(silent_lookup: Path) -> None:
    began = time.monotonic()
    result = run(rigs.probe("t_echo", DEADLINE_S, cwd=str(silent_lookup)), extra=rigs.PROBES)
    assert time.monotonic() - began < PROMISE_S + SLACK_S
    assert result.ending is Ending.UNKILLABLE
    assert result.open_step is not None
    assert result.open_step.name == f"chdir {silent_lookup}"


def test_locked_memory_map_catches_the_forensics_and_not_us(
    silent_write: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = hang("mmap", silent_write)
    assert result.ending is Ending.UNKILLABLE
    main = result.evidence["at_deadline"]["threads"][0]
    assert (main["state"], main["syscall"]["name"]) == ("D", "mmap")
    assert result.evidence["blocked_in"].startswith("mmap; state D, wchan ")
    seen = result.evidence["forensics"]
    assert seen["error"].startswith("caught in 'read memory map'")
    assert str(silent_write) in seen["fds"].values()  # what could be said before it was caught
    assert "stacks" not in seen
    assert {"holders", "kernel_log"} <= set(seen)
    assert {"memory map", "native stack"} <= {one["what"] for one in result.evidence["unseen"]}

    # The proof that the rig is what it claims to be: reading the map of this process never ends.
    reader = subprocess.Popen(["cat", f"/proc/{result.pid}/maps"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        assert reader.poll() is None
    finally:
        reader.kill()
        reaper.abandon(reader.pid)
        reader.returncode = 0

    # What the supervisor itself reads of it, it reads at once; nor is caught who looks at the files of every process.
    began = time.monotonic()
    evidence.snapshot(result.pid or 0)
    activity.sample(result.pid or 0, began, 0)
    assert time.monotonic() - began < 1.0
    monkeypatch.setattr(holders, "NODE", str(silent_write))
    seen = holders.look(os.getpid(), [], {"9": str(silent_write)})
    assert result.pid in [holder["pid"] for holder in seen["holders"]]


def test_interpreter_exits_although_a_child_cannot(frozen: Path) -> None:
    script = f"""
from tests.supervise import rigs
from pytest_gpudiscovery.supervise.child import run
print(run(rigs.probe("t_hang", 0.5, how="create", path={str(frozen / "x")!r}), extra=rigs.PROBES).ending.value)
"""
    began = time.monotonic()
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "unkillable\n"
    assert done.stderr == ""
    assert time.monotonic() - began < 0.5 + EVIDENCE_S + KILL_WAIT_S + 5
