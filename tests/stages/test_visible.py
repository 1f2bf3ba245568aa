"""What CUDA_VISIBLE_DEVICES leaves, against what a real driver left (data/visible.json), and over any text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.stages import visible
from tests import recorded_visible
from tests.stages.enumeration_views import change, slot, views

PIECES = [
    "0",
    "1",
    "-",
    "+",
    " ",
    "\t",
    "x",
    "4294967296",
    "99999999999999999999",
    "GPU-",
    "MIG-",
    "gpu-",
    "b7c1",
    "\u0660",
]
VALUES = st.text(max_size=40) | st.lists(st.sampled_from([*PIECES, ",", *recorded_visible.UUIDS])).map("".join)


def of(value: str) -> visible.Visible:
    return visible.parse({visible.NAME: value})


@pytest.mark.parametrize("count", [1, 2])
def test_every_recorded_value(count: int) -> None:
    host = [[uuid] for uuid in recorded_visible.UUIDS[:count]]
    wrong, untold = [], []
    for row in recorded_visible.rows(count):
        found = visible.left(of(row.value) if row.value is not None else visible.parse({}), host, mig=False)
        assert found.reason
        bad_order = row.order is not None and visible.order_is_bad({visible.ORDER: row.order})
        code = 101 if bad_order or found.twice is not None else 0 if found.gpus else 100
        if found.gpus is None:
            untold.append(row.template)
        elif (code, () if bad_order else found.gpus) != (row.code, row.gpus):
            wrong.append((row.template, row.order, found))
    assert wrong == []
    assert untold == []


@settings(deadline=None)  # a loaded machine is no failure
@given(
    value=VALUES,
    host=st.lists(st.lists(st.none() | st.sampled_from([*recorded_visible.UUIDS, "GPU-b7c1", "?"]), max_size=2)),
    mig=st.none() | st.booleans(),
)
def test_any_value_on_any_host(value: str, host: list[list[str | None]], mig: bool | None) -> None:
    parsed = of(value)
    found = visible.left(parsed, host, mig)
    assert parsed.value == value
    assert found.reason
    assert found.gpus is None or set(found.gpus) <= set(range(len(host)))
    assert not (found.twice is not None and found.gpus)
    if parsed.hides_everything:
        assert found.gpus == ()
    if parsed.hides_nothing:
        assert found.gpus == tuple(range(len(host)))
    addresses = visible.addresses(parsed, views(2)["nvml"]["gpus"], {})
    assert addresses is None or addresses <= {slot(0), slot(1)}
    for entry in parsed.entries:
        assert isinstance(entry.odd, str)


@pytest.mark.parametrize(
    ("text", "odd"),
    [
        ("0x1", "'0x1' is read as 0, what follows is ignored"),
        ("0 1", "'0 1' is read as 0, what follows is ignored"),
        ("0\xa0", "is read as 0, what follows is ignored"),
        ("4294967297", "'4294967297' is cut to 32 bits and read as 1"),
        ("-4294967295", "'-4294967295' is cut to 32 bits and read as 1"),
        (recorded_visible.UUIDS[0] + "x", "is a UUID, what follows is ignored"),
        *(
            (text, "")
            for text in ("0", "00", "+1", "-0", " 0", "0 ", "0\r\n", "GPU-B7-c", recorded_visible.UUIDS[0] + " ")
        ),
    ],
)
def test_an_entry_that_is_read_otherwise_than_it_looks(text: str, odd: str) -> None:
    (entry,) = of(text).entries
    assert odd in entry.odd
    assert bool(odd) == bool(entry.odd)


def test_what_only_the_driver_can_tell() -> None:
    one: list[list[str | None]] = [[recorded_visible.UUIDS[0]]]
    cases: tuple[tuple[str, list[list[str | None]], bool | None], ...] = (
        ("0", [], False),
        ("0", one, True),
        ("GPU-b7", [[None]], False),
        ("GPU-b7", [*one, [None]], False),  # the other one's may begin so too
        ("MIG-1234", one, None),
    )
    for value, host, mig in cases:
        assert visible.left(of(value), host, mig).gpus is None, value
    assert visible.left(of(recorded_visible.UUIDS[0]), [*one, [None]], mig=False).gpus == (0,)


def test_mig_instances_whose_uuids_are_known() -> None:
    host = [[recorded_visible.UUIDS[0], "MIG-1", "MIG-2"]]
    assert visible.left(of("MIG-1,MIG-2"), host, mig=True).gpus == (0, 0)
    assert visible.left(of("MIG-3"), host, mig=True).gpus == ()
    assert visible.left(of("0"), host, mig=True).gpus is None


def test_an_index_among_unlike_gpus_cannot_be_told() -> None:
    seen = change(change(views(2), "nvml", 0, name="NVIDIA A100"), "driver", 0, name="NVIDIA A100")
    gpus = seen["nvml"]["gpus"]
    assert visible.addresses(of("0"), gpus, {}) is None
    assert visible.addresses(of("0"), gpus, {visible.ORDER: "PCI_BUS_ID"}) == {slot(0)}
    assert visible.addresses(of("0"), gpus, {visible.ORDER: "pci_bus_id"}) == set()
    assert visible.addresses(visible.parse({}), gpus, {}) == {slot(0), slot(1)}
    assert visible.addresses(of("0,0"), gpus, {visible.ORDER: "PCI_BUS_ID"}) == set()
