"""08 runtime: each GPU directory's own libcudart against the driver: versions, count, properties in the right layout.

The stage passes when one directory that this Ollama would keep covers every GPU of the driver; what is wrong in the
others is a warning then. Without Ollama the system's libcudart is asked; a host that has none passes over the stage.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.model import Check, CheckOutcome, Outcome, StageRecord
from pytest_gpudiscovery.stages.endings import defect, in_driver, refused, signal_words
from pytest_gpudiscovery.stages.identity import integer, mapping, objects, sequence, string
from pytest_gpudiscovery.stages.nvml_gpu import as_warning
from pytest_gpudiscovery.stages.runtime_library import judge_library, views
from pytest_gpudiscovery.stages.spec import (
    Judgement,
    RunContext,
    StageInput,
    StageSpec,
    deadline_for,
    found,
    not_applicable,
)
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

LIBRARIES = ("libcudart.so.13", "libcudart.so.12")  # what the loader is asked for where there is no Ollama
HANG_OUTCOMES = {Ending.TIMED_OUT: Outcome.TIMED_OUT, Ending.UNKILLABLE: Outcome.UNKILLABLE}
NOT_FOUND = "cannot open shared object file: No such file"  # dlerror() of glibc
JETPACK_MAJOR = {"5": 11, "6": 12}  # cuda_jetpack5 is built with CUDA 11.4, cuda_jetpack6 with 12


class AnyName(frozenset[str]):
    """Every probe of this stage is one of several directories, whose names are the install's."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str)


@dataclass(frozen=True)
class Target:
    """One libcudart to ask: `name` is that of the GPU directory, or the library's path where there is no Ollama."""

    name: str
    libraries: tuple[str, ...]  # tried in turn
    path: str | None = None  # the GPU directory, for LD_LIBRARY_PATH; None: no part of an Ollama install
    major: int | None = None  # CUDA major that the directory's backend was compiled for, None: the library's own
    kept: bool = True  # whether this Ollama would keep what the directory finds
    shipped: bool = True  # False: whether there is such a library is for the loader to say


def targets(package: Mapping[str, Any], driver: Mapping[str, Any]) -> list[Target]:
    """Return what to ask, from the facts of stages 01 and 06."""
    driver_major = (integer(driver.get("driver_version_cuda")) or 0) // 1000
    directories = objects(package.get("gpu_dirs"))
    found_in = []
    for entry in directories:
        library, path = string(entry.get("cudart")), string(entry.get("path"))
        if library is None and string(entry.get("backend")) is None:
            continue  # a directory of another kind of GPU
        path = path or posixpath.dirname(library or "")
        name = string(entry.get("name")) or posixpath.basename(path)
        major = _major(name)
        # A distribution's Ollama has no libcudart of its own: its backend gets the one that the loader finds.
        by_name = LIBRARIES if major is None else (f"libcudart.so.{major}",)
        libraries = by_name if library is None else (library,)
        kept = entry.get("kept") is not False
        found_in.append(Target(name, libraries, path, major, kept, shipped=library is not None))
    if directories:
        return found_in
    paths = [path for item in objects(package.get("system_cudart")) if (path := string(item.get("path")))]
    alone = [Target(name, (name,), shipped=False) for name in dict.fromkeys(paths or LIBRARIES)]
    # They are alternatives: the newest that this driver can serve comes first, what is too new for it last.
    return sorted(alone, key=lambda target: (_soname_major(target.name) > driver_major, -_soname_major(target.name)))


def _soname_major(name: str) -> int:
    match = re.search(r"libcudart\.so\.([0-9]+)", name)
    return int(match[1]) if match else 0


def _major(name: str) -> int | None:
    if match := re.fullmatch(r"cuda_v([0-9]{2})", name):
        return int(match[1])
    if match := re.fullmatch(r"cuda_jetpack([0-9])", name):
        return JETPACK_MAJOR.get(match[1])
    return None


