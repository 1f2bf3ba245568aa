"""Naming addresses from a library's .dynsym, with the dynamic linker as the oracle, and with hostile files."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import pyspy, stackscan

LIBC = ctypes.CDLL(None)


def place(address: int) -> tuple[str, int]:
    """Return the file and the offset in it that ADDRESS of this process comes from."""
    low, _, _, offset, path = next(
        region for region in stackscan.read_maps(os.getpid()) if region[0] <= address < region[1]
    )
    return path, address - low + offset


@pytest.mark.parametrize("name", ["qsort", "getaddrinfo", "fopen", "setlocale", "pthread_create", "dlopen"])
def test_names_are_those_of_the_dynamic_linker(name: str) -> None:
    address = ctypes.cast(getattr(LIBC, name), ctypes.c_void_p).value
    assert address is not None
    path, offset = place(address)
    symbols = stackscan.Symbols(path)
    for delta in (0, 5):
        symbol, _ = symbols.name(offset + delta, returns=False)
        assert ctypes.cast(getattr(LIBC, symbol), ctypes.c_void_p).value == address  # it, or an alias
    assert symbols.name(offset, returns=True)[0] != name  # a return address just at its start belongs to another


def test_noreturn_call_belongs_to_its_caller(hang_library: str) -> None:
    symbols = stackscan.Symbols(hang_library)
    values, entries = symbols._values, symbols._entries
    assert {name for _, name in entries} >= {"hang_sleep", "hang_futex", "hang_spin", "leave"}
    index = next(index for index, (_, name) in enumerate(entries) if name == "hang_sleep")
    end = values[index] + entries[index][0]
    assert symbols.name(end, returns=True)[0] == "hang_sleep"
    assert symbols.name(end, returns=False)[0] != "hang_sleep"


def test_unknown_addresses_have_no_name(hang_library: str) -> None:
    symbols = stackscan.Symbols(hang_library)
    for offset in (0, 1, 1 << 40):
        assert symbols.name(offset, returns=False)[0] == ""
    first = min(symbols._values)
    assert symbols.name(first - 1, returns=False)[0] == ""


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_corrupt_files_are_answers(data: st.DataObject, hang_library: str, tmp_path: Path) -> None:
    content = bytearray(Path(hang_library).read_bytes())
    shoff = struct.unpack_from("<Q", content, 40)[0]
    headers = st.integers(0, 63) | st.integers(shoff, len(content) - 1)
    for at in data.draw(st.lists(headers | st.integers(0, len(content) - 1), max_size=8)):
        content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    path = tmp_path / "library"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    symbols = stackscan.Symbols(str(path))
    for offset in (0, 0x1100, 1 << 63):
        symbol, _ = symbols.name(offset, returns=True)
        assert isinstance(symbol, str)


def test_other_files_have_no_symbols(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    for path in (
        tmp_path,
        tmp_path / "fifo",
        tmp_path / "empty",
        tmp_path / "absent",
        "/dev/zero",
        "nul\0byte",
        "[vdso]",
    ):
        assert stackscan.Symbols(str(path)).name(0x1000, returns=False) == ("", 0x1000)


@pytest.mark.parametrize(
    ("machine", "code", "is_call"),
    [
        ("x86_64", "9090e811223344", True),  # call rel32
        ("x86_64", "9090909090ffd0", True),  # call *%rax
        ("x86_64", "90909090ff5008", True),  # call *8(%rax)
        ("x86_64", "90ff1511223344", True),  # call *disp32(%rip)
        ("x86_64", "90909090909090", False),
        ("x86_64", "90909090ffe090", False),  # jmp *%rax
        ("aarch64", "00000001000094", True),  # bl
        ("aarch64", "00000000003fd6", True),  # blr x0
        ("aarch64", "0000001f2003d5", False),  # nop
    ],
)
def test_after_call(machine: str, code: str, is_call: bool) -> None:
    assert stackscan.after_call(bytes.fromhex(code), machine) is is_call


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text(alphabet='[]{}",:0aes_framhdt', max_size=100).map(str.encode))
def test_any_output_of_py_spy_is_an_answer(output: bytes) -> None:
    seen = pyspy.parse(output)
    assert set(seen) == {"error"} or seen == {"threads": []}


def test_output_of_py_spy() -> None:
    frame = '{"name": "cuInit", "filename": "/usr/lib/libcuda.so.1", "module": "m", "short_filename": null, "line": 0}'
    text = f'[{{"pid": 1, "thread_name": null, "os_thread_id": 7, "owns_gil": true, "frames": [{frame}]}}]'
    assert pyspy.parse(text.encode()) == {
        "threads": [{"name": None, "tid": 7, "owns_gil": True, "frames": ["cuInit (/usr/lib/libcuda.so.1)"]}]
    }
