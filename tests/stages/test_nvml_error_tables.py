"""diagnosis/errors.py: the three tables against NVIDIA's own bindings, and every number that they lack."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.diagnosis import catalogue, errors

APIS = ("cuda", "runtime", "nvml")
LOOKUPS = {"cuda": errors.cuda, "runtime": errors.runtime, "nvml": errors.nvml}


def _enumerators(api: str) -> dict[int, str]:
    if api == "nvml":
        module = pytest.importorskip("pynvml")
        names = [name for name in vars(module) if re.fullmatch(r"NVML_ERROR_[A-Z_0-9]+", name)]
        return {getattr(module, name): name for name in names} | {0: "NVML_SUCCESS"}
    bindings: Any = pytest.importorskip(f"cuda.bindings.{'driver' if api == 'cuda' else 'runtime'}")
    return {int(code): code.name for code in (bindings.CUresult if api == "cuda" else bindings.cudaError_t)}


@pytest.mark.parametrize("api", APIS)
def test_every_code_of_the_installed_binding_is_in_the_table_under_its_name(api: str) -> None:
    table = {code.code: code.name for code in errors.codes(api)}
    theirs = _enumerators(api)
    newest = max(code for code in table if code < 999)
    missing = {code: name for code, name in theirs.items() if code not in table and code < newest}
    assert missing == {}  # later drivers append; what lies between was forgotten
    assert {code: name for code, name in table.items() if theirs.get(code, name) != name} == {}


@pytest.mark.parametrize("api", APIS)
def test_every_entry_is_one_sentence_and_leads_to_a_cause(api: str) -> None:
    codes = errors.codes(api)
    assert len({code.code for code in codes}) == len(codes)
    for code in codes:
        assert code.text
        assert code.known
        assert code.discovery.endswith(".")
        assert "\n" not in code.discovery
        assert code.cause is None or code.cause in catalogue.causes(), code
        assert (code.cause is None) >= (code.code == 0)
    assert LOOKUPS[api](0).cause is None


@pytest.mark.parametrize(
    ("api", "code", "name", "text"),
    [
        ("cuda", 100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"),
        ("cuda", 802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"),
        ("runtime", 35, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"),
        ("runtime", 209, "cudaErrorNoKernelImageForDevice", "no kernel image is available for execution on the device"),
        ("nvml", 18, "NVML_ERROR_LIB_RM_VERSION_MISMATCH", "RM has detected an NVML/RM version mismatch"),
    ],
)
def test_the_words_are_those_that_are_found_in_logs(api: str, code: int, name: str, text: str) -> None:
    entry = LOOKUPS[api](code)
    assert (entry.name, entry.text) == (name, text)
    assert entry.label == f"{code} {name}"


@settings(deadline=None)  # a loaded machine is no failure
@given(st.sampled_from(APIS), st.integers(-(2**40), 2**40))
def test_every_number_has_an_entry(api: str, code: int) -> None:
    entry = LOOKUPS[api](code)
    assert entry.code == code
    assert entry.known or entry.cause == errors.UNKNOWN_CAUSES[api]
    assert str(code) in entry.label


@pytest.mark.parametrize("api", APIS)
def test_no_code_at_all_has_an_entry(api: str) -> None:
    assert LOOKUPS[api](None).name == "no answer"
