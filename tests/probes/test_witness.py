"""The second witnesses in real children: both bindings, the older API, modules that are absent, broken or hang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.supervise.types import ChildResult, Ending
from tests.probes.native import DEADLINE_S, child, host

pytest.importorskip("pynvml")

# cuda-python 12.0 to 12.5: the module is cuda.cuda, codes are (code, value), and there is cuDeviceGetUuid_v2.
OLD_BINDING = """
class Code(int):
    name = "CUDA_SUCCESS"
OK = Code(0)
class CUdevice_attribute:
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76
class Uuid:
    bytes = bytes(range(16))
def cuInit(flags): return (OK,)
def cuDriverGetVersion(): return OK, 12020
def cuDeviceGetCount(): return OK, 1
def cuDeviceGet(ordinal): return OK, ordinal
def cuDeviceGetUuid(device): return OK, None
def cuDeviceGetUuid_v2(device): return OK, Uuid()
def cuDeviceGetPCIBusId(size, device): return OK, b"0000:00:06.0" + bytes(size - 12)
def cuDeviceGetName(size, device): return OK, b"NVIDIA H100 PCIe" + bytes(size - 16)
def cuDeviceTotalMem(device): return OK, 85017624576
def cuDeviceGetAttribute(number, device): return OK, {75: 9, 76: 0}[number]
"""


def ask(directory: Path, files: dict[str, str], deadline_s: float = DEADLINE_S, **request: Any) -> ChildResult:
    """Ask the witnesses with FILES (name -> text) in DIRECTORY as what is installed."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return child("t_witness", {"modules": str(directory), **request}, {}, deadline_s=deadline_s)


def test_both_agree_on_a_simulated_host(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver")
    made = host("h100x2", tmp_path)
    result = child("witness", {}, made.env, site=True)
    assert result.ending is Ending.ANSWERED, result.stderr
    theirs, ours = result.answer["pynvml"], result.answer["cuda_python"]
    assert [gpu["name"] for gpu in theirs["gpus"]] == ["NVIDIA H100 80GB HBM3"] * 2
    assert [gpu["uuid"] for gpu in theirs["gpus"]] == [gpu["uuid"] for gpu in ours["gpus"]]
    assert [gpu["cc"] for gpu in ours["gpus"]] == [[9, 0], [9, 0]]
    assert ours["driver_version_cuda"] == 13000
    assert all(gpu["lacks"] == [] for gpu in [*theirs["gpus"], *ours["gpus"]])


def test_what_is_not_asked_is_not_imported(tmp_path: Path) -> None:
    made = host("h100", tmp_path)
    result = child("witness", {"skip": ["pynvml"]}, made.env, site=True)
    assert set(result.answer) == {"cuda_python"}
    assert not any("pynvml" in step.name for step in result.steps)


def test_without_site_packages_both_are_absent() -> None:
    result = child("witness", {}, {}, site=False)
    assert result.answer["pynvml"]["import_error"].startswith("ModuleNotFoundError: No module named 'pynvml'")
    assert result.answer["cuda_python"]["import_error"].startswith("ModuleNotFoundError: No module named 'cuda")


def test_the_older_cuda_python_is_understood(tmp_path: Path) -> None:
    files = {"cuda/__init__.py": "__version__ = '12.2.0'", "cuda/cuda.py": OLD_BINDING}
    result = ask(tmp_path, files, skip=["pynvml"])
    said = result.answer["cuda_python"]
    assert (said["module"], said["version"], said["driver_version_cuda"]) == ("cuda.cuda", "12.2.0", 12020)
    (gpu,) = said["gpus"]
    assert gpu["uuid"] == "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert (gpu["pci"], gpu["name"], gpu["cc"]) == ("0000:00:06.0", "NVIDIA H100 PCIe", [9, 0])
    assert gpu["lacks"][0].startswith("sm_count: AttributeError")  # this binding has no such attribute


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("raise ImportError('no libffi')", "import_error", "ImportError: no libffi"),
        ("1/0", "import_error", "ZeroDivisionError: division by zero"),
        ("", "error", "AttributeError: module 'pynvml' has no attribute 'nvmlInit'"),
        ("def nvmlInit(): raise OSError('broken')", "error", "OSError: broken"),
    ],
)
def test_a_broken_pynvml_is_a_fact_and_the_other_is_still_asked(
    tmp_path: Path, text: str, key: str, words: str
) -> None:
    result = ask(tmp_path, {"pynvml.py": text})
    assert result.ending is Ending.ANSWERED, result.stderr
    assert result.answer["pynvml"][key] == words
    assert result.answer["cuda_python"]


def test_bytes_of_old_versions_and_single_missing_functions(tmp_path: Path) -> None:
    text = (
        "def nvmlInit(): pass\ndef nvmlShutdown(): pass\ndef nvmlDeviceGetCount(): return 2\n"
        "def nvmlDeviceGetHandleByIndex(i):\n    if i: raise OSError('lost')\n    return i\n"
        "def nvmlDeviceGetName(h): return b'NVIDIA H100'\n"
    )
    first, second = ask(tmp_path, {"pynvml.py": text}).answer["pynvml"]["gpus"]
    assert first["name"] == "NVIDIA H100"
    assert len(first["lacks"]) == 4
    assert second["error"] == "OSError: lost"


def test_a_second_witness_that_hangs_leaves_the_first_ones_answer(tmp_path: Path) -> None:
    files = {
        "pynvml.py": "raise ImportError('not today')",
        "cuda/__init__.py": "",
        "cuda/cuda.py": "import time\ntime.sleep(600)",
    }
    result = ask(tmp_path, files, deadline_s=2.0)
    assert result.ending is Ending.TIMED_OUT
    assert result.observed["pynvml"] == {"import_error": "ImportError: not today"}
    assert result.open_step is not None
    assert result.open_step.name == "import cuda.bindings.driver"
