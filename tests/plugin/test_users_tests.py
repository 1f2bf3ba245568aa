"""Markers and fixtures in users' own tests, with and without the gate."""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.fixtures import fits, memory_gib, seen
from tests.plugin.conftest import Runner
from tests.plugin.fakegate import GPU

MINE = """
import pytest

def test_plain(): pass
def test_gpus(gpus): assert [gpu["pci"] for gpu in gpus] == ["0000:00:06.0"]
def test_h100(h100): assert h100["pci"] == "0000:00:06.0"
def test_verdict(gpu_verdict): assert gpu_verdict.verdict.value == "ready"
def test_install(ollama_install): assert ollama_install["version"] == "0.0.1"

@pytest.mark.gpu(count=2)
def test_two(): pass

@pytest.mark.gpu(name="h100", cc="9.0", memory=79)
def test_one(): pass

@pytest.mark.gpu_ready(until="kernel")
def test_kernel_ready(): pass

@pytest.mark.gpu_ready
def test_all_ready(): pass

@pytest.mark.gpu_stage("nvml")
def test_record(gpu_stage_record): assert gpu_stage_record.name == "nvml"

def test_closure(library_closure): pass
"""
NEEDS_DRIVER = {"test_gpus", "test_h100", "test_verdict", "test_two", "test_one", "test_all_ready"}


def outcomes(out: str) -> dict[str, str]:
    """Return the outcome of each test from pytest's -rA lines."""
    found = {}
    for line in out.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("PASSED", "FAILED", "ERROR") and "::" in rest:
            found[rest.partition("::")[2].partition(" ")[0]] = word
    return found


@pytest.fixture
def users(gate: Runner) -> Runner:
    """A runner in a directory with a user's tests, which fails on any warning."""
    (gate.directory / "test_mine.py").write_text(MINE, encoding="utf-8")
    (gate.directory / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n", encoding="utf-8"
    )
    return gate


def test_on_a_ready_host(users: Runner) -> None:
    ended = users("test_mine.py", "-rA", "--deselect", "test_mine.py::test_closure")
    found = outcomes(ended.out)
    assert {name for name, word in found.items() if word != "PASSED"} == {"test_two"}
    assert len(found) == 10
    assert ended.code == 1, "pytest's result counts"
    assert ended.verdict["verdict"] == "ready"
    assert "1 of 2 such GPUs; this host has NVIDIA H100 PCIe (CC 9.0, 79.2 GiB)" in ended.out
    assert len(ended.ran) == len(set(ended.ran)) == 8


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_on_a_broken_host(users: Runner, workers: tuple[str, ...]) -> None:
    plugins = ("pytest_timeout", "xdist.plugin")
    ended = users(
        "test_mine.py",
        "-rA",
        "--gpu-until=runtime",
        *workers,
        stages="driver=fail closure=hang",
        plugins=plugins,
        env={"FAKE_MORE": "closure"},
    )
    found = outcomes(ended.out)
    assert {name for name, word in found.items() if word != "PASSED"} == {*NEEDS_DRIVER, "test_closure"}
    assert "06 driver: driver was told to fail" in ended.out
    assert "07 enumeration was not reached" in ended.out
    assert ended.code == 1
    assert len(ended.ran) == len(set(ended.ran)), "each probe once, whoever asks"


def test_ready_means_that_everything_before_has_an_answer(users: Runner) -> None:
    unknown = users("test_mine.py", "-rA", "-k", "ready", stages="kernel=unknown")
    assert outcomes(unknown.out) == {"test_kernel_ready": "ERROR", "test_all_ready": "ERROR"}
    assert "04 kernel: P42 is unknown: not allowed to look" in unknown.out
    absent = users("test_mine.py", "-rA", "-k", "ready", stages="kernel=absent")
    assert outcomes(absent.out) == {"test_kernel_ready": "ERROR", "test_all_ready": "PASSED"}
    assert "04 kernel: no kernel here" in absent.out


def test_suites_beside_users_tests_count_for_the_exit_code(users: Runner) -> None:
    both = ("gpu-discovery", "test_mine.py")
    incomplete = users(*both, "-k", "test_plain")
    assert (incomplete.code, incomplete.verdict["verdict"]) == (20, "incomplete")
    assert users(*both, "-k", "test_plain or answers").code == 0
    assert users(*both, "-k", "test_two or answers").code == 1, "a user's own test failed"
    assert users("test_mine.py", "-k", "test_plain").code == 0, "users' own tests only: pytest's result"


def test_a_user_s_time_limit_does_not_end_a_stage(users: Runner) -> None:
    """The stages run before the first test's clock starts."""
    ended = users("test_mine.py", "-k", "test_gpus", "--timeout=0.5", stages="driver=hang")
    assert ended.outcomes["driver"] == "timed_out"
    assert "Timeout" not in ended.out


