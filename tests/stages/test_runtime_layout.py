"""struct cudaDeviceProp: what was packed is read, and any bytes at all are read as something."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.stages.device_prop import LAYOUTS, POISON, decode
from pytest_gpudiscovery.stages.runtime_library import differences, words
from tests.stages.runtime_answers import DEVICE, packed


@settings(deadline=None)  # a loaded machine is no failure
@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=255),
    st.integers(0, 2**64 - 1),
    st.tuples(st.integers(0, 99), st.integers(0, 9)),
    st.tuples(st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 31)),
)
def test_what_was_packed_is_read(
    major: int, name: str, memory: int, cc: tuple[int, int], pci: tuple[int, int, int]
) -> None:
    address = f"{pci[0]:04x}:{pci[1]:02x}:{pci[2]:02x}.0"
    device = {**DEVICE, "name": name, "total_memory": memory, "cc": list(cc), "pci": address}
    read = decode(packed(major, device), major)
    assert read is not None
    assert {key: read[key] for key in ("name", "uuid", "pci", "cc", "total_memory", "sm_count")} == {
        key: device[key] for key in ("name", "uuid", "pci", "cc", "total_memory", "sm_count")
    }
    assert read["overflow"] == 0


@settings(deadline=None)  # a loaded machine is no failure
@given(st.binary(max_size=4096), st.integers(0, 20))
def test_any_bytes_decode_or_have_no_layout(raw: bytes, major: int) -> None:
    read = decode(raw, major)
    assert (read is None) == (major not in LAYOUTS)
    assert read is None or read["overflow"] == max(0, len(raw) - LAYOUTS[major].size)


def test_poison_reads_as_the_garbage_that_ollama_shows() -> None:
    read = decode(b"", 12)
    assert read is not None
    assert read["cc"] == [int.from_bytes(bytes([POISON] * 4), "little", signed=True)] * 2
    assert any(text.startswith("PCI address eeeeeeee:eeeeeeee") for text in differences(read, DEVICE))


@pytest.mark.parametrize(("number", "text"), [(13000, "13.0"), (12080, "12.8"), (None, "?")])
def test_versions_in_words(number: int | None, text: str) -> None:
    assert words(number) == text
