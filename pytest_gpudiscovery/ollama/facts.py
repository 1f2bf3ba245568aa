"""The named facts that the conditions of routes.json and causes.json ask for, from one server's discovery.

None is "the log does not show it". Every name here is used by a condition; the tests compare the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pytest_gpudiscovery.diagnosis import errors
from pytest_gpudiscovery.ollama import eras, levels, versions
from pytest_gpudiscovery.ollama.attempts import FAILED, TIMED_OUT, Attempt, Discovery, sane
from pytest_gpudiscovery.ollama.passes import VALIDATING
from pytest_gpudiscovery.ollama.sessions import Server
from pytest_gpudiscovery.ollama.words import Word, further

NAMES = (
    "era",
    "pass",
    "second_pass",
    "directory",
    "lib_dir",
    "vendor",
    "windows",
    "mark",
    "nvswitch",
    "gpu_count",
    "later_start_found_gpu",
    "mps_variable",
    "shim",
    "preload",
    "lines_captured",
    "mlx_possible",
    "host_memory_gib",
    "module_loading",
    "no_backtrace",
    "gap_before_spawn_s",
    "parallel_children",
    "earlier_timeout",
    "gpu_directory_tried",
    "cuda_code",
    "load_error",
    "load_error_libcuda",
    "visible_devices_set",
    "directories_skipped",
    "empty_path",
    "listen_error",
    "exit_code",
    "aborted",
    "mig",
    "arch_assertion",
    "device_sane",
    "oom",
    "temporary_file",
    "llama_server_missing",
    "driver_old",
    "arch_skipped",
    "backend_loaded",
    "threads",
    "address_space",
    "backend_refused",
    "overrun_ms",
    "process_exit",
    "process_signal",
    "first_pass_devices",
    "library_requested",
    "bus_error",
    "cwd_gone",
)
MLX_SINCE = "0.14.3"  # the first official builds with -tags mlx (v0.14.3:Dockerfile)
# Boards for NVSwitch systems carry SXM or their HBM in the name; PCIe, NVL, workstation and consumer boards do not.
_NVSWITCH = re.compile(r"SXM|HBM3|\bB[123]00\b|GB[23]00|\bH[128]00\b")
_NOT_NVSWITCH = re.compile(
    r"PCIe|NVL\b|GeForce|RTX|Quadro|Tesla [TPM]|\bL40|\bL4\b|\bA[1-6]0\b|\bA2\b|\bA16\b|\bT4\b", re.IGNORECASE
)
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES",
           "GPU_DEVICE_ORDINAL")  # fmt: skip
REQUESTED = "OLLAMA_LLM_LIBRARY"
EXACT_MS = 18.0  # with a pending request it is 20 to 40
OVERRUN_LIMIT_MS = 150.0  # more is a loaded machine, not the kernel's timer slack
LIBRARY_TRIED = re.compile(r"(cuda|rocm|hip|vulkan)")


def of(server: Server, discovery: Discovery, attempt: Attempt | None, servers: Sequence[Server] = ()) -> dict[str, Any]:
    """Return every fact of NAMES for ATTEMPT, or (None) for DISCOVERY as a whole; SERVERS are all of the log."""
    era_ids = [era.id for era in eras.eras_in(server.releases)]
    said = discovery.words(attempt)
    environment = attempt.environment if attempt is not None else _any_environment(discovery)
    asked = [attempt] if attempt is not None else discovery.attempts
    names = [seen.what for seen in discovery.verified] + [device.name for device in discovery.devices if device.is_gpu]
    ids = {word.id for word in said}
    return {
        "era": era_ids[0] if len(era_ids) == 1 else None,
        "pass": attempt.kind if attempt is not None and attempt.kind != "unknown" else None,
        "second_pass": _second_pass(attempt),
        "directory": attempt.directory if attempt is not None and attempt.path is not None else None,
        "lib_dir": next((entry.libraries[0] for entry in [*asked, *discovery.attempts] if entry.libraries), None),
        "vendor": attempt.vendor if attempt is not None else None,
        "windows": attempt.windows if attempt is not None and attempt.path is not None else None,
        "mark": _mark(server, asked) or _mark_a(discovery),
        "nvswitch": _nvswitch(names),
        "gpu_count": _gpu_count(discovery, said),
        "later_start_found_gpu": _later(server, servers),
        "mps_variable": any(name.startswith("CUDA_MPS_") for name in environment or ()) or None,
        "shim": "shim" in ids or None,
        "preload": "preload" in ids or None,
        "lines_captured": attempt.lines_captured if attempt is not None else None,
        "mlx_possible": bool(server.releases & versions.between(MLX_SINCE, None)),
        "host_memory_gib": next((device.total_gib for device in discovery.devices if not device.is_gpu), None),
        "module_loading": None if environment is None else environment.get("CUDA_MODULE_LOADING", "absent").upper(),
        "no_backtrace": None if environment is None else "GGML_NO_BACKTRACE" in environment,
        "gap_before_spawn_s": attempt.waited_s if attempt is not None else None,
        "parallel_children": _parallel(discovery, attempt),
        "earlier_timeout": _earlier_timeout(server, servers, discovery, attempt),
        "gpu_directory_tried": _tried(server, discovery),
        "cuda_code": _cuda_code(said),
        "load_error": "load_failed" in ids or None,
        "load_error_libcuda": any(word.id == "load_failed" and "libcuda.so" in word.values[1] for word in said) or None,
        "visible_devices_set": _visible(server, discovery),
        "directories_skipped": any(left.why == "skip.requested" for left in discovery.left_out) or None,
        "empty_path": _empty_path(asked),
        "listen_error": "listen_error" in ids or None,
        "exit_code": next((entry.exit_code for entry in asked if entry.exit_code is not None), None),
        "backend_loaded": _backend_loaded(server, asked),
        "threads": "threads" in ids or None,
        "address_space": "address_space" in ids or None,
        "aborted": bool(ids & {"cuda_error", "assertion", "go_died"}) or None,
        "mig": any("MIG" in name for name in names) if names else None,
        "arch_assertion": any(word.id == "assertion" and "ggml_cuda_has_arch" in word.text for word in said) or None,
        "device_sane": _sane(discovery),
        "oom": "oom" in ids or None,
        "temporary_file": any("open " in entry.error or "no space" in entry.error for entry in asked) or None,
        "library_requested": _library_requested(server, discovery),
        "bus_error": "bus_error" in ids or None,
        # Era C shows a failed process's error lines at every level.
        "cwd_gone": "cwd_gone" in ids or (False if any(entry.outcome == FAILED for entry in asked) else None),
        "first_pass_devices": discovery.initial_count,
        "backend_refused": "backend_refused" in ids or None,
        "overrun_ms": _overrun(server, discovery, attempt),
        "process_exit": _in_error(asked, r"exit status (\d{1,5})", int),
        "process_signal": _in_error(asked, r"signal: ([a-z ]{1,40})", str),
        "llama_server_missing": _llama_server_missing(discovery, asked),
        "driver_old": any(left.why == "c.driver_old" for left in discovery.left_out) or None,
        "arch_skipped": any(left.why == "c.arch" for left in discovery.left_out) or None,
    }  # fmt: skip


def _second_pass(attempt: Attempt | None) -> bool | None:
    """Whether ATTEMPT was of the second pass: extra_envs says so also where the log does not show its beginning."""
    if attempt is None or (attempt.kind == "unknown" and attempt.extra is None):
        return None
    return attempt.kind == eras.VALIDATION or (attempt.kind == "unknown" and VALIDATING in (attempt.extra or {}))


def _any_environment(discovery: Discovery) -> Any:
    return next((entry.environment for entry in discovery.attempts if entry.environment is not None), None)


def _mark(server: Server, asked: Iterable[Attempt]) -> str | None:
    """Return how far the children came, by their own output; None where that output is not in the log."""
    if eras.eras_in(server.releases)[-1:] == eras.eras()[-1:]:
        return None  # era C: what a process printed is logged only after its end
    if levels.of(server)[0] != levels.TRACE and not any(entry.said for entry in asked):
        return None
    found = None
    for entry in asked:
        found = further(found, entry.mark)
    return found


def _overrun(server: Server, discovery: Discovery, attempt: Attempt | None) -> float | None:
    """Return by how many milliseconds a child of era B was given up later than its budget, where that tells something.

    A server one of whose children answered before does not sleep: it gives up on the millisecond whatever it waits for
    (recorded with EAGER on a real H100, with a FIFO, and in every second pass).
    """
    if attempt is None or attempt.outcome != TIMED_OUT or attempt.kind in ("unknown", eras.VALIDATION):
        return None
    if [era.id for era in eras.eras_in(server.releases)] != ["B"] or attempt.duration_s is None:
        return None
    budget = eras.budget_s(attempt.kind, server.releases, directory=attempt.directory, windows=attempt.windows)
    over = round((attempt.duration_s - budget) * 1000.0, 3)
    before = discovery.attempts[: discovery.attempts.index(attempt)] if attempt in discovery.attempts else []
    if over < EXACT_MS and any(entry.outcome != TIMED_OUT for entry in before):
        return None
    return over if 0.0 <= over <= OVERRUN_LIMIT_MS else None


def _in_error(asked: Iterable[Attempt], pattern: str, kind: Callable[[str], Any]) -> Any:
    found = (re.search(pattern, entry.error) for entry in asked)
    return next((kind(match[1]) for match in found if match is not None), None)


def _llama_server_missing(discovery: Discovery, asked: Iterable[Attempt]) -> bool | None:
    texts = [entry.error for entry in asked if entry.error]
    if "c.missing" in discovery.events or any("llama-server binary not found" in text for text in texts):
        return True
    if any(re.search(r"llama-server: (permission denied|no such file)", text) for text in texts):
        return True
    return False if any("--list-devices failed" in text for text in texts) else None


def _backend_loaded(server: Server, asked: Iterable[Attempt]) -> bool | None:
    """Return whether a GPU backend was loaded, where its children's own words are in the log.

    ggml says "load_backend: loaded ..." for each backend; a child that had opened all of them without that word for
    its GPU directory did not load it (v0.16.3:ml/backend/ggml/ggml/src/ggml-backend-reg.cpp:277-321).
    """
    spoke = [entry for entry in asked if entry.vendor not in (None, "none")]
    if any(word.id in ("gpu_backend", "init_failed", "found", "device") for entry in spoke for word in entry.said):
        return True
    if levels.of(server)[0] != levels.TRACE:
        return None
    # One whose start is not in the log may have said it before.
    opened = [entry.announced and entry.mark in ("system", "memory") for entry in spoke]
    return False if opened and all(opened) else None


def _mark_a(discovery: Discovery) -> str | None:
    """Return the last step that a server of era A announced before it fell silent."""
    return next((word.mark for word in reversed(discovery.notes) if (word.mark or "").startswith("a_")), None)


def _empty_path(asked: Iterable[Attempt]) -> bool | None:
    named = [entry.path for entry in asked if entry.path is not None]
    return "" in named if named else None


def _nvswitch(names: Iterable[str]) -> bool | None:
    names = list(names)
    if any(_NVSWITCH.search(name) and not _NOT_NVSWITCH.search(name) for name in names):
        return True
    return False if names and all(_NOT_NVSWITCH.search(name) for name in names) else None


def _gpu_count(discovery: Discovery, said: Iterable[Word]) -> int | None:
    found = [int(word.values[0]) for word in said if word.id == "found"]
    kept = sum(device.is_gpu for device in discovery.devices)
    if kept:
        found.append(kept)
    if discovery.verified:
        found.append(len({seen.what for seen in discovery.verified}))
    return max(found, default=None)


def _later(server: Server, servers: Sequence[Server]) -> bool | None:
    later = [other for other in servers if other.number > server.number and other.origin == server.origin]
    results = [entry.found_gpu for other in later for entry in other.builder.discoveries if entry.kind == "bootstrap"]
    return True if True in results else None


def _parallel(discovery: Discovery, attempt: Attempt | None) -> int | None:
    if attempt is None or attempt.kind != eras.VALIDATION:
        return None
    return max(len(discovery.verified), sum(entry.kind == eras.VALIDATION for entry in discovery.attempts))


def _earlier_timeout(
    server: Server, servers: Sequence[Server], discovery: Discovery, attempt: Attempt | None
) -> bool | None:
    for other in servers:
        if other.number < server.number and other.origin == server.origin:
            for entry in other.builder.discoveries:
                if any(child.outcome == TIMED_OUT for child in entry.attempts):
                    return True
    begun = attempt.started if attempt is not None else None
    hung = [child for child in discovery.attempts if child.outcome == TIMED_OUT and child.ended is not None]
    return any(begun is not None and (child.ended or 0.0) <= begun for child in hung) or None


def _tried(server: Server, discovery: Discovery) -> bool | None:
    """Whether a GPU directory was tried; False only where every child's directory is in the log."""
    named = [entry for entry in discovery.attempts if entry.path is not None]
    if any(LIBRARY_TRIED.match(entry.directory) for entry in named):
        return True
    complete = discovery.initial_count is not None or levels.of(server)[0] in (levels.DEBUG, levels.TRACE)
    return False if named and complete and discovery.begun_in_log and len(named) == len(discovery.attempts) else None


