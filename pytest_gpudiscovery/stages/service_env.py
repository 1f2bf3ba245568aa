"""Judges the environment variables that change discovery (P13, P14, P15, P80), as far as they tell without a driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_gpudiscovery.model import Check, Kind
from pytest_gpudiscovery.stages import visible
from pytest_gpudiscovery.stages.closure_kernels import JIT_OFF, jit_disabled
from pytest_gpudiscovery.stages.directories import jetpack, variable
from pytest_gpudiscovery.stages.spec import found, not_applicable, passed, unknown

TRACE = "2"  # OLLAMA_DEBUG: the only value that shows the child's output
# Values of NVIDIA_VISIBLE_DEVICES that inject no GPU. Not "void": the CDI mode sets it and injects by another way.
CONTAINER_NONE = ("", "none")
NO_OLLAMA = "there is no Ollama on this host"


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
    if visible.order_is_bad(env):
        facts = {"value": visible.clip(env[visible.ORDER]) or '""'}
        expected = ("not set", *visible.ORDERS)
        checks.append(found("service.env.cuda_device_order", facts, expected=expected, observed=env[visible.ORDER]))
    said = visible.parse(env)
    if said.value is None:
        return checks or [passed("P14", reason="CUDA_VISIBLE_DEVICES is not set")]
    uuids = [gpu.get("uuid") for gpu in seen["gpus"]]
    return [*checks, *_list(said, uuids, seen.get("mig"))]


def _list(said: visible.Visible, uuids: Sequence[str | None], mig: bool | None) -> list[Check]:
    """Judge CUDA_VISIBLE_DEVICES as SAID on a host whose GPUs have UUIDS."""
    left = visible.left(said, [[uuid] for uuid in uuids], mig)
    value = str(said.value)
    shown = None if left.gpus is None else len(left.gpus)
    facts = {"value": visible.clip(value) or '""', "reason": left.reason, "shown": shown, "count": len(uuids)}
    if shown is None:
        reason = f"CUDA_VISIBLE_DEVICES={facts['value']}: {left.reason}"
        return [*_odd(said, left), unknown("P14", reason, Kind.OBSERVABILITY)]
    if left.twice is not None:
        return [found("service.env.cuda_visible_devices_twice", facts, expected="each GPU once", observed=value)]
    if shown == 0 and not said.hides_nothing:
        return [found("service.env.cuda_visible_devices_hides_all", facts, expected="not set", observed=value)]
    if shown < len(uuids):
        subset = found("service.env.cuda_visible_devices_subset", facts, expected="not set", observed=value)
        return [*_odd(said, left), subset]
    return [*_odd(said, left), passed("P14", reason=left.reason, observed=value)]


def _odd(said: visible.Visible, left: visible.Left) -> list[Check]:
    """Return the finding that CUDA reads the list otherwise than it looks; white space behind an entry is harmless."""
    odd = next((entry.odd for entry in left.read if entry.odd), "")
    if said.too_long:
        odd = f"too long, {len(str(said.value))} characters: ignored"
    if not odd:
        return []
    facts = {"value": visible.clip(str(said.value), 16), "odd": odd}
    return [found("service.env.cuda_visible_devices_odd", facts, expected="numbers or UUIDs", observed=said.value)]


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
