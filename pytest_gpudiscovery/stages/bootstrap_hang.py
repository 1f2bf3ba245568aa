"""Why one of Ollama's children did not answer in time: from what was seen of it to one cause. Pure.

The order of decision is that of the protocol: was it executed at all; does it listen; does a connection come about; is
libggml-cuda mapped; and then, what the thread that holds it up does.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.probes.syscalls import lookup
from pytest_gpudiscovery.stages.identity import integer, mapping, objects, sequence, string
from pytest_gpudiscovery.supervise import activity, blocked, evidence, unseen

Facts = Mapping[str, Any]
BACKEND, VARIANT, MLX, JIT = "libggml-cuda", "libggml-cpu", "libmlx", "libnvidia-ptxjitcompiler"
GGML, BASE = "libggml-", "libggml-base"
DRIVER = ("libcuda.", "libnvidia-", "libcudart.", "libcublas", BACKEND, VARIANT, MLX)
LOCKS = ("futex", "futex_waitv", "flock", "fcntl", "semop")
SLEEPS = ("nanosleep", "clock_nanosleep", "poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait", "pause")
RECEIVES = ("recvfrom", "recvmsg", "read", "accept", "accept4", "connect", "rt_sigtimedwait", "wait4", "waitid")
READS = ("read", "pread64", "readv", "mmap", "page fault")
OPENS = ("open", "openat", "openat2", "creat", "unlink", "unlinkat", "mkdir", "statx", "newfstatat")
DEVICES = "/dev/nvidia"
STOPPED = ("T", "t")
CLOCK_END = 1e12  # seconds; a look that says more was not made by our clock


@dataclass(frozen=True)
class Seen:
    """What a look at a stuck child says, in the shapes of supervise/evidence.py and probes/forensics.py."""

    threads: list[dict[str, Any]]
    culprit: dict[str, Any] | None
    close: Facts
    libraries: list[str]
    frames: list[str]  # base names of the libraries on the culprit's stack, innermost first
    activity: dict[str, Any]  # of the culprit: activity.judge's

    @property
    def blocked_in(self) -> str:
        """One line on where the culprit is."""
        return blocked.describe({"threads": [self.culprit] if self.culprit else []}, self.close)

    @property
    def syscall(self) -> str:
        """The name of the system call that the culprit is in, "running" for none, "" where it could not be read."""
        call = (self.culprit or {}).get("syscall")
        return str(call.get("name")) if isinstance(call, dict) else str(call or "")

    @property
    def target(self) -> str:
        """What the culprit's system call works on."""
        call = (self.culprit or {}).get("syscall")
        if not isinstance(call, dict):
            return ""
        argument = lookup(call["number"]).fd_argument
        arguments = call["args"]
        if argument is None or argument >= len(arguments):
            return ""
        return str(mapping(self.close.get("fds")).get(str(arguments[argument]), ""))


def read(stuck: Facts) -> Seen:
    """Return STUCK (probes/stuck.py, with `first`) in a form to decide on; any part may be missing or of any type."""
    close = mapping(stuck.get("close"))
    threads = _threads(mapping(stuck.get("threads")))
    stacks = mapping(close.get("stacks"))
    libraries = [str(path) for path in sequence(close.get("libraries"))]
    frames = {thread["tid"]: _libraries(mapping(stacks.get(str(thread["tid"])))) for thread in threads}
    culprit = _culprit(threads, frames)
    close = {**close, "fds": mapping(close.get("fds")), "stacks": _sound(stacks)}
    mine = frames[culprit["tid"]] if culprit else []
    return Seen(threads, culprit, close, libraries, mine, _activity(stuck, culprit))


def _threads(sample: Facts) -> list[dict[str, Any]]:
    unread = {integer(entry.get("tid")): mapping(entry.get("unread")) for entry in objects(sample.get("threads"))}
    return [
        {"tid": tid, **evidence.thread(texts), "unread": {str(name): str(why) for name, why in unread[tid].items()}}
        for tid, texts in _texts(sample)
    ]


