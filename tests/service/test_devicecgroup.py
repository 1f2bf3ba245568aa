"""What a device cgroup allows: the interpreter over programs of every kind, and against the kernel's own decision."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import bpf, devicecgroup
from pytest_gpudiscovery.probes.host import LiveView
from pytest_gpudiscovery.probes.recordedview import RecordedView
from tests.stages import hosts

PROG_LOAD, PROG_ATTACH = 5, 8
ALLOW, DENY = 1, 0
R0, R2, R3, R4, R5 = 0, 2, 3, 4, 5
Rules = list[tuple[int, int | None, int]]  # (major, minor or any, access mask)


def insn(code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, target | source << 4, offset, immediate)


def load_word(target: int, offset: int) -> bytes:
    return insn(0x61, target, 1, offset)


def move(target: int, immediate: int) -> bytes:
    return insn(0xB7, target, 0, 0, immediate)


EXIT = insn(0x95)


def systemd_like(*allowed: tuple[int, int | None, int]) -> bytes:
    """Return a program as systemd writes it (bpf-devices.c): each (major, minor or any, access mask) is let through."""
    program = load_word(R2, 0) + insn(0x54, R2, 0, 0, 0xFFFF)  # device type: r2 = access_type & 0xffff
    program += load_word(R3, 0) + insn(0x74, R3, 0, 0, 16)  # access: r3 = access_type >> 16
    program += load_word(R4, 4) + load_word(R5, 8)  # major, minor
    for major, minor, access in allowed:
        # r3 & ~access == 0 lets through; every mismatch jumps behind the block
        body = insn(0xBF, 1, R3) + insn(0x57, 1, 0, 0, ~access) + insn(0x55, 1, 0, 2, 0) + move(R0, ALLOW) + EXIT
        if minor is not None:
            body = insn(0x55, R5, 0, 5, minor) + body
        length = len(body) // 8
        program += insn(0x55, R2, 0, 1 + length, bpf.CHAR) + insn(0x55, R4, 0, length, major) + body
    return program + move(R0, DENY) + EXIT


@pytest.mark.parametrize(
    ("rules", "node", "expected"),
    [
        ([(195, None, 6)], (195, 0), 1),
        ([(195, None, 6)], (195, 255), 1),
        ([(195, None, 6)], (238, 0), 0),
        ([(195, 255, 6), (238, None, 7)], (195, 0), 0),
        ([(195, 255, 6), (238, None, 7)], (238, 0), 1),
        ([(195, None, 2)], (195, 0), 0),  # read only
        ([], (1, 3), 0),
    ],
)
def test_a_program_as_systemd_writes_it(rules: Rules, node: tuple[int, int], expected: int) -> None:
    assert bpf.run(systemd_like(*rules), *node) == expected


@given(
    rules=st.lists(st.tuples(st.integers(0, 300), st.none() | st.integers(0, 255), st.integers(1, 7)), max_size=5),
    node=st.tuples(st.integers(0, 300), st.integers(0, 255)),
    access=st.integers(1, 7),
)
def test_the_interpreter_decides_as_the_rules_say(rules: Rules, node: tuple[int, int], access: int) -> None:
    expected = any(major == node[0] and minor in (None, node[1]) and access & ~let == 0 for major, minor, let in rules)
    assert bpf.run(systemd_like(*rules), *node, access) == int(expected)


@given(st.binary(max_size=200))
def test_no_program_makes_it_raise_anything_else(program: bytes) -> None:
    try:
        assert bpf.run(program, 195, 0) >= 0
    except bpf.UnknownInstruction:
        pass


@pytest.mark.parametrize(
    "program",
    [
        b"",
        insn(0x85, immediate=1) + EXIT,  # a helper call
        insn(0x05, offset=-1) + EXIT,  # a loop without an end
        insn(0x61, 0, 1, 100) + EXIT,  # outside of the context
        insn(0x05, offset=100) + EXIT,
        insn(0x61, 0, 12) + EXIT,
    ],
)
def test_what_it_does_not_know_is_said(program: bytes) -> None:
    with pytest.raises(bpf.UnknownInstruction):
        bpf.run(program, 195, 0)


@pytest.mark.parametrize(
    ("operation", "left", "right", "wide", "narrow"),
    [
        (0x00, (1 << 64) - 1, 1, 0, 0),
        (0x10, 0, 1, (1 << 64) - 1, (1 << 32) - 1),
        (0x60, 1, 33, 1 << 33, 2),
        (0x70, 1 << 40, 8, 1 << 32, 0),
        (0xC0, 1 << 63, 63, (1 << 64) - 1, 0),
        (0x80, 5, 0, (1 << 64) - 5, (1 << 32) - 5),
        (0xB0, 9, -1, (1 << 64) - 1, (1 << 32) - 1),
    ],
)
def test_arithmetic_wraps(operation: int, left: int, right: int, wide: int, narrow: int) -> None:
    assert bpf._compute(operation, left, right, wide=True) == wide
    assert bpf._compute(operation, left, right, wide=False) == narrow


def test_signed_jumps() -> None:
    assert bpf._jumps(0xC0, (1 << 64) - 1, 0, wide=True)  # -1 < 0
    assert not bpf._jumps(0xC0, (1 << 32) - 1, 0, wide=True)
    assert bpf._jumps(0xC0, (1 << 32) - 1, 0, wide=False)
    assert not bpf._jumps(0xA0, (1 << 64) - 1, 0, wide=True)


# --- the kernel as oracle --------------------------------------------------------------------------------------------


def syscall(command: int, raw: bytes) -> int:
    return bpf._bpf(command, ctypes.create_string_buffer(raw, len(raw)))


def cgroup2() -> str | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return line.split(" ")[4]
    return None


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of this test's own; skips where none can be made."""
    place = cgroup2()
    if os.geteuid() != 0 or place is None:
        pytest.skip("needs root and cgroup v2")
    path = Path(place, f"gpu-discovery-test-{os.getpid()}")
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    yield path
    for pid in (path / "cgroup.procs").read_text().split():
        os.kill(int(pid), 9)
    for _ in range(100):
        try:
            path.rmdir()
            break
        except OSError:
            os.sched_yield()


