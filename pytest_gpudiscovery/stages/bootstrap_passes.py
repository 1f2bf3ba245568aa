"""The two passes of eras B and C: which children the second one starts, and what each child's answer means. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.model import Check
from pytest_gpudiscovery.stages import (
    bootstrap_hang,
    bootstrap_runner,
    bootstrap_server,
    identity,
    ollama_devices,
    protocol,
    second_pass,
)
from pytest_gpudiscovery.stages.identity import mapping, objects
from pytest_gpudiscovery.stages.ollama_devices import Device
from pytest_gpudiscovery.stages.protocol import Directory, Protocol
from pytest_gpudiscovery.stages.spec import StageInput, found, not_applicable, passed, unknown
from pytest_gpudiscovery.supervise.types import ChildResult

Facts = Mapping[str, Any]
SECOND = "second pass"
VISIBLE = {"CUDA": "CUDA_VISIBLE_DEVICES", "ROCm": "ROCR_VISIBLE_DEVICES"}
LOADED = "loaded CUDA backend from"  # ggml prints it also when CUDA then has no device
INIT_FAILED = "failed to initialize CUDA"


@dataclass(frozen=True)
class Child:
    """One child of the second pass; `index` is that of its device among all of the first pass."""

    name: str
    index: int
    env: Mapping[str, str]
    path: str | None  # of the GPU directory


@dataclass(frozen=True)
class Passes:
    """What the children gave. `good` are the directories whose children are all in order."""

    directories: tuple[Directory, ...]
    runs: tuple[Facts, ...]
    devices: tuple[Device, ...]
    kept: tuple[Device, ...]
    checks: Mapping[str, list[Check]]  # by directory
    said: str  # the line of a child's output that says most about why there is no GPU


def first(results: Mapping[str, ChildResult], asked: list[Directory]) -> dict[str, Facts]:
    """Return directory -> what its first child did; {} for one that was not started."""
    found_in: dict[str, Facts] = {}
    for directory in asked:
        result = results.get(directory.name)
        found_in[directory.name] = {} if result is None else {**result.observed, **mapping(result.answer)}
    return found_in


def devices_of(runs: Mapping[str, Facts], how: Protocol) -> list[Device]:
    """Return the devices of the first pass, directory by directory."""
    return [device for name, run in runs.items() for device in devices_in(name, run, how)]


def devices_in(name: str, run: Facts, how: Protocol) -> list[Device]:
    """Return the devices that one child for directory NAME showed, [] where Ollama had given up by then."""
    if (bootstrap_runner.number(run.get("seconds")) or 0.0) > protocol.FIRST_PASS_S:
        return []
    if how.era == protocol.LLAMA_SERVER:
        return bootstrap_server.devices(name, run, how)
    return ollama_devices.of_info(name, run.get("devices"))


def second(env: Mapping[str, str], package: Facts, how: Protocol, results: Mapping[str, ChildResult]) -> list[Child]:
    """Return the children that Ollama's second pass starts, all at once; [] where this version makes none.

    v0.16.3:discover/runner.go:136-158 and ml/device.go:505-585; ROCm is in it in every version.
    """
    asked = protocol.directories(package)
    by_name = {directory.name: directory for directory in asked}
    children = []
    for index, device in enumerate(devices_of(first(results, asked), how)):
        variable = VISIBLE.get(device.library)
        if variable is None or (device.is_cuda and how.second == second_pass.NONE):
            continue
        extra = {"GGML_CUDA_INIT": "1"}
        if not (device.is_cuda and how.second == second_pass.ALL):
            extra[variable] = device.id
        child_env = protocol.environment(how, env, package, by_name[device.directory], extra)
        name = f"{device.directory} {device.id or index}"
        children.append(Child(name, index, child_env, by_name[device.directory].path))
    return children


def judge(given: StageInput, package: Facts, how: Protocol) -> Passes:
    """Judge every child of both passes."""
    asked = protocol.directories(package)
    runs = first(given.results, asked)
    binary, preloaded = str(package.get("binary")), _preloaded(given)
    checks: dict[str, list[Check]] = {}
    for directory in asked:
        subject = f"dir:{directory.name}"
        why = bootstrap_runner.ending(given.results.get(directory.name), runs[directory.name])
        if why is not None:
            checks[directory.name] = [unknown("P90", why, subject=subject)]
            continue
        run = _whole(given.results[directory.name], runs[directory.name])
        runs[directory.name] = run
        checks[directory.name] = _first(directory, run, how, binary, preloaded)
    devices = devices_of(runs, how)
    later, validated = _second(given, package, how, devices, binary, preloaded)
    for name, own in later.items():
        checks[name] = [*checks[name], *own]
    again = mapping(given.observed(SECOND).get("children"))
    every = [run for run in (*runs.values(), *map(mapping, again.values())) if run]
    kept = ollama_devices.kept(devices, validated)
    return Passes(tuple(asked), tuple(every), tuple(devices), tuple(kept), checks, _said(runs))


def _first(directory: Directory, run: Facts, how: Protocol, binary: str, preloaded: list[str]) -> list[Check]:
    """Judge the first child of DIRECTORY: its end, its time, its devices."""
    if how.era == protocol.LLAMA_SERVER:
        own = bootstrap_server.judge(directory, run, how, binary, preloaded, protocol.FIRST_PASS_S)
        answered = bootstrap_server.failed(run, preloaded) is None
        dropped = any(check.finding and check.finding.cause == "bootstrap.floor" for check in own)
        why = bootstrap_server.why_none
    else:
        own = bootstrap_runner.judge(f"dir:{directory.name}", run, binary, preloaded, protocol.FIRST_PASS_S)
        answered = bootstrap_runner.failed(run, binary, preloaded, protocol.FIRST_PASS_S) is None
        dropped, why = False, _why_none
    if not answered or not directory.is_cuda:
        return own
    found_in = devices_in(directory.name, run, how)
    if dropped and not found_in:
        return own  # that has been said
    return [*own, *_devices(directory, run, found_in, why)]


def _whole(result: ChildResult, run: Facts) -> Facts:
    """Return RUN, or what can be said of it where the supervisor had to end the probe that asked."""
    if isinstance(result.answer, dict):
        return run
    step = result.open_step.name if result.open_step else "the probe's start"
    return {**run, "reason": "caught", "step": step, "blocked_in": result.evidence.get("blocked_in", "unknown")}


def _preloaded(given: StageInput) -> list[str]:
    """Return the base names of the objects that are preloaded into every child (stage 02's facts)."""
    named = [str(item.get("name")) for item in objects(given.facts("service").get("preload"))]
    named += given.context.env.get("LD_PRELOAD", "").replace(":", " ").split()
    return list(dict.fromkeys(name.rpartition("/")[2] for name in named if name))


def _devices(
    directory: Directory,
    run: Facts,
    devices: list[Device],
    why: Callable[[Directory, Facts], tuple[str, dict[str, Any]]],
) -> list[Check]:
    """Judge what the first child of DIRECTORY shows: any device at all, and sane ones (P92)."""
    subject = f"dir:{directory.name}"
    facts: dict[str, Any] = {"directory": directory.name, "said": bootstrap_runner.said(run)}
    if not any(device.is_cuda for device in devices):
        cause, facts = why(directory, run)
        last = run if run.get("output") else mapping(run.get("list"))
        evidence = {"output": bootstrap_runner.text(last)[-bootstrap_runner.TAIL :]}
        return [found(cause, facts, subject=subject, expected="a CUDA device", observed=0, evidence=evidence)]
    for device in devices:
        kind = ollama_devices.problem(device)
        if kind is not None:
            seen = {"compute": f"{device.compute[0]}.{device.compute[1]}", "pci": device.pci, "device": device.name}
            cause = f"bootstrap.device.{kind}"
            return [found(cause, {**facts, **seen}, subject=subject, observed=seen[kind])]
    return [passed("P92", subject=subject, observed=[device.to_json() for device in devices])]


def _why_none(directory: Directory, run: Facts) -> tuple[str, dict[str, Any]]:
    """Return (cause, facts) where a runner answered and shows no CUDA device."""
    output = bootstrap_runner.text(run)
    facts: dict[str, Any] = {"directory": directory.name, "said": bootstrap_runner.said(run)}
    if INIT_FAILED in output:
        facts["error"] = output.partition(INIT_FAILED)[2].partition("\n")[0].lstrip(": ").strip()
        return "bootstrap.cuda_failed", facts
    return ("bootstrap.no_device" if LOADED in output else "bootstrap.not_loaded"), facts


def _second(
    given: StageInput, package: Facts, how: Protocol, devices: list[Device], binary: str, preloaded: list[str]
) -> tuple[dict[str, list[Check]], list[int]]:
    """Judge P93; returns the checks by directory, and the indices of the devices that are kept so far."""
    children = second(given.context.env, package, how, given.results)
    waiting = {child.index: child for child in children}
    validated = [index for index in range(len(devices)) if index not in waiting]
    checks: dict[str, list[Check]] = {device.directory: [] for device in devices}
    result, answers = given.results.get(SECOND), mapping(given.observed(SECOND).get("children"))
    for index, child in waiting.items():
        device = devices[index]
        subject = f"gpu:{identity.pci(device.pci) or device.id or index}"
        run = mapping(answers.get(child.name))
        why = "not started: an earlier child hung" if result is None else None
        if why is not None or (not run and result is not None and isinstance(result.answer, dict)):
            checks[device.directory].append(unknown("P93", why or "the answer lacks this device", subject=subject))
            continue
        check = _validated(device, child, run, result, how, subject, binary, preloaded)
        checks[device.directory].append(check)
        if check.finding is None:
            validated.append(index)
    if devices and not children:
        reason = "this Ollama makes no second pass for CUDA (0.12.10 to 0.13.0)"
        for name, own in checks.items():
            own.append(not_applicable("P93", reason, subject=f"dir:{name}"))
    return checks, validated


def _validated(
    device: Device,
    child: Child,
    run: Facts,
    result: ChildResult | None,
    how: Protocol,
    subject: str,
    binary: str,
    preloaded: list[str],
) -> Check:
    """Judge P93 for DEVICE: its own child answered in time, and with at least one device."""
    facts: dict[str, Any] = {"device": device.name, "directory": device.directory, "id": device.id}
    last = run if how.era == protocol.RUNNER else mapping(run.get("list")) or mapping(run.get("start"))
    facts |= {"said": bootstrap_runner.said(last), "variables": _variables(child.env)}
    evidence = {"output": bootstrap_runner.text(last)[-bootstrap_runner.TAIL :], "argv": last.get("argv")}
    if not run and result is not None:
        facts |= {"why": "the probe was ended by its deadline", "cause": "none"}
        return found("bootstrap.second.failed", facts, subject=subject, evidence=evidence)
    if how.era == protocol.LLAMA_SERVER:
        bad = bootstrap_server.failed(run, preloaded)
    else:
        bad = bootstrap_runner.failed(run, binary, preloaded, protocol.SECOND_PASS_S)
    if bad is not None:
        cause, more = bad
        facts |= {**more, "why": WHY.get(cause.rpartition(".")[0], WHY.get(cause, cause)), "cause": cause}
        hung = cause.startswith("bootstrap.hang.") or cause.endswith(".hang")
        evidence |= bootstrap_hang.shown(last, more) if hung else {}
        return found(
            "bootstrap.second.hang" if hung else "bootstrap.second.failed", facts, subject=subject, evidence=evidence
        )
    if not devices_in(device.directory, run, how):
        return found("bootstrap.second.none", facts, subject=subject, observed=0, evidence=evidence)
    return passed("P93", subject=subject, reason=f"{run.get('seconds')} s", observed=run.get("seconds"))


WHY = {
    "bootstrap.exit": "it ended before it answered",
    "bootstrap.list": "llama-server --list-devices failed",
    "bootstrap.http": "it answered an error",
    "bootstrap.hang": "it did not answer in time",
    "bootstrap.spawn": "it could not be started",
}


def _variables(env: Mapping[str, str]) -> str:
    names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_CUDA_INIT")
    return " ".join(f"{name}={env[name]}" for name in names if name in env)


def _said(runs: Mapping[str, Facts]) -> str:
    ended = [one for run in runs.values() for one in (run, *map(mapping, (run.get("list"), run.get("start")))) if one]
    lines = [bootstrap_runner.said(run) for run in ended]
    return next((line for line in lines if line != "nothing"), "nothing")
