"""How a stage, a failure and the verdict are said. The same words go to the terminal, JUnit, HTML and annotations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_gpudiscovery.diagnosis.ollama_says import of as of_cause
from pytest_gpudiscovery.model import Check, CheckOutcome, Finding, Kind, Outcome, StageRecord, State, Step, Verdict
from pytest_gpudiscovery.reports.html_text import visible
from pytest_gpudiscovery.reports.html_values import clip, inline

INDENT = "   "
# What Ollama logs when its 30 s are over, by era: v0.20.0:ml/device.go:629, v0.32.15:discover/runner.go:522.
OLLAMA_GIVES_UP = {"C": '"context deadline exceeded"'}
GIVES_UP = '"failed to finish discovery before timeout"'
WAITS = "A"  # the era without a time limit (v0.12.3:discover/gpu.go)
NOT_OLLAMA = "gate"  # family of causes that lie in the gate's own look
HUNG = (Outcome.TIMED_OUT, Outcome.UNKILLABLE)
GAVE_UP = "timeout"  # result of a step that asked a program for an answer until its time was up
VALUE_LIMIT = 160  # characters of an observed or expected value in the block; verdict.json has all of it
LINE_LIMIT = 4_000  # characters of one line of ours, whatever a log or a path holds


def label(number: int, name: str) -> str:
    """Return "06 driver"."""
    return f"{number:02d} {name}"


def words(outcome: Outcome) -> str:
    """Return OUTCOME as a person reads it: "timed out"."""
    return outcome.value.replace("_", " ")


def failure_block(
    record: StageRecord, numbers: Mapping[str, int], explains: Sequence[str] = (), verdict: Verdict | None = None
) -> str:
    """Return the block that says what failed, where, what it explains and what to do next.

    NUMBERS gives each stage's number; EXPLAINS names the stages that are not reached because of this one. Where
    VERDICT has the cause of it in a mere warning, that cause and its next command are said: it has no block of its own.
    """
    check, finding = worst(record)
    hung = record.outcome in HUNG
    root = warned_cause(record, verdict)
    todo = root[1] if root and root[1].next else finding
    rows = [
        ("cause", f"{label(numbers.get(root[0], 0), root[0])}: {root[1].summary}. {root[1].detail}" if root else ""),
        ("about", about(check, record.summary) if check else ""),
        ("blocked in", _blocked_in(record, finding)),
        ("so far", activity(record, finding)),
        ("goroutine", _goroutine(finding)),
        ("GPU users", _users(record, finding) if hung else ""),
        ("kernel log", _kernel_log(record, finding) if hung else ""),
        ("last step", _last_step(record)),
        ("expected", _value(expected(check, record.summary)) if check and not hung else ""),
        ("seen", _value(seen(check, record.summary)) if check and not hung else ""),
        ("because", finding.detail if finding and (not hung or open_step(record) is None) else ""),
        ("also", "; ".join(named(other, said) for other, said in _failed(record) if said is not finding)),
        ("explains", _explains(explains, numbers)),
        ("Ollama", ollama_says(record, finding, era(verdict))),
        ("next", f"{todo.next}   ({todo.action.value})" if todo and todo.next else ""),
    ]
    lines = [f"{label(numbers.get(record.name, 0), record.name)}: {one_line(record.summary)}"]
    lines += [f"{INDENT}{name:<10}: {one_line(text)}" for name, text in rows if text]
    return "\n".join(lines)


def warned_cause(record: StageRecord, verdict: Verdict | None) -> tuple[str, Finding] | None:
    """Return (stage, finding) of what VERDICT calls the cause of RECORD's end, where that is a mere warning."""
    first = next((one for one in verdict.blockers if one.stage == record.name), None) if verdict else None
    if verdict is None or first is None or any(finding.cause == first.cause for _, finding in _failed(record)):
        return None
    return next(
        (
            (other.name, finding)
            for other in verdict.stages
            for check, finding in other.findings
            if finding.cause == first.cause and check.outcome is CheckOutcome.WARNED
        ),
        None,
    )


def about(check: Check, said: str) -> str:
    """Return the GPU directory or the GPU that CHECK is about, "" where SAID names it or it is about the host."""
    kind, found, name = check.subject.partition(":")
    return one_line(name) if found and kind in ("dir", "gpu") and name not in said else ""


def named(check: Check, finding: Finding) -> str:
    """Return what was found, after the GPU directory or the GPU that it is about."""
    where = about(check, finding.summary)
    return f"{where}: {finding.summary}" if where else finding.summary


def seen(check: Check, said: str) -> Any:
    """Return what CHECK saw, "nothing" for what is empty, None where that is what was SAID already."""
    if check.observed in ([], (), {}):
        return "nothing"
    return None if check.observed == said else check.observed


def expected(check: Check, said: str) -> Any:
    """Return what CHECK expected, None where what it saw is the whole of what was SAID: "loads" would add nothing."""
    return None if check.observed == said else check.expected


