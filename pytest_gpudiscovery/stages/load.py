"""10 load: the real dlopen of each GPU directory's backend and of each CPU variant, each in a throw-away child.

The environment is the one that Ollama gives its child, ld.so's own account (LD_DEBUG) goes to the child's stderr, and
the result is compared with what stage 09 said without executing anything. One directory that loads is enough; a CPU
variant that hangs or crashes takes every directory with it, because Ollama opens them first.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.loader.lddebug import ASKED
from pytest_gpudiscovery.model import Check, Outcome, StageRecord
from pytest_gpudiscovery.probes.childenv import gpu_directory_environment
from pytest_gpudiscovery.stages import closure, load_directory, load_small
from pytest_gpudiscovery.stages.closure import directories, kept
from pytest_gpudiscovery.stages.endings import HANG_OUTCOMES, defect, unsafe
from pytest_gpudiscovery.stages.identity import mapping, objects, string
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

ROWS = ("P23", "P28", "P29", "P88")
DISCOVERY_BUDGET_S = 30.0
MOST_RESTARTS = 4  # children for small libraries: behind one that ends or hangs another child goes on
MOST_HANGS = 2  # of them: each takes a whole deadline, and the directories want theirs


def plan(
    context: RunContext, prior: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Ask for the CPU variants, as Ollama's child opens them first, then for each directory, then for MLX."""
    package = mapping(prior["package"].facts if "package" in prior else None)
    lib = string(package.get("lib_dir"))
    if lib is None or any(unsafe(result) for result in results.values()):
        return None
    for group in load_small.GROUPS:
        if group.after_directories:
            continue
        if (asked := _small(context, group, lib, results)) is not None:
            return asked
    for entry in directories(package):
        if str(entry["name"]) in results:
            continue
        env = gpu_directory_environment(context.env, lib, str(entry["path"]))
        child = _child(prior, str(entry["name"]))
        request = {
            "ask": "backend",
            "backend": entry["backend"],
            "program": child.get("exe") or package.get("binary"),
            "loader": mapping(child.get("loader")).get("path"),
        }
        return str(entry["name"]), _probe(context, request, env)
    for group in load_small.GROUPS:
        if group.after_directories and (asked := _small(context, group, lib, results)) is not None:
            return asked
    return None


