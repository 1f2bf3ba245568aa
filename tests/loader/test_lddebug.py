"""ld.so's own account of where a process stopped: a real loader, and any text at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.loader import lddebug
from tests.loader.oracle import Builder

SOURCES = {
    "constructor": "#include <unistd.h>\n__attribute__((constructor)) static void f(void)"
    '{ write(2, "\\nstopped here\\n", 14); for (;;) pause(); }',
    "nothing": "int x;",
}


def account(library: Path, words: str) -> str:
    """Return stderr of a process that opens LIBRARY, killed when WORDS were read or its output ended."""
    code = f"import ctypes; ctypes.CDLL({str(library)!r})"
    env = {"LD_DEBUG": lddebug.ASKED}
    child = subprocess.Popen([sys.executable, "-S", "-c", code], env=env, stderr=subprocess.PIPE)
    assert child.stderr is not None
    text = b""
    while words.encode() not in text:
        part = os.read(child.stderr.fileno(), 65_536)
        if not part:
            break
        text += part
    child.send_signal(signal.SIGKILL)
    child.communicate()
    return text.decode()


@pytest.fixture
def built(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for name, source in SOURCES.items():
        code = tmp_path / f"{name}.c"
        code.write_text(source)
        made[name] = tmp_path / f"lib{name}.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(made[name]), str(code)], check=True)
    return made


def test_a_real_constructor(built: dict[str, Path]) -> None:
    text = account(built["constructor"], "stopped here")
    assert lddebug.last_stop(text) == lddebug.Stop(lddebug.CONSTRUCTOR, str(built["constructor"]))
    assert lddebug.without_account(text) == "stopped here"


def test_a_real_fifo(tmp_path: Path) -> None:
    path = tmp_path / "libfifo.so"
    os.mkfifo(path)
    assert lddebug.last_stop(account(path, f"file={path}")) == lddebug.Stop(lddebug.OPENING, str(path))


def test_a_real_fifo_that_another_library_needs(tmp_path: Path) -> None:
    made = Builder(tmp_path, sys.executable)
    made.library("libfifo.so")
    made.library("liba.so", "", ("libfifo.so",), ("-Wl,-rpath,$ORIGIN",))
    (tmp_path / "libfifo.so").unlink()
    os.mkfifo(tmp_path / "libfifo.so")
    text = account(tmp_path / "liba.so", f"trying file={tmp_path}/libfifo.so")
    assert lddebug.last_stop(text) == lddebug.Stop(lddebug.OPENING, str(tmp_path / "libfifo.so"))


LINES = [
    ("      7:\tfind library=libx.so.1 [0]; searching", lddebug.Stop(lddebug.OPENING, "libx.so.1")),
    ("      7:\t  trying file=/a b/libx.so.1", lddebug.Stop(lddebug.OPENING, "/a b/libx.so.1")),
    ("      7:\tfile=libx.so.1 [0];  generating link map", lddebug.Stop(lddebug.MAPPING, "libx.so.1")),
    ("      7:\trelocation processing: /a/libx.so.1 (lazy)", lddebug.Stop(lddebug.RELOCATING, "/a/libx.so.1")),
    ("      7:\trelocation processing: /a/libx.so.1", lddebug.Stop(lddebug.RELOCATING, "/a/libx.so.1")),
    ("      7:\tcalling init: /a/libx.so.1", lddebug.Stop(lddebug.CONSTRUCTOR, "/a/libx.so.1")),
    ("      7:\tfile=/a/liby.so [0];  dynamically loaded by /a/x [0]", lddebug.Stop(lddebug.OPENING, "/a/liby.so")),
    ("      7:\tcalling fini: /a/libx.so.1 [0]", None),
    ("calling init: /a/libx.so.1", None),
]


@pytest.mark.parametrize(("line", "stop"), LINES)
def test_each_kind_of_line(line: str, stop: lddebug.Stop | None) -> None:
    assert lddebug.last_stop(f"noise\n{line}\nmore noise\n") == stop


@given(st.lists(st.text(max_size=40) | st.sampled_from([line for line, _ in LINES])))
def test_any_text_is_answered(lines: list[str]) -> None:
    text = "\n".join(lines)
    stop = lddebug.last_stop(text)
    assert stop is None or stop.path
    assert not any(line.startswith("      7:\t") for line in lddebug.without_account(text).splitlines())
