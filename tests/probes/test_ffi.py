"""probes/ffi.py: real libraries in real children, missing symbols, interposers, and every parser on hostile input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import ffi
from tests.probes.native import child, library, steps

SOURCE = "int answer(void) {{ return {number}; }}\nint only_{name}(void) {{ return 7; }}\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with libcuda-like and interposing libraries."""
    where = tmp_path_factory.mktemp("ffi libraries")  # a space, as a path may have
    real = library(where / "libtest-cuda.so.580.1.2", SOURCE.format(number=1, name="real"))
    (where / "libtest-cuda.so.1").symlink_to(real.name)
    library(where / "libtestshim.so", SOURCE.format(number=2, name="shim"))
    return where


def test_a_library_that_is_not_there_says_so_in_the_loaders_words() -> None:
    result = child("t_ffi", {"library": "libno-such-thing.so.1", "symbols": []}, {})
    text = "libno-such-thing.so.1: cannot open shared object file: No such file or directory"
    assert result.answer == {"error": text}
    assert steps(result) == {"dlopen libno-such-thing.so.1": {"error": text}}
    assert result.observed["libraries"] == []


def test_calls_missing_symbols_and_the_real_path(built: Path) -> None:
    path = built / "libtest-cuda.so.1"
    request = {"library": str(path), "symbols": ["answer", "not_there"], "prefix": "libtest-cuda.so"}
    result = child("t_ffi", request, {})
    assert result.answer["calls"] == {"answer": {"rc": 1}, "not_there": {"missing": "not_there"}}
    assert result.answer["quiet"] == result.answer["calls"]
    assert result.answer["path"] == str(built / "libtest-cuda.so.580.1.2")  # the symlink's target
    assert ffi.version_of(result.answer["path"]) == "580.1.2"
    assert result.answer["provider"] == {"answer": result.answer["path"], "not_there": None}
    assert steps(result) == {f"dlopen {path}": 0, "answer": 1, "not_there": {"missing": "not_there"}}
    assert result.observed["libraries"] == [result.answer["path"]]


@pytest.mark.parametrize(("linked", "number"), [(True, 2), (False, 1)])
def test_a_preloaded_library_stands_in_front_only_of_a_linked_caller(
    built: Path, tmp_path: Path, linked: bool, number: int
) -> None:
    shim = tmp_path / "libtestshim.so"  # LD_PRELOAD cannot hold a space
    shim.write_bytes((built / shim.name).read_bytes())
    request = {
        "library": str(built / "libtest-cuda.so.1"),
        "symbols": ["answer", "only_real"],
        "prefix": "libtest-cuda.so",
        "linked": linked,
    }
    result = child("t_ffi", request, {"LD_PRELOAD": str(shim)})
    assert result.answer["calls"] == {"answer": {"rc": number}, "only_real": {"rc": 7}}
    assert result.answer["provider"]["answer"] == (str(shim) if linked else result.answer["path"])
    assert str(shim) in result.observed["libraries"]  # known by LD_PRELOAD, whatever its name


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/usr/lib/libcuda.so.580.159.04", "580.159.04"),
        ("/usr/lib/libcuda.so.580.159.04 (deleted)", "580.159.04"),
        ("libcudart.so.13.0.96", "13.0.96"),
        ("/usr/lib/libcuda.so.1", None),
        ("/usr/lib/wsl/lib/libcuda.so.1.1", None),
        ("/usr/lib/libcuda.so", None),
        ("/usr/lib/libcuda.so.5x.1", None),
        ("", None),
        (None, None),
    ],
)
def test_version_of(path: str | None, version: str | None) -> None:
    assert ffi.version_of(path) == version


def test_a_file_that_is_mounted_under_its_soname_has_its_own_version(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.580.159.04").touch()
    soname = tmp_path / "libcuda.so.1"
    soname.touch()
    assert ffi.version_of(str(soname)) is None
    code = f"from pytest_gpudiscovery.probes import ffi; print(ffi.version_of({str(soname)!r}))"
    shell = 'mount --bind libcuda.so.580.159.04 libcuda.so.1 && exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        pytest.skip(f"no mount here: {done.stderr.strip()}")
    assert done.stdout == "580.159.04\n"


@settings(deadline=None)  # a loaded machine is no failure
@given(st.text())
def test_version_of_never_raises(path: str) -> None:
    version = ffi.version_of(path)
    assert version is None or path.removesuffix(" (deleted)").endswith(version)


@settings(deadline=None)  # a loaded machine is no failure
@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])), st.binary(max_size=20))
def test_text_ends_at_the_terminator(text: str, behind: bytes) -> None:
    assert ffi.text(text.encode() + b"\0" + behind) == text


def test_text_keeps_bytes_that_are_no_utf8_visible() -> None:
    assert ffi.text(b"NVIDIA \xee\xee") == "NVIDIA \\xee\\xee"


def test_uuid_text() -> None:
    assert ffi.uuid_text(bytes(range(16))) == "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert ffi.uuid_text(b"\xff" * 16, "MIG-").startswith("MIG-ffffffff-ffff-")


def test_own_maps_are_readable_and_name_no_driver_here() -> None:
    assert ffi.loaded_path("libc.so") is not None
    assert ffi.loaded_path("libno-such-thing") is None
    assert ffi.driver_libraries() == []
