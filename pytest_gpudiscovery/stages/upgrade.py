"""14 upgrade: the Ollama that is about to be installed, in the service's own context, beside the installed one.

The candidate goes through the stages that depend on an install; what does not (kernel, driver, enumeration) was asked
before. It runs also where the installed Ollama is broken or absent: that is the usual reason to upgrade. What unpacking
the candidate over the installed release would leave is built in a scratch copy and goes through the same stages.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_gpudiscovery.model import Check, Kind, Outcome, StageRecord
from pytest_gpudiscovery.stages import chain, upgrade_compare
from pytest_gpudiscovery.stages.identity import mapping, sequence, string
from pytest_gpudiscovery.stages.looking import look
from pytest_gpudiscovery.stages.runtime import AnyName
from pytest_gpudiscovery.stages.spec import (
    Judgement,
    RunContext,
    StageInput,
    StageSpec,
    deadline_of,
    lying_here,
    not_applicable,
    unknown,
)
from pytest_gpudiscovery.supervise.types import ChildResult, Probe

ROWS = ("P98", "P99", "P100", "P101")
OF_THE_HOST = ("service", "loopback", "kernel", "nvml", "driver", "enumeration")
OF_AN_INSTALL = upgrade_compare.OF_AN_INSTALL
OF_THE_MIX = OF_AN_INSTALL[:-1]  # its libraries are in question, and its children say that; a server costs the most
CANDIDATE, MIX, IN_PLACE = "candidate", "mix", "in place"
MIX_S = 30.0


def specs(names: Sequence[str] = OF_AN_INSTALL) -> list[StageSpec]:
    """Return the stages that an install goes through, in order."""
    return [importlib.import_module(f"pytest_gpudiscovery.stages.{name}").SPEC for name in names]


def shared(prior: Mapping[str, StageRecord]) -> dict[str, StageRecord]:
    """Return the records that do not depend on the install; one that was not reached says nothing of the candidate."""
    return {
        name: prior[name] for name in OF_THE_HOST if name in prior and prior[name].outcome is not Outcome.NOT_REACHED
    }


def of_candidate(context: RunContext) -> RunContext:
    """Return CONTEXT with the candidate in the place of the installed Ollama."""
    return _at(context, str(context.candidate_path))


def in_place(context: RunContext) -> RunContext:
    """Return CONTEXT with the mix of both releases in the place of the installed Ollama."""
    return _at(context, _mix_directory(context))


def _at(context: RunContext, path: str) -> RunContext:
    view = dict(context.view)
    if view.get("kind") == "recorded":
        view["live"] = lying_here(path)
    return dataclasses.replace(context, ollama_path=path, view=view, target="backend")


def _mix_directory(context: RunContext) -> str:
    return os.path.join(context.run_dir, "in-place")


def plan(
    context: RunContext, prior: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Take the candidate through the stages, then build the mix, then take that through them."""
    if context.candidate_path is None:
        return None
    records, planned = chain.walk(CANDIDATE, specs(), of_candidate(context), shared(prior), results)
    if planned is not None:
        return planned
    if MIX not in results:
        request = _mix(context, prior, records)
        return None if request is None else (MIX, look(context, "mix", request, MIX_S, as_caller=True))
    if not mapping(results[MIX].answer).get("built"):
        return None
    return chain.walk(IN_PLACE, specs(OF_THE_MIX), in_place(context), shared(prior), results)[1]


def _mix(
    context: RunContext, prior: Mapping[str, StageRecord], records: Mapping[str, StageRecord]
) -> dict[str, Any] | None:
    """Return what builds the mix, None where there is nothing to mix."""
    old = mapping(prior["package"].facts if "package" in prior else None)
    new = mapping(records["package"].facts)
    binary, libs = string(new.get("binary")), (string(old.get("lib_dir")), string(new.get("lib_dir")))
    if binary is None or None in libs or libs[0] == libs[1] or not context.run_dir:
        return None
    # A lib directory that does not end in lib/ollama is a program's own directory: nobody unpacks a release over that.
    if not all(str(lib).endswith("lib/ollama") for lib in libs):
        return None
    identity = context.setup.identity
    return {
        "old_lib": libs[0],
        "new_lib": libs[1],
        "new_binary": binary,
        "into": _mix_directory(context),
        "gid": identity.gid if identity is not None and os.geteuid() == 0 else None,
    }


def turns(context: RunContext, prior: Mapping[str, StageRecord]) -> int:
    """Return how often 90 s the stage may take: as long as its parts, over the candidate and over the mix."""
    if context.candidate_path is None:
        return 1
    parts = sum(deadline_of(context, spec, prior) for spec in (*specs(), *specs(OF_THE_MIX)))
    return max(1, round(parts / SPEC.deadline_s))


def judge(given: StageInput) -> Judgement:
    """Compare the candidate with what is installed, and say it in one sentence."""
    context = given.context
    if context.candidate_path is None:
        reason = "no candidate was named (--gpu-ollama-candidate)"
        return Judgement(tuple(not_applicable(row, reason) for row in ROWS), reason, applicable=False)
    host = shared(given.prior)
    records, left = chain.walk(CANDIDATE, specs(), of_candidate(context), host, given.results)
    mixed, stale = None, sequence(mapping(given.observed(MIX)).get("stale"))
    if given.observed(MIX).get("built"):
        mixed, _ = chain.walk(IN_PLACE, specs(OF_THE_MIX), in_place(context), host, given.results)
    if left is not None:
        reason = f"the candidate was not asked to the end: {left[0]} is missing"
        checks: tuple[Check, ...] = tuple(unknown(row, reason, _kind(row), subject=CANDIDATE) for row in ROWS)
        return Judgement(checks, reason, {"comparison": None})
    said = upgrade_compare.compare(given, records, mixed, [str(name) for name in stale])
    stuck = any(chain.touched(record) for record in [*records.values(), *(mixed or {}).values()])
    return Judgement(said.checks, said.sentence, {"comparison": said.comparison}, stuck=stuck)


def _kind(row: str) -> Kind:
    return Kind.BLOCKING if row == "P98" else Kind.RISK


def name_of(path: str) -> str:
    """Return how a person calls the candidate at PATH."""
    return posixpath.basename(path.rstrip("/")) or path


SPEC = StageSpec(
    number=14,
    name="upgrade",
    title="candidate against installed",
    after=(),  # also where the installed Ollama is broken, and then most stages before were not reached
    deadline_s=90.0,  # eight times this, at most, is enough for an install with two GPU directories
    rows=ROWS,
    plan=plan,
    judge=judge,
    touches_driver=True,
    soft_after=(
        "service",
        "kernel",
        "nvml",
        "driver",
        "enumeration",
        "package",
        "closure",
        "load",
        "backend",
        "bootstrap",
        "serve",
    ),
    ollama_budget_s=30.0,
    optional=AnyName(),
    turns=turns,
)
