"""What travels to a child stays small: a caller may have a limit on the size of files, and a memfd is one."""

from __future__ import annotations

import ast
import compileall
import marshal
import os
import shutil
import sys
from collections.abc import Iterator
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
    payload._marshalled.cache_clear()
    try:
        probe = Probe("nothing", {}, {}, 1.0)
        fd = payload.pack(probe, journal_fd=3, go_fd=4, interpreters=(), extra=None, traceback_after_s=1.0)
        other = payload.pack(
            probe, journal_fd=3, go_fd=4, interpreters=(sys.executable,), extra=None, traceback_after_s=1.0
        )
    finally:
        payload._shipped.cache_clear()
        payload._marshalled.cache_clear()
    with os.fdopen(fd, "rb") as file, os.fdopen(other, "rb") as whole:
        assert os.fstat(fd).st_size < LIMIT
        file.seek(0)
        sources = marshal.loads(marshal.load(file)["sources"])
        whole.seek(0)
        task = marshal.load(whole)
        assert all(text for _, text, package, _ in marshal.loads(task["sources"]).values() if not package)
        assert task["boot"]  # an interpreter of another version compiles it
        assert bool(task["boot_code"]) == compiled
    for _, text, package, code in sources.values():
        assert package or bool(text) != bool(code)
        assert bool(code) == compiled or package


PROBES = sorted(path.stem for path in (payload.ROOT / "probes").glob("*.py") if path.stem != "__init__")


def imported(text: str) -> Iterator[tuple[str, str]]:
    """Give (module, name in it or "") of every import of ours in TEXT, as Python's own parser sees it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


@pytest.mark.parametrize("probe", PROBES)
def test_what_a_probe_may_import_travels_with_it(probe: str) -> None:
    sources = payload._shipped(payload.SHIPPED)
    found = payload.needed(f"pytest_gpudiscovery.probes.{probe}", sources)
    assert {f"pytest_gpudiscovery.probes.{name}" for name in (probe, *payload.ALWAYS)} <= found
    assert {"pytest_gpudiscovery", "pytest_gpudiscovery.probes"} <= found
    for name in found:
        text = sources[name][1]
        if sources[name][2]:  # a package: what it imports for type checkers alone is not there at run time
            text = text.partition("if TYPE_CHECKING:\n")[0]
        for module, inside in imported(text):
            if module.split(".")[0] != "pytest_gpudiscovery":
                continue
            assert module in found, f"{name} imports {module}"
            if f"{module}.{inside}" in sources:
                assert f"{module}.{inside}" in found, f"{name} imports {inside} of {module}"
            elif inside and module == "pytest_gpudiscovery.loader":  # a name that the package finds in any module
                assert {other for other in sources if other.startswith(f"{module}.")} <= found


def test_a_probe_travels_alone(tmp_path: Path) -> None:
    assert len(payload.needed("pytest_gpudiscovery.probes.nvml", payload._shipped(payload.SHIPPED))) < 25
    (tmp_path / "mine.py").write_text("from pytest_gpudiscovery.probes import (\n    theirs as t,\n)\n")
    (tmp_path / "theirs.py").write_text("import pytest_gpudiscovery.loader.elf\n")
    (tmp_path / "unasked.py").write_text("")
    sources = {**payload._shipped(payload.SHIPPED), **payload._extra(tmp_path)}
    found = {
        name.rpartition("pytest_gpudiscovery.")[2]
        for name in payload.needed("pytest_gpudiscovery.probes.mine", sources)
    }
    assert {"probes.mine", "probes.theirs", "loader", "loader.elf"} <= found
    assert not {"probes.unasked", "probes.nvml", "loader.closure"} & found
