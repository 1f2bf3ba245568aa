"""11 backend: ggml_backend_init and every device's memory on the library that stage 10 loaded, then the second pass.

The first pass is what Ollama's discovery child does in each GPU directory; the second one starts a child for each
device, with CUDA_VISIBLE_DEVICES and GGML_CUDA_INIT=1, and drops what does not answer. One directory that covers every
GPU is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, Outcome, StageRecord
from pytest_gpudiscovery.probes.childenv import gpu_directory_environment
from pytest_gpudiscovery.stages import backend_pass, closure, second_pass
from pytest_gpudiscovery.stages.closure import directories, kept
from pytest_gpudiscovery.stages.endings import HANG_OUTCOMES, defect, in_driver
from pytest_gpudiscovery.stages.identity import integer, mapping, objects, string
from pytest_gpudiscovery.stages.looking import in_order
from pytest_gpudiscovery.stages.runtime import AnyName
from pytest_gpudiscovery.stages.spec import (
    Judgement,
    RunContext,
    StageInput,
    StageSpec,
    deadline_for,
    not_applicable,
)
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

ROWS = ("P27", "P30", "P56", "P58", "P60", "P89")
DISCOVERY_BUDGET_S = 30.0
SECOND = "second pass of "


def asked_for(prior: Mapping[str, StageRecord]) -> list[Mapping[str, Any]]:
    """Return the GPU directories whose backend stage 10 could load."""
    package, load = (mapping(prior[name].facts if name in prior else None) for name in ("package", "load"))
    loaded = {item.get("directory") for item in objects(load.get("loads")) if _loaded(item)}
    return [entry for entry in directories(package) if str(entry["name"]) in loaded]


def _loaded(item: Mapping[str, Any]) -> bool:
    return item.get("error") is None and isinstance(item.get("seconds"), (int, float))


def plan(
    context: RunContext, prior: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Ask one directory after another, the second pass right behind the first."""
    if any(in_driver(result) for result in results.values()):
        return None  # a second child may make a stuck driver worse
    package, driver = (mapping(prior[name].facts if name in prior else None) for name in ("package", "driver"))
    lib = string(package.get("lib_dir"))
    busy = in_use(context, prior)
    for entry in asked_for(prior):
        name, backend = str(entry["name"]), entry["backend"]
        env = gpu_directory_environment(context.env, lib or str(entry["path"]), str(entry["path"]))
        if name not in results:
            request = {"ask": "first", "backend": backend, "leave_alone": sorted(busy)}
            return name, _probe(context, request, env)
        if SECOND + name in results:
            continue
        result = results[name]
        seen = {**result.observed, **mapping(result.answer)}
        devices = second_pass.devices(seen, driver, string(package.get("version")), set(busy))
        if result.ending is Ending.ANSWERED and devices:
            return SECOND + name, _probe(context, {"ask": "second", "backend": backend, "devices": devices}, env)
    return None


def _probe(context: RunContext, request: Mapping[str, Any], env: Mapping[str, str]) -> Probe:
    # The gate must neither warm the service's JIT cache nor use it unnoticed; nothing here launches a kernel.
    deadline = deadline_for(context, SPEC.name, SPEC.deadline_s)
    return Probe("backend", request, {**env, "CUDA_CACHE_DISABLE": "1"}, deadline, context.cwd, context.setup)


def in_use(context: RunContext, prior: Mapping[str, StageRecord]) -> dict[int, list[int]]:
    """Return CUDA ordinal -> PIDs of the GPUs that another process uses: on those no context may be made."""
    nvml, driver = (mapping(prior[name].facts if name in prior else None) for name in ("nvml", "driver"))
    used = {str(pci).lower(): list(pids) for pci, pids in mapping(nvml.get("in_use")).items()}
    if context.allow_busy:
        return {}
    found_in = {}
    for gpu in objects(driver.get("gpus")):
        ordinal, pids = integer(gpu.get("ordinal")), used.get(str(gpu.get("pci")).lower())
        if ordinal is not None and pids:
            found_in[ordinal] = pids
    return found_in


