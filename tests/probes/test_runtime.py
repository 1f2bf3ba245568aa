"""probes/runtime.py in real children: simulated libcudart of both majors, libraries that lack functions, and none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpudiscovery.stages.device_prop import LAYOUTS, decode
from pytest_gpudiscovery.supervise.types import Ending
from tests.probes.native import child, host, library, steps


@pytest.mark.parametrize(
    ("name", "major", "symbol"),
    [("libcudart.so.12", 12, "cudaGetDeviceProperties_v2"), ("libcudart.so.13", 13, "cudaGetDeviceProperties")],
)
def test_versions_count_and_properties(tmp_path: Path, name: str, major: int, symbol: str) -> None:
    made = host("h100x2", tmp_path)
    result = child("runtime", {"libraries": [name]}, made.env)
    assert result.ending is Ending.ANSWERED, result.stderr
    answer = result.answer
    assert answer["library"]["asked"] == name
    assert answer["library"]["version"].startswith(f"{major}.")
    assert answer["runtime_version"] // 1000 == major
    assert answer["driver_version"] == 13000
    assert answer["count"] == 2
    assert [device["symbol"] for device in answer["devices"]] == [symbol, symbol]
    for device in answer["devices"]:
        raw = bytes.fromhex(device["raw"])
        assert len(raw) <= LAYOUTS[major].size
        read = decode(raw, major)
        assert read is not None
        assert (read["name"], read["cc"], read["sm_count"]) == ("NVIDIA H100 80GB HBM3", [9, 0], 132)
    assert list(steps(result))[:2] == [f"dlopen {name}", "cudaRuntimeGetVersion"]


def test_the_first_library_that_loads_is_taken(tmp_path: Path) -> None:
    made = host("h100:cudart.12_only", tmp_path)
    result = child("runtime", {"libraries": ["libcudart.so.13", "libcudart.so.12"]}, made.env)
    assert list(result.answer["errors"]) == ["libcudart.so.13"]
    assert result.answer["library"]["asked"] == "libcudart.so.12"


def test_no_library_is_an_answer(tmp_path: Path) -> None:
    path = str(tmp_path / "libcudart.so.13")
    result = child("runtime", {"libraries": [path]}, {})
    assert result.answer == {
        "errors": {path: f"{path}: cannot open shared object file: No such file or directory"},
    }


def test_functions_that_are_missing_are_facts(tmp_path: Path) -> None:
    source = (
        "int cudaRuntimeGetVersion(int *v) { *v = 12080; return 0; }\n"
        "int cudaDriverGetVersion(int *v) { *v = 12080; return 0; }\n"
        "int cudaGetDeviceCount(int *n) { *n = 1; return 0; }\n"
    )
    path = library(tmp_path / "libcudart.so.12", source)
    result = child("runtime", {"libraries": [str(path)]}, {})
    assert result.answer["symbols"] == []
    (device,) = result.answer["devices"]
    assert device == {
        "ordinal": 0,
        "symbol": "cudaGetDeviceProperties_v2",
        "missing": "cudaGetDeviceProperties_v2",
        "raw": "",
    }


@pytest.mark.parametrize(("written", "count"), [(4096, 1), (728, 1), (0, 1), (16, 1000000), (16, -1)])
def test_a_library_that_writes_as_much_as_it_likes_or_counts_anything(tmp_path: Path, written: int, count: int) -> None:
    source = (
        "#include <string.h>\n"
        "int cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }\n"
        f"int cudaGetDeviceCount(int *n) {{ *n = {count}; return 0; }}\n"
        f"int cudaGetDeviceProperties(void *p, int d) {{ memset(p, d + 1, {written}); return 0; }}\n"
    )
    path = library(tmp_path / "libcudart.so.13", source)
    result = child("runtime", {"libraries": [str(path)]}, {})
    assert result.ending is Ending.ANSWERED, result.stderr
    assert result.answer["cudaDriverGetVersion"] == {"missing": "cudaDriverGetVersion"}
    devices = result.answer["devices"]
    assert len(devices) == max(0, min(count, 16))
    assert all(len(bytes.fromhex(device["raw"])) == written for device in devices)


def test_a_crash_leaves_what_was_seen(tmp_path: Path) -> None:
    made = host("h100:crash.properties.segv", tmp_path)
    result = child("runtime", {"libraries": ["libcudart.so.13"]}, made.env)
    assert result.ending is Ending.SIGNALLED
    assert result.open_step is not None
    assert result.open_step.name == "cudaGetDeviceProperties(0)"
    assert result.observed["count"] == 1
