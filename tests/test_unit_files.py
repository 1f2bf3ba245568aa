"""Who a systemd unit runs as, from files that this test writes; and environment files of every shape."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery import unit_files

NOBODY = pwd.getpwnam("nobody")


def unit(directory: Path, text: str, name: str = "ollama.service") -> tuple[str, ...]:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)
    return (str(directory),)


def test_a_host_without_the_unit_has_no_service(tmp_path: Path) -> None:
    assert unit_files.service(directories=(str(tmp_path),)) is None


def test_user_and_environment_are_adopted(tmp_path: Path) -> None:
    text = '[Unit]\nUser=ignored\n[Service]\nUser=nobody\nEnvironment="A=b c" D=e\nEnvironment=LD_LIBRARY_PATH=/opt\n'
    who = unit_files.service(directories=unit(tmp_path, text))
    assert who is not None
    assert who.identity is not None
    assert (who.identity.uid, who.identity.gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert who.env is not None
    assert {name: who.env[name] for name in ("A", "D", "LD_LIBRARY_PATH", "USER")} == {
        "A": "b c",
        "D": "e",
        "LD_LIBRARY_PATH": "/opt",
        "USER": "nobody",
    }


def test_drop_ins_come_after_the_unit_and_an_empty_assignment_resets(tmp_path: Path) -> None:
    directories = unit(tmp_path, "[Service]\nUser=nobody\nEnvironment=A=1\n")
    unit(tmp_path / "ollama.service.d", "[Service]\nEnvironment=\nEnvironment=B=2\n", "override.conf")
    who = unit_files.service(directories=directories)
    assert who is not None
    assert who.env is not None
    assert "A" not in who.env
    assert who.env["B"] == "2"


def test_a_user_that_the_host_lacks_is_said_and_not_replaced_in_silence(tmp_path: Path) -> None:
    who = unit_files.service(directories=unit(tmp_path, "[Service]\nUser=no-such-user-here\n"))
    assert who is not None
    assert who.identity is None
    assert who.not_adopted[0]["what"] == "user no-such-user-here of ollama.service"
    assert "no-such-user-here" in who.refused


def test_a_dynamic_user_cannot_be_adopted(tmp_path: Path) -> None:
    who = unit_files.service(directories=unit(tmp_path, "[Service]\nDynamicUser=yes\n"))
    assert who is not None
    assert who.identity is None
    assert "DynamicUser" in who.refused


def test_an_environment_file_is_read_and_a_missing_one_is_said(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\nexport C='x y'\n\nD=\n")
    text = (
        f"[Service]\nUser=nobody\nEnvironmentFile={tmp_path}/env\nEnvironmentFile=-/no/such\nEnvironmentFile=/no/file\n"
    )
    who = unit_files.service(directories=unit(tmp_path / "units", text))
    assert who is not None
    assert who.env is not None
    assert (who.env["C"], who.env["D"]) == ("x y", "")
    assert [item["what"] for item in who.not_adopted if "EnvironmentFile" in item["what"]] == [
        "EnvironmentFile=/no/file"
    ]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_an_environment_file_is_variables_or_one_line_of_complaint(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("env") / "file"
    path.write_text(text, encoding="utf-8")
    complaint = ""
    try:
        assert all(name and "=" not in name for name in unit_files.read_env_file(str(path)))
    except ValueError as error:
        complaint = str(error)
    assert "\n" not in complaint
    assert not complaint or str(path) in complaint


def test_a_unit_that_may_not_be_read_is_said_and_nobody_is_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = unit(tmp_path, "[Service]\nUser=nobody\n")
    monkeypatch.setattr(os, "access", lambda *_: False)  # as a file of mode 0 is for everybody but root
    who = unit_files.service(directories=directories)
    assert who is not None
    assert (who.identity, who.source) == (None, "caller")
    assert "may not be read" in who.not_adopted[0]["why"]
