"""The only vocabulary of the gate: steps, findings, checks, stage records and the verdict.

Everything here is frozen and knows nothing of pytest, of processes or of where a fact came from. The JSON form of
these classes is the public `verdict.json` (schema 1, `schema/verdict-1.json`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any

SCHEMA = 1
SUMMARY_LIMIT = 80  # node-problem-detector cuts its message there (config/custom-plugin-monitor.json)

Json = Any  # a value that json.dumps accepts; spelled out where a function relies on its shape


class Outcome(str, Enum):
    """How a stage ended. Only PASSED and WARNED are answers that let the next stage run."""

    PASSED = "passed"
    WARNED = "warned"
    FAILED = "failed"
    TIMED_OUT = "timed_out"  # the probe was still running at its deadline and died on SIGKILL
    CRASHED = "crashed"  # the probe was ended by a signal of its own making, or called exit() in a library
    UNKILLABLE = "unkillable"  # the probe outlived SIGKILL and was abandoned
    NOT_REACHED = "not_reached"  # a prerequisite stage did not pass
    NOT_APPLICABLE = "not_applicable"
    NOT_SELECTED = "not_selected"
    INTERRUPTED = "interrupted"  # the run was stopped while this stage ran
    PROBE_ERROR = "probe_error"  # our own defect, or an answer that cannot be read: never a green

    @property
    def lets_others_run(self) -> bool:
        """Whether stages that come after this one may run."""
        return self in (Outcome.PASSED, Outcome.WARNED, Outcome.NOT_APPLICABLE)

    @property
    def blocks(self) -> bool:
        """Whether a required stage with this outcome makes the verdict `blocked`."""
        return self in (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.CRASHED, Outcome.UNKILLABLE)


class CheckOutcome(str, Enum):
    """What one prerequisite row says on this host."""

    PASSED = "passed"
    WARNED = "warned"
    FAILED = "failed"
    UNKNOWN = "unknown"  # not allowed or not able to look; never the same as not applicable
    NOT_APPLICABLE = "not_applicable"


class Kind(str, Enum):
    """What a prerequisite may do to the verdict: only BLOCKING rows can block."""

    BLOCKING = "blocking"
    RISK = "risk"
    OBSERVABILITY = "observability"


class Severity(str, Enum):
    """How much a finding matters to discovery."""

    BLOCKER = "blocker"
    WARNING = "warning"
    NOTE = "note"


class Action(str, Enum):
    """What the next command may do to the host."""

    SAFE = "safe"  # reads only
    CAUTION = "caution"  # changes something that can be changed back
    DESTRUCTIVE = "destructive"  # ends work that runs on the GPU, or loses data


class State(str, Enum):
    """The verdict on the host."""

    READY = "ready"
    DEGRADED = "degraded"
    BLOCKED = "blocked"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class Step:
    """One timed call inside a probe. `duration_s` is None while the step was open when the probe ended."""

    name: str
    started: float  # seconds after the probe was spawned
    duration_s: float | None
    result: Json = None


@dataclass(frozen=True)
class Finding:
    """One entry of the catalogue of causes, filled in for this host. Stages never write free text."""

    cause: str  # catalogue id, e.g. "driver.cuinit.hang"
    severity: Severity
    summary: str  # at most SUMMARY_LIMIT characters
    detail: str
    evidence: Json
    next: str
    action: Action
    confidence: float  # 0..1


@dataclass(frozen=True)
class Check:
    """One prerequisite row, for one subject, as it was found; also when it passed."""

    prerequisite: str  # Pnn
    kind: Kind
    subject: str  # host | dir:cuda_v12 | gpu:0000:00:06.0 | candidate
    outcome: CheckOutcome
    reason: str = ""
    expected: Json = None
    observed: Json = None
    finding: Finding | None = None


@dataclass(frozen=True)
class StageRecord:
    """What running one stage for one subject gave."""

    name: str
    subject: str
    required: bool
    outcome: Outcome
    summary: str
    started: float  # Unix time
    duration_s: float
    deadline_s: float
    ollama_budget_s: float | None = None
    blocked_by: str | None = None  # the root blocker (a stage name), not the direct parent
    steps: tuple[Step, ...] = ()
    checks: tuple[Check, ...] = ()
    facts: Json = None  # observations that later stages and reports read; not judged
    evidence: Json = None  # what was seen of a child that hung, crashed or gave no answer

    @property
    def findings(self) -> tuple[tuple[Check, Finding], ...]:
        """The checks that carry a finding, with it."""
        return tuple((check, check.finding) for check in self.checks if check.finding is not None)


@dataclass(frozen=True)
class Blocker:
    """One independent reason why the host is not ready; the first one is primary."""

    stage: str
    subject: str
    outcome: Outcome
    cause: str
    summary: str
    explains: tuple[str, ...] = ()  # stages not reached because of it
    consequences: tuple[str, ...] = ()  # causes found elsewhere that this one explains
    confidence: float | None = None  # 0..1; None in a verdict of an older version
    surer: str = ""  # one sentence: what would raise the confidence; "" from 0.9 on


@dataclass(frozen=True)
class Verdict:
    """The whole run. Reports are functions of this and of nothing else."""

    schema: int
    tool: Json
    started: str  # ISO 8601, UTC
    duration_s: float
    simulated: Json  # None, or {host, faults}
    selection: Json
    host: Json
    versions: Json
    context: Json
    profile: Json
    verdict: State
    blockers: tuple[Blocker, ...]
    gpus: tuple[Json, ...]
    closures: tuple[Json, ...]
    fatbins: tuple[Json, ...]
    comparison: Json
    stages: tuple[StageRecord, ...]
    notes: tuple[str, ...] = ()  # what could not be adopted, imported or read; said once


_PLAIN = frozenset((str, int, float, bool, type(None)))


_fields: dict[type, tuple[str, ...] | None] = {}


def _names(kind: type) -> tuple[str, ...] | None:
    """Return the names of the fields of KIND, None when it is no dataclass; asked some 25,000 times in a run."""
    if kind not in _fields:
        _fields[kind] = tuple(f.name for f in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None
    return _fields[kind]


def to_json(value: Any) -> Json:
    """Return VALUE (a class of this module, or a container of them) as plain JSON types."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:
        return {str(key): item if type(item) in _PLAIN else to_json(item) for key, item in value.items()}
    names = _names(kind)
    if names is not None:
        return {name: to_json(getattr(value, name)) for name in names}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    return value


