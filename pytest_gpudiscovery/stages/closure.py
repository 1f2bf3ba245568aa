"""09 closure: what dlopen(libggml-cuda.so) will do in Ollama's child, and whether its kernels run; nothing is executed.

The stage passes when one directory that this Ollama would keep loads and covers every GPU; what is wrong in the
others is a warning then.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Collection, Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, CheckOutcome, Kind, Outcome, StageRecord
from pytest_gpudiscovery.stages import closure_gpu, closure_kernels, closure_library
from pytest_gpudiscovery.stages.identity import mapping, objects, string
from pytest_gpudiscovery.stages.looking import in_order, look
from pytest_gpudiscovery.stages.nvml_gpu import as_warning
from pytest_gpudiscovery.stages.runtime import AnyName
from pytest_gpudiscovery.stages.spec import (
    Judgement,
    RunContext,
    StageInput,
    StageSpec,
    deadline_for,
    found,
    not_applicable,
    unknown,
)
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

ROWS = ("P22", "P24", "P25", "P26", "P55", "P57", "P71", "P72", "P73", "P79", "P117")
HANG_OUTCOMES = {Ending.TIMED_OUT: Outcome.TIMED_OUT, Ending.UNKILLABLE: Outcome.UNKILLABLE}
# What decides a dlopen or the loading of device code; nothing else of the service's environment travels.
VARIABLES = ("HOME", "PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT", "LD_BIND_NOW", "GLIBC_TUNABLES")
PREFIXES = ("CUDA_", "GGML_", "OLLAMA_LIBRARY_PATH", "OLLAMA_LLM_LIBRARY")
NO_BACKEND = "no directory has a CUDA backend"


def directories(package: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the GPU directories of an install that have a CUDA backend."""
    found_in = objects(package.get("gpu_dirs"))
    return [item for item in found_in if all(string(item.get(key)) for key in ("name", "path", "backend"))]


def kept(entry: Mapping[str, Any]) -> bool:
    """Whether this Ollama looks into directory ENTRY at all; stage 01 has asked directories.skipped."""
    return entry.get("kept") is not False


def _environment(context: RunContext) -> dict[str, str]:
    return {name: value for name, value in context.env.items() if name in VARIABLES or name.startswith(PREFIXES)}


def _wanted(prior: Mapping[str, StageRecord], profile: Mapping[str, Any]) -> closure_gpu.Wanted:
    kernel, nvml, driver = (
        mapping(prior[name].facts if name in prior else None) for name in ("kernel", "nvml", "driver")
    )
    return closure_gpu.wanted(kernel, nvml, driver, profile)


