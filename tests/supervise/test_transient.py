"""Probes as transient units: the command line as a pure function, and the life of such a child over a stand-in."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import private
from pytest_gpudiscovery.supervise import transient
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe, Setup

CC = shutil.which("cc")


def test_the_command_line() -> None:
    said = transient.argv(
        "u.service", ("User=ollama", "DeviceAllow=char-nvidia rw"), ["/usr/bin/python3", "-c", "x"], 4.5
    )
    assert said[0].endswith("/systemd-run")
    options, command = said[1 : said.index("--")], said[said.index("--") + 1 :]
    assert command == ["/usr/bin/python3", "-c", "x"]
    assert options[:6] == [
        "--pipe",
        "--wait",
        "--collect",
        "--no-ask-password",
        "--service-type=exec",
        "--unit=u.service",
    ]
    assert options[-1].startswith("--property=ExecStopPost=-/bin/sh -c ")
    assert options[6:-1] == [
        "--property=User=ollama",
        "--property=DeviceAllow=char-nvidia rw",
        "--property=RuntimeMaxSec=14",
        "--property=TimeoutStopSec=2",
        "--property=KillMode=control-group",
        "--property=KillSignal=SIGKILL",
        "--property=NoNewPrivileges=yes",
    ]


@given(st.lists(st.text(st.characters(exclude_characters="\0"), max_size=20)), st.lists(st.text(max_size=10)))
def test_whatever_the_properties_are_the_command_comes_behind_the_dashes(
    properties: list[str], command: list[str]
) -> None:
    said = transient.argv("u.service", properties, command, 1.0)
    assert [item for item in said if item == "--"][:1] == ["--"]
    assert said[len(said) - len(command) :] == command
    assert said[7 : 7 + len(properties)] == [f"--property={item}" for item in properties]


@pytest.mark.parametrize(
    ("properties", "path"),
    [
        ((), "/sys/fs/cgroup/system.slice/u.service"),
        (("Slice=gpu.slice",), "/sys/fs/cgroup/gpu.slice/u.service"),
        (("Slice=a-b-c.slice",), "/sys/fs/cgroup/a.slice/a-b.slice/a-b-c.slice/u.service"),
        (("Slice=-.slice",), "/sys/fs/cgroup/u.service"),
        (("Slice=x.slice", "Slice="), "/sys/fs/cgroup/system.slice/u.service"),
    ],
)
def test_where_the_cgroup_of_the_unit_is(properties: tuple[str, ...], path: str) -> None:
    assert transient.directories("u.service", transient.slice_of(properties))[0] == path


@pytest.mark.parametrize(
    ("values", "merged"),
    [
        ([], None),
        (["CAP_CHOWN CAP_KILL"], "CAP_CHOWN CAP_KILL"),
        (["CAP_CHOWN", "CAP_KILL CAP_CHOWN"], "CAP_CHOWN CAP_KILL"),
        (["CAP_CHOWN CAP_KILL", "~CAP_KILL"], "CAP_CHOWN"),
        (["~CAP_KILL"], "~CAP_KILL"),
        (["~CAP_KILL", "~CAP_CHOWN"], "~CAP_KILL CAP_CHOWN"),
        (["~CAP_KILL CAP_CHOWN", "CAP_KILL"], "~CAP_CHOWN"),
        ([""], ""),
        (["CAP_CHOWN", "", "CAP_KILL"], "CAP_KILL"),
    ],
)
def test_capabilities_are_merged_as_in_a_unit_file(values: list[str], merged: str | None) -> None:
    assert transient.capabilities(values) == merged


def test_a_unit_gives_up_the_right_to_make_nodes() -> None:
    assert transient.without_mknod(["Nice=1"]) == ["Nice=1", "CapabilityBoundingSet=~CAP_MKNOD"]
    assert transient.without_mknod(["CapabilityBoundingSet=CAP_MKNOD CAP_KILL", "Nice=1"]) == [
        "Nice=1",
        "CapabilityBoundingSet=CAP_KILL",
    ]
    assert transient.without_mknod(["CapabilityBoundingSet="]) == ["CapabilityBoundingSet="]


def test_what_systemd_run_prints_is_told_from_what_the_probe_prints() -> None:
    said = (
        "Running as unit: u.service\nmy own words\nFinished with result: signal\n"
        "Main processes terminated with: code=killed/status=ABRT\nService runtime: 5ms\n"
    )
    assert transient.ending(said) == signal.SIGABRT
    assert transient.own_words(said) == "my own words\n"
    assert transient.ending(said.replace("killed/status=ABRT", "exited/status=1/FAILURE")) is None
    assert transient.refusal(said) is None
    assert transient.refusal("x\nUnknown assignment: A=b\n") == "Unknown assignment: A=b"
    assert transient.refusal("Failed to connect to bus: No such file\n") is not None
    assert transient.set_up_failed(226) is not None
    assert transient.set_up_failed(1) is None


# --- a stand-in for systemd-run: a child of its own, no systemd ------------------------------------------------------

STAND_IN = """#!/bin/sh
echo "Running as unit: x.service" >&2
case " $* " in *NoSuchThing=*) echo "Unknown assignment: NoSuchThing=1" >&2; exit 1;; *Namespace=fails*) exit 226;; esac
while [ "$1" != -- ]; do shift; done
shift
env -i LISTEN=1 "$@"
code=$?
[ $code -lt 128 ] || { echo "Main processes terminated with: code=killed/status=ABRT" >&2; exit 1; }
exit $code
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a script in the place of systemd-run."""
    path = tmp_path / "systemd-run"
    path.write_text(STAND_IN)
    path.chmod(0o755)
    monkeypatch.setattr(transient, "PROGRAM", str(path))


def probe(
    module: str = "nothing", *properties: str, env: dict[str, str] | None = None, deadline_s: float = 8.0
) -> ChildResult:
    setup = Setup(transient=properties or ("Nice=1",))
    return run(Probe(module, {}, {"PATH": "/usr/bin:/bin", **(env or {})}, deadline_s, setup=setup))


def test_a_probe_answers_through_three_descriptors(tmp_path: Path) -> None:
    setup = Setup(transient=("Nice=1",))
    request = {"mode": "look", "view": {"kind": "live"}, "env": {}}
    result = run(Probe("service", request, {"PATH": "/bin", "A": "secret"}, 8.0, str(tmp_path), setup))
    assert result.ending is Ending.ANSWERED, (result.notes, result.stderr)
    assert result.answer["fork"] == {"errno": None}
    assert result.stderr == ""
    assert result.observed["setup"]["pid"] != result.pid


def test_the_environment_arrives_whole_and_only_by_the_payload(tmp_path: Path) -> None:
    directory = tmp_path / "extra"
    directory.mkdir()
    code = "import os, sys\ndef probe(request, journal):\n    print('out'); sys.stderr.write('err')\n"
    code += "    return {'env': dict(os.environ), 'stdin': os.read(0, 10).decode(), 'argv': sys.argv}\n"
    (directory / "tells.py").write_text(code)
    env = {"PATH": "/usr/bin:/bin", "SECRET": "x y\nz", "LD_LIBRARY_PATH": "/opt"}
    result = run(Probe("tells", {}, env, 8.0, setup=Setup(transient=("Nice=1",))), extra=directory)
    assert result.answer["env"] == env
    assert result.answer["stdin"] == ""
    assert "out" in result.stderr
    assert "err" in result.stderr
    assert "SECRET" not in " ".join(transient.argv("u", ("Nice=1",), ["x"], 1.0))


@pytest.mark.parametrize(
    ("properties", "words"),
    [(("NoSuchThing=1",), "Unknown assignment: NoSuchThing=1"), (("Namespace=fails",), "exit status 226")],
)
def test_what_systemd_refuses_was_not_started(properties: tuple[str, ...], words: str) -> None:
    result = probe(*properties)
    assert result.ending is Ending.NOT_SPAWNED
    assert words in "; ".join(result.notes)


def test_systemd_run_that_is_not_there_was_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient, "PROGRAM", "/no/such/systemd-run")
    assert probe().ending is Ending.NOT_SPAWNED


@pytest.mark.skipif(CC is None, reason="no C compiler")
def test_a_signal_is_told_and_a_hang_is_ended(tmp_path: Path) -> None:
    for name, body in (("crash", "abort();"), ("hang", "for (;;) pause();")):
        (tmp_path / f"{name}.c").write_text(
            "#include <stdlib.h>\n#include <unistd.h>\n"
            f"__attribute__((constructor)) static void begin(void) {{ {body} }}\n"
        )
        subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / f"{name}.so", tmp_path / f"{name}.c"], check=True)
    crashed = probe(env={"LD_PRELOAD": str(tmp_path / "crash.so")})
    assert (crashed.ending, crashed.signal) == (Ending.SIGNALLED, signal.SIGABRT)
    hung = probe(env={"LD_PRELOAD": str(tmp_path / "hang.so")}, deadline_s=1.0)
    assert hung.ending is Ending.TIMED_OUT
    assert hung.duration_s < 1.0 + 4.0
    until = time.monotonic() + 10
    while is_alive(hung.observed["setup"]["pid"]) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_alive(hung.observed["setup"]["pid"])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_this_interpreter_is_one_that_can_be_started() -> None:
    assert os.access(sys.executable, os.X_OK)


def test_private_directories_of_a_unit_go_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guardian is killed with its cgroup: systemd removes what is named after the unit, and nothing else."""
    place = tmp_path / "place"
    monkeypatch.setattr(private, "PLACES", (str(place),))
    for tag in (private.of_unit("gpu-discovery-12-3.service"), private.of_unit("gpu-discovery-112-3.service"), ""):
        (place / f"{private.NAME}7-1{tag}" / "models").mkdir(parents=True)
    said = transient.argv("gpu-discovery-12-3.service", (), ["x"], 1.0)
    (command,) = [word.partition("=-")[2] for word in said if word.startswith("--property=ExecStopPost=")]
    assert subprocess.run(shlex.split(command), check=True).returncode == 0
    assert sorted(path.name for path in place.iterdir()) == [f"{private.NAME}7-1", f"{private.NAME}7-1-of-112-3"]
