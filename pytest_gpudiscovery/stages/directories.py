"""Which GPU directories an Ollama looks into at all: its own filters by name (discover/runner.go), per era. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from pytest_gpudiscovery.probes.eras import numbers

L4T = re.compile(r" R(\d+) ")
JETPACKS = {"35": "jetpack5", "36": "jetpack6"}  # L4T release -> name (v0.32.15:discover/gpu.go:57)
MLX_IGNORED = (0, 18, 0)  # from about here on an mlx_* value of OLLAMA_LLM_LIBRARY selects MLX's library only
FALSE = ("0", "f", "F", "FALSE", "false", "False")  # Go, strconv.ParseBool; anything that is no boolean counts as true


def variable(env: Mapping[str, str], name: str) -> str:
    """Return variable NAME as Ollama reads it (envconfig.Var): without blanks and quotes around it."""
    return env.get(name, "").strip().strip("\"'")


def jetpack(env: Mapping[str, str], machine: str | None, tegra: str | None) -> str:
    """Return "jetpack6" or "": the Jetson release that decides, from JETSON_JETPACK or the text of nv_tegra_release.

    Read on arm64 only (v0.16.3:discover/gpu.go:52): on any other machine JETSON_JETPACK has no effect.
    """
    if machine != "aarch64":
        return ""
    asked = env.get("JETSON_JETPACK", "")
    if asked:
        return f"jetpack{asked.partition('.')[0]}"
    release = L4T.search(tegra or "")
    return JETPACKS.get(release[1], "") if release else ""


def skipped(
    name: str,
    env: Mapping[str, str],
    *,
    era: str | None,
    version: str | None,
    jetpack: str,
    names: Collection[str],
) -> str:
    """Return why this Ollama does not look into directory NAME of lib/ollama, "" when it does.

    NAMES are all its GPU directories; "" as NAME is lib/ollama itself, which no filter applies to.
    """
    if name == "":
        return ""
    requested = variable(env, "OLLAMA_LLM_LIBRARY")
    if requested.startswith("mlx_") and (numbers(version) or MLX_IGNORED) >= MLX_IGNORED:
        requested = ""
    if era == "C" and f"cuda_{jetpack}" not in names:
        jetpack = ""  # v0.32.15:discover/runner.go:73: a JetPack that is not installed does not count
    if requested not in ("", name):
        return f"OLLAMA_LLM_LIBRARY={requested}"
    if jetpack and name != f"cuda_{jetpack}":
        return f"this is {jetpack}"
    if not jetpack and "cuda_jetpack" in name:
        return "this is no Jetson"
    if "vulkan" in name and not _vulkan(env, era):
        return "OLLAMA_VULKAN is off"
    return ""


def _vulkan(env: Mapping[str, str], era: str | None) -> bool:
    said = variable(env, "OLLAMA_VULKAN")
    return said not in FALSE if said else era == "C"
