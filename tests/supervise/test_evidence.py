"""Reading and naming what a hung task shows, with texts as the kernel writes them."""

from __future__ import annotations

import os
import platform
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import syscalls
from pytest_gpudiscovery.supervise import activity, blocked, evidence, procfs

STAT = (
    "4242 (a) b (c) D 17 4242 4242 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 3 0 98765 10000 200 18446744073709551615 "
    "1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0\n"
)
STATUS = "Name:\tpython\nState:\tD (disk sleep)\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n"
STACK = "[<0>] rwsem_down_read_slowpath+0x1a0/0x3c0\n[<0>] down_read+0x43/0xa0\n[<0>] nvidia_ioctl+0x12/0x90 [nvidia]\n"
SYSCALL = "16 0x7 0xc00846d6 0x7ffd0000 0x0 0x0 0x0 0x7ffd17b18538 0x7f5932c9a2ad\n"


def test_stat_with_brackets_in_the_name() -> None:
    assert procfs.parse_stat(STAT) == procfs.Stat("a) b (c", "D", 4242, 150, 50, 98765, 4)


def test_thread() -> None:
    ioctl = 16 if platform.machine() == "x86_64" else 29
    texts = {
        "stat": STAT,
        "status": STATUS,
        "wchan": "0",
        "syscall": SYSCALL.replace("16", str(ioctl), 1),
        "stack": STACK,
    }
    assert evidence.thread(texts) == {
        "name": "a) b (c",
        "state": "D",
        "wchan": None,
        "syscall": {
            "name": "ioctl",
            "number": ioctl,
            "args": [7, 0xC00846D6, 0x7FFD0000, 0, 0, 0],
            "sp": 0x7FFD17B18538,
            "pc": 0x7F5932C9A2AD,
        },
        "stack": ["rwsem_down_read_slowpath", "down_read", "nvidia_ioctl"],
        "cpu_s": 200 / activity.TICK,
        "voluntary": 12,
        "involuntary": 3,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("running\n", "running"),
        ("-1 0x7ffe 0x7f00\n", {"number": -1, "args": [], "sp": 0x7FFE, "pc": 0x7F00}),
        ("", None),
        ("0\n", None),
        ("x y z\n", None),
    ],
)
def test_syscall(text: str, value: Any) -> None:
    assert procfs.parse_syscall(text) == value


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_harmless(text: str) -> None:
    seen = evidence.thread(dict.fromkeys(("stat", "status", "wchan", "syscall", "stack"), text))
    blocked.describe({"threads": [{"tid": 1, **seen}]}, {})


@settings(deadline=None)
@given(st.text(alphabet="0123456789abcdefx -()SDR\n:+[<>]", max_size=300))
def test_almost_proc_is_harmless(text: str) -> None:
    seen = evidence.thread(dict.fromkeys(("stat", "status", "wchan", "syscall", "stack"), text))
    blocked.describe({"threads": [{"tid": 1, **seen}]}, {})


def test_snapshot_of_ourselves() -> None:
    seen = evidence.snapshot(os.getpid())
    main = seen["threads"][0]
    assert main["tid"] == os.getpid()
    assert main["state"] == "R"
    assert main["syscall"] is not None
    assert "syscall" not in main["unread"]


def test_snapshot_in_exec_leaves_out_what_waits_for_it() -> None:
    main = evidence.snapshot(os.getpid(), in_exec=True)["threads"][0]
    assert main["state"] == "R"
    assert main["syscall"] is None
    assert main["stack"] == []


def test_snapshot_of_nobody() -> None:
    assert evidence.snapshot(2**22 + 1) == {"pid": 2**22 + 1, "threads": [], "more_threads": 0}
    assert procfs.stat(2**22 + 1) is None
    assert procfs.descendants(2**22 + 1) == []


def thread(tid: int = 1, state: str = "S", **facts: Any) -> dict[str, Any]:
    return {"tid": tid, "state": state, "wchan": None, "syscall": None, "stack": [], **facts}


def call(name: str, *args: int) -> dict[str, Any]:
    number = next(number for number in range(500) if syscalls.lookup(number).name == name)
    return {"name": name, "number": number, "args": list(args), "sp": 1, "pc": 1}


def frame(library: str, symbol: str | None, offset: int = 0x12) -> dict[str, Any]:
    return {"library": library, "symbol": symbol, "offset": offset, "estimate": True}


