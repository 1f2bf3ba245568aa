"""Looks at the Ollama install: files only, nothing of it is executed.

Follows what Ollama itself does (v0.20.0, ml/path.go and discover/runner.go): the binary's symlinks are resolved, its
libraries are in ../lib/ollama, build/lib/ollama beside it or below the working directory, else beside the binary, and
the GPU directories are the parents of whatever the glob LIB/*/*ggml-* matches.
"""

from __future__ import annotations

import os
from typing import Any

from pytest_gpudiscovery.probes import libraries
from pytest_gpudiscovery.probes.facts import errno_name, kind, names
from pytest_gpudiscovery.probes.host import HostView, open_view
from pytest_gpudiscovery.probes.journal import Journal
from pytest_gpudiscovery.probes.mounts import mount_options

USUAL = ("/usr/local/bin/ollama", "/usr/bin/ollama", "/bin/ollama", "/opt/ollama/bin/ollama", "/snap/bin/ollama")
ARCHIVES = (".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar", ".zip")
TOOLKITS = "/usr/local"  # cuda, cuda-12, cuda-13.0, ...
FILES_LIMIT = 400  # files of one directory; a release has about 20 in each
LIBRARY = (".so", ".so.")


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return where Ollama is and what its directories hold.

    REQUEST: {"view", "env": {"PATH", "LD_LIBRARY_PATH"}, "ollama_path": str | None}. The working directory is this
    process's own.
    """
    view = open_view(request["view"])
    env = request["env"]
    with journal.step("getcwd") as step:
        try:
            cwd: str | None = os.getcwd()
        except OSError as error:
            cwd = None
            step.result = errno_name(error)
    with journal.step("find the ollama binary") as step:
        binary = find_binary(view, request.get("ollama_path"), env.get("PATH", ""))
        step.result = binary.get("path")
    answer: dict[str, Any] = {"cwd": cwd, "binary": binary, "lib": None, "directories": [], "top": []}
    if binary.get("path") and not binary.get("problem"):
        journal.observe("binary", binary)
        with journal.step("find lib/ollama") as step:
            answer["lib"] = find_lib(view, binary["realpath"], cwd)
            step.result = answer["lib"]["path"]
        lib = answer["lib"]["path"]
        with journal.step(f"read {lib}"):
            answer["top"] = files_of(view, lib, contents=False)
            for name in gpu_directories(view, lib):
                directory = f"{lib}/{name}"
                answer["directories"].append(
                    {"name": name, "path": directory, "realpath": view.realpath(directory)}
                    | {"files": files_of(view, directory, contents=True)}
                )
            answer["old_layout"] = [name for name in ("runners", "cuda_v11") if kind(view, f"{lib}/{name}") == "dir"]
        with journal.step("read /proc/self/mountinfo"):
            answer["mounts"] = {
                path: mount_options(view, view.realpath(path))
                for path in (binary["realpath"], lib, *(item["path"] for item in answer["directories"]))
            }
    else:
        with journal.step("find the system's libcudart"):
            answer["system_cudart"] = system_cudart(view, env)
    return answer


def find_binary(view: HostView, wanted: str | None, path: str) -> dict[str, Any]:
    """Return {"path", "realpath", "executable", "size", "tried"}; "problem" says why WANTED cannot be used.

    WANTED is a binary, an install prefix or a release archive; None searches PATH and the usual places.
    """
    tried: list[str] = []
    if wanted:
        options = [wanted] if kind(view, wanted) == "file" else [f"{wanted}/bin/ollama", f"{wanted}/ollama"]
        if wanted.endswith(ARCHIVES):
            return {"path": None, "tried": [wanted], "problem": "archive"}
    else:
        options = [f"{part}/ollama" for part in path.split(":") if part.startswith("/")] + list(USUAL)
    for option in dict.fromkeys(options):
        tried.append(option)
        if kind(view, option) != "file":
            continue
        real = view.realpath(option)
        status = view.stat(option)
        return {
            "path": option,
            "realpath": real,
            "executable": view.access(option, os.X_OK),
            "mode": status["mode"],
            "uid": status["uid"],
            "gid": status["gid"],
            "size": status["size"],
            "elf": libraries.elf(view, real),
            "tried": tried,
        }
    return {"path": None, "tried": tried, **({"problem": "no ollama binary there"} if wanted else {})}


def find_lib(view: HostView, binary: str, cwd: str | None) -> dict[str, Any]:
    """Return {"path", "realpath", "fallback", "tried"}: the directory that Ollama takes for BINARY (symlinks resolved).

    `fallback` is true when none of the candidates exists and Ollama falls back to the directory of its binary.
    """
    here = os.path.dirname(binary)
    tried = [os.path.normpath(f"{here}/../lib/ollama"), f"{here}/build/lib/ollama"]
    if cwd is not None:
        tried.append(f"{cwd.rstrip('/')}/build/lib/ollama")
    for path in tried:
        if kind(view, path) is not None:
            return {"path": path, "realpath": view.realpath(path), "fallback": False, "tried": tried}
    return {"path": here, "realpath": here, "fallback": True, "tried": tried}


def gpu_directories(view: HostView, lib: str) -> list[str]:
    """Return the names below LIB that hold a file matching *ggml-* (Ollama's glob; hidden names match in Go)."""
    found = []
    for name in names(view, lib):
        path = f"{lib}/{name}"
        if kind(view, path) == "dir" and any("ggml-" in entry for entry in names(view, path)):
            found.append(name)
    return found


def files_of(view: HostView, directory: str, *, contents: bool) -> list[dict[str, Any]]:
    """Return the libraries in DIRECTORY: {"name", "size", "mtime", "realpath", "readable"}, "elf" with CONTENTS.

    A name that leads nowhere (dangling link, no permission) has {"name", "errno"}.
    """
    found: list[dict[str, Any]] = []
    for name in names(view, directory)[:FILES_LIMIT]:
        if not (name.endswith(LIBRARY[0]) or LIBRARY[1] in name):
            continue
        path = f"{directory}/{name}"
        try:
            status = view.stat(path)
        except OSError as error:
            found.append({"name": name, "errno": errno_name(error)})
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
        found.append(entry)
    return found


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
