"""Installed and not asked for, the plugin costs two modules and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "ci" / "check_inactive.py"


def test_two_modules_of_ours_and_nothing_else() -> None:
    done = subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["ours: pytest_gpudiscovery, pytest_gpudiscovery.plugin", "others: none"]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.01, -0.01, 0.02, -0.02, 0.0, 0.005], True),
        ([0.05, 0.051, 0.049, 0.05, 0.052, 0.048], False),
        ([-0.05, -0.051, -0.049, -0.05, -0.052, -0.048], True),
    ],
)
def test_what_is_noise(differences: list[float], expected: bool) -> None:
    spec = importlib.util.spec_from_file_location("check_inactive", CHECK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.within_noise(differences) is expected