def one_line(text: str) -> str:
    """Return TEXT without line breaks and control characters, cut: it may come from a log, and goes to terminals."""
    return visible(re.sub(r"[\r\n\t\v\f]+", " ", clip(text, LINE_LIMIT)))


def worst(record: StageRecord) -> tuple[Check | None, Finding | None]:
    """Return the check and finding that stand for what is wrong with RECORD: the one its summary is from."""
    failed = _failed(record)
    for check, finding in (*failed, *record.findings):
        if finding.summary == record.summary:
            return check, finding
    return failed[0] if failed else (None, None)


def _failed(record: StageRecord) -> list[tuple[Check, Finding]]:
    return [
        (check, finding)
        for check, finding in record.findings
        if check.outcome is CheckOutcome.FAILED and check.kind is Kind.BLOCKING
    ]


def _blocked_in(record: StageRecord, finding: Finding | None) -> str:
    said = (place(one) for one in _places(record, finding))
    return _value(next((text for text in said if text and text != "unknown"), None))


def activity(record: StageRecord, finding: Finding | None) -> str:
    """Return what the child did when its time ran out: "hung: no progress for at least 33.8 s (...)"."""
    seen = (place.get("activity") for place in _places(record, finding))
    said = (one.get("words") for one in seen if isinstance(one, dict))
    return _value(next((text for text in said if isinstance(text, str)), None))


def _places(record: StageRecord, finding: Finding | None) -> Iterator[dict[str, Any]]:
    """Yield where a look at a hung child may have left something: its finding, then each probe's evidence."""
    found: list[Any] = [finding.evidence] if finding is not None else []
    found += record.evidence.values() if isinstance(record.evidence, dict) else []
    for place in found:
        if isinstance(place, dict):
            yield place
            if isinstance(place.get("forensics"), dict):  # what probes/forensics.py saw of one of ours
                yield place["forensics"]


def _kernel_log(record: StageRecord, finding: Finding | None) -> str:
    """Return the last line of the kernel log around the hang."""
    for place in _places(record, finding):
        seen = place.get("kernel_log")
        lines = seen.get("lines") if isinstance(seen, dict) else seen
        if isinstance(lines, list) and lines:
            return _value(lines[-1])
    return ""


def _users(record: StageRecord, finding: Finding | None) -> str:
    """Return who else has a node of the driver open: "PID 812 (python3), PID 9 (ollama)"."""
    for place in _places(record, finding):
        seen = place.get("holders")
        entries = seen.get("holders") if isinstance(seen, dict) else seen
        mine = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
        named = {f"PID {one.get('pid')} ({one.get('name')})": None for one in mine if one.get("kind") == "gpu"}
        if named:
            return _value(list(named))
    return ""


def _goroutine(finding: Finding | None) -> str:
    """Return which call of a Go child had not come back, "" where it was not asked or did not say."""
    evidence = finding.evidence if finding is not None and isinstance(finding.evidence, dict) else {}
    seen = evidence.get("goroutines")
    return _value(seen.get("told")) if isinstance(seen, dict) else ""


def place(evidence: Any) -> Any:
    """Return where EVIDENCE of a probe (`blocked_in`), or of a program that a probe started (`stuck`), was caught."""
    return (evidence.get("blocked_in") or evidence.get("stuck")) if isinstance(evidence, dict) else None


def _last_step(record: StageRecord) -> str:
    step = open_step(record)
    if step is None or record.outcome.lets_others_run:
        return ""
    if step.duration_s is not None:
        return f"{step.name}: no answer in {step.duration_s:.1f} s"
    if record.outcome in HUNG:
        return f"{step.name}, started {before_deadline(record, step):.1f} s before the deadline"
    return f"{step.name}, started {step.started:.1f} s after the stage"


def open_step(record: StageRecord) -> Step | None:
    """Return the innermost step that had not ended, None when all had; of several probes, the first one's.

    Where a probe gave up on a program that it had started, the step has an end, and the result GAVE_UP.
    """
    stuck = [step for step in record.steps if step.duration_s is None]
    if record.outcome in HUNG and not stuck:
        stuck = [step for step in record.steps if step.result == GAVE_UP]
    first = [step for step in stuck if _probe_of(step) == _probe_of(stuck[0])]
    return first[-1] if first else None


def several_probes(record: StageRecord) -> bool:
    """Whether RECORD's steps are of several probes, each with a deadline of its own."""
    return len({_probe_of(step) for step in record.steps} - {""}) > 1


def _probe_of(step: Step) -> str:
    """Return "cuda_v12" of "cuda_v12: ggml_backend_init": the stage's probes are told apart so."""
    begin, found, _ = step.name.partition(": ")
    return begin if found else ""


def before_deadline(record: StageRecord, step: Step) -> float:
    """Return how many seconds STEP was open at its deadline: its child's, where a stage has one for each of several."""
    for name, seen in record.evidence.items() if isinstance(record.evidence, dict) else ():
        if isinstance(seen, dict) and step.name in (seen.get("open_step"), f"{name}: {seen.get('open_step')}"):
            seconds = seen.get("open_for_s")
            if isinstance(seconds, (int, float)):
                return float(seconds)
    return max(0.0, record.deadline_s - step.started)


