"""What cuda-python says about the GPUs: `cuda.bindings.driver` (12.6 and later), else `cuda.cuda` (12.0 to 12.9)."""

from __future__ import annotations

from pytest_gpudiscovery.probes.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs every probe 10 ms
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

GPU_LIMIT = 64


class CudaError(Exception):
    """A call answered another code than CUDA_SUCCESS; the message is `code NAME`."""


def ask(journal: Journal) -> dict[str, Any]:
    """Return {"module", "version", "gpus": [{"uuid", "pci", "name", "memory", "cc", "sm_count"}]} or why not.

    `memory` is the total in bytes; {"import_error"} or {"error"} says why there is no list. A function that the
    binding or the driver lacks is named in the GPU's `lacks`.
    """
    try:
        with journal.step("import cuda.bindings.driver") as step:
            driver = _import()
            step.result = driver.__name__
    except Exception as error:
        return {"import_error": f"{type(error).__name__}: {error}"}
    answer: dict[str, Any] = {"module": driver.__name__, "version": _version()}
    try:
        with journal.step("cuda-python: cuInit(0)"):
            _call(driver, "cuInit", 0)
        with journal.step("cuda-python: GPUs"):
            answer["driver_version_cuda"] = int(_call(driver, "cuDriverGetVersion"))
            count = int(_call(driver, "cuDeviceGetCount"))
            answer["gpus"] = [_gpu(driver, ordinal) for ordinal in range(min(count, GPU_LIMIT))]
    except Exception as error:  # CudaError, or RuntimeError of a binding that finds no libcuda or no such function
        answer["error"] = f"{type(error).__name__}: {error}"
    return answer


def _import() -> ModuleType:
    try:
        from cuda.bindings import driver  # noqa: PLC0415 - the import is what is observed
    except ImportError as error:
        try:
            from cuda import cuda as driver  # noqa: PLC0415
        except ImportError:
            raise error from None  # the newer name's error says more: no package at all, or one that is broken
    module: ModuleType = driver
    return module


def _gpu(driver: ModuleType, ordinal: int) -> dict[str, Any]:
    found: dict[str, Any] = {"ordinal": ordinal, "lacks": []}
    try:
        device = _call(driver, "cuDeviceGet", ordinal)
    except Exception as error:
        return {**found, "error": f"{type(error).__name__}: {error}"}

    def attribute(name: str) -> int:
        number = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(_call(driver, "cuDeviceGetAttribute", number, device))

    questions: dict[str, Callable[[], Any]] = {
        "uuid": lambda: _uuid(driver, device),
        "pci": lambda: _text(_call(driver, "cuDeviceGetPCIBusId", 32, device)),
        "name": lambda: _text(_call(driver, "cuDeviceGetName", 256, device)),
        "memory": lambda: int(_call(driver, "cuDeviceTotalMem", device)),
        "cc": lambda: [attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")],
        "sm_count": lambda: attribute("MULTIPROCESSOR_COUNT"),
    }
    for name, question in questions.items():
        try:
            found[name] = question()
        except Exception as error:
            found["lacks"].append(f"{name}: {type(error).__name__}: {error}")
    return found


def _call(driver: ModuleType, name: str, *args: Any) -> Any:
    """Return the value of driver.NAME(*ARGS), which answers (code,) or (code, value); raises CudaError."""
    answer = getattr(driver, name)(*args)
    code = answer[0]
    if int(code) != 0:
        raise CudaError(f"{name} answered {int(code)} {getattr(code, 'name', '')}".strip())
    return answer[1] if len(answer) > 1 else None


def _uuid(driver: ModuleType, device: Any) -> str:
    # _v2 (up to 12.x) tells a MIG instance from its GPU; in 13 the plain name is that function.
    name = "cuDeviceGetUuid_v2" if hasattr(driver, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
    digits = bytes(_call(driver, name, device).bytes)[:16].hex()
    return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _text(value: Any) -> str:
    """Buffers come back as bytes with the terminator and what lies behind it."""
    return value.split(b"\0", 1)[0].decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _version() -> str | None:
    # importlib.metadata costs 60 ms; the package's own attribute is enough.
    for name in ("cuda.bindings", "cuda"):
        try:
            value = getattr(__import__(name, fromlist=["__version__"]), "__version__", None)
        except ImportError:
            continue
        if value is not None:
            return str(value)
    return None
