"""The templates in ci/templates: every option they use exists, and systemd takes the units."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_gpudiscovery import stages
from pytest_gpudiscovery.plugin import OPTIONS

TEMPLATES = Path(__file__).parents[2] / "ci" / "templates"
FILES = sorted(path for path in TEMPLATES.rglob("*") if path.is_file())


def test_there_are_templates() -> None:
    kinds = {path.parent.name for path in FILES}
    assert kinds >= {"github", "gitlab", "systemd", "container", "allure"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_option_and_variable_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    flags = {option.flag for option in OPTIONS}
    assert set(re.findall(r"--gpu-[a-z-]+", text)) - {"--gpu-discovery"} <= flags
    assert set(re.findall(r"\bGPU_DISCOVERY_[A-Z_]+", text)) <= {option.variable for option in OPTIONS}
    assert set(re.findall(r"--gpu-until[ =]([a-z]+)", text)) <= set(stages.NAMES)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (package systemd)")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    (tmp_path / "ollama.service").write_text("[Service]\nExecStart=/bin/true\n", encoding="utf-8")
    (tmp_path / "ollama.service.d").mkdir()
    places = {"ollama-gpu-gate.conf": tmp_path / "ollama.service.d"}
    for path in (TEMPLATES / "systemd").iterdir():
        # systemd asks whether the program is there; this one is.
        text = path.read_text(encoding="utf-8").replace("/usr/local/bin/gpu-discovery", sys.executable)
        (places.get(path.name, tmp_path) / path.name).write_text(text, encoding="utf-8")
    units = [str(path) for path in tmp_path.iterdir() if path.is_file()]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units],
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted(TEMPLATES.rglob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_parse_and_can_be_run(path: Path) -> None:
    assert path.stat().st_mode & 0o111
    assert subprocess.run(["sh", "-n", str(path)], timeout=20, check=False).returncode == 0
