"""The parsers of the look-only probes: what real systems write, and anything else."""

from __future__ import annotations

import base64
import ctypes.util
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import facts, libraries, mounts, procdriver, processes
from pytest_gpudiscovery.probes.host import LiveView
from pytest_gpudiscovery.probes.journal import Journal
from pytest_gpudiscovery.probes.recordedview import RecordedView
from tests.stages import hosts

OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (root@h)\nGCC version: 13\n"
CLOSED = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version:  gcc 11\n"
)
OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82  Wed Oct 27 21:21:55 UTC 2021\n"


@pytest.mark.parametrize(
    ("text", "version", "is_open"),
    [(OPEN, "580.159.04", True), (CLOSED, "535.183.01", False), (OLD, "470.82", False), ("", None, None)],
)
def test_the_modules_version_line(text: str, version: str | None, is_open: bool | None) -> None:
    assert procdriver.parse_version(text) == {"version": version, "open": is_open}


@given(text=st.text())
def test_no_text_breaks_the_procfs_parsers(text: str) -> None:
    assert set(procdriver.parse_version(text)) == {"version", "open"}
    assert all(isinstance(major, int) for major in procdriver.parse_devices(text))
    assert isinstance(facts.pairs(text), dict)
    assert facts.number(text) is None or facts.number(text) == int(text)
    mount = mounts.covering_mount(text, "/dev/nvidia0")
    assert mount is None or "options" in mount


def test_the_character_devices_of_this_kernel() -> None:
    found = procdriver.parse_devices(Path("/proc/devices").read_text(encoding="ascii"))
    assert "mem" in found[1]
    block = Path("/proc/devices").read_text(encoding="ascii").partition("Block devices:")[2].split()
    assert all(name not in names for names in found.values() for name in block if name == "loop")


def test_the_mount_of_a_path_is_the_deepest_and_the_last() -> None:
    table = (
        "22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
        "30 22 0:30 / /dev rw,nosuid,nodev - tmpfs tmpfs rw,mode=755\n"
        "31 30 0:6 /nvidia0 /dev/nvidia0 rw,noexec - devtmpfs udev rw\n"
        "32 22 0:33 / /srv/with\\040blank ro,noexec master:2 propagate_from:1 - xfs /dev/vdb rw\n"
        "33 22 0:34 / /srv rw - nfs4 server:/ ro,vers=4\n"
        "34 22 0:35 / /srv rw,noexec - tmpfs none rw\n"
    )
    assert (mounts.covering_mount(table, "/dev/nvidiactl") or {})["options"] == ["mode=755", "nodev", "nosuid", "rw"]
    assert (mounts.covering_mount(table, "/dev/nvidia0") or {})["options"] == ["noexec", "rw"]
    assert (mounts.covering_mount(table, "/srv/with blank/x") or {})["type"] == "xfs"
    assert (mounts.covering_mount(table, "/srv/x") or {})["type"] == "tmpfs"
    assert (mounts.covering_mount(table, "/srvx") or {})["point"] == "/"


def test_this_process_has_a_root_mount() -> None:
    mount = mounts.mount_options(LiveView(), "/")
    assert mount is not None
    assert mount["point"] == "/"


STAT = b"4242 (a (b) c) D 1 4242 4242 0 -1 4194560 9 0 0 0 11 22 0 0 20 0 1 0 987654 1000 10 18446744073709551615 0"


def test_a_process_name_may_hold_brackets_and_blanks() -> None:
    assert processes.parse_stat(STAT) == {
        "comm": "a (b) c",
        "state": "D",
        "started": 987654,
        "ran": 33,
        "kernel": False,
    }
    own = processes.parse_stat(Path("/proc/self/stat").read_bytes())
    assert own is not None
    assert own["state"] == "R"


@given(data=st.binary() | st.binary().map(lambda tail: b"1 (x) " + tail))
def test_no_stat_line_raises(data: bytes) -> None:
    found = processes.parse_stat(data)
    assert found is None or set(found) == {"comm", "state", "started", "ran", "kernel"}


def test_a_library_that_is_mounted_under_its_soname_has_the_version_of_its_file() -> None:
    place = "/.singularity.d/libs"
    mount = f"90 22 8:1 /usr/lib/libcuda.so.580.159.04 {place}/libcuda.so.1 ro,nosuid - ext4 /dev/sda1 rw\n"
    entries = {
        f"{place}/libcuda.so.1": hosts.file(size=96_000_000),
        "/proc/self/mountinfo": hosts.file("22 1 0:21 / / rw - overlay overlay rw\n" + mount),
    }
    found = libraries.find(RecordedView(entries), "libcuda.so.1", {"LD_LIBRARY_PATH": place})
    assert found is not None
    assert found["version"] == "580.159.04"
    entries["/proc/self/mountinfo"] = hosts.file("22 1 0:21 / / rw - overlay overlay rw\n")
    found = libraries.find(RecordedView(entries), "libcuda.so.1", {"LD_LIBRARY_PATH": place})
    assert found is not None
    assert found["version"] is None


