"""Unit files and environment files as systemd reads them, from files that this test writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery import unit_files
from pytest_gpudiscovery.unit_files import UnitProblem, read_unit, service_section


def write(directory: Path, text: str, name: str = "ollama.service") -> tuple[str, ...]:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)
    return (str(directory),)


def test_a_host_without_the_unit_has_none(tmp_path: Path) -> None:
    assert read_unit("ollama.service", (str(tmp_path),)) is None


def test_the_strongest_directory_has_the_unit_and_every_directory_may_have_drop_ins(tmp_path: Path) -> None:
    strong, weak = str(tmp_path / "etc"), str(tmp_path / "usr")
    write(tmp_path / "etc", "[Service]\nUser=strong\n")
    write(tmp_path / "usr", "[Service]\nUser=weak\n")
    write(tmp_path / "usr" / "ollama.service.d", "[Service]\nEnvironment=A=weak\n", "10-a.conf")
    write(tmp_path / "usr" / "ollama.service.d", "[Service]\nEnvironment=B=weak\n", "20-b.conf")
    write(tmp_path / "etc" / "ollama.service.d", "[Service]\nEnvironment=A=strong\n", "10-a.conf")
    write(tmp_path / "etc" / "service.d", "[Service]\nEnvironment=C=all\n", "05-c.conf")
    unit = read_unit("ollama.service", (strong, weak))
    assert unit is not None
    assert unit.last("User") == "strong"
    assert unit.all("Environment") == ["C=all", "A=strong", "B=weak"]


def test_drop_ins_of_prefixes_and_templates(tmp_path: Path) -> None:
    directories = write(tmp_path, "[Service]\nUser=a\n", "ollama-gpu@.service")
    write(tmp_path / "ollama-.service.d", "[Service]\nEnvironment=P=1\n", "1.conf")
    write(tmp_path / "ollama-gpu@.service.d", "[Service]\nEnvironment=T=1\n", "2.conf")
    write(tmp_path / "ollama-gpu@0.service.d", "[Service]\nEnvironment=I=1\n", "3.conf")
    unit = read_unit("ollama-gpu@0.service", directories)
    assert unit is not None
    assert unit.all("Environment") == ["P=1", "T=1", "I=1"]


def test_an_empty_assignment_resets_a_list(tmp_path: Path) -> None:
    directories = write(tmp_path, "[Service]\nEnvironment=A=1\nUser=x\n")
    write(tmp_path / "ollama.service.d", "[Service]\nEnvironment=\nEnvironment=B=2\nUser=\n", "override.conf")
    unit = read_unit("ollama.service", directories)
    assert unit is not None
    assert (unit.all("Environment"), unit.last("User")) == (["B=2"], "")


def test_masked_and_unreadable_units_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ollama.service").symlink_to("/dev/null")
    with pytest.raises(UnitProblem, match="masked"):
        read_unit("ollama.service", (str(tmp_path),))
    (tmp_path / "ollama.service").unlink()
    directories = write(tmp_path, "[Service]\n")
    monkeypatch.setattr(os, "access", lambda *_: False)  # as a file of mode 0 is for everybody but root
    with pytest.raises(UnitProblem, match="may not be read"):
        read_unit("ollama.service", directories)


def test_a_drop_in_that_may_not_be_read_is_remembered(tmp_path: Path) -> None:
    directories = write(tmp_path, "[Service]\nUser=a\n")
    (tmp_path / "ollama.service.d").mkdir()
    (tmp_path / "ollama.service.d" / "x.conf").mkdir()  # EISDIR, for root too
    unit = read_unit("ollama.service", directories)
    assert unit is not None
    assert unit.unread == (str(tmp_path / "ollama.service.d" / "x.conf"),)


def test_sections_comments_and_lines_that_go_on() -> None:
    text = (
        "[Unit]\nUser=ignored\n[Service]\n# User=comment\n; User=comment\n"
        "ExecStart=/usr/bin/ollama \\\n# in between\n  serve\nEnvironment=A=1\\\n  B=2\n User = x \n"
        "[Install]\nUser=no\n"
    )
    assert service_section(text) == [
        ("ExecStart", "/usr/bin/ollama    serve"),
        ("Environment", "A=1   B=2"),
        ("User", "x"),
    ]


@given(st.text(max_size=300))
def test_no_text_makes_a_section_raise(text: str) -> None:
    for name, value in service_section(text):
        assert name == name.strip()
        assert value == value.strip()


def test_an_environment_file_and_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "1.env").write_text("# comment\nexport C='x y'\n\nD=\n")
    (tmp_path / "2.env").write_text('D="2"\n')
    assert unit_files.env_files(f"{tmp_path}/*.env") == {"C": "x y", "D": "2"}
    assert unit_files.env_files(f"-{tmp_path}/absent") == {}
    with pytest.raises(OSError, match="No such file"):
        unit_files.env_files(f"{tmp_path}/absent")


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
