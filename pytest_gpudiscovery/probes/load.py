"""The real dlopen of what Ollama's child opens, in a process that is thrown away.

The prediction is made anew in this very process, right before, so that any difference is the loader's or ours and not
that of two processes. Steps: the prediction, what is cached, the dlopen, and what ld.so says in Ollama's own program.
"""

from __future__ import annotations

import ctypes
import os
import time

from pytest_gpudiscovery.loader import predict
from pytest_gpudiscovery.loader.linkmap import ProcessModel
from pytest_gpudiscovery.probes import ffi, ldtrace, storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from pytest_gpudiscovery.loader.closure import Closure
    from pytest_gpudiscovery.probes.journal import Journal

TRACE_S = 4.0  # for ld.so's own trace: it maps files and binds symbols, 9 to 30 ms where nothing is wrong
LOADS = "loads"
SMALL = 1 << 20  # bytes; a file of less is not worth a direct read


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Answer REQUEST["ask"]: "backend" (one GPU directory) or "each" (small libraries, one after another)."""
    return ASKED[request["ask"]](request, journal)


def backend(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Load one CUDA backend. REQUEST: {"backend": path, "program": Ollama's program, "loader": path of ld.so | None}.

    The environment is this process's own: the stage composed it as Ollama does.
    """
    library, env = request["backend"], dict(os.environ)
    answer: dict[str, Any] = {}
    with journal.step(f"predict dlopen({library})") as step:
        expected = predict(library, env=env, cwd=os.getcwd(), process=_here(), shadows=False)
        step.result = expected.message or expected.outcome
    answer["predicted"] = {"outcome": expected.outcome, "message": expected.message}
    journal.observe("predicted", answer["predicted"])
    files = [item.real_path for item in expected.objects]
    with journal.step("look at the page cache"):
        answer["storage"] = storage.resident(files)
        largest = max(files, key=_size, default=None)
        if largest is not None and _size(largest) >= SMALL:
            answer["storage"]["delivery"] = storage.delivery(largest)
    answer["storage"]["cold_bytes"] = sum(item.cold_bytes for item in expected.objects)
    journal.observe("storage", answer["storage"])
    answer["load"] = _load(library, expected, journal)
    if request.get("loader") and answer["load"]["error"] is None:
        # Behind the dlopen: where that hangs, ld.so's trace would hang too, and would be what is named.
        with journal.step(f"LD_TRACE of {request['program']}") as step:
            answer["trace"] = ldtrace.trace(request["loader"], request["program"], library, env, TRACE_S)
            step.result = answer["trace"].get("error") or answer["trace"]["messages"][:1] or 0
    return answer