def _explains(explains: Sequence[str], numbers: Mapping[str, int]) -> str:
    if not explains:
        return ""
    names = ", ".join(label(numbers.get(name, 0), name) for name in explains)
    return f"{names} {'was' if len(explains) == 1 else 'were'} not reached"


def era(verdict: Verdict | None) -> str:
    """Return the era of the Ollama that VERDICT is about: "A", "B" or "C"; "" where none was found."""
    return str(verdict.versions.get("ollama_era") or "") if verdict else ""


def ollama_says(record: StageRecord, finding: Finding | None, of_era: str = "") -> str:
    """Return what an Ollama OF_ERA logs at INFO when FINDING stands; "" where nothing is known."""
    if record.outcome in HUNG:
        # By the stage's own budget: a stage that Ollama has no counterpart of makes it wait for nothing.
        if record.ollama_budget_s is None:
            return ""
        if of_era == WAITS:
            return "waits for ever, and says nothing"
        return f"gives up after {record.ollama_budget_s:g} s: {OLLAMA_GIVES_UP.get(of_era, GIVES_UP)}"
    family = of_cause(finding.cause) if finding is not None else None
    return f"logs {family.info}" if family is not None and family.name != NOT_OLLAMA else ""


def _value(value: Any) -> str:
    text = " ".join(inline(value, LINE_LIMIT).split())
    return text if len(text) <= VALUE_LIMIT else text[: VALUE_LIMIT - 1] + "…"


def last_line(verdict: Verdict, numbers: Mapping[str, int], exit_code: int | None) -> str:
    """Return the one line that the whole run comes down to; at most one exit code, SIMULATED when it was."""
    simulated = "SIMULATED " if verdict.simulated else ""
    ending = f" (exit {exit_code})" if exit_code is not None else ""
    return one_line(f"gpu-discovery: {simulated}{verdict.verdict.value.upper()}{_because(verdict, numbers)}{ending}")


def _because(verdict: Verdict, numbers: Mapping[str, int]) -> str:
    if verdict.verdict is State.BLOCKED:
        if verdict.blockers:
            first = verdict.blockers[0]
            kind, _, name = first.subject.partition(":")
            where = f"{name}: " if kind == "dir" and name not in first.summary else ""
            return f" at {label(numbers.get(first.stage, 0), first.stage)}: {where}{first.summary}"
        record = next((r for r in verdict.stages if r.required and r.outcome.blocks), None)
        return f" at {label(numbers.get(record.name, 0), record.name)}: {record.summary}" if record else ""
    if verdict.verdict is State.INCOMPLETE:
        return _missing(verdict, numbers)
    if verdict.verdict is State.DEGRADED:
        if verdict.blockers:
            first = verdict.blockers[0]
            return f" by {label(numbers.get(first.stage, 0), first.stage)}: {first.summary}"
        record = next((r for r in verdict.stages if r.outcome in _COMPLAINTS), None)
        return f" by {label(numbers.get(record.name, 0), record.name)}: {record.summary}" if record else _noted(verdict)
    return f": {_counted(verdict)} in {verdict.duration_s:.1f} s"


def _counted(verdict: Verdict) -> str:
    outcomes = [record.outcome for record in verdict.stages if record.outcome.lets_others_run]
    absent = outcomes.count(Outcome.NOT_APPLICABLE)
    passed = len(outcomes) - absent
    return f"{passed} {'stage' if passed == 1 else 'stages'} passed{f', {absent} not applicable' if absent else ''}"


def _noted(verdict: Verdict) -> str:
    """What no stage is to blame for, such as runs that are missing or that differed, is in the last note."""
    return f": {verdict.notes[-1]}" if verdict.notes else ""


_COMPLAINTS = tuple(
    outcome for outcome in Outcome if outcome not in (Outcome.PASSED, Outcome.NOT_APPLICABLE, Outcome.NOT_SELECTED)
)


def _missing(verdict: Verdict, numbers: Mapping[str, int]) -> str:
    for record in verdict.stages:
        if not record.required:
            continue
        if not record.outcome.lets_others_run:
            began = "" if record.outcome is Outcome.NOT_SELECTED else f"{words(record.outcome)}, "
            return f" at {label(numbers.get(record.name, 0), record.name)}: {began}{record.summary}"
        for check in record.checks:
            if check.outcome is CheckOutcome.UNKNOWN and check.kind is Kind.BLOCKING:
                where = label(numbers.get(record.name, 0), record.name)
                return f" at {where}: {check.prerequisite} is unknown: {check.reason}"
    target = next((record for record in verdict.stages if record.name == verdict.selection.get("until")), None)
    if target is not None and target.outcome is Outcome.NOT_APPLICABLE:
        return f" at {label(numbers.get(target.name, 0), target.name)}: not applicable, {target.summary}"
    return _noted(verdict)
