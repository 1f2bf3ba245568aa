"""The goroutines of a Go child that hangs: a dump of Ollama 0.16.3, any text, and children that answer or do not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import godump
from pytest_gpudiscovery.probes.spawned import Spawned
from tests.supervise import rigs

# Of `ollama runner --ollama-engine`, which was asked for /info; a constructor of libggml-cuda.so did not return.
DUMP = Path(__file__).with_name("goroutines-0.16.3.txt")


def test_a_recorded_dump() -> None:
    seen = godump.parse(DUMP.read_text())
    assert seen["count"] == 10
    assert seen["told"] == (
        "goroutine 9 [syscall]: src._Cfunc_ggml_backend_load_all_from_path < src.init.func1.1 < src.init.func1"
    )
    assert [one["id"] for one in seen["goroutines"]] == [9, 1, 8]
    asked, main, _ = seen["goroutines"]
    assert asked["frames"][:2] == ["runtime.cgocall", "src._Cfunc_ggml_backend_load_all_from_path"]
    assert main["state"] == "IO wait"
    assert "net.(*TCPListener).accept" in main["frames"]


OLD = """\
SIGQUIT: quit
PC=0x46b9e1 m=0 sigcode=0

goroutine 0 [idle]:
runtime.futex()
\t/usr/local/go/src/runtime/sys_linux_amd64.s:557 +0x21

goroutine 1 [syscall, 1 minutes, locked to thread]:
runtime.cgocall(0x1234, 0xc000123)
\t/usr/local/go/src/runtime/cgocall.go:157 +0x4b
github.com/ollama/ollama/discover._Cfunc_cuInit(0x0)
\t_cgo_gotypes.go:100 +0x45
main.main()
\t/src/main.go:12 +0x25
created by main.init in goroutine 1
\t/src/main.go:9 +0x1
"""


def test_the_header_of_older_releases_and_the_time_that_it_waits() -> None:
    seen = godump.parse(OLD)
    assert seen["count"] == 2
    assert seen["told"] == "goroutine 1 [syscall, 1 minutes, locked to thread]: discover._Cfunc_cuInit < main.main"
    assert seen["goroutines"] == [
        {
            "id": 1,
            "state": "syscall, 1 minutes, locked to thread",
            "frames": ["runtime.cgocall", "discover._Cfunc_cuInit", "main.main"],
        }
    ]


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=200) | st.lists(st.sampled_from(OLD.splitlines())).map("\n".join))
def test_any_text_is_an_answer(text: str) -> None:
    seen = godump.parse(text)
    assert bool(seen["told"]) is bool(seen["goroutines"])


@pytest.mark.parametrize(
    ("status", "caught"),
    [
        ("SigCgt:\t0000000000000004\n", True),
        ("SigCgt:\tfffffffc3bba3afb\n", False),
        ("SigCgt:\tx\n", False),
        ("", False),
    ],
)
def test_whether_the_signal_is_caught(status: str, caught: bool) -> None:
    assert godump.catches(status, godump.SIGQUIT) is caught


# A child as Go's runtime makes it: it prints its goroutines on SIGQUIT, and ends with status 2.
GO_LIKE = """
import os, signal, sys, time
def quit(*_):
    {act}
signal.signal(signal.SIGQUIT, quit)
print("ready", flush=True)
while True:
    time.sleep(60)
"""
ACTS = {
    "prints": f"sys.stderr.write(open({str(DUMP)!r}).read()); sys.stderr.flush(); os._exit(2)",
    "goes on": f"sys.stderr.write(open({str(DUMP)!r}).read()); sys.stderr.flush()",
    "says nothing": "os._exit(2)",
    "never ends": "\n    while True: os.write(2, b'x' * 65536)",
}


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[Spawned]:
    """A child that does as the parameter says on SIGQUIT."""
    how = request.param
    script = GO_LIKE.format(act=ACTS[how]) if how in ACTS else "import time; print('ready', flush=True); time.sleep(60)"
    child = Spawned([sys.executable, "-S", "-c", script], {"PATH": "/usr/bin:/bin"})
    try:
        assert rigs.wait_for(lambda: (child.take(), "ready" in child.err.to_json()["text"])[1])  # type: ignore[func-returns-value]
        yield child
    finally:
        child.kill()


def ask(child: Spawned, monkeypatch: pytest.MonkeyPatch, limit_s: float) -> dict[str, Any]:
    monkeypatch.setattr(godump, "LIMIT_S", limit_s)
    began = time.monotonic()
    seen = godump.ask(child)
    assert time.monotonic() - began < limit_s + 5.0
    assert child.err.to_json()["text"] == "ready\n", "what the child itself said is kept apart from its dump"
    return seen


@pytest.mark.parametrize("child", ["prints", "goes on"], indirect=True)
def test_a_child_that_prints_its_goroutines(child: Spawned, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(child, monkeypatch, 2.0) == godump.parse(DUMP.read_text())


@pytest.mark.parametrize("child", ["says nothing", "never ends"], indirect=True)
def test_a_child_that_says_nothing_of_use(child: Spawned, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(child, monkeypatch, 0.3) == {"unknown": "no goroutines came within 0.3 s of SIGQUIT (GOTRACEBACK=none?)"}


@pytest.mark.parametrize("child", ["does not catch it"], indirect=True)
def test_a_child_whose_runtime_has_not_begun_is_not_ended(child: Spawned, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(child, monkeypatch, 0.3) == {
        "unknown": "no goroutines: its Go runtime has not begun, or SIGQUIT is ignored"
    }
    assert not child.ended()
