"""What travels to a child stays small: a caller may have a limit on the size of files, and a memfd is one."""

from __future__ import annotations

import compileall
import marshal
import os
import shutil
import sys
from pathlib import Path

import pytest

from pytest_gpudiscovery.supervise import payload
from pytest_gpudiscovery.supervise.types import Probe

LIMIT = 1 << 20  # bytes: tests/healthy has a caller with this RLIMIT_FSIZE


@pytest.mark.parametrize("compiled", [True, False])
def test_a_payload_for_this_interpreter_is_below_a_mebibyte(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / payload.ROOT.name
    for package in payload.SHIPPED:
        shutil.copytree(payload.ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    if compiled:
        assert compileall.compile_dir(root, quiet=1)
    monkeypatch.setattr(payload, "ROOT", root)
    payload._shipped.cache_clear()
    try:
        probe = Probe("nothing", {}, {}, 1.0)
        fd = payload.pack(probe, journal_fd=3, go_fd=4, interpreters=(), extra=None, traceback_after_s=1.0)
        other = payload.pack(
            probe, journal_fd=3, go_fd=4, interpreters=(sys.executable,), extra=None, traceback_after_s=1.0
        )
    finally:
        payload._shipped.cache_clear()
    with os.fdopen(fd, "rb") as file, os.fdopen(other, "rb") as whole:
        assert os.fstat(fd).st_size < LIMIT
        file.seek(0)
        sources = marshal.load(file)["sources"]
        whole.seek(0)
        assert all(text for name, (_, text, package, _) in marshal.load(whole)["sources"].items() if not package)
    for name, (_, text, package, code) in sources.items():
        assert package or bool(text) != bool(code) or name == payload.BOOT
        assert bool(code) == compiled or package
