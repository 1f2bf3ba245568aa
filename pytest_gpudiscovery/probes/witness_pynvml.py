"""What the Python module pynvml (package nvidia-ml-py) says about the GPUs."""

from __future__ import annotations

from pytest_gpudiscovery.probes.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs every probe 10 ms
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

GPU_LIMIT = 64


def ask(journal: Journal) -> dict[str, Any]:
    """Return {"version", "gpus": [{"uuid", "pci", "name", "memory", "cc"}]}, or {"import_error"} or {"error"}.

    `memory` is the total in bytes. A function that the module or the driver lacks is named in the GPU's `lacks`.
    """
    try:
        with journal.step("import pynvml"):
            import pynvml  # noqa: PLC0415 - the import is what is observed
    except Exception as error:
        return {"import_error": f"{type(error).__name__}: {error}"}
    answer: dict[str, Any] = {"version": _version(pynvml), "file": str(getattr(pynvml, "__file__", ""))}
    try:
        with journal.step("pynvml: nvmlInit"):
            pynvml.nvmlInit()
        with journal.step("pynvml: GPUs"):
            count = pynvml.nvmlDeviceGetCount()
            answer["gpus"] = [_gpu(pynvml, index) for index in range(min(count, GPU_LIMIT))]
        with journal.step("pynvml: nvmlShutdown"):
            pynvml.nvmlShutdown()
    except Exception as error:  # NVMLError, or AttributeError of a module that lacks a function
        answer["error"] = f"{type(error).__name__}: {error}"
    return answer


def _gpu(pynvml: ModuleType, index: int) -> dict[str, Any]:
    found: dict[str, Any] = {"index": index, "lacks": []}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    except Exception as error:
        return {**found, "error": f"{type(error).__name__}: {error}"}
    questions: dict[str, Callable[[], Any]] = {
        "uuid": lambda: _text(pynvml.nvmlDeviceGetUUID(handle)),
        "pci": lambda: _text(pynvml.nvmlDeviceGetPciInfo(handle).busId),
        "name": lambda: _text(pynvml.nvmlDeviceGetName(handle)),
        "memory": lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        "cc": lambda: list(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
    }
    for name, question in questions.items():
        try:
            found[name] = question()
        except Exception as error:
            found["lacks"].append(f"{name}: {type(error).__name__}: {error}")
    return found


def _text(value: Any) -> str:
    """pynvml answers bytes up to version 11.5 and str since."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _version(module: ModuleType) -> str | None:
    value = getattr(module, "__version__", None)
    return None if value is None else str(value)