def attach(program: bytes, directory: Path) -> None:
    code, licence = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"GPL")
    raw = struct.pack("<IIQQ", 15, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence)) + bytes(48)
    try:
        loaded = syscall(PROG_LOAD, raw)
        fd = os.open(directory, os.O_RDONLY)
        syscall(PROG_ATTACH, struct.pack("<IIII", fd, loaded, bpf.ATTACH_DEVICE, 0))
    except OSError as error:
        pytest.skip(f"this kernel takes no device program: {error}")
    os.close(fd)
    os.close(loaded)


OPENS = """
import os, sys
sys.stdin.readline()
answers = []
for path in sys.argv[1:]:
    try:
        os.close(os.open(path, os.O_RDWR))
        answers.append("ok")
    except OSError as error:
        answers.append(error.strerror)
print("\\n".join(answers), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("rules", [[(1, 3, 7)], [(1, None, 6)], [(1, 5, 6), (1, 3, 2)], [(5, None, 7)]])
def test_the_prediction_is_what_the_kernel_does(cgroup: Path, rules: Rules) -> None:
    attach(systemd_like(*rules, (136, None, 7)), cgroup)
    nodes = {"/dev/null": (1, 3), "/dev/zero": (1, 5), "/dev/full": (1, 7)}
    child = subprocess.Popen(
        [sys.executable, "-c", OPENS, *nodes], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        (cgroup / "cgroup.procs").write_text(str(child.pid))
        programs = bpf.device_programs(str(cgroup))
        assert len(programs) == 1
        child.stdin.write("go\n")
        child.stdin.flush()
        really = [child.stdout.readline().strip() for _ in nodes]
        predicted = [bool(bpf.run(programs[0], *number)) for number in nodes.values()]
        assert [answer == "ok" for answer in really] == predicted, really
        assert set(really) <= {"ok", "Operation not permitted"}
        seen = devicecgroup.of_process(LiveView(), child.pid)
        assert "an eBPF program" in seen["by"]
        assert {node["allowed"] for node in seen["nodes"]} == {False}
    finally:
        child.communicate("end\n", timeout=20)


# --- v1 and what cannot be told --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["a *:* rwm"], True),
        (["c 195:* rwm", "c 1:3 rw"], True),
        (["c 195:0 r", "c 195:0 w"], True),
        (["c 195:0 r"], False),
        (["c 195:255 rw"], False),
        (["b 195:0 rwm"], False),
        ([], False),
        (["rubbish", "c 195:0"], False),
    ],
)
def test_the_list_of_v1(rules: list[str], expected: bool) -> None:
    assert devicecgroup.listed(rules, 195, 0) is expected


def test_a_process_in_a_v1_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devicecgroup, "_v2", lambda _: (None, None))
    entries: hosts.Entries = {
        "/proc/7/cgroup": hosts.file("5:devices:/docker/abc\n0::/\n"),
        "/sys/fs/cgroup/devices/docker/abc/devices.list": hosts.file("c 195:* rwm\nc 1:3 rwm\n"),
        "/proc/devices": hosts.file("Character devices:\n195 nvidia\n238 nvidia-uvm\n\nBlock devices:\n"),
        "/dev/nvidia0": hosts.node(195, 0),
        "/dev/nvidia3": hosts.node(195, 3),
    }
    seen = devicecgroup.of_process(RecordedView(entries), 7)
    assert {node["path"]: node["allowed"] for node in seen["nodes"]} == {
        "/dev/nvidiactl": True,
        "/dev/nvidia0": True,
        "/dev/nvidia3": True,
        "/dev/nvidia-uvm": False,
    }
    assert (seen["by"], seen["why"]) == (["/sys/fs/cgroup/devices/docker/abc/devices.list"], None)


def test_what_cannot_be_read_is_open() -> None:
    gone = devicecgroup.of_process(RecordedView({}), 7)
    assert {node["allowed"] for node in gone["nodes"]} == {None}
    assert "cannot be read" in gone["why"]
    outside = devicecgroup.of_process(RecordedView({"/proc/7/cgroup": hosts.file("0::/../other\n")}), 7)
    assert {node["allowed"] for node in outside["nodes"]} == {None}
