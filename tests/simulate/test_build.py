"""Building the libraries: warnings, the cache, and who may be trusted."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_gpudiscovery.simulate import build
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.libraries import LIBRARIES

COMPILERS = [found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))]
FAKE_ZIG = """#!/bin/sh
# Writes where its cache is as the library, and leaves a process behind that ends before it does.
while [ "$1" != -o ]; do shift; done
(true &)
sleep 0.1
echo "$ZIG_GLOBAL_CACHE_DIR" >"$2"
"""
ALL = [(name, frozenset[str]()) for name in LIBRARIES]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def exports(path: Path) -> set[str]:
    """Return the names that the ELF file at PATH exports."""
    code = (
        "import sys, json; from pytest_gpudiscovery.simulate.record_libraries import exported; "
        "print(*exported(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.skipif(not COMPILERS, reason="no C compiler here")
@pytest.mark.parametrize("compiler", COMPILERS[:1])
def test_everything_builds_without_a_warning(compiler: str, temporary: Path) -> None:
    made = build.built(ALL, strict=True, command=(compiler,))
    assert sorted(path.name.rpartition("-")[0] for path in made.values()) == sorted(LIBRARIES)
    for path in made.values():
        assert path.read_bytes()[:4] == b"\x7fELF"
        assert path.stat().st_mode & 0o777 == 0o755


def test_a_second_build_runs_no_compiler(temporary: Path) -> None:
    first = build.built(ALL[:1])
    folder = build.private_directory()
    assert [path.name for path in folder.iterdir()] == [first[ALL[0]].name]  # nothing half done is left
    before = first[ALL[0]].stat().st_mtime_ns
    assert build.built(ALL[:1]) == first
    assert first[ALL[0]].stat().st_mtime_ns == before


def test_hidden_functions_are_not_exported(temporary: Path) -> None:
    plain, without = ("libcuda", frozenset[str]()), ("libcuda", frozenset({"cuDeviceGetUuid_v2", "noSuchFunction"}))
    made = build.built([plain, without])
    assert exports(made[plain]) - exports(made[without]) == {"cuDeviceGetUuid_v2"}


def test_runtime_symbols_carry_its_version(temporary: Path) -> None:
    found = build.built([("libcudart.12", frozenset())])
    names = next(iter(found.values())).read_bytes()
    assert b"libcudart.so.12\0" in names
    code = "import ctypes, sys; print(hasattr(ctypes.CDLL(sys.argv[1]), 'cudaGetDeviceProperties_v2'))"
    for wanted, answer in ((("libcudart.12"), "True"), (("libcudart.13"), "False")):
        (path,) = build.built([(wanted, frozenset())]).values()
        done = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.strip() == answer


def test_parallel_builds_do_not_disturb_each_other(temporary: Path) -> None:
    code = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from pytest_gpudiscovery.simulate import build\n"
        "print(*build.built([('libnvidia-ptxjitcompiler', frozenset()), ('stub', frozenset())]).values())"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, temporary], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = {process.communicate(timeout=60)[0] for process in runs}
    assert [process.returncode for process in runs] == [0] * 4
    assert len(said) == 1
    assert all(Path(path).is_file() for path in said.pop().split())


def test_directory_of_somebody_else(temporary: Path) -> None:
    path = build.private_directory()
    path.chmod(0o777)
    with pytest.raises(SimulationError, match="only uid"):
        build.private_directory()
    path.rmdir()
    path.symlink_to("/etc")
    with pytest.raises(SimulationError, match="only uid"):
        build.private_directory()
    path.unlink()
    if os.geteuid() == 0:
        path.mkdir(0o755)
        os.chown(path, 65534, 65534)
        with pytest.raises(SimulationError, match="only uid 0"):
            build.private_directory()


def test_a_temporary_directory_that_libraries_cannot_be_loaded_from(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
        with pytest.raises(SimulationError, match="noexec"):
            build.private_directory()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", _no_place)
    with pytest.raises(SimulationError, match="nowhere to be built: No usable"):
        build.private_directory()


def _no_place() -> str:
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")


def test_a_compiler_needs_no_home_and_leaves_no_zombie_to_pid_1(temporary: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(FAKE_ZIG)
    compiler.chmod(0o755)
    # A child of this process, as of a container's pid 1, is whatever its own parent has left.
    code = f"""
import ctypes, os, pathlib, tempfile, time
tempfile.tempdir = {str(tmp_path)!r}
from pytest_gpudiscovery.simulate import build
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
(made,) = build.built([{ALL[0]!r}], command=({str(compiler)!r},)).values()
print(made.read_text().strip(), open("/proc/self/task/" + str(os.getpid()) + "/children").read().split())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == f"{build.private_directory()}/zig []", done.stderr


@pytest.fixture
def looked_for_anew() -> Iterator[None]:
    """The compiler is looked for in this test, and again after it."""
    build.compiler.cache_clear()
    yield
    build.compiler.cache_clear()


@pytest.mark.usefixtures("looked_for_anew")
def test_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SimulationError, match="needs a C compiler") as caught:
        build.compiler()
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("looked_for_anew")
def test_ziglang_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "ziglang" else None)
    assert build.compiler() == (sys.executable, "-m", "ziglang", "cc")


def test_compiler_that_fails_is_one_line(temporary: Path) -> None:
    with pytest.raises(SimulationError, match="cannot build the simulated driver: exit 1"):
        build.built(ALL[:1], command=(shutil.which("false") or "false",))
