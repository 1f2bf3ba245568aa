"""The parts of stage 10's probe: ld.so's trace of a program, and what storage says without being changed."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import ggml, ldtrace, storage
from tests.loader.oracle import Builder

LOADER = "/lib64/ld-linux-x86-64.so.2"


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    made = Builder(tmp_path, sys.executable)
    (tmp_path / "main.c").write_text("int main(void) { return 0; }\n")
    made.cc("-o", "program", "main.c")
    return made


def test_a_trace_names_files_and_what_is_missing_and_runs_nothing(builder: Builder) -> None:
    flag = builder.directory / "ran"
    builder.library(
        "libb.so", f'#include <fcntl.h>\n__attribute__((constructor)) static void f(void) {{ creat("{flag}", 0600); }}'
    )
    builder.library("liba.so", "int gone(void); int a(void) { return gone(); }", ("libb.so",), ("-Wl,-rpath,$ORIGIN",))
    seen = ldtrace.trace(LOADER, str(builder / "program"), str(builder / "liba.so"), {}, 5.0)
    assert seen["files"]["libb.so"] == str(builder / "libb.so")
    assert any("undefined symbol: gone" in text for text in seen["messages"])
    assert not flag.exists()
    (builder / "libb.so").unlink()
    seen = ldtrace.trace(LOADER, str(builder / "program"), str(builder / "liba.so"), {}, 5.0)
    assert seen["missing"] == ["libb.so"]


def test_a_trace_ends_in_time(builder: Builder) -> None:
    os.mkfifo(builder / "libfifo.so")
    began = time.monotonic()
    seen = ldtrace.trace(LOADER, str(builder / "program"), str(builder / "libfifo.so"), {}, 0.3)
    assert "did not end within 0.3 s" in seen["error"]
    assert time.monotonic() - began < 10
    assert "error" in ldtrace.trace("/nowhere/ld.so", str(builder / "program"), "/x", {}, 1.0)


@given(st.text())
def test_any_output_of_a_trace_is_answered(text: str) -> None:
    assert set(ldtrace.parse(text)) == {"files", "missing", "messages"}


def test_the_page_cache_is_asked_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(4 << 20))
    seen = storage.resident([str(path), str(tmp_path / "absent")])
    assert seen["bytes"] == 4 << 20
    assert seen["cached"] is None or 0 <= seen["cached"] <= 4 << 20
    os.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = storage.resident([str(path)])["cached"]
    for _ in range(3):
        after = storage.resident([str(path)])["cached"]
    assert before == after  # asking fetches nothing


def test_direct_reads_deliver_or_say_why_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(4 << 20))
    os.sync()
    seen = storage.delivery(str(path))
    assert "error" in seen or (seen["bytes"] > 0 and seen["seconds"] > 0)
    assert "error" in storage.delivery(str(tmp_path / "absent"))
    os.mkfifo(tmp_path / "fifo")
    assert "error" in storage.delivery(str(tmp_path / "fifo"))


@given(st.binary(min_size=512, max_size=512))
def test_properties_of_any_bytes_are_not_followed(raw: bytes) -> None:
    assert ggml.properties(raw)["layout"] in (None, *ggml.LAYOUTS)


@given(st.integers(0, 2**64 - 1))
def test_no_address_is_followed_that_does_not_lead_to_memory(address: int) -> None:
    seen = ggml.look_at_registry(address)
    assert seen["layout"] in (True, False)
    assert ggml.text_at(address) is None or isinstance(ggml.text_at(address), str)
    ggml.device_is_sound(address)


def test_a_registry_that_lies_across_two_mappings_is_read() -> None:
    """.bss begins in the last page of the file's mapping and goes on in memory of its own."""
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 2 * page) as memory:
        here = ctypes.c_char.from_buffer(memory)
        start = ctypes.addressof(here)
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 1) == 0  # PROT_READ
        ctypes.c_int.from_address(start + page - 8).value = 2
        seen = ggml.look_at_registry(start + page - 8)
        del here
    assert seen == {"api_version": 2, "layout": False}


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("0000:00:06.0", True),
        ("00000000:65:00.0", True),
        ("GPU-1", False),
        ("", False),
        (None, False),
        ("a:b:c:d:e", False),
    ],
)
def test_pci_addresses(text: str | None, yes: bool) -> None:
    assert ggml.is_pci_address(text) is yes
