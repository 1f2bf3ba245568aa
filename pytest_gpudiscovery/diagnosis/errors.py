"""What each error code of the driver API, the runtime API and NVML is called and means for Ollama's discovery.

The tables are data (`data/errors.json`, with their sources); a code that they lack is still answered.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.diagnosis.catalogue import DATA

UNKNOWN_CAUSES = {"cuda": "driver.cuinit.error", "runtime": "runtime.error", "nvml": "nvml.error"}
# CUresult (and cudaError_t) numbers that judgements ask for by name
OUT_OF_MEMORY = 2
STUB_LIBRARY = 34
INSUFFICIENT_DRIVER = 35
DEVICE_UNAVAILABLE = 46
NO_DEVICE = 100
JIT_COMPILER_NOT_FOUND = 221
SYSTEM_NOT_READY = 802
MPS_CONNECTION_FAILED = 805

API_NAMES = {"cuda": "CUresult", "runtime": "cudaError_t", "nvml": "nvmlReturn_t"}


@dataclass(frozen=True)
class Code:
    """One error code. `known` is False for a number that no header of the table's sources names."""

    code: int
    name: str  # the enumerator, e.g. CUDA_ERROR_NO_DEVICE
    text: str  # what the API's own error string function says: the words that are found in logs
    discovery: str  # one sentence: what it means when Ollama's discovery meets it
    cause: str | None  # id in the catalogue of causes; None for success and for answers that are no fault
    known: bool = True

    @property
    def label(self) -> str:
        """The code as people search for it: `100 CUDA_ERROR_NO_DEVICE`."""
        return f"{self.code} {self.name}" if self.known else self.name


def cuda(code: int | None) -> Code:
    """Return what CUresult CODE means (None: the call gave none). Causes are those of cuInit."""
    return _lookup("cuda", code)


def runtime(code: int | None) -> Code:
    """Return what cudaError_t CODE means."""
    return _lookup("runtime", code)


def nvml(code: int | None) -> Code:
    """Return what nvmlReturn_t CODE means."""
    return _lookup("nvml", code)


def codes(api: str) -> tuple[Code, ...]:
    """Return the whole table of API (`cuda`, `runtime` or `nvml`), by code."""
    return tuple(_table(api).values())


def runtime_code(text: str) -> int | None:
    """Return the cudaError_t whose words (cudaGetErrorString) TEXT is; None for success and for none that is known."""
    wanted = text.strip().lower()
    return next((code.code for code in codes("runtime") if code.code and code.text.lower() == wanted), None)


@functools.cache
def _table(api: str) -> dict[int, Code]:
    return {entry["code"]: Code(**entry) for entry in _data()[api]}


@functools.cache
def _data() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DATA / "errors.json").read_text(encoding="utf-8"))
    return loaded


def _lookup(api: str, code: int | None) -> Code:
    if code is None:
        return Code(-1, "no answer", "no answer", "The call gave no code.", UNKNOWN_CAUSES[api], known=False)
    found = _table(api).get(code)
    if found is not None:
        return found
    kind = API_NAMES[api]
    return Code(
        code=code,
        name=f"{kind} {code}",
        text=f"{kind} {code}",
        discovery="No header of CUDA 12 or 13 names this code: a newer driver, or a library that is not NVIDIA's.",
        cause=UNKNOWN_CAUSES[api],
        known=False,
    )