PLUMBING = (
    "libc.so.6",
    "libpthread.so.0",
    "ld-linux-x86-64.so.2",
    "libffi.so.8.1.2",
    "libpython3.11.so.1.0",
    "python3.11",
    "python",
    "_ctypes.cpython-311-x86_64-linux-gnu.so",
    "[vdso]",
)
LIBCUDA = "/usr/lib/x86_64-linux-gnu/libcuda.so.580.159.04"


@pytest.mark.parametrize(
    ("threads", "forensics", "line"),
    [
        (
            [thread(1, "D", syscall=call("ioctl", 7), wchan="rwsem_down_read_slowpath")],
            {
                "fds": {"7": "/dev/nvidiactl"},
                "stacks": {"1": {"frames": [frame("/lib/libc.so.6", "ioctl"), frame(LIBCUDA, "cuInit")], "path": None}},
            },
            "ioctl on /dev/nvidiactl < cuInit (libcuda.so.580.159.04); state D, wchan rwsem_down_read_slowpath",
        ),
        (
            [thread(1, "S", syscall=call("futex")), thread(2, "D", syscall=call("openat", 0, 0), stack=["nv_open"])],
            {"stacks": {"2": {"frames": [frame(LIBCUDA, None), frame(LIBCUDA, None)], "path": "/dev/nvidia0"}}},
            "openat of /dev/nvidia0 < libcuda.so.580.159.04+0x12; state D, kernel nv_open",
        ),
        ([thread(1, "R", syscall="running")], {}, "running; state R"),
        ([thread(1, "S")], {}, "a call that could not be read; state S"),
        ([thread(1, "S", syscall=call("read", 3))], {"error": "caught"}, "read on descriptor 3; state S"),
        ([thread(1, "S", syscall={"name": "syscall 999", "number": 999, "args": []})], {}, "syscall 999; state S"),
        (
            [thread(1, "S", syscall=call("flock", 3))],
            {
                "fds": {"3": "/tmp/vgpulock/lock"},
                "holders": {"holders": [{"kind": "lock", "what": "/tmp/vgpulock/lock", "pid": 812, "name": "python3"}]},
            },
            "flock on /tmp/vgpulock/lock, lock held by PID 812 (python3); state S",
        ),
        (
            [thread(1, "S", syscall=call("read", 3))],
            {"holders": {"holders": [{"kind": "pipe", "what": "pipe:[7]", "pid": None, "name": ""}]}},
            "read on descriptor 3, other end at nobody else; state S",
        ),
        (  # who holds the GPU is evidence; what this thread waits for is something else
            [thread(1, "S", syscall=call("futex"))],
            {"holders": {"holders": [{"kind": "gpu", "what": "/dev/nvidia0", "pid": 9, "name": "ollama"}]}},
            "futex; state S",
        ),
        (
            [thread(1, "t", syscall=call("futex"))],
            {"holders": {"holders": [{"kind": "tracer", "pid": 9, "name": "gdb"}, {"kind": "lock", "pid": 1}]}},
            "futex, traced by PID 9 (gdb); state t",
        ),
        ([thread(1, "S", syscall=call("wait4"))], {"holders": {"holders": [7, None]}}, "wait4; state S"),
        ([thread(1, "S", syscall=call("wait4"))], {"holders": [1]}, "wait4; state S"),
        ([], {}, "gone before it could be looked at"),
        (
            [thread(1, "S", syscall=call("futex"))],
            {"stacks": {"1": {"frames": [frame(f"/x/{name}", "f") for name in PLUMBING], "path": None}}},
            "futex; state S",
        ),
    ],
)
def test_blocked_in(threads: list[dict[str, Any]], forensics: dict[str, Any], line: str) -> None:
    assert blocked.describe({"threads": threads}, forensics) == line


@pytest.mark.parametrize("library", ["libcuda.so.1", "libcudart.so.12", "libnvidia-ml.so.1", "libcrypto.so.3"])
def test_driver_libraries_are_never_plumbing(library: str) -> None:
    assert not blocked.PLUMBING.fullmatch(library)


@pytest.mark.parametrize(
    ("machine", "number", "name"),
    [("x86_64", 16, "ioctl"), ("aarch64", 29, "ioctl"), ("x86_64", 257, "openat"), ("aarch64", 56, "openat")],
)
def test_syscall_names(machine: str, number: int, name: str) -> None:
    assert syscalls.lookup(number, machine).name == name


def test_unknown_syscalls_have_a_name() -> None:
    assert syscalls.lookup(4321).name == "syscall 4321"
    assert syscalls.lookup(16, "riscv64").name == "syscall 16"
