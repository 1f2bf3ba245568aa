"""Hangs in user space: each ends in time, says where it was, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.supervise import forensics
from pytest_gpudiscovery.supervise.child import EVIDENCE_S, KILL_WAIT_S, run
from pytest_gpudiscovery.supervise.types import ChildResult, Ending
from tests.supervise import rigs

DEADLINE_S = 1.5
SLEEPS = ("clock_nanosleep", "pselect6", "select")  # what time.sleep calls; Python 3.10 selects


def hang(how: str, **request: Any) -> ChildResult:
    began = time.monotonic()
    result = run(rigs.probe("t_hang", DEADLINE_S, how=how, **request), extra=rigs.PROBES)
    took = time.monotonic() - began
    assert DEADLINE_S <= took < DEADLINE_S + EVIDENCE_S + KILL_WAIT_S
    assert result.ending is Ending.TIMED_OUT
    assert result.answer is None
    assert result.pid is not None
    assert not rigs.alive(result.pid)
    return result


@pytest.mark.parametrize("hold_gil", [False, True])
@pytest.mark.parametrize(
    ("how", "call", "state", "activity"),
    [
        ("hang_sleep", "clock_nanosleep", "S", "no progress"),
        ("hang_futex", "futex", "S", "no progress"),
        ("hang_spin", "running", "R", "spinning in user space"),
    ],
)
def test_native_hang(how: str, call: str, state: str, activity: str, hold_gil: bool, hang_library: str) -> None:
    result = hang(how, lib=hang_library, hold_gil=hold_gil)
    assert result.open_step is not None
    assert result.open_step.name == f"{how}()"
    blocked_in = result.evidence["blocked_in"]
    assert blocked_in.startswith(f"{call} < ")
    assert f"{how} (libhang.so.1)" in blocked_in
    assert f"; state {state}" in blocked_in
    # On an overloaded machine who spins may hardly get to run.
    assert result.evidence["activity"]["verdict"] in (activity, "starved" if state == "R" else activity)
    assert f"line {_line('getattr(library, how)()')} in probe" in result.stderr  # the child's own faulthandler
    assert "error" not in result.evidence["forensics"]


def _line(text: str) -> int:
    source = (rigs.PROBES / "t_hang.py").read_text().splitlines()
    return next(number for number, line in enumerate(source, 1) if text in line)


def test_every_signal_blocked() -> None:
    result = hang("signals")
    assert re.match(rf"({'|'.join(SLEEPS)}); state S", result.evidence["blocked_in"])


def test_system_call_names_its_descriptor() -> None:
    result = hang("read a pipe")
    assert result.evidence["blocked_in"].startswith("read on pipe:[")


def test_the_holder_of_a_lock_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = run(rigs.probe("t_wait", DEADLINE_S, how="flock", path=str(path)), extra=rigs.PROBES)
    assert result.evidence["blocked_in"].startswith(f"flock on {path}, lock held by PID {os.getpid()} (")
    assert result.evidence["activity"]["words"].startswith("hung: no progress for at least ")


def test_a_child_that_works_is_slow_and_not_hung() -> None:
    result = run(rigs.probe("t_wait", DEADLINE_S, how="steps"), extra=rigs.PROBES)
    assert result.ending is Ending.TIMED_OUT
    assert result.evidence["activity"]["pace"] == "slow"


def test_polling_is_told_from_sleeping() -> None:
    activity = hang("polling").evidence["activity"]
    assert activity["verdict"] == "polling"
    assert activity["pace"] == "hung"
    assert activity["voluntary"] >= 3


def test_grandchild_in_another_session_is_killed() -> None:
    result = hang("grandchild")
    daemon = result.observed["daemon"]
    assert any(f"PID {daemon} " in note and note.endswith("killed") for note in result.notes)
    assert rigs.wait_for(lambda: not rigs.alive(daemon))


@pytest.mark.parametrize("how", ["daemon", "tidy daemon", "daemon and crash"])
def test_daemon_of_an_ended_child_is_killed_without_waiting_for_it(how: str) -> None:
    result = run(rigs.probe("t_hang", 60.0, how=how), extra=rigs.PROBES)
    assert result.ending is (Ending.SIGNALLED if "crash" in how else Ending.ANSWERED)
    daemon = result.observed["daemon"]
    assert any(str(daemon) in note and note.endswith("killed") for note in result.notes)
    assert rigs.wait_for(lambda: not rigs.alive(daemon))
    assert result.duration_s < 20


def test_evidence_has_its_documented_shape() -> None:
    evidence = hang("signals").evidence
    assert set(evidence) == {"at_deadline", "activity", "forensics", "blocked_in", "unseen", "deadline_s"}
    assert evidence["at_deadline"]["more_threads"] == 0
    main = evidence["at_deadline"]["threads"][0]
    assert main["tid"] == evidence["at_deadline"]["pid"]
    assert main["syscall"]["name"] in SLEEPS
    seen = evidence["forensics"]
    assert {"fds", "holders", "kernel_log", "libraries", "stacks", "errors", "duration_s"} <= set(seen)
    assert seen["fds"]["0"].startswith("pipe:")
    assert any("libc" in path for path in seen["libraries"])
    assert seen["duration_s"] < forensics.DEADLINE_S + 1


@pytest.mark.skipif(shutil.which("py-spy") is None and forensics.py_spy() is None, reason="py-spy is not installed")
def test_py_spy_adds_python_frames(hang_library: str) -> None:
    (thread, *_) = hang("hang_sleep", lib=hang_library).evidence["forensics"]["py_spy"]["threads"]
    frames = " ".join(thread["frames"])
    assert "hang_sleep (libhang.so.1)" in frames
    assert "t_hang.py" in frames


def test_missing_py_spy_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forensics, "py_spy", lambda: None)
    seen = hang("signals").evidence["forensics"]
    assert "py_spy" not in seen
    assert "error" not in seen


@pytest.mark.parametrize("program", ["/nonexistent/py-spy", "/bin/false", "/bin/echo", "/usr/bin/yes"])
def test_broken_py_spy_is_an_answer(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forensics, "py_spy", lambda: program)
    seen = hang("signals").evidence["forensics"]
    assert set(seen["py_spy"]) == {"error"}
    assert seen["stacks"]


def test_preloaded_library_that_hangs_before_the_probe_begins(tmp_path: Path) -> None:
    try:
        library = rigs.library(tmp_path, rigs.PRELOAD, "libpreload.so")
    except rigs.Unavailable as why:
        pytest.skip(str(why))
    probe = dataclasses.replace(rigs.probe("t_echo", DEADLINE_S), env={"LD_PRELOAD": library})
    result = run(probe, extra=rigs.PROBES)
    assert result.ending is Ending.TIMED_OUT
    assert result.steps == ()
    assert result.notes == ("the probe's own code was not reached",)
    assert "libpreload.so" in result.evidence["blocked_in"]
    assert "error" not in result.evidence["forensics"]  # which gets an environment of its own
