"""13 serve: a private `ollama serve` says on which devices it computes: the sum of all that was asserted before.

It has its own port, home and models directory, and is ended as soon as its discovery is over. The running service is
not touched: that it still runs as before is a check of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, Kind, Outcome, StageRecord
from pytest_gpudiscovery.stages import bootstrap_hang, ollama_devices, serve_log
from pytest_gpudiscovery.stages.bootstrap import EAGER
from pytest_gpudiscovery.stages.bootstrap_runner import STAMP, number
from pytest_gpudiscovery.stages.identity import integer, mapping, objects, sequence, string
from pytest_gpudiscovery.stages.looking import INJECTED, in_order
from pytest_gpudiscovery.stages.ollama_devices import Device, Expected
from pytest_gpudiscovery.stages.serve_log import Log
from pytest_gpudiscovery.stages.spec import (
    MOST_TURNS,
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

ROWS = ("P96", "P97")
SERVER = "server"
AROUND_S = 10.0  # for its start, for the look at one that hangs, and for its end
TAIL = 30  # lines of the log that a finding carries


def plan(
    context: RunContext, prior: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Start one server."""
    package = mapping(prior["package"].facts if "package" in prior else None)
    binary = string(package.get("binary"))
    if results or binary is None:
        return None
    limit = deadline_for(context, SPEC.name, SPEC.deadline_s) * (min(turns(context, prior), MOST_TURNS) - 1)
    request = {
        "binary": binary,
        "env": dict(context.env),
        "limit_s": limit,
        "cache": any(context.env.get(name) for name in EAGER),
    }
    env = {name: value for name, value in context.env.items() if name not in (*INJECTED, "LD_LIBRARY_PATH")}
    return SERVER, Probe("serve", request, env, limit + AROUND_S, context.cwd, context.setup)


def turns(_: RunContext, prior: Mapping[str, StageRecord]) -> int:
    """Return how often 30 s may pass: for each directory, for the second pass, and around them."""
    package = mapping(prior["package"].facts if "package" in prior else None)
    gpu_dirs = package.get("gpu_dirs")
    return (len(gpu_dirs) if isinstance(gpu_dirs, list) else 1) + 2


def judge(given: StageInput) -> Judgement:
    """Judge what the server's log says, and what it left behind."""
    if string(given.facts("package").get("binary")) is None:
        rows = tuple(not_applicable(row, "no Ollama was found") for row in ROWS)
        return Judgement(rows, "no Ollama was found", {"devices": []}, applicable=False)
    result = given.results.get(SERVER)
    seen = given.observed(SERVER)
    if result is None or result.ending is not Ending.ANSWERED or not seen:
        return _unanswered(result)
    lines = [str(line) for line in sequence(seen.get("lines"))]
    log = serve_log.parse(lines)
    wanted = ollama_devices.expected(given)
    checks = [_devices(given, seen, log, wanted, lines), _traces(seen)]
    facts = {
        "version": log.version,
        "devices": [device.to_json() for device in log.devices],
        "total_vram": log.total_vram,
        "took": log.took,
        "seconds": seen.get("seconds"),
        "log": lines if any(check.finding for check in checks) else serve_log.important(lines),
        "dropped": seen.get("dropped"),
    }
    outcome = None
    if seen.get("dead") is False:
        outcome = Outcome.UNKILLABLE
    elif seen.get("reason") == "timeout":
        outcome = Outcome.TIMED_OUT
        if bootstrap_hang.unsafe(seen):
            facts["hung_probe"] = True
    return Judgement(in_order(checks), _summary(seen, log), facts, outcome=outcome)


def _unanswered(result: ChildResult | None) -> Judgement:
    """The probe that starts the server gave no answer itself."""
    if result is None or result.ending not in (Ending.TIMED_OUT, Ending.UNKILLABLE):
        return Judgement((unknown("P96", "the gate's own child failed"),), "no answer", outcome=Outcome.PROBE_ERROR)
    step = result.open_step.name if result.open_step else "the probe's start"
    facts = {"step": step, "blocked_in": result.evidence.get("blocked_in", "unknown"), "said": "nothing"}
    outcome = Outcome.UNKILLABLE if result.ending is Ending.UNKILLABLE else Outcome.TIMED_OUT
    return Judgement((found("serve.asker", facts, evidence=facts),), step, outcome=outcome)