def plan(
    context: RunContext, prior: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Look at one directory after another, each with a deadline of its own: one may lie on a dead file server."""
    package = mapping(prior["package"].facts if "package" in prior else None)
    asked = directories(package)
    binary, wanted = string(package.get("binary")), _wanted(prior, context.profile)
    if binary is None:
        return None
    for entry in asked:
        name = str(entry["name"])
        if name in results:
            continue
        request = {
            "ask": "directory",
            "lib_dir": string(package.get("lib_dir")) or posixpath.dirname(str(entry["path"])),
            "path": entry["path"],
            "backend": entry["backend"],
            "binary": binary,
            "env": _environment(context),
            "cwd": context.cwd,
            "root": context.view.get("path") if context.view.get("kind") == "root" else None,
            "ccs": wanted.ccs,
            "driver_cuda": wanted.driver_cuda,
            "driver": wanted.driver,
        }
        return name, look(context, "closure", request, deadline_for(context, SPEC.name, SPEC.deadline_s))
    return None


def turns(_: RunContext, prior: Mapping[str, StageRecord]) -> int:
    """Return how many directories are looked at, one after the other."""
    return len(directories(mapping(prior["package"].facts if "package" in prior else None)))


def judge(given: StageInput) -> Judgement:
    """Judge each directory, then ease what is wrong in one while another one loads and covers every GPU."""
    package = given.facts("package")
    asked = directories(package)
    if string(package.get("binary")) is None or not asked:
        reason = "no Ollama was found" if string(package.get("binary")) is None else NO_BACKEND
        rows = tuple(not_applicable(row, f"{reason}: there is no libggml-cuda.so to look at") for row in ROWS)
        return Judgement(rows, reason, {"closures": [], "fatbins": []}, applicable=False)
    wanted, env = _wanted(given.prior, given.context.profile), _environment(given.context)
    limit = deadline_for(given.context, SPEC.name, SPEC.deadline_s)
    judged: dict[str, list[Check]] = {}
    for entry in asked:
        name = str(entry["name"])
        result = given.results.get(name)
        judged[name] = _directory(entry, result, given.observed(name), package, wanted, env, limit)
    answered = {name for name, result in given.results.items() if result.ending is Ending.ANSWERED}
    good = [
        str(entry["name"])
        for entry in asked
        if entry["name"] in answered and kept(entry) and not bad(judged[str(entry["name"])])
    ]
    skipped = [entry for entry in asked if not kept(entry)]
    checks = ease(judged, good, {str(entry["name"]) for entry in skipped})
    if len(skipped) == len(asked):
        checks.append(_none_kept(skipped))
    forced = next((outcome for result in given.results.values() if (outcome := _forced(result, bool(good)))), None)
    return Judgement(
        in_order(checks), _summary(given, asked, good, wanted), _facts(given, asked, wanted), outcome=forced
    )


def _directory(
    entry: Mapping[str, Any],
    result: ChildResult | None,
    seen: Mapping[str, Any],
    package: Mapping[str, Any],
    wanted: closure_gpu.Wanted,
    env: Mapping[str, str],
    deadline_s: float,
) -> list[Check]:
    subject = closure_library.Subject(
        name=str(entry["name"]),
        path=str(entry["path"]),
        lib=string(package.get("lib_dir")) or posixpath.dirname(str(entry["path"])),
        shipped=tuple(str(name) for name in seen.get("shipped") or ()) if isinstance(seen.get("shipped"), list) else (),
    )
    if result is None or result.ending is not Ending.ANSWERED:
        return [*_hang(result, subject, deadline_s), *_unanswered(subject)]
    child = mapping(mapping(seen.get("models")).get("child"))
    checks = closure_library.judge_load(seen, subject)
    checks += closure_kernels.judge_kernels(seen, wanted, env, subject.text)
    outcome = string(child.get("outcome"))
    return [*checks, closure_kernels.backend_path(seen, str(entry["backend"]), outcome, subject.text)]


def _hang(result: ChildResult | None, subject: closure_library.Subject, deadline_s: float) -> list[Check]:
    if result is None or result.ending not in HANG_OUTCOMES:
        return []
    step = result.open_step.name if result.open_step else "the probe"
    facts = {
        "step": step,
        "path": subject.path,
        "deadline_s": round(deadline_s, 3),
        "blocked_in": result.evidence.get("blocked_in", "unknown"),
    }
    evidence = {"step": step, "blocked_in": facts["blocked_in"]}
    return [found("closure.read_hang", facts, subject=subject.text, evidence=evidence)]


def _unanswered(subject: closure_library.Subject) -> list[Check]:
    return [unknown(row, "the look at this directory gave no answer", subject=subject.text) for row in ROWS]


def bad(checks: list[Check]) -> bool:
    """Whether CHECKS do not prove the directory: a failure, or no answer on a row that can block."""
    bad = (CheckOutcome.FAILED, CheckOutcome.UNKNOWN)
    return any(check.outcome in bad and check.kind is Kind.BLOCKING for check in checks)


def eased(check: Check) -> Check:
    """What is wrong, or not known, in one directory does not stop an Ollama that has another one."""
    if check.outcome is CheckOutcome.UNKNOWN:
        return dataclasses.replace(check, kind=Kind.RISK)
    return as_warning(check)


def ease(judged: Mapping[str, list[Check]], good: Collection[str], skipped: Collection[str]) -> list[Check]:
    """Return all checks of JUDGED directories; what Ollama SKIPS, or does not need beside a GOOD one, blocks not."""
    return [
        eased(check) if name in skipped or (good and name not in good) else check
        for name, own in judged.items()
        for check in own
    ]


def _none_kept(skipped: list[Mapping[str, Any]]) -> Check:
    """Return the check that fails where this Ollama looks into no directory with a CUDA backend."""
    names = ", ".join(str(entry["name"]) for entry in skipped)
    why = next((str(entry["skipped"]) for entry in skipped if string(entry.get("skipped"))), "its name")
    return found(
        "closure.directory.none_kept", {"names": names, "why": why}, expected="one that is kept", observed=names
    )


def _forced(result: ChildResult, good: bool) -> Outcome | None:
    """The outcome that a probe's ending alone decides: a hang with nothing else, or a defect of the gate itself."""
    if result.ending in HANG_OUTCOMES:
        return None if good else HANG_OUTCOMES[result.ending]
    return None if result.ending is Ending.ANSWERED else Outcome.PROBE_ERROR


def _facts(given: StageInput, asked: list[Mapping[str, Any]], wanted: closure_gpu.Wanted) -> dict[str, Any]:
    closures, fatbins = [], []
    for entry in asked:
        name = str(entry["name"])
        seen = given.observed(name)
        for model, closure in mapping(seen.get("models")).items():
            closures.append({"directory": name, "model": model, **mapping(closure)})
        for fatbin in objects(seen.get("fatbins")):
            fatbins.append({"directory": name, **fatbin})
    return {"closures": closures, "fatbins": fatbins, "wanted": closure_gpu.facts(wanted)}


def _summary(given: StageInput, asked: list[Mapping[str, Any]], good: list[str], wanted: closure_gpu.Wanted) -> str:
    parts = []
    for entry in asked:
        name = str(entry["name"])
        seen = given.observed(name)
        child = mapping(mapping(seen.get("models")).get("child"))
        fatbins = objects(seen.get("fatbins"))
        verdicts = objects(fatbins[0].get("verdicts")) if fatbins else []
        hows = dict.fromkeys(str(mapping(entry.get("verdict")).get("how")) for entry in verdicts)
        code = f", {'/'.join(hows)}" if hows else ""
        parts.append(f"{name}: {child.get('outcome') or 'no answer'}{code}{'' if name in good else ' (not proven)'}")
    ccs = ", ".join(closure_gpu.words(cc) for cc in wanted.ccs) or "unknown"
    return f"{'; '.join(parts)}; compute capability {ccs}"


SPEC = StageSpec(
    number=9,
    name="closure",
    title="what dlopen(libggml-cuda.so) will do, and whether kernels run",
    after=("package", "service"),
    soft_after=("kernel", "nvml", "driver"),  # which GPUs, which driver; the PCI id and the module's version are enough
    deadline_s=5.0,
    rows=ROWS,
    plan=plan,
    judge=judge,
    hang_causes={"": "closure.read_hang"},
    optional=AnyName(),
    turns=turns,
)
