"""The evidence files: what is stamped, what is redacted, and that a changed file is noticed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "ci" / "evidence.py"


@pytest.fixture(name="evidence")
def _evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "EVIDENCE", tmp_path / "docs" / "evidence")
    monkeypatch.setattr(module, "commit", lambda: "0" * 40)
    return module


def test_ids_addresses_and_homes_are_replaced(evidence: ModuleType) -> None:
    text = "GPU-01234567-89ab-cdef-0123-456789abcdef 10.1.2.3 aa:bb:cc:dd:ee:ff /home/me/x hostname=node7 127.0.0.1"
    assert evidence.redact(text) == "GPU-<id> <address> <mac> <home>/x hostname=<host> 127.0.0.1"


def test_versions_and_pci_addresses_stay(evidence: ModuleType) -> None:
    text = "driver 580.159.04 at 0000:00:06.0, libcuda.so.580.159.04"
    assert evidence.redact(text) == text


def test_a_changed_file_is_noticed(evidence: ModuleType) -> None:
    path = evidence.write("run", "verdict ready\n", "pytest --gpu-discovery", "one H100")
    assert evidence.check() == 0
    path.write_text(path.read_text().replace("ready", "blocked"))
    assert evidence.check() == 1


@pytest.mark.parametrize("suffix", ["md", "json"])
def test_a_page_and_a_document_are_stamped_too(evidence: ModuleType, suffix: str) -> None:
    text = '{"verdict": "ready"}' if suffix == "json" else "# verdict: ready\n"
    path = evidence.write("run", text, "pytest --gpu-discovery", "one H100", suffix=suffix)
    assert "0" * 40 in path.read_text()
    assert evidence.check() == 0
    path.write_text(path.read_text().replace("ready", "blocked"))
    assert evidence.check() == 1
