"""The HTML report on GPU directories: the tree of libraries, the code in them, views of several directories."""

from __future__ import annotations

import dataclasses
import re
from html import unescape
from typing import Any

from pytest_gpudiscovery.model import Outcome, StageRecord, Verdict
from pytest_gpudiscovery.reports import html
from tests.reports import samples
from tests.reports.parts import gpu, record

LIB = "/usr/lib/ollama/cuda_v12"


def name(called: str, requester: str, path: str | None, rule: str = "LD_LIBRARY_PATH") -> dict[str, Any]:
    """Return one dependency as the closure probe tells it."""
    return {"name": called, "requester": requester, "path": path, "rule": rule, "shadows": []}


CLOSURE = {
    "directory": "cuda_v12",
    "model": "child",
    "outcome": "error",
    "message": "libcublasLt.so.12: cannot open shared object file: No such file or directory",
    "loader": {"glibc": "2.36"},
    "symbols_checked": 360,
    "problems": [
        {"kind": "file", "text": "libcublasLt.so.12: cannot open shared object file: No such file or directory"},
        {"kind": "symbol", "text": "undefined symbol: cublasLtCreate", "follows": True},
    ],
    "names": [
        name(f"{LIB}/libggml-cuda.so", "", f"{LIB}/libggml-cuda.so", "path"),
        name("libcublas.so.12", "libggml-cuda.so", f"{LIB}/libcublas.so.12"),
        name("libcuda.so.1", "libggml-cuda.so", "/usr/lib/libcuda.so.1", "ld.so.cache"),
        name("libcublasLt.so.12", "libcublas.so.12", None),
        name("libc.so.6", "libcublas.so.12", "/lib/libc.so.6", "already loaded"),
        name("libc.so.6", "libcuda.so.1", "/lib/libc.so.6", "already loaded"),
    ],
    "objects": [{"path": "/usr/lib/libcuda.so.1", "outside": True, "size": 52_000}],
}
FATBIN = {
    "directory": "cuda_v12",
    "path": f"{LIB}/libggml-cuda.so",
    "containers": 125,
    "targets": ["sm_80", "sm_90a", "compute_90"],
    "verdicts": [{"verdict": {"how": "native", "reason": "sm_90a runs on compute capability 9.0"}}],
}


def text_of(page: str) -> str:
    """Return what a person reads on PAGE."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<(style|script)>.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)))


def with_libraries(*stages: StageRecord, **changes: Any) -> str:
    """Return the page of a host with CLOSURE and FATBIN."""
    verdict: Verdict = samples.healthy()
    added = {stage.name for stage in stages}
    found = (*(stage for stage in verdict.stages if stage.name not in added), *stages)
    return html.render(dataclasses.replace(verdict, closures=(CLOSURE,), fatbins=(FATBIN,), stages=found, **changes))


def test_the_tree_nests_what_asks_under_what_is_asked_for() -> None:
    page = with_libraries()
    tree = page[page.index('class="in tree"') :]
    depth = {}
    level = 0
    for match in re.finditer(r"<ul>|</ul>|<li><b>([^<]+)</b>", tree[: tree.index("</details>")]):
        level += {"<ul>": 1, "</ul>": -1}.get(match.group(), 0)
        if match[1]:
            depth[match[1]] = level
    assert depth == {
        "libggml-cuda.so": 1,
        "libcublas.so.12": 2,
        "libcuda.so.1": 2,
        "libcublasLt.so.12": 3,
        "libc.so.6": 3,
    }
    read = text_of(tree)
    assert "libcublasLt.so.12 ✕ not found" in read
    assert "/usr/lib/ollama/cuda_v12/libcublas.so.12 — LD_LIBRARY_PATH" in read
    assert "libc.so.6 as above" in read
    assert "not from this install" not in read  # libcuda is the driver's


def test_the_objections_of_ldso_and_the_gpu_code_are_there() -> None:
    read = text_of(with_libraries())
    assert "✕ file libcublasLt.so.12: cannot open shared object file: No such file or directory" in read
    assert "1 more follow from these." in read
    assert re.search(r"libggml-cuda\.so native: sm_90a runs on compute capability 9\.0 80 90a 90 125 none", read)


def test_the_real_load_is_compared_with_the_prediction() -> None:
    load = {"directory": "cuda_v12", "seconds": 1.25, "agrees": False, "differences": ["libcublas.so.12 from /opt"]}
    stage = record("load", Outcome.WARNED, "other files", facts={"loads": [load]})
    read = text_of(with_libraries(stage))
    assert "Loaded in 1.25 s" in read
    assert "As predicted no: libcublas.so.12 from /opt" in read
    stuck = record("load", Outcome.TIMED_OUT, "hung", facts={"loads": [{"directory": "cuda_v12", "seconds": None}]})
    assert "Loaded did not return" in text_of(with_libraries(stuck))


def test_directories_that_say_the_same_share_a_column() -> None:
    device = {
        "ordinal": 0,
        "name": "CUDA0",
        "description": "NVIDIA H100",
        "memory_free": 1 << 30,
        "props": {"cc": [9, 0]},
    }
    known = gpu(0)
    known["views"]["ggml"] = {"cuda_v12": device, "cuda_v13": dict(device)}
    known["views"]["runtime"] = {"cuda_v12": {"name": "a"}, "cuda_v13": {"name": "b"}}
    page = with_libraries(gpus=(known,))
    heads = re.findall(r'<th scope="col">(.*?)</th>', page[page.index('class="fixed views"') :])[:8]
    assert heads[-3:] == ["CUDA runtime (cuda_v12)", "CUDA runtime (cuda_v13)", "ggml (cuda_v12, cuda_v13)"]
    read = text_of(page)
    assert re.search(r"ggml name CUDA0", read)
    assert "1.00 GiB" in read
