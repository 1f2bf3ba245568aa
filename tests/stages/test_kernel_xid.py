"""The kernel log: every form of the driver's lines that was seen in public logs, and any other text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.diagnosis import xid

LOADED = "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024"
ACTION = "NVRM: Xid (PCI:0000:06:00): 154, GPU recovery action changed from"
LINES = {
    "NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.": (79, "0000:01:00"),
    "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.": (79, "0000:01:00"),
    "NVRM: Xid (0000:03:00): 14, Channel 00000001": (14, "0000:03:00"),
    "NVRM: Xid (PCI:0000:06:00): 120, GSP task exception: store access page fault (cause:0xf) @ pc:0x13ebd80": (
        120,
        "0000:06:00",
    ),
    "NVRM: Xid (PCI:0008:01:00): 119, pid=2049, name=nvc:[driver], Timeout after 6s of waiting for RPC response": (
        119,
        "0008:01:00",
    ),
    "[605633.376794] NVRM: Xid (PCI:00000000:06:00.0): 13, pid=1, Graphics SM Warp Exception": (13, "0000:06:00"),
}


def line(text: str, at: float = 0.0) -> str:
    """Return TEXT as a record of /dev/kmsg, AT seconds after boot."""
    return f"4,1234,{int(at * 1e6)},-;{text}"


@pytest.mark.parametrize(("text", "expected"), LINES.items(), ids=[str(value[0]) for value in LINES.values()])
def test_an_xid_line_gives_code_and_place(text: str, expected: tuple[int, str]) -> None:
    for form in (text, line(text, 12.5)):
        (found,) = xid.read_log([form]).xids
        assert (found.code, found.pci) == expected
    assert found.at == 12.5


@pytest.mark.parametrize(
    ("code", "fatal", "kind"),
    [
        (13, False, "application"),
        (31, False, "application"),
        (43, False, "application"),
        (45, False, "application"),
        (68, False, "application"),
        (69, False, "application"),
        (94, False, "application"),
        (48, False, "memory"),
        (63, False, "memory"),
        (74, False, "nvlink"),
        (79, True, "lost"),
        (62, True, "reset"),
        (95, True, "reset"),
        (119, True, "reset"),
        (120, True, "reset"),
        (9999, False, "unlisted"),
    ],
)
def test_only_what_stops_new_work_is_fatal(code: int, fatal: bool, kind: str) -> None:
    found = xid.describe(code, "0000:06:00", None, "")
    assert (found.fatal, found.kind) == (fatal, kind)
    assert found.meaning
    assert found.discovery


def test_the_catalogue_is_complete_and_has_its_source() -> None:
    data = xid.catalogue()
    assert all(source.startswith("https://") for source in data["sources"])
    for code, entry in data["xids"].items():
        assert isinstance(code, int)
        assert entry["class"] in data["classes"], code
        assert entry["meaning"], code
        assert entry["fatal"] is False or entry["class"] in ("lost", "reset"), code


def test_only_errors_since_the_last_load_count() -> None:
    bad = "NVRM: Xid (PCI:0000:06:00): 79, GPU has fallen off the bus."
    log = xid.read_log([line(bad, 5), line(LOADED, 10), line(bad, 20), line(LOADED, 30)], now=100)
    assert (log.loaded_at, log.loaded_version) == (30, "535.183.01")
    assert len(log.xids) == 2
    assert log.current() == ()
    log = xid.read_log([line(bad, 5), line(LOADED, 10), line(bad, 20)], now=100)
    assert [error.at for error in log.current()] == [20]
    assert log.age(20) == 80


def test_a_recovery_ends_what_came_before_it_on_that_gpu() -> None:
    bad = "NVRM: Xid (PCI:0000:06:00): 119, Timeout"
    other = "NVRM: Xid (PCI:0000:07:00): 119, Timeout"
    lines = [line(bad, 5), line(other, 6), line(f"{ACTION} 0x1 (GPU Reset Required) to 0x0 (None)", 7)]
    assert [(error.code, error.pci) for error in xid.read_log(lines).current() if error.fatal] == [(119, "0000:07:00")]
    again = [*lines, line(bad, 8)]
    assert sum(error.fatal for error in xid.read_log(again).current()) == 2


@pytest.mark.parametrize(
    ("words", "action", "fatal"),
    [
        ("0x0 (None) to 0x1 (GPU Reset Required)", 1, True),
        ("0x0 (None) to 0x2 (Node Reboot Required)", 2, True),
        ("0x0 (None) to 0x2 (OS Reboot)", 2, True),
        ("0x1 (PF FLR) to 0x0 (None)", 0, False),
        ("0x0 (None) to 0x3 (Drain P2P)", 3, False),
        ("0x0 (None) to 0x4 (Drain and Reset)", 4, True),
        ("something new", None, False),
    ],
)
def test_the_recovery_action_decides(words: str, action: int | None, fatal: bool) -> None:
    (found,) = xid.read_log([f"{ACTION} {words}"]).xids
    assert xid.action(found.text) == action
    assert found.fatal is fatal


def test_the_other_lines_of_the_driver_are_read() -> None:
    log = xid.read_log(
        [
            line("NVRM: GPU 0000:98:00.0: RmInitAdapter failed! (0x62:0x65:1792)", 1),
            line("NVRM: GPU 0000:01:00.0: GPU has fallen off the bus.", 2),
            line("PM: suspend exit", 4),
            line("nvidia: module verification failed: signature and/or required key missing - tainting kernel", 5),
            line("NVRM: The NVIDIA probe routine failed for 1 device(s).", 6),
            line("NVRM: RmInitAdapter: Cannot initialize GSP firmware RM", 7),
            line("nvidia 0000:06:00.0: Direct firmware load for nvidia/580.1/gsp_ga10x.bin failed with error -2", 8),
            line("nvidia-uvm: Loaded the UVM driver, major device number 238.", 9),
        ],
        now=10,
    )
    assert log.init_failed[0]["pci"] == "0000:98:00"
    assert log.off_bus[0]["pci"] == "0000:01:00"
    assert log.resumed_at == 4
    assert len(log.load_errors) == 2
    assert [entry["at"] for entry in log.gsp] == [7, 8]
    assert log.xids == ()


TEXTS = st.lists(
    st.text(max_size=300)
    | st.builds("{},{},{},-;{}".format, st.integers(), st.integers(), st.integers(), st.text(max_size=100))
    | st.builds("NVRM: Xid ({}): {}, {}".format, st.text(max_size=40), st.integers(), st.text(max_size=40))
    | st.builds("NVRM: GPU {}: RmInitAdapter failed!{}".format, st.text(max_size=30), st.text(max_size=30)),
    max_size=20,
)


@given(lines=TEXTS, now=st.none() | st.floats(allow_nan=False))
def test_no_text_makes_the_reader_raise(lines: list[str], now: float | None) -> None:
    log = xid.read_log(lines, now)
    assert set(log.current()) <= set(log.xids)
    for error in log.xids:
        assert error.meaning
        assert xid.words(log.age(error.at))


@given(
    code=st.integers(0, 99999),
    at=st.integers(0, 10**9),
    domain=st.integers(0, 0xFFFF),
    bus=st.integers(0, 255),
    device=st.integers(0, 31),
)
def test_every_well_formed_line_is_found(code: int, at: int, domain: int, bus: int, device: int) -> None:
    place = f"{domain:04x}:{bus:02x}:{device:02x}"
    log = xid.read_log([f"3,77,{at},-;NVRM: Xid (PCI:{place.upper()}): {code}, pid=1, text"])
    assert [(error.code, error.pci, error.at) for error in log.xids] == [(code, place, at / 1e6)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "an unknown time"), (3.2, "3 s"), (600, "10 min"), (7200, "2 h"), (260000, "3 days")],
)
def test_ages_in_words(seconds: float | None, words: str) -> None:
    assert xid.words(seconds) == words
