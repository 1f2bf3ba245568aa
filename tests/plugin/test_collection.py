"""The packaged suites are collected, named and ordered alike whatever surrounds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpudiscovery import collection
from tests.plugin.conftest import Runner

HOSTILE_INI = """
[pytest]
python_files = check_*.py
python_functions = verify_*
python_classes = Verify
testpaths = nowhere
norecursedirs = * .*
addopts = -n auto -m unit -k nothing --deselect gpu-discovery --ignore-glob=* -x --maxfail=1 --doctest-modules
    --import-mode=importlib --strict-markers --strict-config -p no:cacheprovider
filterwarnings = error
xfail_strict = true
console_output_style = count
timeout = 1
timeout_method = thread
"""
ALL = ("package", "service", "loopback", "kernel", "nvml", "driver", "enumeration", "runtime")


def node_ids(run: Runner, cwd: Path, *arguments: str) -> list[str]:
    """Return what --collect-only lists in CWD."""
    ended = run("--collect-only", "-q", *arguments, cwd=cwd)
    assert ended.ran == ()
    assert ended.code == 20, "a run that collects only has no answer"
    return [line for line in ended.out.splitlines() if "::" in line]


def test_the_user_s_ini_and_conftest_change_nothing(gate: Runner) -> None:
    (gate.directory / "pytest.ini").write_text(HOSTILE_INI, encoding="utf-8")
    (gate.directory / "conftest.py").write_text("raise RuntimeError('not for the gate')", encoding="utf-8")
    plugins = ("pytest_timeout", "xdist.plugin", "pytest_randomly", "random_order.plugin")
    ended = gate("--random-order", plugins=plugins)
    assert ended.code == 0, ended.out + ended.err
    assert ended.ran == ALL
    assert "numprocesses" in ended.out, "what was put aside is said"
    assert "warning" not in ended.out.lower()


def test_node_ids_do_not_depend_on_the_place(gate: Runner, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "tests").mkdir(parents=True)
    (project / "pyproject.toml").write_text("[tool.pytest.ini_options]\ntestpaths = ['tests']\n", encoding="utf-8")
    (project / "tests" / "test_mine.py").write_text("def test_mine(): pass\n", encoding="utf-8")
    here = node_ids(gate, tmp_path)
    assert here == node_ids(gate, project)
    assert here == node_ids(gate, Path("/"), "--gpu-report", str(tmp_path / "report"))
    assert here == node_ids(gate, project, "gpu-discovery")
    assert here[0].startswith("gpu-discovery/test_01_package.py::test_")
    files = list(dict.fromkeys(node.partition("::")[0] for node in here))
    suites = sorted(collection.FOLDER.glob("test_*.py"))
    assert files == [f"gpu-discovery/{path.name}" for path in suites if path.stem.endswith(ALL)]


def test_a_folder_of_the_same_name_is_not_taken_for_ours(gate: Runner) -> None:
    """`gpu-discovery/...` names the packaged suites; `./gpu-discovery/...` is the user's own folder."""
    mine = gate.directory / "gpu-discovery"
    mine.mkdir()
    (mine / "test_06_driver.py").write_text("def test_mine(): assert False\n", encoding="utf-8")
    ours = gate("gpu-discovery/test_06_driver.py", "-q")
    assert ours.code == 20, "runtime, the target, was not asked for"
    assert ours.outcomes["driver"] == "passed"
    users = gate("./gpu-discovery/test_06_driver.py", "-q")
    assert users.code == 1
    assert "1 failed" in users.out


def test_users_paths_are_honoured_and_the_suites_not_added(gate: Runner) -> None:
    (gate.directory / "conftest.py").write_text("SEEN = True\n", encoding="utf-8")
    (gate.directory / "test_mine.py").write_text("def test_mine(): pass\n", encoding="utf-8")
    (gate.directory / "pytest.ini").write_text("[pytest]\naddopts = -k mine\n", encoding="utf-8")
    ended = gate("test_mine.py")
    assert ended.code == 0
    assert "1 passed" in ended.out
    assert ended.ran == ()
    both = gate("test_mine.py", "gpu-discovery/test_01_package.py", "-o", "addopts=")
    assert both.code == 20, "the verdict counts where a suite was asked for, and one suite is not the gate"
    assert both.ran == ("package",)
    assert "test_mine.py" in both.out


def test_a_plain_run_collects_nothing_of_ours(gate: Runner) -> None:
    (gate.directory / "test_mine.py").write_text("def test_mine(): pass\n", encoding="utf-8")
    command = [part for part in gate.command() if part not in ("--gpu-discovery", "fakegate")]
    del command[command.index("-p", command.index("pytest_gpudiscovery.plugin"))]  # the -p before fakegate
    ended = gate(command=command)
    assert ended.code == 0
    assert "1 passed" in ended.out
    assert not (gate.directory / "gpu-discovery-report").exists()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gpu-discovery", True),
        ("gpu-discovery/", True),
        ("gpu-discovery/test_06_driver.py::test_x", True),
        (str(collection.FOLDER), True),
        (str(collection.FOLDER / "test_06_driver.py") + "::test_x", True),
        ("gpu-discovery-report", False),
        ("./gpu-discovery", False),
        ("tests", False),
    ],
)
def test_what_names_the_suites(path: str, expected: bool) -> None:
    assert collection.is_ours(path) is expected
    if expected:
        assert collection.translate(path).startswith(str(collection.FOLDER))
    else:
        assert collection.translate(path) == path


def test_the_belt_is_put_around_items_and_only_when_there(gate: Runner) -> None:
    """A user's one-second limit by the method that kills the process must not end a slower stage."""
    ended = gate("--timeout", "1", "--timeout-method", "thread", "-k", "test_01", stages="package=hang")
    assert ended.outcomes["package"] == "timed_out"
    assert ended.code == 1
    without = gate("-q", "-p", "no:timeout", "-p", "no:xdist", plugins=())
    assert without.code == 0
    assert any("pytest-timeout is not loaded" in note for note in without.verdict["notes"])
    assert any("pytest-xdist is switched off" in note for note in without.verdict["notes"])


def test_listing_fixtures_runs_nothing(gate: Runner) -> None:
    ended = gate("--fixtures")
    assert ended.code == 0
    assert "gpu_verdict [session scope]" in ended.out
    assert ended.ran == ()
    assert ended.verdict == {}


def test_a_run_without_pytest_s_terminal(gate: Runner) -> None:
    ended = gate("-p", "no:terminal", stages="driver=fail")
    assert ended.code == 1
    assert ended.last == "gpu-discovery: BLOCKED at 06 driver: driver was told to fail (exit 1)"
