"""The conformance table, on the simulated host."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_gpudiscovery.simulate import conformance
from pytest_gpudiscovery.simulate.conformance_rows import IDENTITIES, ROWS, Row
from pytest_gpudiscovery.simulate.registry import FAULTS


@pytest.fixture
def open_directory() -> Iterator[str]:
    """A directory that every user can reach: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="gpu-discovery-test-") as folder:
        Path(folder).chmod(0o755)
        yield folder


@pytest.mark.parametrize("identity", conformance.identities(real=False))
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row: Row, identity: str, open_directory: str) -> None:
    cell = conformance.run_row(row, identity, real=False, directory=f"{open_directory}/host")
    if cell.said is None and "Operation not permitted" in cell.problem:
        pytest.skip(cell.problem)  # a container that allows no user namespaces
    assert cell.problem == ""
    assert cell.agrees is not False, f"{cell.said} instead of {cell.expected}"


def test_the_table_is_sound() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert sum(len(row.expected) for row in ROWS) > 60
    for row in ROWS:
        assert set(row.expected) <= set(IDENTITIES)
        assert not row.fault or row.fault in FAULTS


def test_a_wrong_answer_is_seen() -> None:
    cell = conformance.Cell("row", "root", {"cuInit": 0}, {"cuInit": 999})
    assert cell.agrees is False
    assert "DIFFERS" in conformance.table([cell])[0]
    assert "expected cuInit=0" in conformance.table([cell])[1]


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "cells.json"
    command = [sys.executable, conformance.__file__, "--json", str(out), "ulimit -v"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["unchanged"] is True
    assert {cell["said"]["cuInit"] for cell in document["cells"]} == {2}
    assert done.stdout.splitlines()[-1].endswith("device nodes and mounts of the host are as before")