def _cuda_code(said: Iterable[Word]) -> int | None:
    for word in said:
        if word.id in ("init_failed", "cuda_error"):
            code = errors.runtime_code(word.values[0])
            if code is not None:
                return code
    return None


def _visible(server: Server, discovery: Discovery) -> bool | None:
    """Whether a variable chooses among the GPUs. "server config" shows one that is empty like one that is not set."""
    if discovery.overrides or any((server.settings or {}).get(name, "").strip() for name in VISIBLE):
        return True
    seen = [entry for entry in discovery.attempts if entry.environment is not None and entry.kind != eras.VALIDATION]
    if not seen:
        return None
    return any(name in (entry.environment or {}) for entry in seen for name in VISIBLE)


def _library_requested(server: Server, discovery: Discovery) -> bool | None:
    if any(left.why == "skip.requested" for left in discovery.left_out):
        return True
    return None if server.settings is None else bool(server.settings.get(REQUESTED, "").strip())


def _sane(discovery: Discovery) -> bool | None:
    found = [device.sane for device in discovery.devices if device.sane is not None]
    for seen in discovery.verified:
        parts = re.search(r"(?:^| )(\d{1,3}\.\d{1,3})(?: (\S{1,40}))?$", seen.what)
        if parts is not None and LIBRARY_TRIED.search(seen.why):
            found.append(sane(parts[1], parts[2] or ""))
    return all(found) if found else None
