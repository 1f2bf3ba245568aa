"""Hangs and deaths are real: the child is where the fault says, and ends as it says."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_gpudiscovery.simulate.assemble import SimulatedHost
from tests.simulate.conftest import Make, run
from tests.supervise import rigs

CALLS = {
    "ctor": "ctypes.CDLL('libcuda.so.1')",
    "dlopen": "ctypes.CDLL('libcuda.so.1')",
    "cuinit": "ctypes.CDLL('libcuda.so.1').cuInit(0)",
    "nvmlinit": "ctypes.CDLL('libnvidia-ml.so.1').nvmlInit_v2()",
    "runtime": "ctypes.CDLL('libcudart.so.12').cudaGetDeviceCount(ctypes.byref(ctypes.c_int()))",
}
# way to hang -> the state that /proc shows
STATES = {"sleep": "S", "futex": "S", "spin": "R", "signals": "S", "poll": "S"}
SETTLED_S = 20.0


@contextmanager
def stuck(host: SimulatedHost, call: str) -> Iterator[subprocess.Popen[str]]:
    """Run CALL in a child and yield it once it is inside; it must not be in state D when the block ends."""
    code = f"import ctypes\nprint('in', flush=True)\n{call}\nprint('out', flush=True)\n"
    env = {"PATH": os.environ["PATH"], **host.env}
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "in\n"
        yield child
    finally:
        child.kill()
        child.wait(10)
        assert child.stdout is not None
        child.stdout.close()


def state(pid: int) -> str:
    """Return the state letter of PID."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def settles(pid: int, wanted: str) -> bool:
    """Whether PID is in state WANTED and uses CPU time accordingly, within SETTLED_S seconds."""

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def there() -> bool:
        before = ticks()
        time.sleep(0.3)
        busy = ticks() - before > 5
        return busy if wanted == "R" else state(pid) == wanted and not busy

    return rigs.wait_for(there, SETTLED_S)


@pytest.mark.parametrize("kind", sorted(STATES))
def test_ways_to_hang(make: Make, kind: str) -> None:
    with stuck(make(f"h100:hang.cuinit.{kind}"), CALLS["cuinit"]) as child:
        assert settles(child.pid, STATES[kind])
        if kind == "signals":
            child.terminate()
            time.sleep(0.3)
            assert child.poll() is None
        child.kill()
        assert child.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("place", ["ctor", "nvmlinit", "runtime"])
def test_places_to_hang(make: Make, place: str) -> None:
    with stuck(make(f"h100:hang.{place}.sleep"), CALLS[place]) as child:
        assert settles(child.pid, "S")
        assert child.poll() is None


def test_dlopen_of_a_fifo(make: Make) -> None:
    with stuck(make("h100:hang.dlopen.libcuda"), CALLS["dlopen"]) as child:
        assert settles(child.pid, "S")
        assert "libcuda" not in Path(f"/proc/{child.pid}/maps").read_text()


def test_shim_that_hangs(make: Make) -> None:
    with stuck(make("h100:shim.hang"), "ctypes.CDLL(None).cuInit(0)") as child:
        assert settles(child.pid, "S")


def test_state_d(make: Make, tmp_path: Path) -> None:
    with contextlib.ExitStack() as rig:
        try:
            frozen = rig.enter_context(rigs.frozen(tmp_path))
        except rigs.Unavailable as why:
            pytest.skip(str(why))
        with stuck(make(f"h100:hang.cuinit.path={frozen}/x"), CALLS["cuinit"]) as child:
            try:
                assert rigs.wait_for(lambda: state(child.pid) == "D", SETTLED_S)
                child.kill()
                time.sleep(0.5)
                assert state(child.pid) == "D"  # SIGKILL waits too
            finally:
                rig.close()  # thaws, before the child is waited for
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("kind", "code"), [("segv", -signal.SIGSEGV), ("abort", -signal.SIGABRT), ("exit0", 0), ("exit3", 3)]
)
@pytest.mark.parametrize("place", ["ctor", "cuinit"])
def test_ways_to_die(make: Make, place: str, kind: str, code: int) -> None:
    done = run(make(f"h100:crash.{place}.{kind}"), f"{CALLS[place]}\nsay('survived')\n")
    assert (done.returncode, done.stdout) == (code, "")


def test_a_grandchild_keeps_the_pipe(make: Make) -> None:
    host = make("h100:driver.cuinit.grandchild=2")
    began = time.monotonic()
    done = run(host, f"{CALLS['cuinit']}\nsay(os.getpid())\n")  # reads until the pipe closes
    assert done.returncode == 0
    assert time.monotonic() - began >= 1.9
