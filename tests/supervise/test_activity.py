"""Slow told from hung: over samples as the kernel writes them, over any samples at all, and over real children."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import syscalls
from pytest_gpudiscovery.supervise import activity, procfs
from pytest_gpudiscovery.supervise.activity import Sample, Thread
from tests.supervise import rigs

NUMBERS = {syscalls.lookup(number).name: number for number in range(500)}
FUTEX, READ, SLEEP, POLL, IOCTL = (NUMBERS[name] for name in ("futex", "read", "clock_nanosleep", "ppoll", "ioctl"))
ASLEEP = Thread(7, "S", 1.0, 0.5, 10, 2, 100, (FUTEX, 1, 2, 3))


def samples(*lives: list[Thread], at: tuple[float, ...] = (22.5, 36.0, 40.5, 45.0), steps: Any = None) -> list[Sample]:
    """Return the samples of a child with these threads, each as it was at each time AT."""
    counts = steps or [3] * len(at)
    return [Sample(moment, counts[index], tuple(life[index] for life in lives)) for index, moment in enumerate(at)]


def life(begin: Thread = ASLEEP, **each: float) -> list[Thread]:
    """Return BEGIN at four times, with EACH number that much more at every one of them."""
    return [
        dataclasses.replace(begin, **{name: getattr(begin, name) + index * more for name, more in each.items()})
        for index in range(4)
    ]


def calls(*numbers: int | None, **each: float) -> list[Thread]:
    """Return a thread that waits in these calls at the four times."""
    return [
        dataclasses.replace(one, call=None if number is None else (number, 5))
        for one, number in zip(life(ASLEEP, **each), numbers, strict=True)
    ]


RUNS = dataclasses.replace(ASLEEP, tid=8, state="R", call=None)
WORKER = life(RUNS, user_s=4.0)


@pytest.mark.parametrize(
    ("lives", "verdict", "since"),
    [
        ([life()], "no progress", 22.5),
        ([life(voluntary=1)], "no progress", 0.0),  # one wait in a sample is no loop, and it did move
        ([life(user_s=0.01)], "no progress", 22.5),
        ([life(RUNS, user_s=0.01)], "starved", 22.5),
        ([life(RUNS, user_s=2.0)], "spinning in user space", 22.5),
        ([life(RUNS, user_s=0.4, system_s=1.6)], "spinning in the kernel", 22.5),
        ([life(RUNS, user_s=0.5)], "spinning in user space", 22.5),  # on a loaded host
        ([life(RUNS, user_s=0.4)], "starved", 22.5),  # on a host that is overloaded
        ([life(RUNS, user_s=2.0, faults=300)], "making progress", 22.5),
        ([calls(SLEEP, SLEEP, SLEEP, SLEEP, voluntary=400)], "polling", 22.5),
        ([calls(SLEEP, SLEEP, None, SLEEP, voluntary=400, user_s=0.2)], "polling", 22.5),
        ([calls(READ, READ, READ, READ, voluntary=400)], "making progress", 22.5),
        ([calls(-1, -1, -1, None, voluntary=50)], "making progress", 22.5),  # page after page of a file
        ([calls(POLL, IOCTL, POLL, POLL, voluntary=9)], "making progress", 22.5),
        ([calls(IOCTL, IOCTL, IOCTL, IOCTL, voluntary=90, system_s=3.0)], "making progress", 22.5),
        ([life(dataclasses.replace(ASLEEP, state="D"))], "no progress", 22.5),
        ([life(dataclasses.replace(ASLEEP, state="T"))], "stopped", 22.5),
        ([life(dataclasses.replace(ASLEEP, state="t"))], "traced", 22.5),
        ([life(), WORKER], "spinning in user space", 22.5),  # it waits for its thread
        ([calls(READ, READ, READ, READ), WORKER], "no progress", 22.5),  # it does not
        ([life(), calls(SLEEP, SLEEP, SLEEP, SLEEP, voluntary=400)], "no progress", 22.5),  # a heartbeat
        ([WORKER, life(dataclasses.replace(ASLEEP, state="D"))], "no progress", 22.5),
    ],
)
def test_verdict(lives: list[list[Thread]], verdict: str, since: float) -> None:
    seen = activity.judge(samples(*[[dataclasses.replace(t, tid=n) for t in one] for n, one in enumerate(lives)]))
    assert (seen["verdict"], seen["since_s"]) == (verdict, since)
    assert seen["pace"] == ("slow" if verdict in ("making progress", "starved") else "hung")
    assert seen["words"].startswith(f"{seen['pace']}: {verdict}")


def test_the_numbers() -> None:
    seen = activity.judge(samples(life(RUNS, user_s=0.25, system_s=1.0, voluntary=1, involuntary=30, faults=2)))
    assert seen == {
        "verdict": "spinning in the kernel",
        "pace": "hung",
        "words": "hung: spinning in the kernel for 22.5 s (0.50 s user and 2.00 s system time, 2 waits, 4 faults in "
        "the last 9.0 s)",
        "since_s": 22.5,
        "window_s": 9.0,
        "user_s": 0.5,
        "system_s": 2.0,
        "voluntary": 2,
        "involuntary": 60,
        "faults": 4,
        "steps": 0,
        "tid": 8,
        "call": None,
    }


@pytest.mark.parametrize(
    ("steps", "verdict", "since"),
    [
        ((3, 3, 4, 4), "making progress", 4.5),
        ((3, 4, 4, 4), "no progress", 9.0),  # long enough ago
        ((3, 3, 3, 4), "making progress", 0.0),
    ],
)
def test_a_step_that_ends_is_progress(steps: tuple[int, ...], verdict: str, since: float) -> None:
    seen = activity.judge(samples(life(), steps=steps))
    assert (seen["verdict"], seen["since_s"]) == (verdict, since)


@pytest.mark.parametrize("seen", [[], samples(life())[:1], [Sample(1.0, 0, ()), Sample(2.0, 0, ())]])
def test_who_was_not_seen_twice_is_not_judged(seen: list[Sample]) -> None:
    assert activity.judge(seen)["verdict"] == "unknown"
    assert activity.judge(samples(life()), tid=99)["verdict"] == "unknown"


def test_one_thread_is_asked_for() -> None:
    assert activity.judge(samples(life(), WORKER), tid=8)["verdict"] == "spinning in user space"
    assert activity.judge(samples(life(), WORKER), tid=7)["verdict"] == "no progress"


THREADS = st.builds(
    Thread,
    st.integers(1, 4),
    st.sampled_from("RSDTtZXI"),
    *[st.floats(0, 1e6)] * 2,
    *[st.integers(0, 2**63)] * 3,
    st.none() | st.lists(st.integers(-2, 2**64), min_size=1, max_size=7).map(tuple),
)
SAMPLES = st.lists(st.builds(Sample, st.floats(0, 1e9), st.integers(0, 99), st.lists(THREADS, max_size=3).map(tuple)))


@settings(deadline=None, max_examples=60)
@given(SAMPLES, st.none() | st.integers(1, 4))
def test_any_samples_have_a_verdict(seen: list[Sample], tid: int | None) -> None:
    said = activity.judge(seen, tid)
    assert said["verdict"] in activity.VERDICTS
    assert said["pace"] in ("slow", "hung", "unknown")
    assert (said["pace"] == "slow") is (said["verdict"] in ("making progress", "starved"))
    assert said.get("since_s", 0) >= 0


@settings(deadline=None, max_examples=40)
@given(THREADS, st.lists(st.floats(0.1, 100), min_size=2, max_size=6))
def test_what_never_changes_is_hung_for_the_whole_time(one: Thread, gaps: list[float]) -> None:
    moments = [sum(gaps[:index]) for index in range(len(gaps))]
    said = activity.judge([Sample(at, 5, (one,)) for at in moments])
    assert said["verdict"] in ("no progress", "starved", "stopped", "traced")
    assert said["since_s"] == pytest.approx(moments[-1] - moments[0], abs=0.001)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.sampled_from(("stat", "status", "syscall")), st.text(max_size=200)))
def test_any_text_is_harmless(texts: dict[str, str]) -> None:
    assert activity.thread(1, texts) is None or "stat" in texts
    activity.judge(activity.of_texts([(1.0, [(1, texts)]), (2.0, [(1, texts)])]))


# Real children, all at once: the window is the same for all of them.

EXPECTED = {
    "nanosleep": ("polling", ("clock_nanosleep", "pselect6", "select")),
    "futex": ("no progress", ("futex",)),
    "flock": ("no progress", ("flock",)),
    "record_lock": ("no progress", ("fcntl",)),
    "poll": ("no progress", ("poll", "ppoll")),
    "epoll": ("no progress", ("epoll_wait", "epoll_pwait")),
    "fifo": ("no progress", ("read",)),
    "data": ("making progress", ("read",)),
    "spin": ("spinning in user space", (None,)),
    "sched_yield": ("spinning in", ()),  # Python's half may outweigh the kernel's
    "zeros": ("spinning in the kernel", ()),
    "new_memory": ("making progress", (None, "page fault", "munmap")),
    "stopped": ("stopped", ()),
    "traced": ("traced", ()),
    "wait4": ("no progress", ("wait4",)),
    "accept": ("no progress", ("accept4", "accept")),
    "connect": ("no progress", ("connect",)),
    "pause": ("no progress", ("pause", "ppoll")),
}
BUSY = ("spin", "sched_yield", "zeros", "new_memory")  # stopped until it is their turn
GONE = procfs.Stat("", "?", 0, 0, 0, 0)
START = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import t_wait
for word in sys.argv[2:]:
    how, _, path = word.partition("=")
    if (pid := os.fork()) == 0:
        t_wait.probe({"how": how, "path": path}, t_wait.Journal(os.open(os.devnull, os.O_WRONLY)))
    if how in ("spin", "sched_yield", "zeros", "new_memory"):
        os.kill(pid, signal.SIGSTOP)
    print(how, pid, flush=True)
print("all", os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Every kind of EXPECTED as a process: {kind: pid}. The locks that two of them wait for are ours."""
    place = tmp_path_factory.mktemp("waits")
    os.mkfifo(place / "fifo")
    with (place / "flock").open("w") as lock, (place / "record_lock").open("w") as record:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.lockf(record, fcntl.LOCK_EX)
        words = [f"{how}={place / how}" for how in EXPECTED]
        parent = subprocess.Popen(
            [sys.executable, "-c", START, str(rigs.PROBES), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert parent.stdout is not None
            found = {}
            for line in parent.stdout:
                how, pid = line.split()
                if how == "all":
                    break
                found[how] = int(pid)
            assert set(found) == set(EXPECTED)
            yield found
        finally:
            os.killpg(parent.pid, signal.SIGKILL)
            parent.communicate()


@pytest.fixture(scope="module")
def judged(children: dict[str, int]) -> dict[str, dict[str, Any]]:
    """What is said of each of them after a window of 0.2 s or more, once those that stop have stopped."""

    def settled() -> bool:
        states = {how: (procfs.stat(pid) or GONE).state for how, pid in children.items()}
        quiet = [how for how, (verdict, _) in EXPECTED.items() if verdict == "no progress"]
        return states["stopped"] == "T" and states["traced"] == "t" and all(states[how] == "S" for how in quiet)

    assert rigs.wait_for(settled)
    time.sleep(0.1)  # who has just begun to wait
    first = {how: activity.sample(pid, time.monotonic(), 0) for how, pid in children.items()}
    time.sleep(0.2)
    said = {}
    for how, pid in children.items():
        if how in BUSY:  # on a loaded machine it has to wait for its turn
            os.kill(pid, signal.SIGCONT)
            computed(pid, 0.05)  # what it has to import
            first[how] = activity.sample(pid, time.monotonic(), 0)
            computed(pid, 0.05)
        said[how] = activity.judge([first[how], activity.sample(pid, time.monotonic(), 0)])
        if how in BUSY:
            os.kill(pid, signal.SIGSTOP)
    return said


def computed(pid: int, seconds: float) -> None:
    """Wait until PID has had SECONDS more of the processor."""

    def cpu() -> float:
        stat = procfs.stat(pid) or GONE
        return (stat.utime + stat.stime) / activity.TICK

    end = cpu() + seconds
    assert rigs.wait_for(lambda: cpu() > end)


@pytest.mark.parametrize("how", EXPECTED)
def test_real_child(how: str, judged: dict[str, dict[str, Any]]) -> None:
    verdict, names = EXPECTED[how]
    assert judged[how]["verdict"].startswith(verdict), judged[how]
    assert not names or judged[how]["call"] in (names if verdict == "no progress" else (None, *names))