def _small(
    context: RunContext, group: load_small.Group, lib: str, results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Return the next child for the libraries of GROUP, None when all were asked (or too many of them hang)."""
    mine = {name: result for name, result in results.items() if name.startswith(group.prefix)}
    done = load_small.asked(mine.values())
    hung = sum(result.ending in HANG_OUTCOMES for result in mine.values())
    if hung >= MOST_HANGS or len(mine) >= MOST_RESTARTS or (mine and list(mine.values())[-1].ending is Ending.ANSWERED):
        return None
    patterns = [[lib, *pattern] for pattern in group.patterns]
    request = {"ask": "each", "patterns": patterns, "skip": sorted(done), "lazy": group.lazy}
    env = gpu_directory_environment(context.env, lib, lib)
    return f"{group.prefix}{len(mine) + 1}", _probe(context, request, env)


def _probe(context: RunContext, request: Mapping[str, Any], env: Mapping[str, str]) -> Probe:
    # The account of ld.so has no say in what it does; what a service has set for itself there is not taken over.
    asked = {**env, "LD_DEBUG": ASKED}
    asked.pop("LD_DEBUG_OUTPUT", None)
    deadline = deadline_for(context, SPEC.name, SPEC.deadline_s)
    return Probe("load", request, asked, deadline, context.cwd, context.setup)


def _child(prior: Mapping[str, StageRecord], name: str) -> Mapping[str, Any]:
    """Return what stage 09 predicted for Ollama's own child and directory NAME."""
    facts = mapping(prior["closure"].facts if "closure" in prior else None)
    closures = (item for item in objects(facts.get("closures")) if item.get("model") == "child")
    return next((item for item in closures if item.get("directory") == name), {})


def turns(_: RunContext, prior: Mapping[str, StageRecord]) -> int:
    """Return how often the deadline may pass: for each directory, and once for the small libraries."""
    package = mapping(prior["package"].facts if "package" in prior else None)
    return len(directories(package)) + 1


def judge(given: StageInput) -> Judgement:
    """Judge each child; what is wrong in one directory is a warning while another one loads."""
    package = given.facts("package")
    asked = directories(package)
    if not asked:
        reason = "no Ollama was found" if string(package.get("binary")) is None else closure.NO_BACKEND
        rows = tuple(not_applicable(row, f"{reason}: there is nothing to load") for row in ROWS)
        return Judgement(rows, reason, {"loads": []}, applicable=False)
    limit = deadline_for(given.context, SPEC.name, SPEC.deadline_s)
    own = {
        str(entry["name"]): load_directory.judge(
            str(entry["name"]),
            given.results.get(str(entry["name"])),
            given.observed(str(entry["name"])),
            _child(given.prior, str(entry["name"])),
            limit,
        )
        for entry in asked
    }
    good = [str(entry["name"]) for entry in asked if kept(entry) and not closure.bad(own[str(entry["name"])])]
    checks = closure.ease(own, good, {str(e["name"]) for e in asked if not kept(e)})
    small = [check for group in load_small.GROUPS for check in load_small.judge(group, given, limit)]
    facts = {"loads": [{"directory": str(entry["name"]), **_kept(given, str(entry["name"]))} for entry in asked]}
    forced = _forced(given, asked, good, small)
    # A constructor that hung and was killed says nothing against asking the driver, unless it was caught inside it.
    stuck = any(unsafe(result) for result in given.results.values())
    return Judgement(in_order([*small, *checks]), _summary(given, asked), facts, outcome=forced, stuck=stuck)


def _forced(given: StageInput, asked: list[Mapping[str, Any]], good: list[str], small: list[Check]) -> Outcome | None:
    """The outcome that endings decide: a defect of the gate, or a hang or crash where nothing else is left."""
    if any(defect(result) for result in given.results.values()):
        return Outcome.PROBE_ERROR
    names = {str(entry["name"]): kept(entry) for entry in asked}
    stuck = closure.bad(small)
    for name, result in given.results.items():
        mine = names.get(name, False) and not good
        if (mine or (stuck and name not in names)) and result.ending is not Ending.ANSWERED:
            return HANG_OUTCOMES.get(result.ending, Outcome.CRASHED)
    return None


def _kept(given: StageInput, name: str) -> dict[str, Any]:
    seen = given.observed(name)
    load = mapping(seen.get("load"))
    return {
        "seconds": load.get("seconds"),
        "error": load.get("error"),
        "files": load.get("files"),
        "agrees": load.get("agrees"),
        "differences": load.get("differences"),
        "storage": seen.get("storage"),
        "trace": mapping(seen.get("trace")).get("files"),
    }


def _summary(given: StageInput, asked: list[Mapping[str, Any]]) -> str:
    words = []
    for entry in asked:
        load = mapping(given.observed(str(entry["name"])).get("load"))
        seconds = load.get("seconds")
        if load and load.get("error") is None and isinstance(seconds, (int, float)):
            words.append(f"{entry['name']}: {posixpath.basename(str(entry['backend']))} in {seconds * 1000:.0f} ms")
        else:
            words.append(f"{entry['name']}: does not load")
    variants = load_small.scores(given)
    if variants:
        words.append(f"{len(variants)} CPU variant{'s' * (len(variants) != 1)}")
    return "; ".join(words)


SPEC = StageSpec(
    number=10,
    name="load",
    title="the real dlopen in a throw-away child",
    after=("closure",),
    deadline_s=30.0,
    rows=ROWS,
    plan=plan,
    judge=judge,
    touches_driver=True,  # constructors of libcuda and of whatever stands before it run here
    ollama_budget_s=DISCOVERY_BUDGET_S,
    optional=AnyName(),
    turns=turns,
)
