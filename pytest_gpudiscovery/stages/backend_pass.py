"""The part of stage 11 that judges the first pass over one GPU directory: interface, devices, memory, time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, Kind, Severity
from pytest_gpudiscovery.stages import identity
from pytest_gpudiscovery.stages.endings import HANG_OUTCOMES, defect, words
from pytest_gpudiscovery.stages.identity import integer, mapping, objects, sequence, string
from pytest_gpudiscovery.stages.spec import found, passed, unknown
from pytest_gpudiscovery.supervise.types import ChildResult, Ending

Facts = Mapping[str, Any]
API_VERSION = 2  # GGML_BACKEND_API_VERSION of Ollama v0.12.4 to v0.24.0, and of llama.cpp in 2026
LAYOUT_OF_ERA = {"B": "ollama", "C": "llama.cpp"}
REFRESH_BUDGET_S = 3.0  # discover/runner.go: before a model is loaded
MEMORY_TOLERANCE = 0.05  # NVML counts what the driver reserves, the CUDA API does not: 0.6 % on an H100
TAIL = 2000
# Which call was open -> cause, for a child that hung and for one that ended
HANGS = (
    ("ggml_backend_init", "backend.init.hang"),
    ("ggml_backend_dev_memory", "backend.memory.hang"),
    ("ggml_backend_dev_get_props", "backend.memory.hang"),
    ("", "backend.hang"),
)
CRASHES = (
    ("ggml_backend_init", "backend.init.crash"),
    ("ggml_backend_dev_memory", "backend.memory.crash"),
    ("ggml_backend_dev_get_props", "backend.memory.crash"),
    ("", "backend.crash"),
)


def judge(
    name: str,
    result: ChildResult | None,
    seen: Facts,
    driver: Facts,
    era: str | None,
    busy: Mapping[int, list[int]],
    limit_s: float,
) -> list[Check]:
    """Return the checks P27, P89, P60 and P30 of directory NAME."""
    subject = f"dir:{name}"
    if result is None or defect(result):
        reason = "not asked: an earlier child hung" if result is None else "the gate's own child failed"
        rows = (("P27", Kind.BLOCKING), ("P89", Kind.BLOCKING), ("P60", Kind.RISK), ("P30", Kind.RISK))
        return [unknown(row, reason, kind, subject=subject) for row, kind in rows]
    gone = ended(result, subject, limit_s)
    if gone:
        return [*gone, _abort(result, seen, subject)]
    interface = _interface(seen, subject)
    if interface is not None:
        return [interface, _abort(result, seen, subject)]
    checks = _devices(seen, result, driver, era, busy, subject)
    observed = {"api_version": mapping(seen.get("registry")).get("api_version"), "score": seen.get("score")}
    checks.append(passed("P27", subject=subject, observed=observed))
    return [*checks, _refresh(result, subject), _abort(result, seen, subject)]


def library(seen: Facts) -> str:
    """Return the path of the backend that was SEEN, for the next command."""
    return string(seen.get("library")) or "libggml-cuda.so"


def ended(result: ChildResult, subject: str, limit_s: float) -> list[Check]:
    """Return the check for a child that hung or ended without an answer; [] for one that answered."""
    if result.ending is Ending.ANSWERED:
        return []
    step = result.open_step.name if result.open_step else "the child's start"
    hung = result.ending in HANG_OUTCOMES
    cause = next(cause for prefix, cause in (HANGS if hung else CRASHES) if step.startswith(prefix))
    facts = {
        "step": step,
        "deadline_s": round(limit_s, 3),
        "blocked_in": result.evidence.get("blocked_in", "unknown"),
        "ending": words(result),
        "said": said(result),
    }
    evidence = {"step": step, "blocked_in": facts["blocked_in"], "stderr": result.stderr[-TAIL:]}
    return [found(cause, facts, subject=subject, evidence=evidence)]


def said(result: ChildResult) -> str:
    """Return the line of the child's stderr that says most: an assertion, an error, else the last of ggml's."""
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    for mark in ("GGML_ASSERT", "CUDA error", "failed to initialize", "ggml_"):
        line = next((line for line in reversed(lines) if mark in line), None)
        if line is not None:
            return line
    return lines[-1] if lines else "nothing"


def _interface(seen: Facts, subject: str) -> Check | None:
    """Judge P27: what stops ggml's loader, or us, before any device is asked."""
    registry = seen.get("registry")
    facts: dict[str, Any] = {"error": seen.get("error"), "expected": API_VERSION, "library": library(seen)}
    if string(seen.get("error")):
        return found("backend.unloadable", facts, subject=subject, expected="loads", observed=seen.get("error"))
    if seen.get("has_init") is not True:
        return found("backend.init.missing", facts, subject=subject, expected="ggml_backend_init", observed=None)
    if seen.get("score") == 0:
        return found("backend.score.zero", facts, subject=subject, expected="> 0", observed=0)
    if registry is None:
        return found("backend.init.null", facts, subject=subject, expected="a registry", observed="NULL")
    version = integer(mapping(registry).get("api_version"))
    if version != API_VERSION:
        facts["version"] = version
        return found("backend.api_version", facts, subject=subject, expected=API_VERSION, observed=version)
    unsound = [device for device in objects(seen.get("devices")) if device.get("sound") is not True]
    if mapping(registry).get("layout") is not True or unsound:
        return found("backend.layout", facts, subject=subject, expected="pointers to code", observed=registry)
    lacks = [str(name) for name in sequence(seen.get("lacks"))]
    if lacks:
        facts["names"] = ", ".join(lacks)
        return found("backend.accessors.missing", facts, subject=subject, observed=lacks)
    return None


