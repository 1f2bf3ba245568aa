"""docs/runbook is what the catalogue says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pytest_gpudiscovery.diagnosis.catalogue import causes

ROOT = Path(__file__).parents[2]


def test_the_runbook_is_current() -> None:
    command = [sys.executable, str(ROOT / "ci" / "runbook.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"run python ci/runbook.py; not current: {done.stdout}{done.stderr}"


def test_every_cause_has_its_place_and_every_page_its_link() -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "runbook").glob("*.md")}
    index = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    told = {name for text in pages.values() for name in re.findall(r"^## `([^`]+)`$", text, re.MULTILINE)}
    assert told == set(causes())
    assert set(re.findall(r"\]\(runbook/([^)]+)\)", index)) == set(pages)


def test_no_field_of_a_template_is_left() -> None:
    for path in (ROOT / "docs" / "runbook").glob("*.md"):
        assert not re.findall(r"\{\w+(:[^}]*)?\}", re.sub(r"```\n.*?```", "", path.read_text(), flags=re.DOTALL))
