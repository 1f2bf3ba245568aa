"""A child never outlives its supervisor, whatever ends that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_gpudiscovery.supervise import identity
from pytest_gpudiscovery.supervise.types import Identity
from tests.privileges import needs_to_look
from tests.supervise import rigs

ROOT = Path(__file__).parents[2]
SUPERVISOR = """
import signal, sys
from tests.supervise import rigs
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.types import Identity, Setup

def leave(number, frame):
    raise SystemExit(7)

signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, signal.default_int_handler)
how, deadline, pid_file, uid = sys.argv[1:]
setup = Setup(identity=Identity(int(uid), int(uid)) if uid else None)
request = {} if uid else {"pid_file": pid_file}
try:
    print("ready", flush=True)
    run(rigs.probe("t_hang", float(deadline), setup=setup, how=how, **request), extra=rigs.PROBES)
except KeyboardInterrupt:
    print("interrupted")
"""


def supervisor(pid_file: Path, how: str = "signals", deadline_s: float = 60.0, uid: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, how, str(deadline_s), str(pid_file), uid],
        cwd=ROOT,
        env={**os.environ, "GPU_DISCOVERY_TEST": str(pid_file)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def child_of(pid_file: Path) -> int:
    assert rigs.wait_for(lambda: pid_file.exists() and pid_file.read_text(), 30)
    return int(pid_file.read_text())


def test_killed_supervisor_takes_the_child_along(tmp_path: Path) -> None:
    process = supervisor(tmp_path / "pid")
    child = child_of(tmp_path / "pid")
    assert rigs.alive(child)
    process.kill()
    process.communicate(timeout=30)
    assert rigs.wait_for(lambda: not rigs.alive(child))


@needs_to_look
def test_killed_supervisor_takes_a_child_of_another_identity_along(tmp_path: Path) -> None:
    if identity.find_interpreter(Identity(65534, 65534)) is None:
        pytest.skip("no Python that uid 65534 can execute")
    process = supervisor(tmp_path / "pid", uid="65534")
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    # Past the exec there is one argument more; the step that follows is what ties it again.
    assert rigs.wait_for(lambda: path.read_text() and _words(int(path.read_text()))[-2:] == [b"t_hang", b"0"], 30)
    child = int(path.read_text())
    asleep = (b"hrtimer_nanosleep", b"poll_schedule_timeout")  # Python 3.10 sleeps in select
    assert rigs.wait_for(lambda: Path(f"/proc/{child}/wchan").read_bytes().startswith(asleep), 30)
    process.kill()
    process.communicate(timeout=30)
    assert rigs.wait_for(lambda: not rigs.alive(child))


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 0, "ready\ninterrupted\n"), (signal.SIGTERM, 7, "ready\n")]
)
def test_interrupted_wait(number: signal.Signals, code: int, said: str, tmp_path: Path) -> None:
    process = supervisor(tmp_path / "pid")
    child = child_of(tmp_path / "pid")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, said), err
    assert rigs.wait_for(lambda: not rigs.alive(child))


def test_interrupted_while_looking_at_a_hung_child(tmp_path: Path) -> None:
    process = supervisor(tmp_path / "pid", deadline_s=2.0)
    child = child_of(tmp_path / "pid")
    assert rigs.wait_for(lambda: _running("forensics", tmp_path) or process.poll() is not None, 30)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert rigs.wait_for(lambda: not rigs.alive(child))
    assert rigs.wait_for(lambda: not _running("forensics", tmp_path))


def _running(module: str, tmp_path: Path) -> list[int]:
    """Return the children of our supervisor that run MODULE."""
    return [pid for pid in _pids() if _words(pid)[-1:] == [module.encode()] and _parent_is_ours(pid, tmp_path)]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def _parent_is_ours(pid: int, tmp_path: Path) -> bool:
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return str(tmp_path).encode() in Path(f"/proc/{parent}/environ").read_bytes()
    except OSError:
        return False


def test_interrupted_at_any_moment_of_the_start(tmp_path: Path) -> None:
    """Includes the instant between fork and the moment the supervisor learns the child's pid."""
    for attempt in range(10):
        pid_file = tmp_path / f"pid{attempt}"
        process = supervisor(pid_file)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.006 * attempt)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        time.sleep(0.2)
        if pid_file.exists() and (text := pid_file.read_text()):
            assert rigs.wait_for(lambda pid=int(text): not rigs.alive(pid))  # type: ignore[misc]


@pytest.mark.parametrize("how", ["signals", "daemon"])
def test_ignored_sigchld(how: str) -> None:
    """A host program that ignores SIGCHLD loses every exit status; the answer still counts."""
    script = f"""
import signal
from tests.supervise import rigs
from pytest_gpudiscovery.supervise.child import run
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
r = run(rigs.probe("t_hang", 2.0, how={how!r}), extra=rigs.PROBES)
print(r.ending.value, "exit status unknown" in " ".join(r.notes))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == {"signals": "timed_out False\n", "daemon": "answered True\n"}[how]
