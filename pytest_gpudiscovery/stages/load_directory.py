"""The part of stage 10 that judges one GPU directory: how its child ended, and whether ld.so did what was predicted."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.loader.lddebug import CONSTRUCTOR, MAPPING, OPENING, RELOCATING, last_stop, without_account
from pytest_gpudiscovery.model import Check, Kind
from pytest_gpudiscovery.stages.endings import HANG_OUTCOMES, LOADER_ABORTS, defect, refused, words
from pytest_gpudiscovery.stages.identity import integer, mapping, objects, sequence, string
from pytest_gpudiscovery.stages.spec import found, passed, unknown
from pytest_gpudiscovery.supervise.types import ChildResult, Ending

Facts = Mapping[str, Any]
BUDGET_S = 30.0  # Ollama's limit on one discovery child
SLOW_S = 10.0  # a dlopen that takes a third of it leaves little for the rest
STOPS = {
    CONSTRUCTOR: "load.constructor.hang",
    OPENING: "load.file.hang",
    MAPPING: "load.file.hang",
    RELOCATING: "load.relocation.hang",
}
SIGNALS = {7: "load.sigbus"}  # SIGBUS: a page of a mapped file could not be read
LOADER_SAYS = "ld.so"  # "Inconsistency detected by ld.so: …"; a constructor may call exit(127) as well
TAIL = 2000  # characters of stderr that a finding carries


def judge(name: str, result: ChildResult | None, seen: Facts, child: Facts, limit_s: float) -> list[Check]:
    """Return the checks P88 and P28 of directory NAME; CHILD is stage 09's prediction for Ollama's own process."""
    subject = f"dir:{name}"
    if result is None or defect(result):
        reason = "no child was started for this directory" if result is None else "the gate's own child failed"
        return [unknown("P88", reason, subject=subject), unknown("P28", reason, Kind.RISK, subject=subject)]
    load = mapping(seen.get("load"))
    checks = ended(result, subject, limit_s)
    if not checks and string(load.get("error")):
        checks = [_refused(load, seen, subject)]
    if not checks and not load:
        return [unknown("P88", "the answer lacks the dlopen", subject=subject)]
    if not checks:
        checks = [passed("P88", subject=subject, observed={"seconds": load.get("seconds")})]
        checks += _compared(load, seen, child, subject)
    return [*checks, *_storage(seen, load, child, subject)]


def ended(result: ChildResult, subject: str, limit_s: float) -> list[Check]:
    """Return the check for a child that hung, crashed or gave no answer; [] for one that answered."""
    if result.ending is Ending.ANSWERED:
        return []
    stop = last_stop(result.stderr)
    step = result.open_step.name if result.open_step else "the child's start"
    path = stop.path if stop else "?"
    facts = {
        "step": step,
        "short": posixpath.basename(step),
        "path": path,
        "file": posixpath.basename(path),
        "deadline_s": round(limit_s, 3),
        "blocked_in": result.evidence.get("blocked_in", "unknown"),
        "ending": words(result),
        "said": without_account(result.stderr).strip().rpartition("\n")[2] or "nothing",
    }
    evidence = {
        "step": step,
        "loader": stop and {"doing": stop.doing, "path": stop.path},
        "blocked_in": facts["blocked_in"],
        "stderr": without_account(result.stderr)[-TAIL:],
    }
    return [found(_cause(result, stop.doing if stop else ""), facts, subject=subject, evidence=evidence)]


def _cause(result: ChildResult, doing: str) -> str:
    step = result.open_step.name if result.open_step else ""
    if result.ending in HANG_OUTCOMES:
        if step.startswith("dlopen "):
            return STOPS.get(doing, "load.hang")
        return "load.hang"
    if result.ending is Ending.NO_ANSWER:
        return "load.exits"
    if refused(result):
        return "load.start_refused"
    if result.ending is Ending.EXITED:
        ours = result.exit_code == LOADER_ABORTS and LOADER_SAYS in without_account(result.stderr)
        return "load.loader_aborts" if ours else "load.exits"
    return SIGNALS.get(result.signal or 0, "load.crash")


def _refused(load: Facts, seen: Facts, subject: str) -> Check:
    error = str(load.get("error"))
    predicted = mapping(seen.get("predicted"))
    facts = {"error": error, "short": _short(error), "predicted": predicted.get("message") or predicted.get("outcome")}
    return found("load.refused", facts, subject=subject, expected="loads", observed=error)


def _short(error: str) -> str:
    """Return ERROR without the directories of the files it names: a summary has 80 characters."""
    return " ".join(posixpath.basename(word) if word.startswith("/") else word for word in error.split(" "))


def _compared(load: Facts, seen: Facts, child: Facts, subject: str) -> list[Check]:
    """Compare with the prediction made in this process, and ld.so's trace with the one for Ollama's own program."""
    checks = []
    differences = [str(item) for item in sequence(load.get("differences"))]
    if load.get("agrees") is False and differences:
        facts = {"first": differences[0], "count": len(differences), "library": _library(child)}
        checks.append(found("load.differs", facts, subject=subject, observed=differences))
    trace = mapping(seen.get("trace"))
    files = {str(name): str(path) for name, path in mapping(trace.get("files")).items()}
    if not files or not child:
        return checks
    predicted = {str(item.get("name")): item.get("path") for item in objects(child.get("names"))}
    other = {name: (path, predicted[name]) for name, path in files.items() if predicted.get(name, path) != path}
    gone = [name for name in sequence(trace.get("missing")) if predicted.get(str(name))]
    unbound = [str(text) for text in sequence(trace.get("messages")) if "undefined symbol" in str(text)]
    if other or gone or unbound:
        words_of = [f"{name}: {path}, predicted {expected}" for name, (path, expected) in other.items()]
        words_of += [f"{name}: not found, predicted {predicted[str(name)]}" for name in gone] + unbound
        facts = {"first": words_of[0], "count": len(words_of), "program": child.get("exe")}
        checks.append(found("load.child_differs", facts, subject=subject, observed=words_of))
    return checks


def _library(child: Facts) -> str:
    """Return the path of the backend, for the next command."""
    return string(child.get("library")) or "libggml-cuda.so"


def _storage(seen: Facts, load: Facts, child: Facts, subject: str) -> list[Check]:
    """Judge P28: how long it took, and how long it would take with nothing in the page cache."""
    seconds = load.get("seconds")
    storage = mapping(seen.get("storage"))
    estimate = cold_seconds(storage)
    took = seconds if isinstance(seconds, (int, float)) and load.get("error") is None else None
    observed = {"seconds": took, "cold_s": estimate, **{key: storage.get(key) for key in ("bytes", "cached")}}
    if took is None:
        return [unknown("P28", "nothing was loaded, so nothing was timed", Kind.RISK, subject=subject)]
    facts: dict[str, Any] = {"seconds": took, "cold_s": estimate or 0.0, "library": _library(child)}
    facts["megabytes"] = (integer(storage.get("cold_bytes")) or 0) / 1e6
    if took > SLOW_S:
        return [found("load.slow", facts, subject=subject, expected=f"<= {SLOW_S:g} s", observed=observed)]
    if estimate is not None and took + estimate > SLOW_S:
        return [found("load.slow_cold", facts, subject=subject, expected=f"<= {SLOW_S:g} s", observed=observed)]
    cold = "unknown" if estimate is None else f"{took + estimate:.1f} s"
    return [passed("P28", Kind.RISK, subject=subject, reason=f"{took * 1000:.0f} ms, cold {cold}", observed=observed)]


def cold_seconds(storage: Facts) -> float | None:
    """Return the seconds that STORAGE would need for what the loader reads, None where it could not be measured."""
    delivery, wanted = mapping(storage.get("delivery")), integer(storage.get("cold_bytes"))
    got, seconds = integer(delivery.get("bytes")), delivery.get("seconds")
    if not got or wanted is None or not isinstance(seconds, (int, float)) or seconds <= 0:
        return None
    return wanted / (got / seconds)
