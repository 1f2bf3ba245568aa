"""12 bootstrap: Ollama's own discovery children, started and asked as the installed version does it.

Ollama is the oracle: the stage runs also when stages before it failed (not when one of their children hung), and what
its children show overrules them. Both passes are made, the output that Ollama throws away is kept, and the time is
held against Ollama's own limits.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, Kind, Outcome, StageRecord
from pytest_gpudiscovery.stages import bootstrap_extra, bootstrap_passes, bootstrap_verdict, protocol
from pytest_gpudiscovery.stages.backend import in_use
from pytest_gpudiscovery.stages.bootstrap_hang import parts, unsafe
from pytest_gpudiscovery.stages.identity import mapping, string
from pytest_gpudiscovery.stages.looking import INJECTED, in_order
from pytest_gpudiscovery.stages.runtime import AnyName
from pytest_gpudiscovery.stages.spec import (
    Judgement,
    RunContext,
    StageInput,
    StageSpec,
    deadline_for,
    found,
    not_applicable,
    passed,
    unknown,
)
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

ROWS = ("P66", "P67", "P68", "P69", "P70", "P90", "P91", "P92", "P93", "P94", "P95", "P102")
SERVER_ROWS = ("P66", "P67", "P68", "P69", "P70")  # only Ollama from 0.30.0 on starts a llama-server
LAYOUT, SECOND = "layout", "second pass"
LOOK_S = 6.0  # for the look at a child that hangs, and its end, beyond its own limit
LAYOUT_S = 5.0
LOGGED = {"OLLAMA_DEBUG": "2"}  # the child says what it does; only the log depends on it
EAGER = ("CUDA_MODULE_LOADING", "CUDA_FORCE_PTX_JIT")  # with one of these a child compiles at its start
NO_OLLAMA = "no Ollama was found"
ERA_A = "Ollama up to 0.12.3 discovers in the server itself: `gpu-discovery explain` reads its log, stage 13 starts it"


def plan(
    context: RunContext, prior: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Ask where llama-server lies if this Ollama may need one, then each directory, then the second pass."""
    package = mapping(prior["package"].facts if "package" in prior else None)
    binary, lib = string(package.get("binary")), string(package.get("lib_dir"))
    if binary is None or lib is None:
        return None
    if LAYOUT not in results and protocol.of(package, newer=True).era == protocol.LLAMA_SERVER:
        here = posixpath.dirname(binary)
        servers = [lib, posixpath.normpath(f"{here}/../lib/ollama"), f"{here}/build/lib/ollama"]
        places = [f"{place}/llama-server" for place in dict.fromkeys(servers)]
        return LAYOUT, _probe(context, {"ask": "layout", "lib": lib, "servers": places}, LAYOUT_S)
    how = protocol_of(package, results)
    if how.era == protocol.SERVER_ITSELF or any(_stop(result) for result in results.values()):
        return None
    limit = deadline_for(context, SPEC.name, SPEC.deadline_s)
    common: dict[str, Any] = {"binary": binary, "limit_s": limit, "cache": any(map(context.env.get, EAGER))}
    if how.era == protocol.LLAMA_SERVER:
        server = server_of(results)
        if server.get("executable") is not True or in_use(context, prior):
            return None
        common["server"] = server.get("path")
    for directory in protocol.directories(package):
        if directory.name not in results:
            env = {**protocol.environment(how, context.env, package, directory), **LOGGED}
            dirs = [path for path in (lib, directory.path) if path]
            traced = {"trace": "loader"} if context.trace else {}
            request: dict[str, Any] = {"ask": "one", "env": env, "dirs": dirs, **common, **traced}
            return directory.name, _probe(context, request, limit + LOOK_S)
    children = bootstrap_passes.second(context.env, package, how, results)
    if SECOND not in results and children:
        asked = [
            {"name": child.name, "env": {**child.env, **LOGGED}, "dirs": [path for path in (lib, child.path) if path]}
            for child in children
        ]
        return SECOND, _probe(context, {"ask": "several", "children": asked, **common}, limit + LOOK_S)
    for name, more in bootstrap_extra.runs(context, package, how):
        if name not in results:
            return name, _probe(context, {"ask": "one", **common, **more}, limit + LOOK_S)
    return None


def server_of(results: Mapping[str, ChildResult]) -> Mapping[str, Any]:
    """Return where llama-server lies ({"path", "executable"}), {} for nowhere."""
    seen = results.get(LAYOUT)
    return mapping(mapping(seen.answer if seen is not None else None).get("server"))


def protocol_of(package: Mapping[str, Any], results: Mapping[str, ChildResult]) -> protocol.Protocol:
    """Return how this Ollama discovers, from its version, else from whether llama-server lies beside it."""
    seen = results.get(LAYOUT)
    newer = mapping(seen.answer if seen is not None else None).get("newer")
    return protocol.of(package, newer=bool(server_of(results)) or newer is True)


def _probe(context: RunContext, request: Mapping[str, Any], deadline_s: float) -> Probe:
    # The child gets the service's environment from the request; this process must not hang in what it looks for.
    env = {name: value for name, value in context.env.items() if name not in (*INJECTED, "LD_LIBRARY_PATH")}
    return Probe("bootstrap", request, env, deadline_s, context.cwd, context.setup)