def each(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Load small libraries one after another, and call ggml_backend_score where one has it.

    REQUEST: {"patterns": [[directory, directory name's beginning or "", file name's beginning]], "skip": [path],
    "lazy": with RTLD_LAZY | RTLD_GLOBAL}. What was seen of a library is observed at once: the next one may hang, and a
    further child goes on behind it.
    """
    seen: dict[str, Any] = {}
    with journal.step("list the libraries"):
        paths = [path for pattern in request["patterns"] for path in matching(*pattern)]
    journal.observe("paths", paths)
    for path in paths:
        if path in request["skip"]:
            continue
        name = os.path.basename(path)
        entry: dict[str, Any] = {}
        journal.observe("at", path)
        library = _open(path, f"dlopen {name}", entry, journal, lazy=request["lazy"])
        score = _function(library, "ggml_backend_score")
        if score is not None:
            with journal.step(f"ggml_backend_score of {name}") as step:
                score.restype = ctypes.c_int
                entry["score"] = step.result = int(score())
        seen[path] = entry
        # One by one: a journal has a limit, and all of them each time reach it with some hundred libraries.
        journal.observe(f"seen {len(seen)}", {**entry, "path": path})
    journal.observe("at", None)
    return {"seen": seen, "paths": paths}


def matching(directory: str, folder: str, file: str) -> list[str]:
    """Return the libraries FILE*.so in DIRECTORY, or in those of its FOLDER* directories, as Ollama would open them.

    Regular files named so to the end, behind symlinks (v0.16.3 ggml-backend-reg.cpp, ggml_backend_load_best): it opens
    neither a FIFO nor a leftover such as x.so.bak. FILE.so itself, without a variant's name, only where it is alone.
    """
    places = [directory] if not folder else [f"{directory}/{name}" for name in _names(directory, folder)]
    found = []
    for place in places:
        names = [name for name in _names(place, file) if name.endswith(".so") and os.path.isfile(f"{place}/{name}")]
        variants = [name for name in names if name != f"{file}.so"]
        found += [f"{place}/{name}" for name in variants or names]
    return found


def _names(directory: str, beginning: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if name.startswith(beginning))
    except OSError:
        return []


def _load(library: str, expected: Closure, journal: Journal) -> dict[str, Any]:
    before = mapped()
    entry: dict[str, Any] = {}
    _open(library, f"dlopen {library}", entry, journal)
    entry["files"] = sorted(mapped() - before)
    entry["agrees"], entry["differences"] = compare(expected, entry, before)
    journal.observe("load", entry)
    return entry


def _open(
    path: str, step_name: str, entry: dict[str, Any], journal: Journal, *, lazy: bool = False
) -> ctypes.CDLL | None:
    """Open PATH as ggml does (RTLD_NOW | RTLD_LOCAL), or LAZY as MLX is; ENTRY gets `error` and `seconds`."""
    began, mode = time.monotonic(), os.RTLD_LAZY | os.RTLD_GLOBAL if lazy else os.RTLD_NOW | os.RTLD_LOCAL
    try:
        with journal.step(step_name) as step:
            try:
                library = ctypes.CDLL(path, mode=mode)
            except (OSError, UnicodeDecodeError) as error:
                entry["error"] = step.result = ffi.dl_error(error)
                return None
            step.result = 0
    finally:
        entry["seconds"] = round(time.monotonic() - began, 6)
    entry["error"] = None
    return library


def _function(library: ctypes.CDLL | None, name: str) -> Any:
    if library is None:
        return None
    try:
        return library[name]
    except AttributeError:
        return None


def compare(expected: Closure, entry: dict[str, Any], before: Iterable[str]) -> tuple[bool, list[str]]:
    """Return whether EXPECTED is what ENTRY says that ld.so did, and each difference in words."""
    if entry["error"] is not None:
        if expected.outcome == LOADS:
            return False, [f"predicted to load; ld.so: {entry['error']}"]
        if expected.message and expected.message not in entry["error"]:
            return False, [f"predicted: {expected.message}; ld.so: {entry['error']}"]
        return True, []
    if expected.outcome != LOADS:
        return False, [f"predicted: {expected.message or expected.outcome}; ld.so loaded it"]
    predicted = {item.real_path for item in expected.objects}
    there = set(before)
    differences = [f"predicted, not mapped: {path}" for path in sorted(predicted - set(entry["files"]) - there)]
    # What a constructor opened by itself (the driver's own plug-ins) is no part of the dlopen that is compared.
    return not differences, differences


def mapped() -> set[str]:
    """Return the files that are mapped executable in this process, symlinks resolved by the kernel."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.rstrip("\n").split(None, 5) for line in file]
    return {fields[5] for fields in lines if len(fields) == 6 and fields[5].startswith("/") and "x" in fields[1]}


def _here() -> ProcessModel:
    """Return this process: its program, and every library that it has mapped."""
    exe = os.readlink("/proc/self/exe")
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        paths = ["/" + line.rstrip("\n").partition("/")[2] for line in file if "/" in line]
    opened = tuple((path, False) for path in dict.fromkeys(paths) if ".so" in path and path != exe)
    return ProcessModel(exe=exe, opened=opened)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


ASKED = {"backend": backend, "each": each}
