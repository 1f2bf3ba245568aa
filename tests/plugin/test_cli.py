"""The command: hermetic in a hostile directory, one line and 4 for what it cannot do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_gpudiscovery import commands
from pytest_gpudiscovery.cli import forget_current_directory
from pytest_gpudiscovery.options import UsageProblem
from tests.plugin.conftest import Ended, Runner

TRAPS = ("pytest", "_pytest", "pluggy", "conftest", "pytest_timeout", "xdist", "allure_pytest", "json", "evil")
# What `gpu-discovery` does, over the stages of fakegate; sys.path as with a console script, plus the caller's.
COMMAND = (
    "import sys; sys.path.remove(''); import fakegate; sys.path.insert(0, ''); sys.path.insert(0, sys.argv.pop(1));"
    "from pytest_gpudiscovery.cli import main; sys.exit(main())"
)


def run(gate: Runner, *arguments: str, stages: str = "") -> Ended:
    """Run the command in the runner's directory, which is on sys.path in three ways."""
    path = f"{gate.environment()['PYTHONPATH']}:{gate.directory}"
    command = [sys.executable, "-c", COMMAND, str(gate.directory), *arguments]
    return gate(command=command, stages=stages, env={"PYTHONPATH": path})


@pytest.fixture
def hostile(gate: Runner) -> Runner:
    """A runner in a directory full of modules that leave a trace when they are imported."""
    for name in TRAPS:
        text = f"import os\nos.close(os.open({str(gate.directory / 'trace')!r}, os.O_CREAT))\n"
        (gate.directory / f"{name}.py").write_text(text, encoding="utf-8")
    ini = "[pytest]\naddopts = -p evil -k nothing\ngpu_until = package\n"
    (gate.directory / "pytest.ini").write_text(ini, encoding="utf-8")
    return gate


def test_nothing_of_the_directory_is_used(hostile: Runner) -> None:
    """The traps would also fire while Python itself starts, so the runs begin outside; the command's part is ours."""
    script = (
        "import os, sys, fakegate; os.chdir(sys.argv.pop(1)); sys.path[:0] = ['', os.getcwd()];"
        "from pytest_gpudiscovery.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", script, str(hostile.directory), "gate", "-v", "--junitxml=junit.xml"]
    outside = hostile.directory.parent
    done = hostile(command=command, cwd=outside, env={"PYTEST_ADDOPTS": "-p evil", "PYTEST_PLUGINS": "evil"})
    ended = hostile.ended(done.code, done.out, done.err, hostile.directory)
    assert ended.code == 0, ended.out + ended.err
    assert not (hostile.directory / "trace").exists()
    assert ended.verdict["verdict"] == "ready"
    assert ended.outcomes["runtime"] == "passed", "the ini file's gpu_until had no say"
    assert "driver call" in ended.out, "-v shows the steps"
    assert (hostile.directory / "junit.xml").exists()
    assert not (hostile.directory / ".pytest_cache").exists()


def test_gate_exit_codes(gate: Runner) -> None:
    assert run(gate, "gate", "-q", stages="driver=fail").code == 1
    assert run(gate, "gate", "-q", stages="driver=unknown").code == 20
    nagios = run(gate, "gate", "--gpu-exit", "nagios", stages="driver=fail")
    assert nagios.code == 2
    assert nagios.out.splitlines() == ["gpu-discovery: BLOCKED at 06 driver: driver was told to fail (exit 2)"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gate", "tests"], "unrecognized arguments: tests"),
        (["gate", "-k", "driver"], "unrecognized arguments: -k driver"),
        (["gate", "-p", "evil"], "unrecognized arguments"),
        (["gate", "--gpu-unt", "driver"], "unrecognized arguments"),
        (["gate", "--gpu-until"], "expected one argument"),
        (["gate", "--gpu-until", "drvier"], "did you mean driver?"),
        (["gate", "--gpu-baseline", "x"], "not part of this version"),
        ([], "expected a command: gate, stages, faults, closure, fatbin, explain, bundle"),
        (["gat"], "invalid choice"),
    ],
)
def test_usage_errors_are_one_line(
    gate: Runner, arguments: list[str], says: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "drvier" in arguments or "--gpu-baseline" in arguments:  # refused by pytest's side: needs a process of its own
        ended = run(gate, *arguments)
        code, out, err = ended.code, ended.out, ended.err
    else:
        code = commands.run(arguments)
        out, err = capfd.readouterr()
    assert code == 4
    assert not out
    assert len(err.strip().splitlines()) == 1
    assert says in err


def test_stages_lists_the_table(gate: Runner) -> None:
    ended = run(gate, "stages")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert len(lines) == 9
    assert lines[6].split()[:5] == ["06", "driver", "kernel,", "package,", "service"]


def test_faults_lists_what_can_be_injected(gate: Runner) -> None:
    ended = run(gate, "faults")
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) >= 40
    assert "h100-ollama" in [line.partition(" ")[0] for line in ended.out.splitlines()]


def test_the_current_directory_leaves_sys_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    elsewhere = str(tmp_path.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", ".", str(tmp_path), str(tmp_path / "below"), "below", elsewhere])
    monkeypatch.setenv("PYTEST_ADDOPTS", "-x")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "")
    forget_current_directory()
    assert sys.path == [elsewhere]
    assert "PYTEST_ADDOPTS" not in os.environ
    assert os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] == "1"


def test_a_current_directory_that_is_gone_is_said_in_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    shell = 'mkdir "$1" && cd "$1" && rmdir "$1" && shift && exec "$@"'
    command = [sys.executable, "-m", "pytest_gpudiscovery", "gate"]
    done = subprocess.run(["sh", "-c", shell, "sh", str(gone), *command], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (4, 1)
    assert "the current directory is gone" in done.stderr


def test_root_writes_no_reports_where_others_could_turn_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("SUDO_UID", raising=False)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(UsageProblem, match="is a link"):
        commands._check_report(str(link))
    commands._check_report(str(tmp_path / "absent"))
    mine = tmp_path / "mine"
    mine.mkdir()
    owner = mine.stat().st_uid
    if owner == 0:
        os.chown(mine, 65534, 65534)
        owner = 65534
    with pytest.raises(UsageProblem, match=f"belongs to uid {owner}"):
        commands._check_report(str(mine))
    monkeypatch.setenv("SUDO_UID", str(owner))
    commands._check_report(str(mine))