def _stop(result: ChildResult) -> bool:
    """Whether no further child may be started after RESULT."""
    runs = [mapping(result.answer), *map(mapping, mapping(mapping(result.answer).get("children")).values())]
    return result.ending is not Ending.ANSWERED or any(unsafe(part) for run in runs for part in parts(run))


def turns(_: RunContext, prior: Mapping[str, StageRecord]) -> int:
    """Return how often 30 s may pass: for each directory, for the second pass, and 60 s for the looks at hung ones."""
    package = mapping(prior["package"].facts if "package" in prior else None)
    gpu_dirs = package.get("gpu_dirs")
    return (len(gpu_dirs) if isinstance(gpu_dirs, list) else 1) + 3


def judge(given: StageInput) -> Judgement:
    """Judge each child, then what Ollama would keep, then whether that agrees with the stages before."""
    package = given.facts("package")
    if string(package.get("binary")) is None or string(package.get("lib_dir")) is None:
        return _nothing(NO_OLLAMA)
    how = protocol_of(package, given.results)
    if how.era == protocol.SERVER_ITSELF:
        return _nothing(ERA_A)
    if not given.results:
        return Judgement((unknown("P90", "nothing was started"),), "nothing was started")
    if how.era == protocol.LLAMA_SERVER and (early := _early(given, package)) is not None:
        return early
    passes = bootstrap_passes.judge(given, package, how)
    said = bootstrap_verdict.judge(given, passes)
    checks = list(said.checks)
    if how.era == protocol.LLAMA_SERVER:
        checks.append(passed("P66", observed=server_of(given.results).get("path")))
    checks += bootstrap_extra.judge(given, package, how)
    rows = {check.prerequisite for check in checks}
    others = [not_applicable(row, _why_not(row, how)) for row in ROWS if row not in rows]
    facts = {**said.facts, **bootstrap_extra.facts(given, package, how)}
    return Judgement(in_order([*checks, *others]), said.summary, facts, outcome=_forced(given, passes, said))


def _early(given: StageInput, package: Mapping[str, Any]) -> Judgement | None:
    """What keeps llama-server from being started at all: it is not there, or a GPU is in use."""
    server = server_of(given.results)
    facts: dict[str, Any] = {"path": server.get("path"), "lib": package.get("lib_dir")}
    if not server or server.get("executable") is not True:
        cause = "bootstrap.server.missing" if not server else "bootstrap.server.not_executable"
        check = found(cause, facts, expected="an executable llama-server", observed=server.get("path"))
        others = [not_applicable(row, "there is no llama-server to start") for row in ROWS if row != "P66"]
        return Judgement((check, *others), check.reason, {"children": [], "devices": [], "views": {}})
    busy = in_use(given.context, given.prior)
    if not busy:
        return None
    pids = ", ".join(str(pid) for own in busy.values() for pid in own)
    reason = f"GPU in use by PID {pids}: llama-server would make a context on it (--gpu-allow-busy)"
    rows = [unknown(row, reason, Kind.RISK if row in ("P69", "P94", "P95") else Kind.BLOCKING) for row in ROWS[1:]]
    return Judgement((passed("P66", observed=server.get("path")), *rows), reason, {"children": [], "views": {}})


def _why_not(row: str, how: protocol.Protocol) -> str:
    """Why ROW was not asked about: its era, or an earlier step of this stage that failed."""
    if row in SERVER_ROWS and how.era != protocol.LLAMA_SERVER:
        return f"this Ollama is of era {how.era}: it starts no llama-server"
    return "not asked: an earlier step of this stage decided"


def _nothing(reason: str) -> Judgement:
    rows: list[Check] = [not_applicable(row, reason) for row in ROWS]
    return Judgement(tuple(rows), reason, {"children": [], "devices": [], "views": {}}, applicable=False)


def _forced(given: StageInput, passes: bootstrap_passes.Passes, said: bootstrap_verdict.Said) -> Outcome | None:
    """The outcome that endings decide: a defect of the gate, or a child that hung where no other one is enough."""
    for result in given.results.values():
        if result.ending in (Ending.EXITED, Ending.NOT_SPAWNED, Ending.NO_ANSWER, Ending.SIGNALLED):
            return Outcome.PROBE_ERROR
        if result.ending is Ending.UNKILLABLE:
            return Outcome.UNKILLABLE
        if result.ending is Ending.TIMED_OUT and not said.covered:
            return Outcome.TIMED_OUT
    ended = [part for run in passes.runs for part in parts(run)]
    if any(part.get("dead") is False for part in ended):
        return Outcome.UNKILLABLE
    if said.covered:
        return None
    if any(part.get("reason") in ("timeout", "stranger") for part in ended):
        return Outcome.TIMED_OUT
    codes = [part.get("exit") for part in ended if part.get("reason") == "exited"]
    return Outcome.CRASHED if any(isinstance(code, int) and (code < 0 or code == 2) for code in codes) else None


SPEC = StageSpec(
    number=12,
    name="bootstrap",
    title="Ollama's own discovery children",
    after=("package", "service"),
    deadline_s=protocol.FIRST_PASS_S,
    rows=ROWS,
    plan=plan,
    judge=judge,
    touches_driver=True,
    soft_after=("loopback", "kernel", "nvml", "driver", "enumeration", "runtime", "closure", "load", "backend"),
    ollama_budget_s=protocol.FIRST_PASS_S,
    optional=AnyName(),
    turns=turns,
)
