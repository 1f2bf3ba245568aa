"""Call driver libraries through ctypes, and say of each call what became of it.

A function that a driver, a shim or an old library lacks is an answer ({"missing": name}), not an exception: which
functions exist is one of the things that the gate looks at.

Symbols are looked up as the dynamic linker would for libggml-cuda.so, which is linked against libcuda.so.1: first the
global scope (the program and LD_PRELOAD), then the library itself. NVML, which Ollama opens with dlopen and dlsym, is
loaded with `linked=False`: then only the library's own symbols count.
"""

from __future__ import annotations

import ctypes
import os

from pytest_gpudiscovery.probes.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs every probe 10 ms
    from typing import Any

# What to list of a process' maps: the driver's own libraries, the runtime, and the names that interposers use.
DRIVER_WORDS = ("cuda", "nvidia", "nvml", "vgpu", "hami", "dxcore", "gemhook", "zluda", "cudart", "libnv")
MAPS_LIMIT = 64  # libraries; more of them than this is no longer a summary


class Library(ctypes.CDLL):
    """An open library, and the global scope when LD_PRELOAD may stand in front of its symbols."""

    program: ctypes.CDLL | None = None


def load(journal: Journal, name: str, *, linked: bool = True) -> Library:
    """Open library NAME (a file name for ld.so's search, or a path) with RTLD_NOW | RTLD_LOCAL, as step `dlopen NAME`.

    Observes which driver libraries are mapped afterwards (`libraries`), also when it fails. Raises OSError with the
    text of dlerror(); the same text is the step's result.
    """
    try:
        with journal.step(f"dlopen {name}") as step:
            try:
                library = Library(name, mode=os.RTLD_NOW | os.RTLD_LOCAL)
            except (OSError, UnicodeDecodeError) as error:
                step.result = {"error": dl_error(error)}
                raise OSError(dl_error(error)) from None
            step.result = 0
    finally:
        journal.observe("libraries", driver_libraries())
    library.program = ctypes.CDLL(None) if linked else None
    return library


def dl_error(error: OSError | UnicodeDecodeError) -> str:
    """Return the text of dlerror() from what ctypes raised; a name in it need not be UTF-8."""
    return str(error) if isinstance(error, OSError) else error.object.decode("utf-8", "backslashreplace")


def find(library: Library, symbol: str) -> Any:
    """Return the function that a caller of SYMBOL would reach, or None where there is none."""
    for scope in (library.program, library):
        if scope is None:
            continue
        try:
            return scope[symbol]  # by index: a fresh object each time, so that no restype is shared
        except AttributeError:
            continue
    return None


def invoke(library: Library, symbol: str, *args: Any) -> dict[str, Any]:
    """Call SYMBOL without a step of its own (many cheap calls share one); {"rc": int} or {"missing": symbol}.

    ARGS are ctypes objects; a plain int is passed as C int.
    """
    function = find(library, symbol)
    if function is None:
        return {"missing": symbol}
    function.restype = ctypes.c_int
    return {"rc": int(function(*args))}


def call(journal: Journal, library: Library, symbol: str, *args: Any, step: str = "") -> dict[str, Any]:
    """Call SYMBOL as a timed step (named STEP, else SYMBOL); {"rc": int} or {"missing": symbol}.

    The step's result is the return code, or the same {"missing": symbol}.
    """
    with journal.step(step or symbol) as opened:
        answer = invoke(library, symbol, *args)
        opened.result = answer.get("rc", answer)
    return answer


def provider(library: Library, symbol: str) -> str | None:
    """Return the file that SYMBOL would be called in (an interposer, or the library), None where it is missing."""
    function = find(library, symbol)
    if function is None:
        return None
    address = ctypes.cast(function, ctypes.c_void_p).value or 0
    for start, end, path in _mappings():
        if start <= address < end:
            return path or None
    return None


def loaded_path(name: str) -> str | None:
    """Return the mapped file whose base name starts with NAME (`libcuda.so`), symlinks resolved; None when unmapped.

    The kernel's own words (/proc/self/maps): a file that was deleted since ends in " (deleted)".
    """
    for _, _, path in _mappings():
        if path.rpartition("/")[2].startswith(name):
            return path
    return None


def version_of(path: str | None) -> str | None:
    """Return the version that PATH's name ends in (`libcuda.so.580.159.04` -> `580.159.04`), None for a bare soname.

    Where the file is mounted under another name, that of the file itself counts. WSL's `libcuda.so.1.1` is a soname
    too: no driver has a version 1.
    """
    name = (path or "").removesuffix(" (deleted)")
    version = _ending(name)
    if version is None and name:
        from pytest_gpudiscovery.probes.host import LiveView  # noqa: PLC0415 - for the few files whose name tells nothing
        from pytest_gpudiscovery.probes.mounts import mounted_file  # noqa: PLC0415 - likewise; their imports cost 10 ms

        version = _ending(mounted_file(LiveView(), name) or "")
    return version


def _ending(path: str) -> str | None:
    tail = path.rpartition("/")[2].partition(".so.")[2]
    parts = tail.split(".")
    if len(parts) < 2 or tail == "1.1" or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    return tail


def driver_libraries() -> list[str]:
    """Return the mapped files that belong to the driver, to the runtime, to a known interposer or to LD_PRELOAD."""
    preloads = os.environ.get("LD_PRELOAD", "").lower().replace(":", " ").split()
    preloaded = {name.rpartition("/")[2] for name in preloads}
    found: dict[str, None] = {}
    for _, _, path in _mappings():
        base = path.rpartition("/")[2].lower()
        if ".so" in base and (base in preloaded or any(word in base for word in DRIVER_WORDS)):
            found[path] = None
    return list(found)[:MAPS_LIMIT]


def text(value: bytes) -> str:
    """Return the C string in VALUE; bytes that are not UTF-8 stay visible as escapes."""
    return value.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def uuid_text(raw: bytes, prefix: str = "GPU-") -> str:
    """Return the 16 bytes of a CUuuid as NVML writes them: `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`."""
    digits = raw[:16].hex()
    return prefix + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _mappings() -> list[tuple[int, int, str]]:
    """Return (start, end, path) of each file mapping of this process; [] where /proc cannot be read."""
    try:
        with open("/proc/self/maps", "rb") as file:
            lines = file.read().decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return []
    found = []
    for line in lines:
        # address perms offset dev inode path; the path may hold spaces
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5].startswith("/"):
            start, _, end = fields[0].partition("-")
            found.append((int(start, 16), int(end, 16), fields[5]))
    return found
