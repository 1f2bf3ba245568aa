"""A unit as systemd has it loaded, with what systemd answers given; and what happens when it does not answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery import unit_files
from pytest_gpudiscovery.options import UsageProblem
from pytest_gpudiscovery.service import systemd
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe
from tests import fakes

TEXT = "[Service]\nExecStart=/usr/bin/ollama serve\nUser=nobody\nPassEnvironment=P\nPrivateTmp=yes\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unit directories of this test's own, on a host that systemd runs."""
    (tmp_path / "ollama.service").write_text(TEXT)
    directories = (str(tmp_path),) * 10
    monkeypatch.setattr(unit_files, "DIRECTORIES", directories)
    monkeypatch.setattr(unit_files.read_unit, "__defaults__", (directories,))
    monkeypatch.setattr(systemd, "BOOTED", str(tmp_path))
    monkeypatch.setattr(systemd, "SYSTEMCTL", ("/bin/true",))
    monkeypatch.setattr(systemd, "PROGRAM", "/bin/true")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


class Answers:
    """Stands in for the supervisor: one answer per probe module, and what was asked."""

    def __init__(self, **answers: ChildResult) -> None:
        self._answers = answers
        self.asked: list[Probe] = []

    def __call__(self, probe: Probe) -> ChildResult:
        self.asked.append(probe)
        return self._answers[probe.module]


def show(files: Path, **changes: str) -> ChildResult:
    said = {
        "LoadState": "loaded",
        "ActiveState": "active",
        "FragmentPath": f"{files}/ollama.service",
        "DropInPaths": "",
        "NeedDaemonReload": "no",
        "MainPID": "0",
        **changes,
    }
    answer: dict[str, Any] = {"show": said, "environment": {"P": "1", "PATH": "/m"}, "devices": None}
    return fakes.result(answer=answer)


def test_what_systemd_has_loaded_counts_and_probes_are_started_by_it(files: Path) -> None:
    (files / "more.conf").write_text("[Service]\nEnvironment=A=1\n")
    answers = Answers(systemd=show(files, DropInPaths=f"{files}/more.conf"), nothing=fakes.result())
    who = systemd.asked_for("ollama", supervise=answers)
    assert (who.env or {})["A"] == "1"
    assert (who.env or {})["P"] == "1"
    assert who.transient == ("User=nobody", "PrivateTmp=yes")
    assert who.missing == ()
    assert who.binary == "/usr/bin/ollama"
    assert [probe.module for probe in answers.asked] == ["systemd", "nothing"]
    assert answers.asked[1].setup.transient == who.transient


def test_a_refusal_of_systemd_run_leaves_what_root_can_adopt_itself(files: Path) -> None:
    refused = fakes.result(Ending.NOT_SPAWNED, notes=("systemd did not start it: Unknown assignment: X=1",))
    who = systemd.asked_for("ollama", supervise=Answers(systemd=show(files), nothing=refused))
    assert who.transient == ()
    assert who.identity is not None
    said = {item.what: item.why for item in who.missing}
    assert "Unknown assignment: X=1" in said["the transient unit"]
    assert "PrivateTmp" in said


@pytest.mark.parametrize(
    "result",
    [
        fakes.hang("systemctl show ollama.service"),
        fakes.result(answer={"show": {}, "why": "Failed to connect to bus"}),
        fakes.result(Ending.EXITED, exit_code=1),
    ],
)
def test_a_systemd_that_does_not_answer_is_said_and_the_files_are_read(files: Path, result: ChildResult) -> None:
    answers = Answers(systemd=result)
    who = systemd.asked_for("ollama", supervise=answers)
    assert who.identity is not None
    assert who.identity.name == "nobody"
    assert "its files were read instead" in who.notes[0]
    assert who.transient == ()


def test_states_that_are_worth_a_word(files: Path) -> None:
    changes = {"NeedDaemonReload": "yes", "ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "203"}
    who = systemd.asked_for("ollama", supervise=Answers(systemd=show(files, **changes), nothing=fakes.result()))
    assert "its files changed since systemd read them" in who.notes[0]
    assert "result exit-code, status 203" in who.notes[1]


def test_a_unit_that_is_not_there_and_one_that_is_masked(files: Path) -> None:
    with pytest.raises(UsageProblem, match=r"no unit x\.service"):
        systemd.asked_for("x", supervise=Answers(systemd=show(files, LoadState="not-found")))
    masked = systemd.asked_for("ollama", supervise=Answers(systemd=show(files, LoadState="masked")))
    assert "masked" in masked.refused


def test_the_default_asks_as_root_only(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(systemd=show(files), nothing=fakes.result())
    assert systemd.found_here(supervise=answers) is not None
    assert [probe.module for probe in answers.asked] == ["systemd", "nothing"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    answers = Answers()
    who = systemd.found_here(supervise=answers)
    assert who is not None
    assert who.transient == ()
    (files / "ollama.service").unlink()
    assert systemd.found_here(supervise=answers) is None


def test_systemctl_itself_is_run_in_the_child() -> None:
    from pytest_gpudiscovery.probes.systemd import output

    assert output(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"]) == ("out\nerr\n", 3)