def stuck_host(ran: int = 22, switches: int = 7) -> RecordedView:
    """Return a host on which one of two threads of process 4242 sleeps in D and holds the GPU's node."""
    stat = STAT.decode().replace(" 11 22 ", f" 11 {ran} ")
    asleep = stat.replace(") D ", ") S ")
    entries: hosts.Entries = {
        "/proc/4242/stat": hosts.file(asleep),
        "/proc/4242/fd/3": {"type": "link", "target": "/dev/nvidia0"},
        "/proc/4242/fd/4": {"type": "link", "target": "socket:[1]"},
        "/proc/4242/task/4242/stat": hosts.file(asleep),
        "/proc/4242/task/4243/stat": hosts.file(stat),
        "/proc/4242/task/4243/status": hosts.file(
            f"Name:\ta\nvoluntary_ctxt_switches:\t{switches}\nnonvoluntary_ctxt_switches:\t0\n"
        ),
        "/proc/4242/task/4243/wchan": hosts.file("rwsem_down_read_slowpath"),
        "/proc/1/stat": hosts.file(stat),  # in D as well, but its open files are hidden
        "/proc/1/fd": {"type": "error", "errno": "EACCES"},
        "/proc/2/stat": hosts.file(stat.replace("4194560", "2129984")),  # a kernel thread
        "/proc/2/fd": {"type": "error", "errno": "EACCES"},
        "/proc/self": {"type": "link", "target": "4242"},
    }
    return RecordedView(entries)


def test_a_stuck_thread_is_found_with_the_node_that_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "open_view", lambda _: stuck_host())
    monkeypatch.setattr(processes, "SAMPLES_S", 0.0)
    with open(os.devnull, "wb") as sink:
        answer = processes.probe({"view": {}}, Journal(sink.fileno()))
    assert answer["holders"] == [{"pid": 4242, "comm": "a (b) c", "nodes": ["/dev/nvidia0"]}]
    assert [(task["tid"], task["wchan"]) for task in answer["stuck"]] == [(4243, "rwsem_down_read_slowpath")]
    assert answer["hidden"] == 1


@pytest.mark.parametrize("later", [(23, 7), (22, 8)], ids=["used CPU time", "was switched to for less than a tick"])
def test_a_thread_that_ran_meanwhile_is_not_stuck(monkeypatch: pytest.MonkeyPatch, later: tuple[int, int]) -> None:
    views = iter([stuck_host(), stuck_host(*later)])
    looks: list[Any] = []

    def sleeping(view: Any, holders: Any) -> Any:
        looks.append(view)
        return look(next(views), holders)

    look = processes.sleeping
    monkeypatch.setattr(processes, "open_view", lambda _: stuck_host())
    monkeypatch.setattr(processes, "sleeping", sleeping)
    monkeypatch.setattr(processes, "SAMPLES_S", 0.0)
    with open(os.devnull, "wb") as sink:
        answer = processes.probe({"view": {}}, Journal(sink.fileno()))
    assert len(looks) == 2
    assert answer["stuck"] == []


def cache(entries: list[tuple[str, str, int, int]]) -> bytes:
    """Return an ld.so.cache of ENTRIES (soname, path, flags, hwcap) as glibc 2.34 writes it."""
    strings, table = b"", b""
    start = 48 + 24 * len(entries)
    for name, path, flags, hwcap in entries:
        key = start + len(strings)
        strings += name.encode() + b"\0"
        value = start + len(strings)
        strings += path.encode() + b"\0"
        table += struct.pack("<iIIIQ", flags, key, value, 0, hwcap)
    header = libraries.CACHE_MAGIC + struct.pack("<IIB3xI12x", len(entries), len(strings), 2, 0)
    return header + table + strings


def test_the_cache_gives_the_native_entry_of_a_name() -> None:
    data = cache(
        [
            ("libcuda.so.1", "/usr/lib/i386-linux-gnu/libcuda.so.1", 0x0003, 0),
            ("libcuda.so.1", "/opt/v3/libcuda.so.1", 0x0303, 1 << 62),
            ("libcuda.so.1", "/usr/lib/x86_64-linux-gnu/libcuda.so.1", 0x0303, 0),
            ("libcuda.so.1", "/usr/local/lib/libcuda.so.1", 0x0303, 0),
        ]
    )
    assert libraries.parse_cache(data, "x86_64") == {"libcuda.so.1": "/usr/lib/x86_64-linux-gnu/libcuda.so.1"}
    old = b"ld.so-1.7.0\0" + bytes(4)  # the format before it, which newer files may begin with
    assert libraries.parse_cache(old + data, "x86_64") == {"libcuda.so.1": "/usr/lib/x86_64-linux-gnu/libcuda.so.1"}