def plan(
    context: RunContext, prior: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Ask one library after another, each in the environment that Ollama gives its child for that directory."""
    package, driver = (mapping(prior[name].facts if name in prior else None) for name in ("package", "driver"))
    asked = targets(package, driver)
    if any(_stuck(result, asked) for result in results.values()):
        return None  # a second child may make a stuck driver worse
    for target in asked:
        if target.name in results:
            if target.path is None and _is_good(results[target.name], driver):
                return None  # the system's libraries are alternatives: one that works is enough
            continue
        env = dict(context.env)
        if target.path is not None:
            lib = string(package.get("lib_dir")) or posixpath.dirname(target.path)
            rest = env.get("LD_LIBRARY_PATH", "")
            env["LD_LIBRARY_PATH"] = ":".join(part for part in (lib, target.path, rest) if part)
        request: dict[str, Any] = {"libraries": list(target.libraries)}
        if target.major is not None:
            request["properties"] = "cudaGetDeviceProperties" + ("_v2" if target.major == 12 else "")
        deadline = deadline_for(context, SPEC.name, SPEC.deadline_s)
        return target.name, Probe("runtime", request, env, deadline, context.cwd, context.setup)
    return None


def turns(_: RunContext, prior: Mapping[str, StageRecord]) -> int:
    """Return how often the deadline may pass: for each directory, or for each library of the system's."""
    package, driver = (mapping(prior[name].facts if name in prior else None) for name in ("package", "driver"))
    return len(targets(package, driver))


def _is_good(result: ChildResult, driver: Mapping[str, Any]) -> bool:
    seen = mapping(result.answer)
    return bool(seen.get("library")) and not _failed(_judged(seen, None, driver, "host"))


def _judged(seen: Mapping[str, Any], major: int | None, driver: Mapping[str, Any], subject: str) -> list[Check]:
    devices = objects(driver.get("gpus"))
    return judge_library(seen, major, devices, integer(driver.get("driver_version_cuda")), subject)


def judge(given: StageInput) -> Judgement:
    """Judge each library, then ease what is wrong in one directory while another one covers every GPU."""
    package, driver = given.facts("package"), given.facts("driver")
    asked = targets(package, driver)
    limit = deadline_for(given.context, SPEC.name, SPEC.deadline_s)
    judged: list[tuple[Target, list[Check], Mapping[str, Any]]] = []
    for target in asked:
        result = given.results.get(target.name)
        if result is None:
            continue
        seen = given.observed(target.name)
        if not target.shipped and _is_absent(seen) and result.ending is Ending.ANSWERED:
            continue  # a backend with the runtime linked in, or no CUDA programs on this host
        subject = "host" if target.path is None else f"dir:{target.name}"
        checks = _judged(seen, target.major, driver, subject)
        checks += _ending(result, target, subject, limit)
        judged.append((target, checks, seen))
    if not judged:
        reason = _nothing(asked)
        rows = tuple(not_applicable(row, reason) for row in SPEC.rows)
        return Judgement(rows, reason, {"directories": []}, applicable=False)
    if asked[0].path is None and all(_failed(checks) for _, checks, _ in judged):
        judged = judged[:1]  # alternatives: the one that a program would take first stands for all
    good = [target.name for target, checks, _ in judged if target.kept and not _failed(checks)]
    ended = [_forced(result) for result in given.results.values() if not (good and _passed_over(result, asked))]
    forced = next((outcome for outcome in ended if outcome is not None), None)
    checks = [
        as_warning(check) if good and forced is None and target.name not in good else check
        for target, own, _ in judged
        for check in own
    ]
    if not good:
        checks += _narrowed(package)
    facts = {
        "directories": [
            {
                "name": target.name,
                "library": seen.get("library"),
                "runtime_version": seen.get("runtime_version"),
                "count": seen.get("count"),
                "covers": target.name in good,
            }
            for target, _, seen in judged
        ],
        "views": views({target.name: (seen, target.major) for target, _, seen in judged}),
    }
    if forced is None and not good and any(result.ending in CRASH_ENDINGS for result in given.results.values()):
        forced = Outcome.CRASHED  # no library is left that works, and this one took its process with it
    stuck = any(_stuck(result, asked) for result in given.results.values())
    return Judgement(tuple(checks), _summary(judged, good), facts, outcome=forced, stuck=stuck)


def _narrowed(package: Mapping[str, Any]) -> list[Check]:
    """Return why Ollama has no other directory than those that do not work: a variable, or files that are not there."""
    if bare := [str(name) for name in sequence(package.get("bare_dirs"))]:
        facts = {"names": ", ".join(bare), "path": package.get("lib_dir")}
        return [found("runtime.directory_lost", facts, expected="libggml-cuda.so", observed=bare)]
    entries = [item for item in objects(package.get("gpu_dirs")) if string(item.get("backend"))]
    left = [item for item in entries if str(item.get("skipped") or "").startswith("OLLAMA_LLM_LIBRARY=")]
    if not left or len(left) == len(entries):
        return []  # a value that fits no directory is stage 02's
    facts = {"setting": left[0]["skipped"], "names": ", ".join(str(item.get("name")) for item in left)}
    return [found("runtime.narrowed", facts, expected="not set", observed=facts["setting"])]


CRASH_ENDINGS = (Ending.SIGNALLED, Ending.EXITED, Ending.NO_ANSWER)


def _forced(result: ChildResult) -> Outcome | None:
    """The outcome that a probe's ending alone decides: a hang, or a defect of the gate itself."""
    if defect(result):
        return Outcome.PROBE_ERROR
    return HANG_OUTCOMES.get(result.ending)


def _passed_over(result: ChildResult, asked: list[Target]) -> bool:
    """Whether RESULT's child hung in a way that costs Ollama this directory and leaves it the others."""
    return result.ending in HANG_OUTCOMES and not _stuck(result, asked)


def _stuck(result: ChildResult, asked: list[Target]) -> bool:
    """Whether RESULT's child may have hung in the driver: not so in a constructor outside of it, before any call.

    Without an Ollama the libraries are alternatives, and there is nothing to gain from another one.
    """
    step = result.open_step
    if result.ending in HANG_OUTCOMES and (not asked or asked[0].path is None):
        return True
    return in_driver(result) or (result.ending in HANG_OUTCOMES and not (step and step.name.startswith("dlopen ")))


def _is_absent(seen: Mapping[str, Any]) -> bool:
    """Whether the loader found no such library at all; one that it found and refused is not absent."""
    errors = [str(text) for text in mapping(seen.get("errors")).values()]
    return not seen.get("library") and all(NOT_FOUND in text for text in errors)


def _nothing(asked: list[Target]) -> str:
    if not asked or asked[0].path is not None:
        return "no GPU directory of this Ollama has a libcudart, and the loader finds none for it"
    return f"no Ollama and no libcudart ({', '.join(LIBRARIES)}) that the loader finds: nothing here to compare"


def _failed(checks: list[Check]) -> bool:
    return any(check.outcome is CheckOutcome.FAILED for check in checks)


def _ending(result: ChildResult, target: Target, subject: str, deadline_s: float) -> list[Check]:
    if result.ending is Ending.ANSWERED or _forced(result) is Outcome.PROBE_ERROR:
        return []
    step = result.open_step.name if result.open_step else "the probe"
    facts = {
        "step": step,
        "library": target.libraries[0],
        "file": posixpath.basename(target.libraries[0]),
        "deadline_s": round(deadline_s, 3),
        "blocked_in": result.evidence.get("blocked_in", "unknown"),
        "ending": signal_words(result.signal) if result.signal else f"exit code {result.exit_code}",
    }
    if said := refused(result):
        facts |= {"error": said, "short": said.rpartition("/")[2]}
        return [found("runtime.start_refused", facts, subject=subject, observed=said)]
    cause = "runtime.hang" if result.ending in HANG_OUTCOMES else "runtime.crash"
    evidence = {"step": step, "blocked_in": facts["blocked_in"], "stderr": result.stderr[-2000:]}
    return [found(cause, facts, subject=subject, evidence=evidence)]


def _summary(judged: list[tuple[Target, list[Check], Mapping[str, Any]]], good: list[str]) -> str:
    words = []
    for target, _, seen in judged:
        version = integer(seen.get("runtime_version")) or 0
        count = integer(seen.get("count")) or 0
        state = f"{count} GPU{'s' * (count != 1)}" if target.name in good else "does not cover every GPU"
        words.append(f"{posixpath.basename(target.name)} (CUDA {version // 1000}.{version % 1000 // 10}): {state}")
    return "; ".join(words)


SPEC = StageSpec(
    number=8,
    name="runtime",
    title="each GPU directory's libcudart: version, count, properties",
    after=("driver", "package"),
    deadline_s=20.0,
    rows=("P49", "P46"),
    plan=plan,
    judge=judge,
    touches_driver=True,
    soft_after=("enumeration",),
    ollama_budget_s=30.0,
    optional=AnyName(),
    turns=turns,
)
