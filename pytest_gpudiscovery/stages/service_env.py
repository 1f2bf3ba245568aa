"""Judges the environment variables that change discovery (P13, P14, P15, P80), as far as they tell without a driver.

CUDA reads CUDA_VISIBLE_DEVICES from left to right and stops at the first entry that it does not understand or that
names no GPU: everything from there on is hidden (CUDA C++ Programming Guide, CUDA environment variables).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_gpudiscovery.model import Check, Kind
from pytest_gpudiscovery.stages.closure_kernels import JIT_OFF, jit_disabled
from pytest_gpudiscovery.stages.directories import jetpack, variable
from pytest_gpudiscovery.stages.spec import found, not_applicable, passed, unknown
from pytest_gpudiscovery.stages.visible import Visible, parse

TRACE = "2"  # OLLAMA_DEBUG: the only value that shows the child's output
# Values of NVIDIA_VISIBLE_DEVICES that inject no GPU. Not "void": the CDI mode sets it and injects by another way.
CONTAINER_NONE = ("", "none")
NO_OLLAMA = "there is no Ollama on this host"


def left(visible: Visible, uuids: Sequence[str | None], mig: bool | None) -> tuple[int | None, str]:
    """Return how many GPUs VISIBLE leaves (None: only the driver can tell) and why not more.

    UUIDS are those of the host's GPUs, None for one that does not say; [] when the GPUs are not known. MIG says
    whether the host has MIG instances, None when that is hidden.
    """
    if visible.hides_everything:
        return 0, "the variable is set and empty" if not visible.value else f"entry {visible.ended_at!r} is no GPU"
    if mig or (mig is None and any(name.startswith("mig-") for name in visible.uuids)):
        return None, "MIG instances are counted, which only the driver knows"
    if not uuids or (visible.uuids and None in uuids):
        return None, "the GPUs of this host are not known yet"
    shown = 0
    for index in visible.indices:
        if index >= len(uuids):
            return shown, f"entry {str(index)!r} is beyond the {len(uuids)} GPU(s) of this host"
        shown += 1
    for name in visible.uuids:
        if name.startswith("mig-"):
            return shown, f"entry {name!r} is a MIG instance, of which this host has none"
        if sum(str(uuid).lower().startswith(name) for uuid in uuids) != 1:
            return shown, f"entry {name!r} is the beginning of no GPU's UUID, or of several"
        shown += 1
    return shown, "every entry names a GPU"


def judge_environment(seen: Mapping[str, Any], env: Mapping[str, str], package: Mapping[str, Any]) -> list[Check]:
    """Judge P13, P14, P15 and P80 over ENV; PACKAGE holds the facts of the package stage."""
    first = [*_home(env, package), *_compiler(env)]
    return [*first, *_library(env, package), *_visible(seen, env), *_jetson(seen, env, package), *_debug(env, package)]


def _compiler(env: Mapping[str, str]) -> list[Check]:
    """Return the finding that PTX is not compiled: the driver stage's own kernel is PTX, and so are most backends."""
    if not jit_disabled(env):
        return []
    return [found("service.env.ptx_jit_disabled", {"value": env[JIT_OFF]}, expected="not set", observed=env[JIT_OFF])]


def _home(env: Mapping[str, str], package: Mapping[str, Any]) -> list[Check]:
    """Return the finding that Ollama has no home directory: server and discovery child alike panic before main."""
    if not package.get("binary") or env.get("HOME"):
        return []
    return [found("service.env.home_missing", expected="a directory", observed=env.get("HOME", "not set"))]


