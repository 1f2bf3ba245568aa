"""Every view of a hung child that is missing has its reason."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_gpudiscovery.supervise import unseen

THREAD: dict[str, Any] = {"tid": 7, "state": "S", "syscall": {"name": "poll", "number": 7}, "unread": {}}
LOOK: dict[str, Any] = {
    "fds": {},
    "holders": {"holders": [], "hidden": 0, "cut": False},
    "kernel_log": {"lines": []},
    "libraries": [],
    "stacks": {"7": {"frames": [], "path": None}},
    "py_spy": {"threads": []},
    "errors": {},
}


def snapshot(more: int = 0, **changes: Any) -> dict[str, Any]:
    return {"pid": 7, "threads": [{**THREAD, **changes}], "more_threads": more}


def without(*keys: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**LOOK, **changes}.items() if key not in keys}


def test_nothing_is_missing() -> None:
    assert unseen.reasons(snapshot(), LOOK) == []


@pytest.mark.parametrize(
    ("seen", "look", "what", "why"),
    [
        (snapshot(unread={"stack": "EACCES"}), LOOK, "kernel stack", "EACCES: the kernel shows"),
        (snapshot(unread={"syscall": "EPERM"}), LOOK, "system call", "EPERM: needs the right to trace it"),
        (snapshot(3), LOOK, "3 more threads", "only the first 1 are looked at"),
        ({"pid": 7, "threads": [], "more_threads": 0}, LOOK, "everything", "it was gone"),
        (snapshot(), without("fds", errors={"fds": "Permission denied"}), "open files", "Permission denied"),
        (snapshot(), without("stacks", errors={"memory": "Permission denied"}), "native stack", "Permission denied"),
        (snapshot(), without("stacks", error="caught in 'read memory map'"), "native stack", "caught in 'read"),
        (snapshot(), without("kernel_log", error="caught"), "kernel log", "caught"),
        (snapshot(), {**LOOK, "kernel_log": {"unknown": "EPERM"}}, "kernel log", "EPERM"),
        (snapshot(), without("py_spy"), "Python frames", "py-spy is not installed"),
        (snapshot(), {**LOOK, "py_spy": {"error": "no end"}}, "Python frames", "py-spy: no end"),
        (snapshot(syscall={"name": "futex"}), LOOK, "who holds the futex", "the kernel does not know"),
        (snapshot(), {**LOOK, "holders": {"hidden": 9}}, "open files of 9 other processes", "EACCES"),
        (snapshot(), {**LOOK, "holders": {"cut": True}}, "open files of some other processes", "no time"),
        (snapshot(), {**LOOK, "stacks": {"7": {"error": "did not stop"}}}, "native stack of thread 7", "did not stop"),
    ],
)
def test_a_missing_view_has_a_reason(seen: dict[str, Any], look: dict[str, Any], what: str, why: str) -> None:
    (reason,) = unseen.reasons(seen, look)
    assert reason["what"] == what
    assert why in reason["why"]
