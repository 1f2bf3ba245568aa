"""ggml_backend_init on the library that stage 10 proved, then every device's name and memory; each call timed.

"first": as the first pass of Ollama's discovery. "second": as its second pass, one process for each device and all of
them at once, with CUDA_VISIBLE_DEVICES and GGML_CUDA_INIT set before anything is loaded.
"""

from __future__ import annotations

import ctypes
import os
import select
import time

from pytest_gpudiscovery.probes import ffi, ggml
from pytest_gpudiscovery.probes.journal import Journal
from pytest_gpudiscovery.probes.wire import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEVICES = 64  # a count beyond that is garbage
IDS_APART = 10_000  # step numbers of one device's process from the next one's
ANSWER = 1 << 20  # bytes
END = b"\n"  # of an answer; JSON on one line has none inside
POLL_S = 0.02  # between looks at a child that says nothing


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Answer REQUEST["ask"]: "first" or "second"; `backend` is the path of the library."""
    return ASKED[request["ask"]](request, journal)


def first(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Initialise REQUEST["backend"]; `leave_alone`: ordinals whose memory is not asked (a context may be made)."""
    journal.observe("gdb", gdb())
    journal.observe("library", request["backend"])
    return discover(request["backend"], set(request["leave_alone"]), journal, "")


def gdb() -> str | None:
    """Return the gdb that ggml's abort handler would start (ggml.c, ggml_print_backtrace), None where there is none."""
    if "GGML_NO_BACKTRACE" in os.environ:
        return None
    places = (f"{part}/gdb" for part in os.environ.get("PATH", "").split(":") if part)
    return next((place for place in places if os.access(place, os.X_OK)), None)


