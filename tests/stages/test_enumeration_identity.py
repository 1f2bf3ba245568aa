"""One spelling for addresses and UUIDs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.stages import identity
from tests.stages.hostile import ANYTHING


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000000:06:00.0", "0000:06:00.0"),
        ("0000:06:00.0", "0000:06:00.0"),
        ("0000:06:00", "0000:06:00.0"),
        ("00010000:0A:00.0", "10000:0a:00.0"),
        ("06:00.0", "0000:06:00.0"),
        ("99fff950:99fff9", None),
        ("0000:06:00.9", None),
        ("", None),
        (None, None),
        (6, None),
    ],
)
def test_pci_addresses_have_one_spelling(text: Any, expected: str | None) -> None:
    assert identity.pci(text) == expected


@settings(deadline=None)  # a loaded machine is no failure
@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 255), st.integers(0, 31))
def test_every_way_to_write_a_pci_address_is_the_same(domain: int, bus: int, device: int) -> None:
    spellings = {f"{domain:08X}:{bus:02X}:{device:02X}.0", f"{domain:04x}:{bus:02x}:{device:02x}.0"}
    assert len({identity.pci(text) for text in spellings}) == 1
    assert identity.pci(spellings.pop()) is not None


@settings(deadline=None)  # a loaded machine is no failure
@given(st.binary(min_size=16, max_size=16), st.sampled_from(["GPU-", "MIG-", ""]), st.booleans())
def test_every_way_to_write_a_uuid_is_the_same(raw: bytes, prefix: str, upper: bool) -> None:
    digits = raw.hex()
    text = prefix + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    assert identity.uuid(text.upper() if upper else text) == digits
    assert identity.is_null_uuid(text) == (raw == bytes(16))


@settings(deadline=None)  # a loaded machine is no failure
@given(ANYTHING)
def test_readers_never_raise(value: Any) -> None:
    for reader in (identity.pci, identity.uuid, identity.capability, identity.integer, identity.string):
        reader(value)
    assert isinstance(identity.objects(value), list)