def test_without_the_gate_they_are_skipped(users: Runner) -> None:
    command = [part for part in users.command("test_mine.py", "-rs", plugins=()) if part != "--gpu-discovery"]
    ended = users(command=command)
    assert ended.code == 0
    assert "1 passed, 10 skipped" in ended.out
    for name in ("gpu", "gpu_ready", "gpu_stage", "gpus", "h100", "gpu_verdict", "ollama_install", "library_closure"):
        assert f"{name} needs --gpu-discovery" in ended.out
    assert ended.ran == ()


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        ('gpu("H100")', "gpu(count=1, name=None, cc=None, memory=None)"),
        ("gpu(cout=1)", "gpu(count=1, name=None, cc=None, memory=None)"),
        ("gpu(count=0)", "gpu(count=1, name=None, cc=None, memory=None)"),
        ('gpu(cc="nine")', "gpu(count=1, name=None, cc=None, memory=None)"),
        ('gpu_ready(until="drvier")', "the stages are package, service"),
        ('gpu_ready("driver", until="driver")', "gpu_ready(until=None)"),
        ("gpu_stage", "gpu_stage(name)"),
        ('gpu_stage("drvier")', "the stages are package, service"),
    ],
)
def test_misuse_shows_the_signature(gate: Runner, marker: str, says: str) -> None:
    text = f"import pytest\n@pytest.mark.{marker}\ndef test_mine(): pass\n"
    (gate.directory / "test_mine.py").write_text(text, encoding="utf-8")
    ended = gate("test_mine.py", "-q")
    assert ended.code == 4
    assert says in ended.err
    assert "Traceback" not in ended.out + ended.err
    assert ended.ran == ()


def test_misuse_is_a_usage_error_with_workers_too(gate: Runner) -> None:
    text = "import pytest\n@pytest.mark.gpu(1)\ndef test_mine(): pass\n"
    (gate.directory / "test_mine.py").write_text(text, encoding="utf-8")
    ended = gate("test_mine.py", "-n", "2", plugins=("xdist.plugin", "pytest_timeout"))
    assert ended.code == 4
    assert "expected gpu(count=1" in ended.out + ended.err
    assert "INTERNALERROR" not in ended.out
    assert ended.ran == ()


def test_a_plugin_adds_a_stage(gate: Runner) -> None:
    added = (
        "import dataclasses, fakegate\n"
        "def pytest_gpudiscovery_stages(config):\n"
        "    return [dataclasses.replace(fakegate.stage(NUMBER, 'shim', ('driver',)), title='Shim')]\n"
    )
    (gate.directory / "adding.py").write_text(added.replace("NUMBER", "20"), encoding="utf-8")
    path = f"{gate.environment()['PYTHONPATH']}:{gate.directory}"
    ended = gate("-v", "-p", "adding", env={"PYTHONPATH": path})
    assert ended.code == 0, ended.out + ended.err
    assert ended.outcomes["shim"] == "passed"
    assert "20 shim" in ended.out
    (gate.directory / "adding.py").write_text(added.replace("NUMBER", "6"), encoding="utf-8")
    taken = gate("-p", "adding", env={"PYTHONPATH": path})
    assert taken.code == 4
    assert "stage 6 shim has the name or number of driver" in taken.err


def test_what_fits() -> None:
    assert fits(GPU)
    assert fits(GPU, name="h100", cc="9.0", memory=79)
    assert fits(GPU, cc=(8, 9))
    assert not fits(GPU, name="H200")
    assert not fits(GPU, cc="10.0"), "compared as numbers, not as text"
    assert not fits(GPU, memory=80)
    assert not fits({"pci": "x", "views": {}}, cc="1.0"), "what no view says is not met"
    assert fits({"pci": "x", "views": {}})


def test_views_are_asked_in_order() -> None:
    gpu = {"views": {"nvml": {"name": "by NVML", "memory": {"total": 1 << 30}}, "sysfs": {"name": "by sysfs"}}}
    assert seen(gpu, "name") == "by NVML"
    assert seen(gpu, "cc") is None
    assert memory_gib(gpu) == 1.0


DYING = """
import os, pytest

@pytest.mark.parametrize("number", range(6))
def test_dies(number):
    if number == DIES_AT:
        os.abort()
"""


@pytest.mark.parametrize(
    ("dying", "asked"),
    [(1, ()), (2, ()), (1, ("--max-worker-restart", "3"))],
    ids=["one worker dies", "both workers die", "replacing was asked for"],
)
def test_workers_that_die_end_the_run(gate: Runner, dying: int, asked: tuple[str, ...]) -> None:
    """With --dist loadfile pytest-xdist 3.8 replaces a worker and waits for ever for the rest of its file."""
    for number in range(6):
        dies_at = "2" if 1 <= number <= dying else "None"
        path = gate.directory / f"test_{number}.py"
        path.write_text(DYING.replace("DIES_AT", dies_at), encoding="utf-8")
    plugins = ("pytest_timeout", "xdist.plugin")
    ended = gate("gpu-discovery", ".", "-n", "2", "--dist", "loadfile", *asked, stages="", plugins=plugins)
    assert any("--max-worker-restart 3 put aside" in note for note in ended.verdict["notes"]) == bool(asked)
    assert "crashed while running" in ended.out
    assert ended.code == 1
    assert ended.last.endswith(f"(exit {ended.code})")
