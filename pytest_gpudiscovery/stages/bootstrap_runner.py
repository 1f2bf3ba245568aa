"""The part of stage 12 that judges one runner of era B: how it ended, what it answered, how long that took. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_gpudiscovery.model import Check, Kind
from pytest_gpudiscovery.stages import bootstrap_hang
from pytest_gpudiscovery.stages.endings import defect
from pytest_gpudiscovery.stages.identity import integer, mapping, string
from pytest_gpudiscovery.stages.spec import found, passed, unknown
from pytest_gpudiscovery.supervise.types import ChildResult, Ending

Facts = Mapping[str, Any]
REFRESH_S = 3.0  # v0.16.3:discover/runner.go:306, 332: the same child again before a model is loaded
RISK = 0.5  # of the budget: an answer that takes longer is near the edge
TAIL = 2_000  # characters of output that a finding carries
SIGKILL = 9
LISTEN, FAULT, LOADER = 1, 2, 127
# What says most in the output of a child that ended, best first.
TELLING = (
    "GGML_ASSERT",
    "CUDA error",
    "SIGSEGV",
    "SIGABRT",
    "SIGBUS",
    "SIGILL",
    "panic:",
    "fatal error:",
    "Inconsistency detected",
    "symbol lookup error",
    "error while loading shared libraries",
    "Listen error",
    "failed to initialize CUDA",
    "failed to load",
    "rror",
)
STAMP = re.compile(r"^(?:time=\S+ level=\S+ source=\S+ msg=|\d+\.\d+\.\d+\.\d+ [A-Z] +)")


def ending(result: ChildResult | None, run: Facts) -> str | None:
    """Return why there is nothing to judge of RUN: no child was started, or the gate itself failed."""
    if result is None:
        return "not started: an earlier child hung"
    if defect(result):
        return "the gate's own child failed"
    if result.ending is Ending.ANSWERED and not run:
        return "the answer lacks the child"
    return None


def judge(subject: str, run: Facts, binary: str, preloaded: Sequence[str], budget_s: float) -> list[Check]:
    """Return the checks P90 and P94 of the child in RUN (probes/runner.py); SUBJECT is its directory or device."""
    bad = failed(run, binary, preloaded, budget_s)
    if bad is not None:
        cause, facts = bad
        facts = {"said": said(run), "subject": subject.partition(":")[2], "budget_s": budget_s, **facts}
        evidence = {"output": text(run)[-TAIL:], "argv": run.get("argv"), **bootstrap_hang.shown(run, facts)}
        return [found(cause, facts, subject=subject, evidence=evidence, observed=facts.get("observed"))]
    return [passed("P90", subject=subject, observed={"port": run.get("port")}), time_of(run, budget_s, subject)]


def failed(run: Facts, binary: str, preloaded: Sequence[str], budget_s: float) -> tuple[str, dict[str, Any]] | None:
    """Return (cause, facts) where RUN gave no list of devices, None where it did."""
    if run.get("problem"):
        return "bootstrap.spawn", {"errno": run["problem"], "binary": binary, "observed": run["problem"]}
    reason, status = run.get("reason"), integer(run.get("status"))
    if reason == "caught":
        return caught(run)
    if reason == "timeout" and integer(run.get("garbage")):
        return "bootstrap.garbage", {"body": short(run.get("body")), "observed": short(run.get("body"))}
    if reason == "timeout":
        name, facts = bootstrap_hang.cause(run, binary, preloaded)
        return f"bootstrap.hang.{name}", {"limit_s": number(run.get("limit_s")) or budget_s, **facts}
    if reason == "stranger":
        return "bootstrap.hang.port", {"port": run.get("port"), "blocked_in": "the child had ended"}
    if reason == "exited":
        return exited(run, preloaded)
    if status == 404:
        return "bootstrap.http.not_found", {"port": run.get("port"), "observed": "HTTP 404"}
    if status is not None and status != 200:
        return "bootstrap.http.error", {"status": status, "body": short(run.get("body")), "observed": f"HTTP {status}"}
    if not isinstance(run.get("devices"), list):
        return "bootstrap.no_answer", {"observed": status}
    seconds = number(run.get("seconds")) or 0.0
    if seconds > budget_s:
        return "bootstrap.too_slow", {"seconds": seconds, "observed": seconds}
    return None


def caught(run: Facts) -> tuple[str, dict[str, Any]]:
    """Return (cause, facts) where the process that starts and asks the child did not come back itself."""
    step = str(run.get("step"))
    verb = step.rpartition(": ")[2].partition(" ")[0]  # "cuda_v12 GPU-...: resolve localhost"
    where = {"resolve": "resolve", "start": "exec"}.get(verb)
    facts = {"step": step, "blocked_in": run.get("blocked_in"), "limit_s": number(run.get("limit_s")) or 0.0}
    return f"bootstrap.hang.{where or 'asker'}", {**facts, "exe": step.partition("start ")[2].split(" ")[0]}


def exited(run: Facts, preloaded: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """Return (cause, facts) of a child that ended before it answered; PRELOADED: base names."""
    code = integer(run.get("exit"))
    output = text(run)
    facts: dict[str, Any] = {"code": code, "observed": f"exit status {code}"}
    if code is not None and code < 0:
        named = f" ({', '.join(preloaded)})" if preloaded else ""
        facts |= {"signal": -code, "observed": f"signal {-code}", "preloaded": named}
        return ("bootstrap.exit.killed" if -code == SIGKILL else "bootstrap.exit.signal"), facts
    if preloaded and code is not None and code >= 0 and not output.strip():
        # Ollama says something before each end of its own: what came before its main took the word from it.
        return "bootstrap.exit.preload", {**facts, "object": ", ".join(preloaded)}
    if code == LISTEN and "Listen error" in output:
        return "bootstrap.exit.listen", facts
    if code == FAULT:
        return "bootstrap.exit.fault", facts
    if code == LOADER:
        return "bootstrap.exit.loader", facts
    return "bootstrap.exit.other", facts


def time_of(run: Facts, budget_s: float, subject: str) -> Check:
    """Judge P94: what is left of Ollama's own limit, and of the 3 s that a refresh has."""
    seconds = number(run.get("seconds"))
    if seconds is None:
        return unknown("P94", "the child was not timed", Kind.RISK, subject=subject)
    facts: dict[str, Any] = {"seconds": seconds, "budget_s": budget_s, "left": budget_s - seconds}
    facts["refresh_s"] = REFRESH_S
    facts["subject"] = subject.partition(":")[2]
    expected = f"<= {budget_s:g} s"
    if seconds > RISK * budget_s:
        return found("bootstrap.at_risk", facts, subject=subject, expected=expected, observed=seconds)
    if seconds > REFRESH_S:
        return found("bootstrap.refresh_slow", facts, subject=subject, expected=f"<= {REFRESH_S:g} s", observed=seconds)
    return passed("P94", Kind.RISK, subject=subject, reason=f"{seconds:.2f} s of {budget_s:g} s", observed=seconds)


def text(run: Facts) -> str:
    """Return what the child printed, as far as it was kept."""
    return string(mapping(run.get("output")).get("text")) or ""


def said(run: Facts) -> str:
    """Return the line of the child's output that says most, "nothing" for none."""
    lines = [STAMP.sub("", line.strip()) for line in text(run).splitlines() if line.strip()]
    for mark in TELLING:
        line = next((line for line in lines if mark in line), None)
        if line is not None:
            return line[:300]
    return lines[-1][:300] if lines else "nothing"


def short(body: Any) -> str:
    """Return the beginning of an answer's BODY in one line."""
    return " ".join((string(body) or "nothing").split())[:200]


def number(value: Any) -> float | None:
    """Return VALUE when it is a finite number."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
    return float(value) if good else None