@given(data=st.binary(max_size=400), cut=st.integers(0, 300))
def test_no_cache_raises(data: bytes, cut: int) -> None:
    libraries.parse_cache(data, "x86_64")
    whole = cache([("libcuda.so.1", "/lib/libcuda.so.1", 0x0303, 0)] * 3)
    libraries.parse_cache(whole[:cut] + data + whole[cut:], "x86_64")


def test_the_cache_of_this_machine_agrees_with_ldconfig() -> None:
    path = Path(libraries.CACHE)
    if not path.exists() or os.uname().machine not in libraries.MACHINES:
        pytest.skip("no ld.so.cache of a known machine")
    found = libraries.parse_cache(path.read_bytes(), os.uname().machine)
    printed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, timeout=30, check=True).stdout
    native: dict[str, str] = {}
    for line in printed.splitlines()[1:]:
        name, _, rest = line.strip().partition(" ")
        kind, _, file = rest.partition(" => ")
        if kind.startswith("(libc6,x86-64") and "hwcap" not in kind:
            native.setdefault(name, file)
    assert native
    assert {name: found.get(name) for name in native} == native


def test_the_search_finds_what_ld_so_finds() -> None:
    name = ctypes.util.find_library("c")
    assert name is not None
    found = libraries.find(LiveView(), name, {})
    assert found is not None
    loaded = next(
        line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(f"/{name}")
    )
    assert os.path.realpath(found["path"]) == os.path.realpath(loaded)


def test_the_library_path_comes_before_the_cache_and_a_foreign_file_is_passed_over() -> None:
    elf32 = b"\x7fELF\x01\x01\x01" + bytes(57)
    entries: hosts.Entries = {
        **hosts.library("/usr/lib/x86_64-linux-gnu", "libcuda.so"),
        **hosts.library("/opt/driver", "libcuda.so", "550.54.14"),
        "/opt/lib32/libcuda.so.1": {
            "type": "file",
            "mode": 0o644,
            "b64": base64.b64encode(elf32).decode(),
        },
    }
    view = RecordedView(entries)
    env = {"LD_LIBRARY_PATH": "/opt/lib32:/nowhere;/opt/driver:$ORIGIN/x"}
    found = libraries.find(view, "libcuda.so.1", env) or {}
    assert (found["rule"], found["version"]) == ("LD_LIBRARY_PATH", "550.54.14")
    found = libraries.find(view, "libcuda.so.1", {}) or {}
    assert (found["rule"], found["version"]) == ("default", hosts.VERSION)
    assert libraries.find(RecordedView({}), "libcuda.so.1", {}) is None


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/usr/lib/libcuda.so.580.159.04", "580.159.04"),
        ("/usr/lib/libcuda.so.470.82", "470.82"),
        ("/usr/lib/libcuda.so.1", None),
        ("/usr/lib/wsl/lib/libcuda.so.1.1", None),
        ("/usr/lib/libcuda.so", None),
        ("/x/libcudart.so.13.0.96", "13.0.96"),
        ("", None),
    ],
)
def test_the_version_in_a_file_name(path: str, version: str | None) -> None:
    assert libraries.version_in_name(path) == version


@pytest.mark.parametrize(
    ("value", "directories"),
    [("", []), ("/a:/b;/c/", ["/a", "/b", "/c"]), (":/a", [".", "/a"]), ("/a:$ORIGIN/b:/", ["/a", "/"])],
)
def test_the_elements_of_a_library_path(value: str, directories: list[str]) -> None:
    assert libraries.library_path(value) == directories


def test_a_real_library_is_whole_and_a_cut_one_is_not(tmp_path: Path) -> None:
    source = next(Path("/lib").glob("*/libc.so.6")).resolve()
    whole = libraries.elf(LiveView(), str(source))
    assert (whole["class"], whole["type"]) == (64, 3)
    assert whole["needs"] <= whole["size"]
    for part in (0.9, 0.5, 0.01):
        cut = tmp_path / "cut.so"
        cut.write_bytes(source.read_bytes()[: int(source.stat().st_size * part)])
        short = libraries.elf(LiveView(), str(cut))
        assert short["needs"] > short["size"], part


@given(data=st.binary(max_size=200) | st.binary(max_size=4096).map(lambda tail: b"\x7fELF\x02\x01\x01" + tail))
def test_no_header_raises(data: bytes) -> None:
    found = libraries.parse_elf(data)
    assert "problem" in found or found["class"] in (32, 64)


def test_a_directory_a_fifo_and_nothing_are_answers(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    view = LiveView()
    assert "problem" in libraries.elf(view, str(tmp_path))
    assert "problem" in libraries.elf(view, str(tmp_path / "fifo"))
    assert libraries.elf(view, str(tmp_path / "absent")) == {"errno": "ENOENT"}


def test_the_kernel_log_of_this_machine_is_read_record_by_record() -> None:
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        with pytest.raises(OSError, match=str(error.strerror)):
            LiveView().kernel_log()
        return
    records = LiveView().kernel_log()
    assert all(b";" in record.partition(b"\n")[0] for record in records)
    assert len(LiveView().kernel_log(limit=200)) <= max(1, len(records))
