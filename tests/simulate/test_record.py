"""The recorder: what it keeps, what it must not, and that one broken library costs only itself."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.probes.host import LiveView
from pytest_gpudiscovery.probes.recordedview import RecordedView
from pytest_gpudiscovery.simulate import convert, record
from pytest_gpudiscovery.simulate.machines import DATA
from pytest_gpudiscovery.simulate.record_answers import Caller
from pytest_gpudiscovery.simulate.record_view import ViewRecorder

HEX = st.text("0123456789abcdef", min_size=12, max_size=12)


@settings(database=None)  # a checkout may be read-only
@given(HEX, HEX, st.sampled_from(["GPU", "MIG"]))
def test_uuids_are_replaced_alike(one: str, other: str, prefix: str) -> None:
    text = " ".join(f"{prefix}-abcdef12-3456-7890-abcd-{tail}" for tail in (one, other, one))
    words = record.redact(text).split()
    assert words[0] == words[2] == f"{prefix}-00000000-0000-4000-8000-000000000000"
    assert (words[1] == words[0]) == (one == other)


@settings(database=None)  # a checkout may be read-only
@given(st.lists(st.text("0123456789abcdef", min_size=2, max_size=2), min_size=6, max_size=6))
def test_hardware_addresses_are_replaced(parts: list[str]) -> None:
    assert record.redact(f'"{":".join(parts)}"') == '"00:00:00:00:00:00"'


def test_container_ids_are_replaced() -> None:
    name = "a1b2c3d4-1111-2222-3333-0123456789ab"
    assert record.redact(f"/kubepods/pod{'_'.join(name.split('-'))}/{'ab' * 32} pod {name}").endswith("/ID pod ID")
    entries = {"/proc/self/cgroup": {"type": "file", "text": f"0::/system.slice/docker-{'ab' * 32}.scope\n"}}
    record.redact_entries(entries)
    assert entries["/proc/self/cgroup"]["text"] == "0::/\n"


def test_a_pci_address_is_no_hardware_address() -> None:
    assert record.redact("0000:00:06.0 00000000:00:06.0") == "0000:00:06.0 00000000:00:06.0"


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (
            "27 1 254:0 /images/secret / rw,relatime shared:1 - overlay overlay rw,lowerdir=/secret",
            "27 1 254:0 / / rw,relatime shared:1 - overlay none rw",
        ),
        ("server:/export /dev/x nfs rw,addr=10.1.2.3,vers=4 0 0", "none /dev/x nfs rw 0 0"),
    ],
)
def test_mounts_lose_their_sources(line: str, kept: str) -> None:
    assert record.mount_line(line) == kept


def test_recorded_tree_replays_the_live_one(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "real" / "inner" / "file").write_text("hello\n")
    (tmp_path / "link").symlink_to("real/inner")
    recorder = ViewRecorder()
    recorder.add(f"{tmp_path}/link/file")
    recorder.add(f"{tmp_path}/gone")
    recorder.add("/dev/null")
    replay, live = RecordedView(recorder.entries), LiveView()
    path = f"{tmp_path}/link/file"
    assert replay.read(path) == live.read(path)
    assert replay.realpath(path) == live.realpath(path)
    for key in ("type", "mode", "uid", "gid", "major", "minor"):
        assert replay.stat("/dev/null")[key] == live.stat("/dev/null")[key]
    with pytest.raises(FileNotFoundError):
        replay.stat(f"{tmp_path}/gone")


def test_a_child_that_dies_costs_only_what_comes_after() -> None:
    def work() -> None:
        caller = Caller.__new__(Caller)
        caller.note("first", 0, "seen")
        raise SystemExit(1)

    value, calls, problem = record.isolated(work)
    assert value is None
    assert [call["call"] for call in calls] == ["first"]
    assert "SystemExit" in problem


def test_a_child_that_hangs_is_ended() -> None:
    def work() -> None:
        Caller.__new__(Caller).note("first", 0, "seen")
        time.sleep(60)

    began = time.monotonic()
    value, calls, problem = record.isolated(work, 0.5)
    assert time.monotonic() - began < 20
    assert (value, [call["call"] for call in calls]) == (None, ["first"])
    assert "no end within 0.5 s" in problem


def test_the_bundled_host_names_no_machine() -> None:
    text = (DATA / "h100.json").read_text()
    entries = json.loads(text)["entries"]
    assert set(re.findall(r"(?:GPU|MIG)-[0-9a-f-]{36}", text)) == {"GPU-00000000-0000-4000-8000-000000000000"}
    assert entries["/proc/sys/kernel/hostname"]["text"] == "host\n"
    assert entries["/proc/self/cgroup"]["text"] == "0::/\n"
    assert all("none" in line for line in entries["/proc/self/mounts"]["text"].splitlines())
    for path in entries:
        assert not path.startswith(tuple(convert.DROPPED.split())) or path in convert.KEPT
