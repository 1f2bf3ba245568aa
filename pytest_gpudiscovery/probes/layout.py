"""Where an Ollama binary looks for its libraries and GPU directories: its own rules, per era, over files only.

Era B: v0.16.3:ml/path.go:16-56, any kind of file counts, and nothing is looked at when os.Getwd fails (the caller's
to judge). Era C: v0.32.15:ml/path.go:41-109, more candidates, directories only, no working directory is no harm.
"""

from __future__ import annotations

import os

from pytest_gpudiscovery.probes import libraries
from pytest_gpudiscovery.probes.facts import errno_name, kind, link_target, names
from pytest_gpudiscovery.probes.host import HostView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILES_LIMIT = 400  # files of one directory; a release has about 20 in each
LIBRARY = (".so", ".so.")
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}
TOOLKITS = "/usr/local"  # cuda, cuda-12, cuda-13.0, ...
# Where packages put Ollama's libraries although Ollama does not look there from /usr/bin.
ELSEWHERE = (
    "/usr/lib/ollama",
    "/usr/local/lib/ollama",
    "/usr/lib64/ollama",
    "/usr/lib/x86_64-linux-gnu/ollama",
    "/usr/lib/aarch64-linux-gnu/ollama",
    "/usr/libexec/ollama",
    "/opt/ollama/lib/ollama",
    "/lib/ollama",
)


def find_lib(view: HostView, binary: str, cwd: str | None, era: str | None) -> dict[str, Any]:
    """Return {"path", "realpath", "fallback", "tried"}: the directory that Ollama takes for BINARY (symlinks resolved).

    "dangling" is [path, target] of the first candidate that is a link to nowhere, where it is one.
    `fallback` is true when none of the candidates exists and Ollama falls back to the directory of its binary. Where
    the era is unknown, B's candidates come before C's.
    """
    older, newer = _candidates_b(binary, cwd), _candidates_c(binary, cwd)
    tried = {"A": older, "B": older, "C": newer}.get(era or "", list(dict.fromkeys(older + newer)))
    for path in tried:
        what = kind(view, path)
        if what is not None and (what == "dir" or era != "C"):
            return {"path": path, "realpath": view.realpath(path), "fallback": False, "tried": tried}
    here = os.path.dirname(binary)
    found = {"path": here, "realpath": here, "fallback": True, "tried": tried}
    leads = link_target(view, tried[0])
    return {**found, "dangling": [tried[0], leads]} if leads is not None and kind(view, tried[0]) is None else found


def _candidates_b(binary: str, cwd: str | None) -> list[str]:
    here = os.path.dirname(binary)
    found = [os.path.normpath(f"{here}/../lib/ollama"), f"{here}/build/lib/ollama"]
    return found + ([] if cwd is None else [f"{cwd.rstrip('/')}/build/lib/ollama"])


def _candidates_c(binary: str, cwd: str | None) -> list[str]:
    here, arch = os.path.dirname(binary), GOARCH.get(os.uname().machine, os.uname().machine)
    found = [f"{here}/../lib/ollama", f"{here}/lib/ollama"]
    for base in (here, *([] if cwd is None else [cwd.rstrip("/")])):
        found += [f"{base}/{path}/lib/ollama" for path in ("build", f"dist/linux-{arch}", f"dist/linux_{arch}")]
    return list(dict.fromkeys(os.path.normpath(path) for path in found))


def gpu_directories(view: HostView, lib: str) -> list[str]:
    """Return the names below LIB that hold a file matching *ggml-* (Ollama's glob; hidden names match in Go).

    Ollama tries them in a random order: they are the keys of a Go map (v0.16.3:discover/runner.go:94).
    """
    found = []
    for name in names(view, lib):
        path = f"{lib}/{name}"
        if kind(view, path) == "dir" and any("ggml-" in entry for entry in names(view, path)):
            found.append(name)
    return found


def bare_directories(view: HostView, lib: str) -> list[str]:
    """Return the names below LIB that are CUDA directories by name and hold nothing that Ollama's glob matches."""
    found = [name for name in names(view, lib) if name.startswith("cuda_v") and not closed(view, f"{lib}/{name}")]
    return [name for name in found if not any("ggml-" in entry for entry in names(view, f"{lib}/{name}"))]


def closed_directories(view: HostView, lib: str) -> list[str]:
    """Return LIB, or the CUDA directories below it, where this user may not list them: Ollama's glob sees nothing."""
    mine = [f"{lib}/{name}" for name in names(view, lib) if name.startswith("cuda_v")]
    return [path for path in (lib, *mine) if closed(view, path)]


def closed(view: HostView, path: str) -> bool:
    """Whether directory PATH is there and this user may not list it."""
    try:
        view.listdir(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def elsewhere(view: HostView, lib: str) -> list[str]:
    """Return the directories that look like Ollama's libraries beside LIB, which is where Ollama looks."""
    here = view.realpath(lib)
    found = {view.realpath(path): path for path in ELSEWHERE if any("ggml" in name for name in names(view, path))}
    return [path for real, path in found.items() if real != here]


def files_of(view: HostView, directory: str, *, contents: bool) -> list[dict[str, Any]]:
    """Return the libraries in DIRECTORY: {"name", "size", "mtime", "realpath", "readable"}, "elf" with CONTENTS.

    With CONTENTS also "mapped": "ok" or the errno of mapping the file's first page executable. A name that leads
    nowhere (dangling link, no permission) has {"name", "errno", "target"}.
    """
    found: list[dict[str, Any]] = []
    for name in names(view, directory)[:FILES_LIMIT]:
        if not (name.endswith(LIBRARY[0]) or LIBRARY[1] in name):
            continue
        path = f"{directory}/{name}"
        try:
            status = view.stat(path)
        except OSError as error:
            found.append({"name": name, "errno": errno_name(error), "target": link_target(view, path)})
            continue
        entry: dict[str, Any] = {
            "name": name,
            "size": status["size"],
            "mtime": int(status["mtime"]),
            "realpath": view.realpath(path),
            "readable": view.access(path, os.R_OK),
        }
        if contents:
            entry["elf"] = libraries.elf(view, path)
            entry["zeros"] = "class" in entry["elf"] and libraries.ends_in_zeros(view, path)
            entry["mapped"] = _mapped(view, path)
        found.append(entry)
    return found


def _mapped(view: HostView, path: str) -> str:
    try:
        view.map_executable(path)
    except OSError as error:
        return errno_name(error)
    return "ok"


def system_cudart(view: HostView, env: dict[str, str]) -> list[dict[str, Any]]:
    """Return the libcudart files that a program without its own would get: ld.so's first, then the toolkits'."""
    found: dict[str, dict[str, Any]] = {}
    for major in ("13", "12", "11.0"):
        library = libraries.find(view, f"libcudart.so.{major}", env)
        if library is not None:
            found.setdefault(library["realpath"], library)
        for toolkit in names(view, TOOLKITS):
            path = f"{TOOLKITS}/{toolkit}/lib64/libcudart.so.{major}"
            if toolkit.startswith("cuda") and kind(view, path) == "file":
                real = view.realpath(path)
                version = libraries.version_in_name(real)
                found.setdefault(real, {"path": path, "realpath": real, "rule": "toolkit", "version": version})
    return list(found.values())
