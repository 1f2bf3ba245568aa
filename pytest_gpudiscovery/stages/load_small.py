"""The part of stage 10 that judges the small libraries: ggml's CPU variants, and MLX where an install has it.

Ollama's child opens every CPU variant and asks it for its score before it looks at a GPU (ggml_backend_load_best), so
one whose constructor hangs takes all directories with it. A variant that cannot be loaded is passed over.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.model import Check, Kind
from pytest_gpudiscovery.stages import load_directory
from pytest_gpudiscovery.stages.endings import HANG_OUTCOMES, defect, words
from pytest_gpudiscovery.stages.identity import integer, mapping, sequence, string
from pytest_gpudiscovery.stages.spec import StageInput, found, not_applicable, passed, unknown
from pytest_gpudiscovery.supervise.types import ChildResult, Ending

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Libraries that are asked in one child: `patterns` are (folder's beginning, file's beginning) below lib/ollama."""

    prefix: str  # of the names of its children; "#" is in no directory's name that Ollama knows
    row: str
    kind: Kind
    patterns: tuple[tuple[str, str], ...]
    ended: str  # cause for one that hangs or ends the child
    refused: str  # cause for one that the loader refuses
    none: str  # why there may be none
    after_directories: bool
    lazy: bool = False  # opened with RTLD_LAZY | RTLD_GLOBAL, as Ollama opens MLX (x/imagegen/mlx/mlx_dynamic.c)


CPU = Group(
    "#cpu", "P23", Kind.BLOCKING, (("", "libggml-cpu"),), "load.cpu.ends", "load.cpu.refused",
    "this Ollama has its CPU code linked in", after_directories=False,
)  # fmt: skip
MLX = Group(
    "#mlx", "P29", Kind.RISK, (("mlx", "libmlxc"), ("", "libmlxc")), "load.mlx.ends", "load.mlx.refused",
    "no MLX libraries in this install", after_directories=True, lazy=True,
)  # fmt: skip
GROUPS = (CPU, MLX)


def asked(results: Iterable[ChildResult]) -> set[str]:
    """Return the libraries that RESULTS have an answer for, the one included that ended a child."""
    done: set[str] = set()
    for result in results:
        done |= set(_seen(result))
        if at := string(result.observed.get("at")):
            done.add(at)
    return done


def _seen(result: ChildResult) -> dict[str, Facts]:
    """Return path -> what was seen, for the libraries that RESULT's child had done with."""
    entries = [mapping(value) for key, value in result.observed.items() if key.startswith("seen ")]
    done = {path: entry for entry in entries if (path := string(entry.get("path")))}
    return {**done, **{str(path): mapping(entry) for path, entry in mapping(result.observed.get("seen")).items()}}


def _mine(group: Group, given: StageInput) -> list[ChildResult]:
    return [result for name, result in given.results.items() if name.startswith(group.prefix)]


def judge(group: Group, given: StageInput, limit_s: float) -> list[Check]:
    """Return the checks of GROUP."""
    mine = _mine(group, given)
    seen: dict[str, Facts] = {}
    checks: list[Check] = []
    for result in mine:
        seen |= _seen(result)
        if result.ending is not Ending.ANSWERED and not defect(result):
            checks.append(_ended(group, result, limit_s))
    if not mine:
        return [unknown(group.row, "not asked: an earlier child cannot be killed", group.kind)]
    if any(defect(result) for result in mine):
        return [unknown(group.row, "the gate's own child failed", group.kind)]
    refused = {path: str(entry["error"]) for path, entry in seen.items() if string(entry.get("error"))}
    done = asked(mine)
    listed = (string(path) for result in mine for path in sequence(result.observed.get("paths")))
    left = [path for path in listed if path is not None and path not in done]
    if refused:
        path, error = next(iter(refused.items()))
        facts = {"path": path, "name": posixpath.basename(path), "error": error, "count": len(refused)}
        checks.append(found(group.refused, facts, observed=refused))
    if checks:
        return checks
    if left:
        return [unknown(group.row, f"not asked: {posixpath.basename(str(left[0]))}", group.kind)]
    if not seen:
        return [not_applicable(group.row, group.none, group.kind)]
    observed = {posixpath.basename(path): entry.get("score") for path, entry in seen.items()}
    return [passed(group.row, group.kind, observed=observed)]


def _ended(group: Group, result: ChildResult, limit_s: float) -> Check:
    nearer = load_directory.ended(result, "host", limit_s)[0]
    evidence = nearer.finding.evidence if nearer.finding else None
    if group is CPU and _of_another(result, mapping(mapping(evidence).get("loader"))):
        return nearer  # libggml-base, which every variant needs: the variant that was opened first is not to blame
    at = string(result.observed.get("at"))
    if at is None:
        return nearer  # it ended before it opened a library
    hung = result.ending in HANG_OUTCOMES
    facts = {
        "name": posixpath.basename(at),
        "path": at,
        "step": result.open_step.name if result.open_step else "the child",
        "how": f"did not return within {limit_s:g} s" if hung else f"ended the process: {words(result)}",
        "blocked_in": result.evidence.get("blocked_in", "not running any more"),
    }
    return found(group.ended, facts, evidence=evidence)


def _of_another(result: ChildResult, loader: Facts) -> bool:
    """Whether ld.so was in the constructor of a library that is no CPU variant when RESULT's child opened one."""
    opening = result.open_step is not None and result.open_step.name.startswith("dlopen")
    name = posixpath.basename(string(loader.get("path")) or "")
    return opening and loader.get("doing") == "constructor" and not name.startswith(CPU.patterns[0][1])


def scores(given: StageInput) -> dict[str, int]:
    """Return the score of each CPU variant that answered."""
    found_in: dict[str, int] = {}
    for result in _mine(CPU, given):
        for path, entry in _seen(result).items():
            score = integer(entry.get("score"))
            if score is not None:
                found_in[posixpath.basename(path)] = score
    return found_in
