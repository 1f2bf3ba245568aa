"""How an Ollama of a given version discovers: its era, the environment of its children, its second pass, its budgets.

Read in github.com/ollama/ollama at v0.12.4, v0.12.6, v0.12.7, v0.12.9, v0.12.10, v0.13.0, v0.13.1, v0.13.2, v0.16.3,
v0.20.0, v0.24.0, v0.30.0 and v0.32.15.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.probes import eras
from pytest_gpudiscovery.stages import second_pass
from pytest_gpudiscovery.stages.closure import kept
from pytest_gpudiscovery.stages.identity import objects, string

SERVER_ITSELF, RUNNER, LLAMA_SERVER = "A", "B", "C"
FIRST_PASS_S = 30.0  # for each directory: v0.16.3:discover/runner.go:85-114, v0.32.15:89-116
SECOND_PASS_S = 30.0  # for all devices of all directories: v0.16.3:discover/runner.go:125
NATIVE_S = 15.0  # v0.32.15:discover/native_probe.go:23
SHARED_START = (0, 12, 7)  # from then on llm.StartRunner composes the path: v0.12.7:llm/server.go:332


@dataclass(frozen=True)
class Protocol:
    """What decides how a version is imitated. `known` is False where only the layout of the install told the era."""

    era: str
    number: tuple[int, int, int] | None
    second: str  # one of second_pass.UUID, INDEX, ALL, NONE

    @property
    def known(self) -> bool:
        """Whether the version is known."""
        return self.number is not None

    def at_least(self, number: tuple[int, int, int]) -> bool:
        """Whether the version is NUMBER or later; an unknown one counts as the latest of its era."""
        return self.number is None or self.number >= number


def numbers(version: str | None) -> tuple[int, int, int] | None:
    """Return (0, 16, 3) of "0.16.3" or "v0.16.3-rc1"; None for anything else, and for 0.0.0 of a private build."""
    match = re.match(r"v?(\d{1,5})\.(\d{1,5})\.(\d{1,5})(?![\d.])", version or "")
    found = (int(match[1]), int(match[2]), int(match[3])) if match else None
    return found if found != (0, 0, 0) else None


def of(package: Mapping[str, Any], *, newer: bool) -> Protocol:
    """Return the protocol of the install that stage 01 found; NEWER: files that only 0.30 and later have lie there."""
    version = string(package.get("version"))
    number = numbers(version)
    era = string(package.get("era"))
    if era is None and number is not None:
        era = eras.era(".".join(map(str, number)))
    if era is None:
        era = LLAMA_SERVER if newer else RUNNER
    if number is None:
        return Protocol(era, None, second_pass.INDEX if era == LLAMA_SERVER else second_pass.UUID)
    return Protocol(era, number, second_pass.filter_of(version))


@dataclass(frozen=True)
class Directory:
    """One directory that Ollama starts a child for; `path` is None for the pass without any (nothing was globbed)."""

    name: str
    path: str | None
    backend: str | None  # its libggml-cuda.so

    @property
    def is_cuda(self) -> bool:
        """Whether the child can be expected to show NVIDIA GPUs."""
        return self.backend is not None


def directories(package: Mapping[str, Any]) -> list[Directory]:
    """Return the directories that this Ollama does not skip; one without a path when its glob matched nothing."""
    lib = string(package.get("lib_dir"))
    entries = [entry for entry in objects(package.get("gpu_dirs")) if string(entry.get("path"))]
    below = [entry for entry in entries if entry.get("path") != lib]
    if not below:
        # The glob matched nothing: one pass over lib/ollama alone, where a distribution's libggml-cuda.so may lie.
        backend = next((string(entry.get("backend")) for entry in entries), None)
        return [Directory("lib", None, backend)]
    return [
        Directory(str(entry.get("name")), str(entry["path"]), string(entry.get("backend")))
        for entry in below
        if kept(entry)
    ]


def environment(
    protocol: Protocol,
    env: Mapping[str, str],
    package: Mapping[str, Any],
    directory: Directory,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the environment of the child for DIRECTORY; EXTRA is what the second pass adds.

    Era B sets OLLAMA_LIBRARY_PATH; 0.12.4 to 0.12.6 add lib/ollama/rocm to LD_LIBRARY_PATH where there is one. Era C
    leaves out what stands twice in LD_LIBRARY_PATH; it also names a backend in GGML_BACKEND_PATH, which the probe looks
    for in the directory itself.
    """
    lib = string(package.get("lib_dir")) or posixpath.dirname(directory.path or "")
    own = [lib] if directory.path is None else [lib, directory.path]
    rest = env.get("LD_LIBRARY_PATH", "").split(":") if env.get("LD_LIBRARY_PATH") else []
    found = {**env, **(extra or {})}
    if protocol.era == LLAMA_SERVER:
        # v0.32.15:llm/llama_server.go:445-522
        found["LD_LIBRARY_PATH"] = ":".join(dict.fromkeys(entry for entry in (*own, *rest) if entry))
        return found
    if protocol.number is not None and protocol.number < SHARED_START:
        # v0.12.4:discover/runner.go:438-446
        rocm = [str(entry["path"]) for entry in objects(package.get("gpu_dirs")) if entry.get("name") == "rocm"]
        found["LD_LIBRARY_PATH"] = ":".join([lib, *own, *rocm, *rest])
    else:
        found["LD_LIBRARY_PATH"] = ":".join([*own, *rest])  # v0.16.3:llm/server.go:364-368
    found["OLLAMA_LIBRARY_PATH"] = ":".join(own)
    return found
