"""What stage 12 makes of its children together: which GPUs Ollama would use, and whether the gate had said so. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.model import Check, CheckOutcome, Kind
from pytest_gpudiscovery.stages import bootstrap_runner, closure, ollama_devices
from pytest_gpudiscovery.stages.bootstrap_hang import parts, unsafe
from pytest_gpudiscovery.stages.bootstrap_passes import Passes
from pytest_gpudiscovery.stages.ollama_devices import Expected
from pytest_gpudiscovery.stages.spec import StageInput, found, passed, unknown

Facts = Mapping[str, Any]
# The stages whose findings Ollama's own answer overrules; package and service must pass before it can be asked.
OVERRULED = ("loopback", "kernel", "nvml", "driver", "enumeration", "runtime", "closure", "load", "backend")
KEPT = ("port", "reason", "status", "seconds", "limit_s", "attempts", "connected", "exit", "argv", "pid")


@dataclass(frozen=True)
class Said:
    """The stage's checks, its line and its facts; `covered`: every GPU that is expected is kept."""

    checks: tuple[Check, ...]
    summary: str
    facts: dict[str, Any]
    covered: bool


def judge(given: StageInput, passes: Passes) -> Said:
    """Judge P91 and P95, and ease what is wrong in one directory while every GPU is kept all the same."""
    wanted = ollama_devices.expected(given)
    gpus = [device for device in passes.kept if device.is_cuda]
    lost = ollama_devices.missing(wanted, gpus)
    sound = [device for device in gpus if ollama_devices.problem(device) is None]
    covered = bool(sound) and len(sound) == len(gpus) and not lost
    own = [check for name in passes.checks for check in passes.checks[name]]
    checks = [closure.eased(check) if covered else check for check in own]
    checks += _coverage(passes, wanted, lost, covered, own, _layer(given, wanted))
    if covered:
        checks.append(_agreement(given))
    return Said(tuple(checks), _summary(passes, gpus), _facts(passes, wanted), covered)


def _coverage(
    passes: Passes, wanted: Expected, lost: list[Facts], covered: bool, own: list[Check], sees: str
) -> list[Check]:
    gpus = [device for device in passes.kept if device.is_cuda]
    shown = [device.to_json() for device in gpus]
    if covered or (gpus and not lost):  # what is wrong with one that is there is a row of its own
        reason = ollama_devices.words(gpus)
        if wanted.gpus is None:
            reason += "; how many there are is not known"
        return [passed("P91", reason=reason, observed=shown)]
    count = len(wanted.gpus) if wanted.gpus is not None else None
    facts = {
        "count": len(gpus),
        "expected": "an unknown number of" if count is None else count,
        "of": "" if count is None else f"; {count} expected",
        "missing": ollama_devices.names(lost),
        "source": wanted.source or "nobody",
        "said": passes.said,
        "sees": sees,
    }
    if any(check.outcome is CheckOutcome.FAILED for check in own):
        # What each child did has been said; that the GPUs are missing follows from it.
        return [
            found("bootstrap.gpus.none" if not gpus else "bootstrap.gpus.fewer", facts, expected=count, observed=shown)
        ]
    if not gpus and wanted.gpus == ():
        return [found("bootstrap.gpus.hidden", facts, expected="a GPU", observed=shown)]
    if any(check.outcome is CheckOutcome.UNKNOWN and check.kind is Kind.BLOCKING for check in own):
        return [unknown("P91", "not every child could be asked", observed=shown)]
    cause = "bootstrap.gpus.none" if not gpus else "bootstrap.gpus.fewer"
    return [found(cause, facts, expected=count, observed=shown)]


def _layer(given: StageInput, wanted: Expected) -> str:
    """Return the layer nearest to Ollama that shows this host's GPUs (diagnosis/layers.py)."""
    if given.facts("backend").get("views"):
        return "ggml"
    return {"driver": "cuda", "nvml": "nvml", "kernel": "sysfs"}.get(wanted.source, "cuda")


def _agreement(given: StageInput) -> Check:
    """Judge P95: Ollama sees every GPU, so a stage before that says it cannot is wrong, or looked at something else."""
    others = [name for name in OVERRULED if name in given.prior and given.prior[name].outcome.blocks]
    if not others:
        return passed("P95", Kind.RISK, reason="no stage before says otherwise")
    first = given.prior[others[0]]
    facts = {"stages": ", ".join(others), "first": first.name, "summary": first.summary}
    return found("gate.disagrees", facts, expected=f"{first.name} passes", observed=first.summary)


def _facts(passes: Passes, wanted: Expected) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "children": [{key: run.get(key) for key in KEPT} | {"output": _output(run)} for run in passes.runs],
        "devices": [device.to_json() for device in passes.devices],
        "kept": [device.to_json() for device in passes.kept],
        "expected": None if wanted.gpus is None else len(wanted.gpus),
        "views": ollama_devices.views(passes.kept),
    }
    if any(unsafe(part) for run in passes.runs for part in parts(run)):
        facts["hung_probe"] = True  # no further child may touch the driver
    return facts


def _output(run: Facts) -> str:
    """Return what a child printed: all that was kept where it gave no answer, the last of it where it did."""
    processes = parts(run)
    text = "\n".join(one for one in map(bootstrap_runner.text, processes) if one)
    good = run.get("status") == 200 or [part.get("exit") for part in processes[2:]] == [0, 0]
    return text[-bootstrap_runner.TAIL :] if good else text


def _summary(passes: Passes, gpus: list[ollama_devices.Device]) -> str:
    seconds = [bootstrap_runner.number(run.get("seconds")) for run in passes.runs]
    longest = max((value for value in seconds if value is not None), default=None)
    slowest = "" if longest is None else f"; slowest child {longest:.2f} s of 30"
    return f"{ollama_devices.words(gpus)} kept{slowest}" if gpus else f"no GPU kept of {len(passes.devices)} shown"