def _texts(sample: Facts) -> list[tuple[int, dict[str, str]]]:
    found = []
    for entry in objects(sample.get("threads")):
        tid = integer(entry.get("tid"))
        if tid is not None:
            found.append((tid, {key: value for key, value in entry.items() if isinstance(value, str)}))
    return found


def _libraries(stack: Facts) -> list[str]:
    named = (posixpath.basename(str(frame.get("library"))) for frame in objects(stack.get("frames")))
    return [name for name in dict.fromkeys(named) if ".so" in name and not blocked.PLUMBING.fullmatch(name)]


def _sound(stacks: Facts) -> dict[str, Any]:
    return {
        str(tid): {
            "frames": [
                {**frame, "offset": integer(frame.get("offset")) or 0}
                for frame in objects(mapping(stack).get("frames"))
            ],
            "path": string(mapping(stack).get("path")),
        }
        for tid, stack in stacks.items()
    }


def _culprit(threads: list[dict[str, Any]], frames: Mapping[int, Sequence[str]]) -> dict[str, Any] | None:
    """Return the thread that holds the others up: a Go program has a dozen that only wait for work."""
    if not threads:
        return None
    ours = [thread for thread in threads if any(name.startswith(DRIVER) for name in frames[thread["tid"]])]
    foreign = [thread for thread in threads if frames[thread["tid"]]]
    uninterruptible = [thread for thread in threads if thread["state"] == "D"]
    return next((group[0] for group in (uninterruptible, ours, foreign) if group), threads[0])


def _activity(stuck: Facts, culprit: dict[str, Any] | None) -> dict[str, Any]:
    if culprit is None:
        return activity.judge([])
    looks = [mapping(stuck.get(key)) for key in ("first", "threads")]
    timed = [(at, look) for look in looks if isinstance(at := look.get("at"), (int, float)) and 0 <= at < CLOCK_END]
    return activity.judge(activity.of_texts((at, _texts(look)) for at, look in timed), culprit["tid"])


def shown(run: Facts, facts: Facts) -> dict[str, Any]:
    """Return what a finding on a child that hangs carries as evidence; FACTS are `cause`'s."""
    stuck = mapping(run.get("stuck"))
    if not stuck:
        return {"blocked_in": facts.get("blocked_in")}
    seen = read(stuck)
    more = integer(mapping(stuck.get("threads")).get("more")) or 0
    snapshot = {"threads": seen.threads, "more_threads": more}
    known = {
        "blocked_in": seen.blocked_in,
        "activity": seen.activity,
        "goroutines": mapping(run.get("goroutines")),
        "holders": sequence(mapping(seen.close.get("holders")).get("holders")),
        "kernel_log": sequence(mapping(seen.close.get("kernel_log")).get("lines")),
        "unseen": unseen.reasons(snapshot, {"py_spy": {}, **seen.close}),  # no Python in it
    }
    return {name: value for name, value in known.items() if value}


def parts(run: Facts) -> list[Facts]:
    """Return the processes of RUN: the runner itself, or the three of era C."""
    mine = [mapping(run.get(key)) for key in ("start", "list", "native")]
    return [part for part in (run, *mine) if part]


def unsafe(run: Facts) -> bool:
    """Whether no further child may touch the driver after RUN: it does not die, or was in the driver's kernel half."""
    if run.get("dead") is False:
        return True
    if not run.get("stuck"):
        return False
    seen = read(mapping(run.get("stuck")))
    return any(thread["state"] == "D" for thread in seen.threads) or DEVICES in seen.target


