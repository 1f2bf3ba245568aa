"""Who holds what a process waits for, and the kernel log around it: fed texts, and this machine's own."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import holders, kmsg
from tests.supervise import rigs

LOCKS = """\
1: POSIX  ADVISORY  WRITE 1200 fd:01:1835 1073741824 1073742335
2: FLOCK  ADVISORY  WRITE 812 fd:01:99 0 EOF
2: -> FLOCK  ADVISORY  WRITE 4711 fd:01:99 0 EOF
2:  -> FLOCK  ADVISORY  WRITE 4712 fd:01:99 0 EOF
3: OFDLCK ADVISORY  WRITE -1 fd:01:7 0 EOF
3: -> POSIX  ADVISORY  WRITE 4713 fd:01:7 0 EOF
4: FLOCK  ADVISORY  READ 0 fd:01:8 0 EOF
4: -> FLOCK  ADVISORY  WRITE 4714 fd:01:8 0 EOF
"""


@pytest.mark.parametrize(
    ("pid", "owners"), [(4711, [812]), (4712, [812]), (4713, [None]), (4714, [None]), (812, []), (5, [])]
)
def test_blockers(pid: int, owners: list[int | None]) -> None:
    assert holders.blockers(LOCKS, pid) == owners


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="0123456789:->FLOCK \n", max_size=200) | st.text(max_size=100), st.integers())
def test_any_text_of_locks_is_harmless(text: str, pid: int) -> None:
    assert all(owner is None or owner > 0 for owner in holders.blockers(text, pid))


@pytest.fixture
def waiting(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[int, str]]:
    """A process that waits as the parameter says, and the file that it waits for."""
    how, path = request.param, str(tmp_path / "file")
    os.mkfifo(path) if how == "fifo" else Path(path).touch()
    script = f"import sys; sys.path.insert(0, {str(rigs.PROBES)!r}); import t_wait; t_wait.{how}({path!r}, None)"
    with open(path, "r+" if how != "fifo" else "rb+", buffering=0 if how == "fifo" else -1) as held:
        if how != "fifo":
            (fcntl.lockf if how == "record_lock" else fcntl.flock)(held, fcntl.LOCK_EX)
        child = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
        try:
            wanted = {"record_lock": "fcntl_setlk", "flock": "lock", "fifo": "pipe_read", "wait4": "do_wait"}[how]
            assert rigs.wait_for(lambda: wanted in Path(f"/proc/{child.pid}/wchan").read_text())
            yield child.pid, path
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait(10)


def look(pid: int) -> list[dict[str, object]]:
    fds = {name: os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    return list(holders.look(pid, [pid], fds)["holders"])


@pytest.mark.parametrize(
    ("waiting", "kind"), [("flock", "lock"), ("record_lock", "lock")], indirect=["waiting"], ids=str
)
def test_the_holder_of_a_lock(waiting: tuple[int, str], kind: str) -> None:
    pid, path = waiting
    (holder,) = look(pid)
    assert holder == {"kind": kind, "what": path, "pid": os.getpid(), "name": holder["name"]}
    assert holder["name"]


@pytest.mark.parametrize("waiting", ["fifo"], indirect=True)
def test_a_fifo_that_nobody_else_has_open(waiting: tuple[int, str]) -> None:
    pid, path = waiting
    assert look(pid) == [{"kind": "pipe", "what": path, "pid": None, "name": ""}]  # the test itself is the looker


@pytest.mark.parametrize("waiting", ["wait4"], indirect=True)
def test_the_child_that_is_waited_for(waiting: tuple[int, str]) -> None:
    (holder,) = look(waiting[0])
    assert holder["kind"] == "child"
    assert Path(f"/proc/{holder['pid']}/stat").read_text().split()[3] == str(waiting[0])


def test_who_else_has_a_node_of_the_driver_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "nvidia0"
    node.touch()
    monkeypatch.setattr(holders, "NODE", str(tmp_path / "nvidia"))
    with node.open() as file:
        other = subprocess.Popen(["/bin/sleep", "60"], stdin=file)
        monkeypatch.setattr(holders, "SCAN_S", 30.0)
        try:
            seen = holders.look(2**22 + 1, [], {"3": str(node), "4": "/dev/null"})
        finally:
            other.kill()
            other.wait(10)
    assert {"kind": "gpu", "what": str(node), "pid": other.pid, "name": "sleep"} in seen["holders"]
    assert seen["cut"] is False


def test_nobody_is_looked_for_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "_scan", None)
    assert holders.look(os.getpid(), [os.getpid()], {"0": "/dev/null"}) == {"holders": [], "hidden": 0, "cut": False}


# The kernel log.

RECORD = "6,1{n},{us},-;{text}\n SUBSYSTEM=pci\n"
XID = "NVRM: Xid (PCI:0000:06:00): 119, pid=812, name=python3, Timeout after 45s of waiting for RPC response from GPU0"


def test_a_record_and_a_line() -> None:
    assert kmsg.parse_record(RECORD.format(n=7, us=5140900, text=XID)) == (5.1409, XID)
    assert kmsg.parse_line(f"<3>[  812.000001] {XID}") == (812.000001, XID)
    assert kmsg.parse_line(f"<3>[  812.000001][  T17] {XID}") == (812.000001, XID)


def test_lines_about_the_hang_are_kept_and_bounded() -> None:
    oom = "python3 invoked oom-killer: gfp_mask=0xcc0"
    hung = "INFO: task python3:812 blocked for more than 120 seconds."
    lines = [(10.0, XID), (100.0, "usb 1-1: new device"), (101.0, hung), (102.0, oom), (103.0, XID), None]
    assert kmsg.select(lines, 50.0) == [f"[101.000000] {hung}", f"[102.000000] {oom}", f"[103.000000] {XID}"]
    many = kmsg.select([(float(n), XID * 9) for n in range(99)], 0.0)
    assert len(many) == kmsg.KEPT
    assert many[-1].startswith("[98.000000]")
    assert max(map(len, many)) < kmsg.LENGTH + 20


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=200) | st.text(alphabet="0123456789,.;-<>[] Xid", max_size=80))
def test_any_text_of_the_log_is_harmless(text: str) -> None:
    kmsg.select([kmsg.parse_record(text), kmsg.parse_line(text)], 0.0)


def test_this_machines_log_or_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = kmsg.read(0.0)
    assert set(seen) in ({"unknown"}, {"lines", "source", "since_s", "now_s"})

    def refuse() -> list[str]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kmsg, "records", refuse)
    monkeypatch.setattr(kmsg, "syslog", refuse)
    assert kmsg.read(0.0) == {"unknown": "/dev/kmsg: Operation not permitted; syslog(2): Operation not permitted"}
    monkeypatch.setattr(kmsg, "syslog", lambda: f"<3>[  9999999999.5] {XID}\n<3>[1.5] {XID}")
    seen = kmsg.read(0.0)
    assert (seen["source"], seen["lines"]) == ("syslog(2)", [f"[9999999999.500000] {XID}"])