def verdict_from_json(data: dict[str, Any]) -> Verdict:
    """Return the Verdict that `to_json` wrote; raises KeyError, TypeError or ValueError on anything else."""
    return Verdict(
        **{
            **data,
            "verdict": State(data["verdict"]),
            "blockers": tuple(
                Blocker(
                    **{
                        **blocker,
                        "outcome": Outcome(blocker["outcome"]),
                        "explains": tuple(blocker["explains"]),
                        "consequences": tuple(blocker["consequences"]),
                    }
                )
                for blocker in data["blockers"]
            ),
            "gpus": tuple(data["gpus"]),
            "closures": tuple(data["closures"]),
            "fatbins": tuple(data["fatbins"]),
            "stages": tuple(record_from_json(record) for record in data["stages"]),
            "notes": tuple(data["notes"]),
        }
    )


def record_from_json(data: dict[str, Any]) -> StageRecord:
    """Return the StageRecord that `to_json` wrote; raises KeyError, TypeError or ValueError on anything else."""
    return StageRecord(
        **{
            **data,
            "outcome": Outcome(data["outcome"]),
            "steps": tuple(Step(**step) for step in data["steps"]),
            "checks": tuple(_check_from_json(check) for check in data["checks"]),
        }
    )


def _check_from_json(data: dict[str, Any]) -> Check:
    finding = data["finding"]
    return Check(
        **{
            **data,
            "kind": Kind(data["kind"]),
            "outcome": CheckOutcome(data["outcome"]),
            "finding": None
            if finding is None
            else Finding(**{**finding, "severity": Severity(finding["severity"]), "action": Action(finding["action"])}),
        }
    )