def cause(run: Facts, binary: str, preloaded: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return (cause, facts) of a child that was still asked when its time was over; PRELOADED: base names."""
    stuck = mapping(run.get("stuck"))
    seen = read(stuck)
    names = dict.fromkeys((*seen.frames, *map(posixpath.basename, seen.libraries)))
    facts = {
        "blocked_in": seen.blocked_in,
        "activity": seen.activity["words"],
        "judged": seen.activity,
        "call": seen.syscall or "unknown",
        "target": seen.target or "a descriptor",
        "on": f" on {seen.target}" if seen.target else "",
        "libraries": [name for name in names if name.startswith(DRIVER)],
        "port": run.get("port"),
        "exe": string(seen.close.get("exe")) or "unknown",
    }
    return _where(run, stuck, seen, binary, preloaded, facts), facts


def _where(run: Facts, stuck: Facts, seen: Seen, binary: str, preloaded: Sequence[str], facts: dict[str, Any]) -> str:
    exe = string(seen.close.get("exe"))
    if exe is not None and posixpath.basename(exe).removesuffix(" (deleted)") != posixpath.basename(binary):
        return "exec"
    if any(thread["state"] in STOPPED for thread in seen.threads):
        return "stopped"
    if any("gdb" in str(child.get("name")) for child in objects(stuck.get("children"))):
        return "debugger"
    if stuck.get("stranger") is True:
        return "port"
    if stuck.get("listens") is False:
        return _before_listening(seen, preloaded, facts)
    if stuck.get("listens") is True and run.get("connected") is None:
        return "loopback"
    mapped = [posixpath.basename(path) for path in seen.libraries]
    if stuck.get("listens") is None and any(name in seen.frames for name in preloaded):
        return _before_listening(seen, preloaded, facts)  # llama-server, which nobody asks over a port
    if seen.libraries and not any(name.startswith(BACKEND) for name in mapped):
        return _before_backend(seen, mapped, facts, asked=stuck.get("listens") is True)
    return _in_backend(seen)


def _before_listening(seen: Seen, preloaded: Sequence[str], facts: dict[str, Any]) -> str:
    mapped = [posixpath.basename(path) for path in seen.libraries]
    mlx = next((name for name in (*seen.frames, *mapped) if name.startswith(MLX)), None)
    theirs = [name for name in preloaded if name in seen.frames] or [name for name in preloaded if name in mapped]
    if theirs and (mlx is None or theirs[0] in seen.frames):
        facts["object"] = theirs[0]
        return "preload"
    if mlx is not None:
        facts["object"] = mlx
        return "mlx"
    return "start"


def _before_backend(seen: Seen, mapped: Sequence[str], facts: dict[str, Any], *, asked: bool) -> str:
    other = next((name for name in seen.frames if name.startswith(GGML)), None)
    if other is not None and not other.startswith((VARIANT, BACKEND, BASE)):
        facts["object"] = other  # libggml-hip, libggml-vulkan: what lies deeper on the stack called it or is stale
        return "backend"
    variant = next((name for name in (*seen.frames, *mapped) if name.startswith(VARIANT)), None)
    if variant is not None and (variant in seen.frames or (seen.culprit or {}).get("state") != "D"):
        facts["object"] = variant
        return "variant"
    mlx = next((name for name in seen.frames if name.startswith(MLX)), None)
    if mlx is not None and not asked:  # `ollama gpu-discover` initialises it as every ollama process does
        facts["object"] = mlx
        return "mlx"
    if seen.syscall in OPENS and variant is None:
        return "tmpdir"
    if not asked:
        return "early"
    waits = (seen.culprit or {}).get("state") == "D" or seen.syscall in (*READS, *OPENS)
    return "storage" if waits else "mute"


def _in_backend(seen: Seen) -> str:
    if any(name.startswith(JIT) for name in seen.frames):
        return "jit"
    if (seen.culprit or {}).get("state") == "D":
        return "storage" if seen.syscall == "page fault" else "driver"
    if DEVICES in seen.target:
        return "ioctl"
    if seen.activity["pace"] == activity.SLOW:
        return "slow"
    if seen.syscall == "running" or seen.activity["verdict"] in (activity.USER, activity.KERNEL):
        return "spin"
    if seen.syscall in LOCKS:
        return "lock"
    return "wait" if seen.syscall in (*SLEEPS, *RECEIVES) else "unknown"
