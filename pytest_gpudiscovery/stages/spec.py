"""What a stage is: its place in the graph, the probes it runs, and a pure judgement over what they saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.model import Check, CheckOutcome, Kind, Outcome, Severity, StageRecord
from pytest_gpudiscovery.supervise.types import ChildResult, Probe, Setup


@dataclass(frozen=True)
class RunContext:
    """What every stage may rely on. Plain data: it travels between pytest-xdist workers as JSON."""

    env: Mapping[str, str]  # the environment that probes get: that of the service that is adopted
    cwd: str
    setup: Setup  # identity, /dev and privileges of probes
    view: Mapping[str, Any]  # {"kind": "live"} or {"kind": "recorded", "path": FILE}: see probes/host.py
    profile: Mapping[str, Any]  # what this host must be (profiles/)
    simulated: Mapping[str, Any] | None = None  # for the reports only: no stage may branch on it
    ollama_path: str | None = None  # what --gpu-ollama names; an archive is unpacked by then
    candidate_path: str | None = None  # the Ollama that is about to be installed (--gpu-ollama-candidate)
    hints: tuple[tuple[str, str], ...] = ()  # (source, path) of binaries that the adopted service names
    allow_busy: bool = False
    trace: bool = False  # --gpu-trace: a timeline of what Ollama's children open and touch
    experiment: str | None = None  # --gpu-experiment: "preload"
    scale: float = 1.0  # factor on every deadline
    deadlines: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds, from the command line
    run_dir: str = ""  # private directory of this run
    target: str = ""  # the stage that --gpu-until names, or the last one
    run_until: float | None = None  # Unix time after which no further stage begins (--gpu-deadline)
    notes: tuple[str, ...] = ()  # what could not be adopted or read while this context was built
    adopted: Mapping[str, Any] = field(default_factory=dict)  # the verdict's `context` object
    host: Mapping[str, Any] = field(default_factory=dict)  # the verdict's `host` object
    unspoken: Mapping[str, str] = field(default_factory=dict)  # stage -> what of the service its probes did not have
    unasked: Mapping[str, str] = field(default_factory=dict)  # stage -> why its probes cannot be run for this service
    service: Mapping[str, Any] = field(default_factory=dict)  # sandbox and state of the adopted service (service/)
    caller_env: Mapping[str, str] = field(default_factory=dict)  # what of the caller's own may be compared with it
    named: tuple[str, ...] = ()  # the options by which the caller named Ollama and the service, for next commands
    not_adopted: str = ""  # a service was found and probes cannot run as it: then nothing here speaks for it


@dataclass(frozen=True)
class StageInput:
    """What a judgement sees. `results` are in the order of the plan; `prior` holds the records of earlier stages."""

    context: RunContext
    results: Mapping[str, ChildResult]
    prior: Mapping[str, StageRecord]
    deadline_s: float

    def observed(self, name: str) -> Mapping[str, Any]:
        """Return what probe NAME observed, together with its answer if that is an object; {} when it never ran."""
        result = self.results.get(name)
        if result is None:
            return {}
        answer = result.answer if isinstance(result.answer, dict) else {}
        return {**result.observed, **answer}

    def facts(self, stage: str) -> Mapping[str, Any]:
        """Return the facts that an earlier stage left, {} when it has none."""
        record = self.prior.get(stage)
        facts = record.facts if record is not None else None
        return facts if isinstance(facts, dict) else {}


@dataclass(frozen=True)
class Judgement:
    """Checks and what the record keeps of a stage."""

    checks: tuple[Check, ...]
    summary: str  # one short line for a stage that passed: what was seen, with numbers
    facts: Any = None
    applicable: bool = True
    outcome: Outcome | None = None  # how optional probes ended, where that decides (a hang); None: the checks decide
    stuck: bool | None = None  # whether the driver must be left alone from now on; None: when any probe hung


MOST_TURNS = 8  # GPU directories of one install; more of them share the time of eight

# Probes run one after another and a later one may depend on what an earlier one saw, so a plan is a function of the
# results so far that returns the next probe with its name, or None when the stage has what it needs.
Plan = Callable[[RunContext, Mapping[str, StageRecord], Mapping[str, ChildResult]], "tuple[str, Probe] | None"]
Judge = Callable[[StageInput], Judgement]


@dataclass(frozen=True)
class StageSpec:
    """One row of the table in docs/architecture.md."""

    number: int
    name: str
    title: str
    after: tuple[str, ...]
    deadline_s: float
    rows: tuple[str, ...]  # prerequisites.tsv ids that are judged here
    plan: Plan
    judge: Judge
    touches_driver: bool = False  # False: runs also after a driver call hung
    soft_after: tuple[str, ...] = ()  # run before this one when required, but no gate (evidence only)
    ollama_budget_s: float | None = None
    hang_causes: Mapping[str, str] = field(default_factory=dict)  # prefix of the open step -> cause id; "" is the rest
    crash_causes: Mapping[str, str] = field(default_factory=dict)  # likewise, for a child that a signal or exit() ended
    optional: frozenset[str] = frozenset()  # probes whose ending the judgement handles itself (second witnesses)
    # How many times `deadline_s` the stage may take: one for each GPU directory, for the stages that take them in turn.
    turns: Callable[[RunContext, Mapping[str, StageRecord]], int] | None = None


def deadline_for(context: RunContext, name: str, default_s: float) -> float:
    """Return the deadline of stage NAME in seconds: the command line's, else DEFAULT_S times the scale."""
    return context.deadlines.get(name, default_s * context.scale)