def turns(_: RunContext, prior: Mapping[str, StageRecord]) -> int:
    """Return how often the deadline may pass: for both passes of each directory."""
    return 2 * len(asked_for(prior))


def judge(given: StageInput) -> Judgement:
    """Judge each directory, then ease what is wrong in one while another one covers every GPU."""
    asked, package, driver = asked_for(given.prior), given.facts("package"), given.facts("driver")
    if not asked:
        reason = "no backend was loaded" if directories(package) else closure.NO_BACKEND
        if string(package.get("binary")) is None:
            reason = "no Ollama was found"
        return Judgement(
            tuple(not_applicable(row, f"{reason}: nothing to initialise") for row in ROWS),
            reason,
            {"backends": [], "views": {}},
            applicable=False,
        )
    limit = deadline_for(given.context, SPEC.name, SPEC.deadline_s)
    busy, era = in_use(given.context, given.prior), _era(given)
    judged: dict[str, list[Check]] = {}
    for entry in asked:
        name = str(entry["name"])
        first = backend_pass.judge(name, given.results.get(name), given.observed(name), driver, era, busy, limit)
        again = SECOND + name
        later = second_pass.judge(
            name, given.results.get(again), given.observed(again), given.observed(name), package, busy, limit
        )
        judged[name] = [*first, *later]
    good = [str(entry["name"]) for entry in asked if kept(entry) and not closure.bad(judged[str(entry["name"])])]
    checks = closure.ease(judged, good, {str(e["name"]) for e in asked if not kept(e)})
    facts = {
        "backends": [{"directory": name, **backend_pass.facts(given.observed(name))} for name in judged],
        "views": backend_pass.views({name: given.observed(name) for name in judged}, driver),
    }
    stuck = any(in_driver(result) for result in given.results.values())
    return Judgement(
        in_order(checks), _summary(given, list(judged), good), facts, outcome=_forced(given, asked, good), stuck=stuck
    )


def _era(given: StageInput) -> str:
    """Return the era of this Ollama: as stage 01 says, else C where a llama-server would open the backend."""
    known = string(given.facts("package").get("era"))
    closures = objects(given.facts("closure").get("closures"))
    return known or ("C" if any(item.get("model") == "native" for item in closures) else "B")


def _forced(given: StageInput, asked: list[Mapping[str, Any]], good: list[str]) -> Outcome | None:
    if any(defect(result) for result in given.results.values()):
        return Outcome.PROBE_ERROR
    if good:
        return None
    own = {str(entry["name"]) for entry in asked if kept(entry)}
    results = [result for name, result in given.results.items() if name.removeprefix(SECOND) in own]
    ended = [result.ending for result in results if result.ending is not Ending.ANSWERED]
    return HANG_OUTCOMES.get(ended[0], Outcome.CRASHED) if ended else None


def _summary(given: StageInput, names: list[str], good: list[str]) -> str:
    words = []
    for name in names:
        seen = given.observed(name)
        count = integer(seen.get("count"))
        result = given.results.get(name)
        step = next((s for s in result.steps if s.name == "ggml_backend_init"), None) if result else None
        took = f" in {step.duration_s * 1000:.0f} ms" if step and step.duration_s is not None else ""
        what = "no answer" if count is None else f"{count} device{'s' * (count != 1)}{took}"
        words.append(f"{name}: {what}{'' if name in good else ' (not proven)'}")
    return "; ".join(words)


SPEC = StageSpec(
    number=11,
    name="backend",
    title="ggml_backend_init, devices, memory, and the second pass",
    after=("load", "driver"),
    deadline_s=30.0,
    rows=ROWS,
    plan=plan,
    judge=judge,
    touches_driver=True,
    soft_after=("nvml", "enumeration"),
    ollama_budget_s=DISCOVERY_BUDGET_S,
    optional=AnyName(),
    turns=turns,
)
