"""What stage 12 does only when asked: --gpu-trace (a second child under strace) and --gpu-experiment preload. Pure.

The timeline of ld.so's own account comes with the first pass itself. The experiment starts each directory's child once
more with the backend in LD_PRELOAD: what that changes says whether the loader or the driver is at fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pytest_gpudiscovery.model import Check
from pytest_gpudiscovery.stages import bootstrap_passes, protocol
from pytest_gpudiscovery.stages.bootstrap_runner import number, said
from pytest_gpudiscovery.stages.identity import integer, mapping, objects
from pytest_gpudiscovery.stages.protocol import Directory, Protocol
from pytest_gpudiscovery.stages.spec import RunContext, StageInput, found, not_applicable, unknown

Facts = Mapping[str, Any]
PRELOAD = "preload"
SAME_S = 1.0  # a difference in time that is none


def _strace(directory: Directory) -> str:
    return f"strace of {directory.name}"


def _preload(directory: Directory) -> str:
    return f"preload of {directory.name}"


def runs(context: RunContext, package: Facts, how: Protocol) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, what the request has beside the usual) of each further child."""
    for directory in protocol.directories(package):
        if not directory.is_cuda:
            continue
        env = {**protocol.environment(how, context.env, package, directory), "OLLAMA_DEBUG": "2"}
        dirs = [str(path) for path in (package.get("lib_dir"), directory.path) if path]
        if context.trace:
            yield _strace(directory), {"env": env, "dirs": dirs, "trace": "strace"}
        if context.experiment == PRELOAD:
            preloaded = " ".join(word for word in (env.get("LD_PRELOAD", ""), str(directory.backend)) if word)
            yield _preload(directory), {"env": {**env, "LD_PRELOAD": preloaded}, "dirs": dirs}


def judge(given: StageInput, package: Facts, how: Protocol) -> list[Check]:
    """Judge P102: what the experiment changes, for each directory; a trace judges nothing."""
    if given.context.experiment != PRELOAD:
        return [not_applicable("P102", "no experiment was asked for (--gpu-experiment preload)")]
    checks = []
    for directory in _cuda(package):
        subject = f"dir:{directory.name}"
        before, after = (
            _shown(given, directory.name, directory, how),
            _shown(given, _preload(directory), directory, how),
        )
        if before is None or after is None:
            checks.append(unknown("P102", "not both children were started", subject=subject))
            continue
        facts = {
            "directory": directory.name,
            "before": _words(before),
            "after": _words(after),
            "said": said(_ended(given.observed(_preload(directory)))),
        }
        cause = "bootstrap.experiment.same" if _same(before, after) else "bootstrap.experiment.changes"
        checks.append(found(cause, facts, subject=subject, expected=facts["before"], observed=facts["after"]))
    return checks


def facts(given: StageInput, package: Facts, how: Protocol) -> dict[str, Any]:
    """Return `timeline` (directory -> tracer -> events) and `experiment` for the record, where they were asked for."""
    kept: dict[str, Any] = {}
    directories = _cuda(package)
    if given.context.trace:
        kept["timeline"] = {
            directory.name: {
                tracer: objects(given.observed(name).get("timeline"))
                for tracer, name in (("loader", directory.name), ("strace", _strace(directory)))
                if given.observed(name).get("timeline")
            }
            for directory in directories
        }
    if given.context.experiment == PRELOAD:
        kept["experiment"] = [
            {
                "directory": directory.name,
                "before": _shown(given, directory.name, directory, how),
                "after": _shown(given, _preload(directory), directory, how),
            }
            for directory in directories
        ]
    return kept


def _cuda(package: Facts) -> list[Directory]:
    return [entry for entry in protocol.directories(package) if entry.is_cuda]


def _shown(given: StageInput, name: str, directory: Directory, how: Protocol) -> dict[str, Any] | None:
    """Return how many devices child NAME showed, in which time, or how it ended; None for one that was not started."""
    run = given.observed(name)
    if given.results.get(name) is None or not run:
        return None
    ended = _ended(run)
    code = integer(ended.get("exit"))
    return {
        "devices": len([device for device in bootstrap_passes.devices_in(directory.name, run, how) if device.is_cuda]),
        "seconds": number(run.get("seconds")),
        # A child of era C ends by itself, with 0, when all is well.
        "reason": ended.get("reason") if ended.get("reason") != "exited" or ended is run or code else None,
        "exit": code,
    }


def _ended(run: Facts) -> Facts:
    """Return the process of RUN that gave the answer, or was the last to end without one."""
    return mapping(run.get("list")) or mapping(run.get("start")) or run


def _words(shown: Facts) -> str:
    seconds = number(shown.get("seconds"))
    took = f" in {seconds:.2f} s" if seconds is not None else ""
    count = integer(shown.get("devices")) or 0
    how = {"timeout": ", no answer in time", "exited": f", exit status {shown.get('exit')}"}
    return f"{count} device{'s' * (count != 1)}{took}{how.get(str(shown.get('reason')), '')}"


def _same(before: Facts, after: Facts) -> bool:
    first, second = number(before.get("seconds")) or 0.0, number(after.get("seconds")) or 0.0
    keys = ("devices", "reason", "exit")
    return all(before.get(key) == after.get(key) for key in keys) and abs(first - second) < SAME_S
