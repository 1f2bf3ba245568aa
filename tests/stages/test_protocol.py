"""Which Ollama of which version starts its children how: as read in its sources, release by release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.stages import protocol, second_pass
from pytest_gpudiscovery.stages.protocol import Directory, Protocol
from tests.stages.hostile import ANYTHING

LIB = "/usr/local/lib/ollama"
V12 = Directory("cuda_v12", f"{LIB}/cuda_v12", f"{LIB}/cuda_v12/libggml-cuda.so")
ALONE = Directory("lib", None, f"{LIB}/libggml-cuda.so")


def of(version: str | None, era: str | None = None, *, newer: bool = False) -> Protocol:
    return protocol.of({"version": version, "era": era}, newer=newer)


@pytest.mark.parametrize(
    ("version", "number"),
    [
        ("0.16.3", (0, 16, 3)),
        ("v0.12.4", (0, 12, 4)),
        ("0.30.0-rc1", (0, 30, 0)),
        ("0.0.0", None),  # what a build without -ldflags says
        ("0.16", None),
        ("0.16.3.1", None),
        ("999999.1.1", None),
        ("", None),
        (None, None),
    ],
)
def test_only_whole_versions_count(version: str | None, number: tuple[int, int, int] | None) -> None:
    assert protocol.numbers(version) == number


@pytest.mark.parametrize(
    ("version", "era", "second"),
    [
        ("0.12.3", "A", None),
        ("0.12.4", "B", second_pass.UUID),
        ("0.12.6", "B", second_pass.UUID),
        ("0.12.7", "B", second_pass.UUID),
        ("0.12.9", "B", second_pass.UUID),
        ("0.12.10", "B", second_pass.NONE),
        ("0.13.0", "B", second_pass.NONE),
        ("0.13.1", "B", second_pass.ALL),
        ("0.13.2", "B", second_pass.UUID),
        ("0.16.3", "B", second_pass.UUID),
        ("0.24.0", "B", second_pass.UUID),
        ("0.30.0", "C", second_pass.INDEX),
        ("0.32.15", "C", second_pass.INDEX),
    ],
)
def test_a_version_tells_its_era_and_its_second_pass(version: str, era: str, second: str | None) -> None:
    found = of(version)
    assert (found.era, found.known) == (era, True)
    assert second is None or found.second == second


def test_an_unknown_version_is_told_by_what_lies_there() -> None:
    assert (of(None).era, of(None).second) == ("B", second_pass.UUID)
    assert (of(None, newer=True).era, of(None, newer=True).second) == ("C", second_pass.INDEX)
    assert (of("0.0.0", "C").era, of("0.0.0", "C").known) == ("C", False)
    assert of(None).at_least((99, 0, 0))  # an unknown one counts as the latest


def child(version: str, env: Mapping[str, str], directory: Directory = V12, **package: Any) -> dict[str, str]:
    found = protocol.environment(of(version), env, {"lib_dir": LIB, **package}, directory)
    return {name: found[name] for name in ("LD_LIBRARY_PATH", "OLLAMA_LIBRARY_PATH") if name in found}


@pytest.mark.parametrize("version", ["0.12.7", "0.16.3", "0.24.0"])
def test_era_b_puts_its_directories_before_the_operators(version: str) -> None:
    assert child(version, {"LD_LIBRARY_PATH": f"/opt/cuda:{LIB}"}) == {
        "LD_LIBRARY_PATH": f"{LIB}:{LIB}/cuda_v12:/opt/cuda:{LIB}",
        "OLLAMA_LIBRARY_PATH": f"{LIB}:{LIB}/cuda_v12",
    }
    assert child(version, {}, ALONE) == {"LD_LIBRARY_PATH": LIB, "OLLAMA_LIBRARY_PATH": LIB}
    # An empty variable is none, an empty entry (the working directory) stays what it is.
    assert child(version, {"LD_LIBRARY_PATH": ""}, ALONE)["LD_LIBRARY_PATH"] == LIB
    assert child(version, {"LD_LIBRARY_PATH": ":/x"}, ALONE)["LD_LIBRARY_PATH"] == f"{LIB}::/x"


@pytest.mark.parametrize("version", ["0.12.4", "0.12.6"])
def test_before_0_12_7_lib_ollama_stands_twice_and_rocm_follows(version: str) -> None:
    assert child(version, {"LD_LIBRARY_PATH": "/x"}, gpu_dirs=[entry("cuda_v12"), entry("rocm")]) == {
        "LD_LIBRARY_PATH": f"{LIB}:{LIB}:{LIB}/cuda_v12:{LIB}/rocm:/x",
        "OLLAMA_LIBRARY_PATH": f"{LIB}:{LIB}/cuda_v12",
    }


def test_era_c_names_nothing_twice_and_sets_no_path_of_its_own() -> None:
    assert child("0.32.15", {"LD_LIBRARY_PATH": f"/opt/cuda::{LIB}:/opt/cuda"}) == {
        "LD_LIBRARY_PATH": f"{LIB}:{LIB}/cuda_v12:/opt/cuda"
    }


def test_what_the_second_pass_adds_wins_over_the_operators() -> None:
    env = {"CUDA_VISIBLE_DEVICES": "0,1", "HOME": "/root"}
    found = protocol.environment(of("0.16.3"), env, {"lib_dir": LIB}, V12, {"CUDA_VISIBLE_DEVICES": "GPU-1"})
    assert (found["CUDA_VISIBLE_DEVICES"], found["HOME"]) == ("GPU-1", "/root")


def entry(name: str, *, kept: bool = True) -> dict[str, Any]:
    path = f"{LIB}/{name}"
    return {"name": name, "path": path, "backend": f"{path}/libggml-cuda.so", "kept": kept}


def wanted(*entries: dict[str, Any]) -> list[str]:
    return [found.name for found in protocol.directories({"lib_dir": LIB, "gpu_dirs": list(entries)})]


def test_directories_are_those_that_stage_01_says_this_version_looks_into() -> None:
    assert wanted(entry("cuda_v12"), entry("cuda_v13"), entry("vulkan", kept=False)) == ["cuda_v12", "cuda_v13"]
    assert wanted(entry("cuda_v12", kept=False)) == []
    assert wanted() == ["lib"]


def test_without_a_directory_a_backend_in_lib_ollama_itself_is_looked_at() -> None:
    package = {"lib_dir": LIB, "gpu_dirs": [{"name": "lib", "path": LIB, "backend": f"{LIB}/libggml-cuda.so"}]}
    (found,) = protocol.directories(package)
    assert (found.path, found.is_cuda) == (None, True)


@given(st.fixed_dictionaries({"version": ANYTHING, "era": ANYTHING, "lib_dir": ANYTHING, "gpu_dirs": ANYTHING}))
def test_whatever_stage_01_left_is_no_error(package: dict[str, Any]) -> None:
    found = protocol.of(package, newer=False)
    for directory in protocol.directories(package):
        made = protocol.environment(found, {}, package, directory)
        assert all(isinstance(value, str) for value in made.values())