def _devices(
    seen: Facts, result: ChildResult, driver: Facts, era: str | None, busy: Mapping[int, list[int]], subject: str
) -> list[Check]:
    """Judge P89: as many devices as the driver has, each with its name and its memory."""
    gpus = {integer(gpu.get("ordinal")): gpu for gpu in objects(driver.get("gpus"))}
    count, devices = integer(seen.get("count")) or 0, objects(seen.get("devices"))
    facts: dict[str, Any] = {"count": count, "expected": len(gpus), "said": said(result), "name": seen.get("name")}
    if count == 0:
        return [found("backend.no_device", facts, subject=subject, expected=len(gpus), observed=0)]
    if count != len(gpus):
        return [found("backend.count_differs", facts, subject=subject, expected=len(gpus), observed=count)]
    checks: list[Check] = []
    for device in devices:
        ordinal = integer(device.get("ordinal"))
        checks += _device(
            device, _same(device, gpus) or mapping(gpus.get(ordinal)), ordinal or 0, era, busy, subject, library(seen)
        )
    if not any(check.prerequisite == "P89" for check in checks):
        observed = [{key: device.get(key) for key in ("name", "description", "memory_total")} for device in devices]
        checks.append(passed("P89", subject=subject, observed=observed))
    return checks


def _same(device: Facts, gpus: Mapping[int | None, Facts]) -> Facts:
    """Return the GPU that DEVICE says it is, {} when it names none: ggml may list them in another order than CUDA."""
    props = mapping(device.get("props"))
    for key, theirs, canonical in (
        ("uuid", props.get("id"), identity.uuid),
        ("pci", props.get("device_id"), identity.pci),
    ):
        mine = canonical(theirs)
        for gpu in gpus.values():
            if mine and canonical(gpu.get(key)) == mine:
                return gpu
    return {}


def _device(
    device: Facts,
    gpu: Facts,
    ordinal: int,
    era: str | None,
    busy: Mapping[int, list[int]],
    subject: str,
    path: str,
) -> list[Check]:
    name, description = str(gpu.get("name")), str(device.get("description"))
    facts: dict[str, Any] = {"ordinal": ordinal, "cuda": name, "ggml": description, "library": path}
    if description != name:
        return [found("backend.device_differs", facts, subject=subject, expected=name, observed=description)]
    if device.get("left_alone") is True:
        pids = ", ".join(str(pid) for pid in busy.get(ordinal, ()))
        return [unknown("P89", f"GPU in use by PID {pids}: its memory was not asked", Kind.RISK, subject=subject)]
    total, expected = integer(device.get("memory_total")) or 0, integer(gpu.get("total_memory")) or 0
    facts |= {"total_gib": total / (1 << 30), "expected_gib": expected / (1 << 30)}
    if total == 0:
        return [found("backend.memory.zero", facts, subject=subject, expected=expected, observed=0)]
    if expected and abs(total - expected) > MEMORY_TOLERANCE * expected:
        return [found("backend.memory.differs", facts, subject=subject, expected=expected, observed=total)]
    return _props(mapping(device.get("props")), gpu, era, facts, subject)