def _devices(given: StageInput, seen: Mapping[str, Any], log: Log, wanted: Expected, lines: list[str]) -> Check:
    """Judge P96."""
    reason = seen.get("reason")
    gpus = [device for device in log.devices if device.is_cuda]
    facts: dict[str, Any] = {
        "port": seen.get("port"),
        "limit_s": number(seen.get("limit_s")) or 0.0,
        "code": seen.get("exit"),
        "why": "; ".join(log.reasons[:3]) or "its log does not say why",
        "first": log.reasons[0] if log.reasons else "its log does not say why",
        "last": STAMP.sub("", " ".join((serve_log.last_lines(lines, 1) or ["nothing"])[0].split()))[:200],
        "total_vram": log.total_vram or "?",
        "count": len(gpus),
        "expected": len(wanted.gpus) if wanted.gpus is not None else "an unknown number of",
        "devices": ollama_devices.words(gpus),
    }
    evidence = {"log": serve_log.last_lines(lines, TAIL), "argv": seen.get("argv")}
    if reason == "spawn":
        facts["errno"] = seen.get("problem")
        return found("serve.spawn", facts, observed=seen.get("problem"), evidence=evidence)
    if reason == "exited":
        return found("serve.exits", facts, observed=seen.get("exit"), evidence=evidence)
    if reason == "timeout":
        stuck = bootstrap_hang.read(mapping(seen.get("stuck")))
        facts |= {"blocked_in": stuck.blocked_in, "activity": stuck.activity["words"]}
        cause = "serve.hang" if seen.get("listens") is True or log.directories else "serve.silent"
        evidence |= bootstrap_hang.shown(seen, facts)
        return found(cause, facts, observed=facts["last"], evidence=evidence)
    shown = [device.to_json() for device in log.devices]
    if not gpus:
        children = given.facts("bootstrap").get("kept")
        cause = "serve.cpu_alone" if objects(children) and not log.reasons else "serve.cpu"
        return found(cause, facts, expected=facts["expected"], observed=shown, evidence=evidence)
    lost = ollama_devices.missing(wanted, gpus)
    if lost:
        facts["missing"] = ollama_devices.names(lost)
        return found("serve.fewer", facts, expected=facts["expected"], observed=shown, evidence=evidence)
    empty = [device for device in gpus if not device.total]
    if empty:
        facts["subject"] = ", ".join(device.description or device.id for device in empty)
        return found("serve.no_memory", facts, expected="memory to compute in", observed=shown, evidence=evidence)
    return passed("P96", reason=facts["devices"], observed=shown)


def _traces(seen: Mapping[str, Any]) -> Check:
    """Judge P97: the server is gone with all that was its own, and who ran before still runs."""
    left = mapping(seen.get("left"))
    what = []
    if seen.get("dead") is False:
        what.append(f"PID {seen.get('pid')}")
    if left.get("directory") is True:
        what.append("its private directory")
    if left.get("port") is True:
        what.append(f"a listener on port {seen.get('port')}")
    before = {_key(item) for item in objects(seen.get("before"))}
    after = {_key(item) for item in objects(seen.get("after"))}
    facts = {"what": ", ".join(what), "pids": ", ".join(str(key[0]) for key in sorted(before - after, key=str))}
    if what:
        return found("serve.leftover", facts, observed=what)
    if before - after:
        return found("serve.service_ended", facts, observed=facts["pids"])
    return passed("P97", Kind.RISK, reason=f"{len(before)} running before and after", observed=sorted(before, key=str))


def _key(item: Mapping[str, Any]) -> tuple[Any, ...]:
    return (integer(item.get("pid")), str(item.get("name")), integer(item.get("start")))


def _summary(seen: Mapping[str, Any], log: Log) -> str:
    seconds = number(seen.get("seconds"))
    gpus: list[Device] = [device for device in log.devices if device.is_cuda]
    took = f" in {seconds:.1f} s" if seconds is not None else ""
    return f"{ollama_devices.words(gpus)}{took}, total_vram {log.total_vram or 'not said'}"


SPEC = StageSpec(
    number=13,
    name="serve",
    title="a private ollama serve",
    after=("bootstrap",),
    deadline_s=30.0,
    rows=ROWS,
    plan=plan,
    judge=judge,
    touches_driver=True,
    ollama_budget_s=30.0,
    optional=frozenset({SERVER}),
    turns=turns,
)