def _library(env: Mapping[str, str], package: Mapping[str, Any]) -> list[Check]:
    value = variable(env, "OLLAMA_LLM_LIBRARY")
    if not package.get("binary"):
        return [not_applicable("P13", NO_OLLAMA)]
    entries = package.get("gpu_dirs") or []
    names = [str(item["name"]) for item in entries]
    if not value or value in names:
        return [passed("P13", observed=value)]
    if any(item.get("kept") for item in entries):  # lib/ollama itself, or a value that only selects MLX's library
        return [passed("P13", reason="this Ollama does not filter by it here", observed=value)]
    facts = {"value": value, "names": ", ".join(names) or "none"}
    return [found("service.env.ollama_llm_library", facts, expected=names, observed=value)]


def _visible(seen: Mapping[str, Any], env: Mapping[str, str]) -> list[Check]:
    checks = []
    container = env.get("NVIDIA_VISIBLE_DEVICES")
    # Where the device nodes are there all the same, nobody waits for a container runtime to add them.
    if container is not None and container.strip().lower() in CONTAINER_NONE and not seen.get("control_node"):
        words = container or '""'
        checks.append(found("service.env.nvidia_visible_devices_none", {"value": words}, observed=container))
    visible = parse(env)
    if visible.value is None:
        return checks or [passed("P14", reason="CUDA_VISIBLE_DEVICES is not set")]
    checks += _odd(visible)
    uuids = [gpu.get("uuid") for gpu in seen["gpus"]]
    shown, reason = left(visible, uuids, seen.get("mig"))
    value = visible.value
    facts = {"value": value or '""', "reason": reason, "shown": shown, "count": len(uuids)}
    if shown is None:
        checks.append(unknown("P14", f"CUDA_VISIBLE_DEVICES={value}: {reason}", Kind.OBSERVABILITY))
    elif shown == 0:
        checks.append(found("service.env.cuda_visible_devices_hides_all", facts, expected="not set", observed=value))
    elif shown < len(uuids):
        checks.append(found("service.env.cuda_visible_devices_subset", facts, expected="not set", observed=value))
    else:
        checks.append(passed("P14", reason=reason, observed=value))
    return checks


def _odd(visible: Visible) -> list[Check]:
    """Return what is suspicious in a list that parses: an entry that comes twice, or one with blanks behind it."""
    entries = str(visible.value).split(",")
    words = [entry.strip() for entry in entries if entry.strip()]
    if len(set(words)) < len(words):
        odd = "names a GPU twice"
    elif any(entry.strip() and entry != entry.rstrip() for entry in entries):
        odd = "has blanks behind an entry"
    else:
        return []
    facts = {"value": repr(visible.value), "odd": odd}
    return [found("service.env.cuda_visible_devices_odd", facts, expected="not set", observed=visible.value)]


def _jetson(seen: Mapping[str, Any], env: Mapping[str, str], package: Mapping[str, Any]) -> list[Check]:
    value = env.get("JETSON_JETPACK")
    if not package.get("binary"):
        return [not_applicable("P15", NO_OLLAMA)]
    if not value or seen.get("tegra"):
        return [passed("P15", observed=value)]
    chosen = jetpack(env, seen.get("machine"), None)
    if not chosen:
        return [passed("P15", reason="Ollama reads it on arm64 only", observed=value)]
    names = [str(item["name"]) for item in package.get("gpu_dirs") or []]
    if package.get("era") == "C" and f"cuda_{chosen}" not in names:
        return [passed("P15", reason=f"cuda_{chosen} is not installed: 0.30.0 and later go on without", observed=value)]
    facts = {"value": value, "machine": seen.get("machine"), "directory": f"cuda_{chosen}"}
    return [found("service.env.jetson_jetpack", facts, expected="not set", observed=value)]


def _debug(env: Mapping[str, str], package: Mapping[str, Any]) -> list[Check]:
    if not package.get("binary"):
        return [not_applicable("P80", NO_OLLAMA, Kind.OBSERVABILITY)]
    value = env.get("OLLAMA_DEBUG")
    if value == TRACE:
        return [passed("P80", Kind.OBSERVABILITY, observed=value)]
    return [found("service.observe.ollama_debug", {"value": value or '""'}, expected=TRACE, observed=value)]