def _props(props: Facts, gpu: Facts, era: str | None, facts: dict[str, Any], subject: str) -> list[Check]:
    """Judge what ggml says of the device beside its memory; its layout is that of one ggml, and Ollama knows one."""
    layout, wanted = props.get("layout"), LAYOUT_OF_ERA.get(era or "")
    if not props:
        return []
    if layout is None or (wanted and layout != wanted):
        facts |= {"layout": layout or "no known layout", "wanted": wanted or "one that is known"}
        # Ollama up to 0.24 follows `id`, which is a number in the other layout: its child crashes, silently.
        severity = Severity.BLOCKER if layout is not None and wanted == LAYOUT_OF_ERA["B"] else None
        return [
            found("backend.props_layout", facts, subject=subject, expected=wanted, observed=layout, severity=severity)
        ]
    cc, known = list(sequence(props.get("cc"))), list(sequence(gpu.get("cc")))
    if cc and known and cc != known:
        facts |= {"cuda": f"compute capability {known}", "ggml": f"compute capability {cc}"}
        return [found("backend.device_differs", facts, subject=subject, expected=known, observed=cc)]
    for key, mine in (("id", gpu.get("uuid")), ("device_id", gpu.get("pci"))):
        theirs, canonical = props.get(key), identity.uuid if key == "id" else identity.pci
        if theirs and mine and canonical(theirs) != canonical(mine):
            facts |= {"cuda": mine, "ggml": theirs}
            return [found("backend.device_differs", facts, subject=subject, expected=mine, observed=theirs)]
    return []


def _refresh(result: ChildResult, subject: str) -> Check:
    """Judge P60: Ollama starts the same child again before it loads a model, and gives it 3 s."""
    seconds = sum(step.duration_s or 0.0 for step in result.steps)
    if seconds > REFRESH_BUDGET_S:
        facts = {"seconds": seconds, "budget": REFRESH_BUDGET_S}
        expected = f"<= {REFRESH_BUDGET_S:g} s"
        return found("backend.refresh_slow", facts, subject=subject, expected=expected, observed=round(seconds, 3))
    return passed("P60", Kind.RISK, subject=subject, reason=f"{seconds * 1000:.0f} ms", observed=round(seconds, 3))


def _abort(result: ChildResult, seen: Facts, subject: str) -> Check:
    """Judge P30: an abort of ggml starts a debugger where there is one, and that may block."""
    gdb = string(seen.get("gdb"))
    if result.ending is not Ending.ANSWERED and gdb is not None:
        return found("backend.abort_debugger", {"gdb": gdb}, subject=subject, observed=gdb)
    return passed("P30", Kind.RISK, subject=subject, observed={"gdb": gdb})


def facts(seen: Facts) -> dict[str, Any]:
    """Return what later stages and the verdict keep of one directory."""
    keys = ("error", "score", "registry", "name", "count", "devices", "libraries")
    return {key: seen[key] for key in keys if key in seen}


def views(seen: Mapping[str, Facts], driver: Facts) -> dict[str, dict[str, Any]]:
    """Return PCI address -> directory -> the device as ggml shows it, for the GPUs side by side."""
    places = {integer(gpu.get("ordinal")): identity.pci(gpu.get("pci")) for gpu in objects(driver.get("gpus"))}
    found_in: dict[str, dict[str, Any]] = {}
    for name, one in seen.items():
        for device in objects(one.get("devices")):
            place = places.get(integer(device.get("ordinal")))
            if place is not None:
                found_in.setdefault(place, {})[name] = dict(device)
    return found_in