def second(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Initialise the backend once for each of REQUEST["devices"] ({"name", "env"}), all at the same time.

    {"ended": {name: the answer of `first` with `seconds`, or {"exit": exit code, negative for a signal}}, "seconds"}.
    """
    began = time.monotonic()
    answers: dict[str, dict[str, Any]] = {}
    with journal.step(f"second pass of {len(request['devices'])} device(s)"):
        readers: dict[int, str] = {}
        pids: dict[str, int] = {}
        for number, device in enumerate(request["devices"], 1):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                _one_device(request["backend"], device, journal, number, writer)
            os.close(writer)
            readers[reader], pids[device["name"]] = device["name"], pid
        parts: dict[int, bytes] = dict.fromkeys(readers, b"")
        while readers:
            # No limit here: the supervisor has one, and ends the whole session at it.
            ready = select.select(list(readers), [], [], POLL_S)[0]
            for reader in list(readers):
                data = os.read(reader, 65_536) if reader in ready else b""
                parts[reader] += data[: ANSWER - len(parts[reader])]
                # Not until the end of the file: what a library left behind may hold the pipe open for ever.
                done = parts[reader].endswith(END) or (reader in ready and not data)
                status = _status(pids[readers[reader]], wait=done)
                if done or status is not None:
                    if not done and select.select([reader], [], [], 0)[0]:
                        parts[reader] += os.read(reader, ANSWER)  # written between the look and its end
                    os.close(reader)
                    name = readers.pop(reader)
                    answers[name] = _answer(parts[reader], status, time.monotonic() - began)
                    # No more than a name: a long line would mix with those that the others write meanwhile.
                    journal.observe(f"ended {name}", answers[name].get("exit", 0))
    return {"ended": answers, "seconds": round(time.monotonic() - began, 6)}


def _one_device(backend: str, device: dict[str, Any], journal: Journal, number: int, writer: int) -> None:
    """Run in a child of the probe; ends the process."""
    try:
        ggml.visible(device["env"])
        mine = journal.apart(number * IDS_APART)
        answer = discover(backend, set(), mine, f"{device['name']}: ")
        data = dumps(answer).encode() + END
        while data:
            data = data[os.write(writer, data) :]
        os._exit(0)
    except BaseException:
        import traceback  # noqa: PLC0415 - only for a defect of our own

        traceback.print_exc()
    os._exit(1)


def _status(pid: int, *, wait: bool) -> int | None:
    """Return the exit code of PID (negative for a signal), None while it runs; WAIT for one that is ending."""
    got, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if got else None


def _answer(data: bytes, code: int | None, seconds: float) -> dict[str, Any]:
    if code == 0 and data.endswith(END):
        import json  # noqa: PLC0415 - only here, and it costs 10 ms

        return {**json.loads(data), "seconds": round(seconds, 6)}
    return {"exit": code, "seconds": round(seconds, 6)}


def discover(backend: str, leave_alone: set[int], journal: Journal, prefix: str) -> dict[str, Any]:
    """Do what ggml's loader and Ollama's child do with BACKEND; PREFIX stands before the name of each step."""
    answer: dict[str, Any] = {"error": None}
    with journal.step(f"{prefix}dlopen {os.path.basename(backend)}") as step:
        try:
            library = ctypes.CDLL(backend, mode=os.RTLD_NOW | os.RTLD_LOCAL)
        except (OSError, UnicodeDecodeError) as error:
            answer["error"] = step.result = ffi.dl_error(error)
            return answer
        step.result = 0
    functions = ggml.Functions(library)
    score = functions.get("ggml_backend_score", ctypes.c_int)
    if score is not None:
        with journal.step(f"{prefix}ggml_backend_score") as step:
            answer["score"] = step.result = int(score())
    init = functions.get("ggml_backend_init", ctypes.c_void_p)
    answer["has_init"] = init is not None
    if init is None or answer.get("score") == 0:
        return answer
    with journal.step(f"{prefix}ggml_backend_init") as step:
        registry = init()
        step.result = "a registry" if registry else "NULL"
    answer["registry"] = ggml.look_at_registry(registry) if registry else None
    if not prefix:
        journal.observe("registry", answer["registry"])
        journal.observe("libraries", ffi.driver_libraries())
    if not registry or not answer["registry"]["layout"]:
        return answer
    _devices(functions, registry, answer, leave_alone, journal, prefix)
    return answer


def _devices(
    functions: ggml.Functions,
    registry: int,
    answer: dict[str, Any],
    leave_alone: set[int],
    journal: Journal,
    prefix: str,
) -> None:
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    name = functions.get("ggml_backend_reg_name", ctypes.c_char_p, pointer)
    count = functions.get("ggml_backend_reg_dev_count", size, pointer)
    get = functions.get("ggml_backend_reg_dev_get", pointer, pointer, size)
    wanted = {"ggml_backend_reg_name": name, "ggml_backend_reg_dev_count": count, "ggml_backend_reg_dev_get": get}
    answer["lacks"] = [symbol for symbol, function in wanted.items() if function is None]
    if answer["lacks"]:
        return
    with journal.step(f"{prefix}ggml_backend_reg_dev_count") as step:
        answer["name"] = ffi.text(name(registry) or b"")
        answer["count"] = step.result = int(count(registry))
    if not prefix:
        journal.observe("count", answer["count"])
    devices: list[dict[str, Any]] = []
    answer["devices"] = devices
    for ordinal in range(min(answer["count"], DEVICES)):
        device: dict[str, Any] = {"ordinal": ordinal}
        devices.append(device)
        address = get(registry, ordinal)
        device["sound"] = bool(address) and ggml.device_is_sound(address)
        if device["sound"]:
            _device(functions, address, device, ordinal in leave_alone, journal, prefix)
        if not prefix:
            journal.observe("devices", devices)


def _device(
    functions: ggml.Functions, address: int, device: dict[str, Any], leave_alone: bool, journal: Journal, prefix: str
) -> None:
    pointer = ctypes.c_void_p
    for key in ("name", "description"):
        function = functions.get(f"ggml_backend_dev_{key}", ctypes.c_char_p, pointer)
        device[key] = ffi.text(function(address) or b"") if function is not None else None
    device["left_alone"] = leave_alone
    memory = functions.get("ggml_backend_dev_memory", None, pointer, pointer, pointer)
    if leave_alone or memory is None:
        return
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with journal.step(f"{prefix}ggml_backend_dev_memory({device['ordinal']})") as step:
        memory(address, ctypes.byref(free), ctypes.byref(total))
        step.result = total.value
    device |= {"memory_free": free.value, "memory_total": total.value}
    get_props = functions.get("ggml_backend_dev_get_props", None, pointer, pointer)
    if get_props is None:
        return
    raw = ctypes.create_string_buffer(ggml.PROPS)
    with journal.step(f"{prefix}ggml_backend_dev_get_props({device['ordinal']})"):
        get_props(address, raw)
    device["props"] = ggml.properties(raw.raw)


ASKED = {"first": first, "second": second}
