"""Looks at the Ollama install: files only, nothing of it is executed.

Follows what Ollama itself does: the binary's symlinks are resolved, its libraries are where its era looks for them
(layout.py), and the GPU directories are the parents of whatever the glob LIB/*/*ggml-* matches. Where that matches
nothing, libraries that lie in LIB itself are loaded all the same: so do distributions that build without
OLLAMA_RUNNER_DIR.
"""

from __future__ import annotations

import os

from pytest_gpudiscovery.probes import eras, gobinary, layout, libraries
from pytest_gpudiscovery.probes.binaries import find_binary
from pytest_gpudiscovery.probes.facts import errno_name, kind, names, text
from pytest_gpudiscovery.probes.host import HostView, open_view
from pytest_gpudiscovery.probes.journal import Journal
from pytest_gpudiscovery.probes.mounts import mount_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OLD = ("runners", "cuda_v11")  # directories that no release of today has
BACKEND = "libggml-cuda.so"


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return where Ollama is and what its directories hold.

    REQUEST: {"view", "env": {"PATH", "LD_LIBRARY_PATH"}, "ollama_path": str | None, "hints": [[source, path]]}. The
    working directory is this process's own.
    """
    view = open_view(request["view"])
    env = request["env"]
    with journal.step("getcwd") as step:
        try:
            cwd: str | None = os.getcwd()
        except OSError as error:
            cwd = None
            step.result = errno_name(error)
    hints = [(str(source), str(path)) for source, path in request.get("hints") or ()]
    with journal.step("find the ollama binary") as step:
        binary = find_binary(view, request.get("ollama_path"), hints, env.get("PATH", ""))
        step.result = binary.get("path")
    answer: dict[str, Any] = {
        "cwd": cwd,
        "binary": binary,
        "lib": None,
        "directories": [],
        "top": [],
        "machine": os.uname().machine,
        "tegra": text(view, "/etc/nv_tegra_release", 4096),
    }
    if binary.get("path") and not binary.get("problem"):
        journal.observe("binary", binary)
        answer |= _install(view, binary, cwd, journal)
    else:
        with journal.step("find the system's libcudart"):
            answer["system_cudart"] = layout.system_cudart(view, env)
    return answer


def _install(view: HostView, binary: dict[str, Any], cwd: str | None, journal: Journal) -> dict[str, Any]:
    with journal.step("read the version in the binary") as step:
        version = gobinary.version(view, binary["realpath"])
        step.result = version["version"]
    era = eras.era(version["version"])
    with journal.step("find lib/ollama") as step:
        lib = layout.find_lib(view, binary["realpath"], cwd, era)
        step.result = lib["path"]
    answer: dict[str, Any] = {"version": version, "lib": lib}
    path = lib["path"]
    with journal.step(f"read {path}"):
        every = names(view, path)
        answer["top"] = layout.files_of(view, path, contents=False)
        answer["top_era"] = eras.of_files(every)
        answer["server"] = _program(view, f"{path}/{eras.SERVER}")
        answer["directories"] = [
            _directory(view, name, f"{path}/{name}") for name in layout.gpu_directories(view, path)
        ]
        answer["bare"] = layout.bare_directories(view, path)
        answer["closed"] = layout.closed_directories(view, path)
        if not answer["directories"] and BACKEND in every:
            answer["directories"] = [_directory(view, "", path)]
        # What is empty holds no library that could cost time or shadow another.
        answer["old_layout"] = [name for name in OLD if names(view, f"{path}/{name}")]
        answer["elsewhere"] = layout.elsewhere(view, path)
    with journal.step("read /proc/self/mountinfo"):
        answer["mounts"] = {
            place: mount_options(view, view.realpath(place))
            for place in (binary["realpath"], path, *(item["path"] for item in answer["directories"]))
        }
    return answer


def _directory(view: HostView, name: str, path: str) -> dict[str, Any]:
    files = layout.files_of(view, path, contents=True)
    return {"name": name, "path": path, "realpath": view.realpath(path), "files": files}


def _program(view: HostView, path: str) -> dict[str, Any] | None:
    """Return {"path", "executable", "script", "elf"} of a program, None where there is none."""
    if kind(view, path) != "file":
        return None
    script = text(view, path, 2) == "#!"
    return {"path": path, "executable": view.access(path, os.X_OK), "script": script, "elf": libraries.elf(view, path)}