def lying_here(path: str) -> list[str]:
    """Return what of the Ollama that the caller names by PATH lies on this machine, beside a simulated host."""
    binary = "/bin/ollama"
    return [path, f"{path.removesuffix(binary)}/lib/ollama"] if path.endswith(binary) else [path]


def deadline_of(context: RunContext, spec: StageSpec, prior: Mapping[str, StageRecord]) -> float:
    """Return the deadline of the whole of stage SPEC in seconds, knowing what PRIOR stages found."""
    one = deadline_for(context, spec.name, spec.deadline_s)
    return one if spec.turns is None else one * min(max(1, spec.turns(context, prior)), MOST_TURNS)


def longest_of(context: RunContext, spec: StageSpec) -> float:
    """Return the longest that `deadline_of` can say before anything is known."""
    return deadline_for(context, spec.name, spec.deadline_s) * (1 if spec.turns is None else MOST_TURNS)


def passed(
    row: str, kind: Kind = Kind.BLOCKING, *, subject: str = "host", reason: str = "", observed: Any = None
) -> Check:
    """Return a check that passed."""
    return Check(row, kind, subject, CheckOutcome.PASSED, reason, observed=observed)


def unknown(row: str, reason: str, kind: Kind = Kind.BLOCKING, *, subject: str = "host", observed: Any = None) -> Check:
    """Return a check that could not be made: not allowed to look, or nothing there to ask."""
    return Check(row, kind, subject, CheckOutcome.UNKNOWN, reason, observed=observed)


def not_applicable(row: str, reason: str, kind: Kind = Kind.BLOCKING, *, subject: str = "host") -> Check:
    """Return a check that has no meaning on this host."""
    return Check(row, kind, subject, CheckOutcome.NOT_APPLICABLE, reason)


def found(
    cause_id: str,
    facts: Mapping[str, Any] | None = None,
    *,
    subject: str = "host",
    expected: Any = None,
    observed: Any = None,
    evidence: Any = None,
    severity: Severity | None = None,
    confidence: float | None = None,
) -> Check:
    """Return the check of the row that CAUSE_ID belongs to, failed or warned as the catalogue (or SEVERITY) says."""
    cause = catalogue.causes()[cause_id]
    entry = catalogue.finding(cause_id, facts, evidence=evidence, severity=severity, confidence=confidence)
    kind = cause.kind
    outcome = {
        Severity.BLOCKER: CheckOutcome.FAILED if kind is Kind.BLOCKING else CheckOutcome.WARNED,
        Severity.WARNING: CheckOutcome.WARNED,
        Severity.NOTE: CheckOutcome.PASSED,
    }[entry.severity]
    return Check(cause.prerequisite, kind, subject, outcome, entry.summary, expected, observed, entry)
