"""Slow or hung: what the threads of a child did while its last seconds ran out, from three files of /proc. Pure.

A sample holds of each thread its state, CPU time, context switches, page faults and system call (stat, status,
syscall: reading them never waits for the task). Between two samples a thread

* makes progress: a step of the journal began or ended; a call that moves data came back; it waits in different calls
  by turns; it computes and touches new memory, or computes and waits by turns,
* spins in user space or in the kernel: it uses the processor and nothing of the above shows (a long computation in
  memory that it has already looks the same),
* polls: it waits again and again in one call, for something that does not come,
* makes no progress: same call, no CPU time, no switch,
* is starved: it could run all the time, and hardly got a processor,
* is stopped (state T) or traced (state t).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.probes.syscalls import lookup
from pytest_gpudiscovery.supervise import procfs

PROGRESS, NO_PROGRESS, POLLING = "making progress", "no progress", "polling"
USER, KERNEL = "spinning in user space", "spinning in the kernel"
STARVED, STOPPED, TRACED, UNKNOWN = "starved", "stopped", "traced", "unknown"
VERDICTS = (PROGRESS, STARVED, USER, KERNEL, POLLING, NO_PROGRESS, STOPPED, TRACED, UNKNOWN)
SLOW, HUNG = "slow", "hung"

# Shares of the deadline at which samples are taken, beside the one at its end. What happened is read from the last
# WINDOW of them: the child's own traceback (spawn.TRACEBACK_AT) comes before. The others say since when nothing moves.
SAMPLES_AT = (0.25, 0.5, 0.8, 0.9)
WINDOW = 3
IDLE_CPU = 0.02  # CPU seconds a second
STARVED_CPU = 0.1  # likewise: who could run all the time and got less says nothing of what it does
MIXED_CPU = 0.25  # likewise: who waits as well and computes this much works through something
IDLE_SWITCHES = 3  # voluntary ones in the window; whoever works through a queue of the driver makes hundreds
NEW_PAGES = 64  # page faults in the window of a thread that computes: it goes through memory that is new to it
TICK = os.sysconf("SC_CLK_TCK")
WAITS_FOR_OTHERS = ("futex", "futex_waitv", "restart_syscall")  # of the same process: pthread_join is one
MOVES = (
    *("read", "pread64", "readv", "preadv", "preadv2", "write", "pwrite64", "writev", "pwritev", "pwritev2", "splice"),
    *("recvfrom", "recvmsg", "recvmmsg", "sendto", "sendmsg", "sendmmsg", "copy_file_range", "getdents64", "fsync"),
    "page fault",
)


@dataclass(frozen=True)
class Thread:
    """One thread as it was; times in seconds. `call`: number and arguments of the system call that it waits in."""

    tid: int
    state: str
    user_s: float
    system_s: float
    voluntary: int
    involuntary: int
    faults: int
    call: tuple[int, ...] | None  # None: it runs, or the file could not be read


@dataclass(frozen=True)
class Sample:
    """A process as it was."""

    at: float  # time.monotonic()
    steps: int  # started and ended in its journal
    threads: tuple[Thread, ...]


def thread(tid: int, texts: Mapping[str, str]) -> Thread | None:
    """Return what the TEXTS of stat, status and syscall say of one thread, None when it was gone."""
    stat = procfs.parse_stat(texts.get("stat", ""))
    if stat is None:
        return None
    switches, call = procfs.parse_status(texts.get("status", "")), procfs.parse_syscall(texts.get("syscall", ""))
    return Thread(
        tid,
        stat.state,
        stat.utime / TICK,
        stat.stime / TICK,
        switches.get("voluntary", 0),
        switches.get("involuntary", 0),
        stat.faults,
        (call["number"], *call["args"]) if isinstance(call, dict) else None,
    )


def sample(pid: int, at: float, steps: int, *, in_exec: bool = False) -> Sample:
    """Return PID as it is AT; STEPS comes from its journal. IN_EXEC leaves out syscall, which waits for an execve."""
    files = ("stat", "status") if in_exec else ("stat", "status", "syscall")
    seen = (
        thread(tid, {name: procfs.read(f"/proc/{pid}/task/{tid}/{name}")[0] for name in files})
        for tid in procfs.tasks(pid)[: procfs.THREADS]
    )
    return Sample(at, steps, tuple(one for one in seen if one is not None))


def judge(samples: Sequence[Sample], tid: int | None = None) -> dict[str, Any]:
    """Return {"verdict", "pace", "words", "since_s", ...}: what happened over SAMPLES, oldest first, and the numbers.

    TID asks for one thread; else the one that holds the others up is judged. `pace` is "slow", "hung" or "unknown";
    `since_s` says for how long at least nothing has moved.
    """
    window = samples[-WINDOW:]
    window_s = max(window[-1].at - window[0].at, 1e-6) if window else 0.0
    lives = _lives(window) if len(window) > 1 else {}
    if tid is not None:
        lives = {tid: lives[tid]} if tid in lives else {}
    if not lives:
        return {"verdict": UNKNOWN, "pace": UNKNOWN, "words": "not known: it was not seen twice"}
    kinds = {one: _kind(life, window_s) for one, life in lives.items()}
    chosen = _chosen(lives, kinds)
    steps = window[-1].steps - window[0].steps
    kind = PROGRESS if steps > 0 else kinds[chosen]
    first, last = lives[chosen][0], lives[chosen][-1]
    seen = {
        "verdict": kind,
        "pace": SLOW if kind in (PROGRESS, STARVED) else HUNG,
        "since_s": round(_since(samples, chosen, kind), 3),
        "window_s": round(window_s, 3),
        "user_s": round(max(0.0, last.user_s - first.user_s), 3),
        "system_s": round(max(0.0, last.system_s - first.system_s), 3),
        "voluntary": max(0, last.voluntary - first.voluntary),
        "involuntary": max(0, last.involuntary - first.involuntary),
        "faults": max(0, last.faults - first.faults),
        "steps": max(0, steps),
        "tid": chosen,
        "call": _name(last),
    }
    return {**seen, "words": _words(seen)}


def _lives(window: Sequence[Sample]) -> dict[int, list[Thread]]:
    """Return of each thread that is in the first and in the last sample what each sample saw of it."""
    first = {one.tid for one in window[0].threads}
    lives: dict[int, list[Thread]] = {one.tid: [] for one in window[-1].threads if one.tid in first}
    for seen in window:
        for one in seen.threads:
            if one.tid in lives:
                lives[one.tid].append(one)
    return lives


def _kind(life: Sequence[Thread], window_s: float) -> str:
    first, last = life[0], life[-1]
    for letter, name in (("T", STOPPED), ("t", TRACED)):
        if last.state == letter and life[-2].state == letter:
            return name
    user, system = last.user_s - first.user_s, last.system_s - first.system_s
    cpu = (user + system) / window_s
    calls = {one.call[0] for one in life if one.call is not None}
    if last.voluntary - first.voluntary >= IDLE_SWITCHES:
        moves = any(_call(number) in MOVES for number in calls)
        return PROGRESS if moves or len(calls) > 1 or cpu >= MIXED_CPU else POLLING
    if cpu < STARVED_CPU and all(one.state == "R" for one in life):
        return STARVED
    if cpu < IDLE_CPU:
        return NO_PROGRESS
    if last.faults - first.faults >= NEW_PAGES:
        return PROGRESS
    return KERNEL if system > user else USER


def _chosen(lives: Mapping[int, Sequence[Thread]], kinds: Mapping[int, str]) -> int:
    """Return the thread to speak of: one in state D, else the main one, or whom that one waits for.

    What other threads do beside it (a library's heartbeat) says nothing of the call that has not come back.
    """
    main = next(iter(lives))
    uninterruptible = [tid for tid, life in lives.items() if life[-1].state == "D"]
    if uninterruptible:
        return uninterruptible[0]
    if kinds[main] == NO_PROGRESS and _name(lives[main][-1]) in WAITS_FOR_OTHERS:
        return next((tid for kind in (PROGRESS, USER, KERNEL) for tid in lives if kinds[tid] == kind), main)
    return main


def _since(samples: Sequence[Sample], tid: int, kind: str) -> float:
    """Return for how many seconds no step ended, and, of a thread that sleeps, nothing else moved either."""
    last = samples[-1]
    now = next(one for one in last.threads if one.tid == tid)
    at = last.at
    for earlier in reversed(samples[:-1]):
        then = next((one for one in earlier.threads if one.tid == tid), None)
        if then is None or earlier.steps != last.steps:
            break
        if kind in (NO_PROGRESS, STOPPED, TRACED) and (then.voluntary, then.call) != (now.voluntary, now.call):
            break
        at = earlier.at
    return max(0.0, last.at - at)


def _call(number: int) -> str:
    return "page fault" if number == -1 else lookup(number).name


def _name(one: Thread) -> str | None:
    return None if one.call is None else _call(one.call[0])


def _words(seen: Mapping[str, Any]) -> str:
    """Return "hung: no progress for at least 33.8 s (0.00 s of CPU time, 0 waits)"."""
    cpu = f"{seen['user_s'] + seen['system_s']:.2f} s of CPU time"
    if seen["verdict"] in (USER, KERNEL):
        cpu = f"{seen['user_s']:.2f} s user and {seen['system_s']:.2f} s system time"
    numbers = [cpu, f"{seen['voluntary']} waits", *(f"{seen[key]} {key}" for key in ("steps", "faults") if seen[key])]
    last = f" in the last {seen['window_s']:.1f} s"
    what = {
        PROGRESS: "making progress",
        NO_PROGRESS: f"no progress for at least {seen['since_s']:.1f} s",
        POLLING: f"polling in {seen['call'] or 'one call'}, no step ended for {seen['since_s']:.1f} s",
    }.get(seen["verdict"], f"{seen['verdict']} for {seen['since_s']:.1f} s")
    return f"{seen['pace']}: {what} ({', '.join(numbers)}{last})"


def of_texts(samples: Iterable[tuple[float, Iterable[tuple[int, Mapping[str, str]]]]]) -> list[Sample]:
    """Return samples from (seconds, [(tid, texts of /proc)]): what a probe saw of a child of its own."""
    found = []
    for at, threads in samples:
        seen = (thread(tid, texts) for tid, texts in threads)
        found.append(Sample(at, 0, tuple(one for one in seen if one is not None)))
    return found
