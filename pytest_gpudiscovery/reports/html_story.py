"""What a verdict comes down to, before any markup: which stage, stuck in what, since when, what to do next. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pytest_gpudiscovery import stages
from pytest_gpudiscovery.model import Action, Check, CheckOutcome, Finding, Kind, Outcome, StageRecord, State, Verdict
from pytest_gpudiscovery.reports import wording
from pytest_gpudiscovery.reports.html_values import clock, finite, seconds

NUMBERS: Mapping[str, int] = {name: index for index, name in enumerate(stages.NAMES, 1)}
COMPLAINTS = (Outcome.WARNED, Outcome.PROBE_ERROR, Outcome.INTERRUPTED, Outcome.NOT_REACHED)
PASSED = (Outcome.PASSED, Outcome.WARNED)
# The letters of /proc/PID/stat, as blocked_in ends with one; man 5 proc
STATES = {
    "D": "State D: asleep inside the kernel. Nothing can end this call from outside, not even SIGKILL.",
    "S": "State S: asleep, waiting for something that did not come.",
    "R": "State R: running; it uses the processor and does not return.",
    "T": "State T: stopped by a signal or a debugger.",
    "t": "State t: stopped by a debugger.",
    "Z": "State Z: ended and not yet collected.",
}
ACTIONS = {
    Action.SAFE: "reads only",
    Action.CAUTION: "changes something that can be changed back",
    Action.DESTRUCTIVE: "ends work that runs on the GPU, or loses data",
}


@dataclass(frozen=True)
class Fact:
    """One line of the first screen. `code`: a value to be read letter by letter; `note`: what it means.

    `lead`: stands before the next command, where a narrow screen begins.
    """

    label: str
    value: object
    code: bool = False
    note: str = ""
    lead: bool = True


@dataclass(frozen=True)
class Also:
    """Something else that was found: an independent blocker or a warning; `summary` names what it is about."""

    stage: str
    subject: str
    summary: str
    blocks: bool
    finding: Finding | None


@dataclass(frozen=True)
class Story:
    """The first screen. `where` is the stage that decided, None when nothing is wrong."""

    where: StageRecord | None
    headline: str
    facts: tuple[Fact, ...]
    command: str
    action: Action
    also: tuple[Also, ...]


def label(name: str) -> str:
    """Return "06 driver"; the name alone for a stage that another plugin added."""
    return wording.label(NUMBERS[name], name) if name in NUMBERS else name


def tell(verdict: Verdict) -> Story:
    """Return what VERDICT comes down to."""
    if verdict.verdict is State.BLOCKED:
        return _blocked(verdict)
    if verdict.verdict is State.INCOMPLETE:
        return _incomplete(verdict)
    if verdict.verdict is State.READY:
        facts = [
            *_upgrade(verdict),
            Fact("Checked", f"{_began(verdict)}, in {seconds(verdict.duration_s)}"),
            *_not_checked(verdict),
        ]
        headline = f"{_passed(verdict)}, up to {_target(verdict)}"
        return Story(None, headline, tuple(facts), "", Action.SAFE, _also(verdict, None))
    record = next((record for record in verdict.stages if record.outcome in COMPLAINTS), None)
    record = record or next((record for record in verdict.stages if record.outcome.blocks), None)
    if record is None:
        return Story(None, "usable, with warnings", (), "", Action.SAFE, _also(verdict, None))
    return _at(verdict, record, wording.worst(record)[1] or _first_finding(record))


def _passed(verdict: Verdict) -> str:
    """Return "7 stages passed, 1 not applicable"."""
    outcomes = [record.outcome for record in verdict.stages]
    passed, idle = sum(outcome in PASSED for outcome in outcomes), outcomes.count(Outcome.NOT_APPLICABLE)
    return f"{passed} {'stage' if passed == 1 else 'stages'} passed" + (f", {idle} not applicable" if idle else "")


def _upgrade(verdict: Verdict) -> Iterator[Fact]:
    said = verdict.comparison.get("sentence") if isinstance(verdict.comparison, dict) else None
    if said:
        yield Fact("Upgrade", said)


def _began(verdict: Verdict) -> str:
    begun = [record.started for record in verdict.stages if record.outcome in PASSED and clock(record.started)]
    return clock(min(begun)) if begun else verdict.started


def _not_checked(verdict: Verdict) -> Iterator[Fact]:
    """What a green does not say: the stages that nobody asked for."""
    names = [label(record.name) for record in verdict.stages if record.outcome is Outcome.NOT_SELECTED]
    if names:
        yield Fact(
            "Not checked", ", ".join(names), note=f"Nothing is said about {'it' if len(names) == 1 else 'these'}."
        )


def _target(verdict: Verdict) -> str:
    until = verdict.selection.get("until") if isinstance(verdict.selection, dict) else None
    return label(until) if isinstance(until, str) and until else "the last stage"


def _blocked(verdict: Verdict) -> Story:
    by_name = {record.name: record for record in verdict.stages}
    blocker = verdict.blockers[0] if verdict.blockers else None
    record = by_name.get(blocker.stage) if blocker else None
    record = record or next((record for record in verdict.stages if record.required and record.outcome.blocks), None)
    if record is None:
        return Story(None, "a required stage did not pass", (), "", Action.SAFE, _also(verdict, None))
    finding = None
    if blocker is not None:
        # The root cause may have been found by an earlier stage, which it only made to warn.
        own = [found for _, found in record.findings if found.cause == blocker.cause]
        others = (found for other in verdict.stages for _, found in other.findings if found.cause == blocker.cause)
        finding = next(iter(own), None) or next(others, None)
    story = _at(verdict, record, finding or wording.worst(record)[1])
    if blocker is None or not blocker.surer:
        return story
    sure = Fact("Confidence", f"{blocker.confidence:.2f}", note=blocker.surer, lead=False)
    return dataclasses.replace(story, facts=(*story.facts, sure))


def _incomplete(verdict: Verdict) -> Story:
    for record in verdict.stages:
        if not record.required:
            continue
        if not record.outcome.lets_others_run:
            return _unanswered(verdict, record)
        check = next((check for check in record.checks if _unknown(check)), None)
        if check is not None:
            facts = (
                Fact("Not checked", f"{check.prerequisite} ({check.subject})"),
                Fact("Because", check.reason or "no reason was given"),
                *_when(record),
            )
            text = f"at {label(record.name)}: a required check could not be made"
            command = check.finding.next if check.finding else ""
            action = check.finding.action if check.finding else Action.SAFE
            return Story(record, text, facts, command, action, _also(verdict, check.finding))
    return Story(None, "no required stage has an answer", (), "", Action.SAFE, _also(verdict, None))


def _unanswered(verdict: Verdict, record: StageRecord) -> Story:
    story = _at(verdict, record, wording.worst(record)[1] or _first_finding(record))
    if story.command:
        return story
    if record.outcome is Outcome.PROBE_ERROR:
        command = f"gpu-discovery gate --gpu-until {record.name} -v"
    else:
        until = verdict.selection.get("until") if isinstance(verdict.selection, dict) else None
        command = f"pytest --gpu-discovery --gpu-until {until if until in NUMBERS else record.name}"
    known = record.name in NUMBERS  # a name from elsewhere has no place in a command
    return Story(record, story.headline, story.facts, command if known else "", Action.SAFE, story.also)


def _at(verdict: Verdict, record: StageRecord, finding: Finding | None) -> Story:
    check, own = wording.worst(record)
    if check is None and finding is not None:
        check = next((check for check, found in record.findings if found is finding), None)
    hung = record.outcome in wording.HUNG
    said = record.summary or wording.words(record.outcome)
    if not record.outcome.blocks and record.outcome not in (Outcome.WARNED, Outcome.NOT_SELECTED):
        said = f"{wording.words(record.outcome)}: {said}"
    facts = [*_stuck(record), *_when(record)]
    if check is not None:
        about = wording.about(check, said)
        facts += [Fact("About", about)] if about else []
    if check is not None and not hung:
        expected, seen = wording.expected(check, said), wording.seen(check, said)
        facts += [Fact("Expected", expected, True)] if expected is not None else []
        facts += [Fact("Seen", seen, True)] if seen is not None else []
    if finding is not None and finding is not own and finding.summary != record.summary:
        facts.append(Fact("Cause", finding.summary))
    if finding is not None and finding.detail:
        facts.append(Fact("Why", finding.detail, lead=False))
    lost = [label(other.name) for other in verdict.stages if other.blocked_by == record.name]
    if lost:
        facts.append(Fact("Not reached", ", ".join(lost), lead=False))
    if record.outcome is Outcome.UNKILLABLE:
        facts.append(Fact("The probe", "outlived SIGKILL and was left behind", lead=False))
    if record.outcome.blocks and (logged := wording.ollama_says(record, finding, wording.era(verdict))):
        facts.append(Fact("Ollama", logged, lead=False))
    return Story(
        record,
        f"at {label(record.name)}: {said}",
        tuple(facts),
        finding.next if finding else "",
        finding.action if finding else Action.SAFE,
        _also(verdict, finding),
    )


def _stuck(record: StageRecord) -> Iterator[Fact]:
    where = blocked_in(record)
    if where:
        yield Fact("Blocked in", where, True, _state_of(where))
    so_far = wording.activity(record, _first_finding(record))
    if so_far:
        yield Fact("So far", so_far, lead=False)
    step = wording.open_step(record)
    if step is not None and step.duration_s is not None:
        yield Fact("Last step", f"{step.name}: no answer in {seconds(step.duration_s)}")
    elif step is not None and not record.outcome.lets_others_run:
        began = clock((finite(record.started) or 0) + (finite(step.started) or 0), date=False)
        before = finite(wording.before_deadline(record, step)) if record.outcome in wording.HUNG else None
        text = f" {seconds(before)} before the deadline" if before is not None and before >= 0 else ""
        yield Fact("Last step", f"{step.name}, begun{text}{f' at {began}' if began else ''}; it did not return")


def blocked_in(record: StageRecord) -> str:
    """Return the line that says where the child of RECORD was; "" when it was not stuck."""
    places: list[object] = [found.evidence for _, found in record.findings]
    places += record.evidence.values() if isinstance(record.evidence, dict) else []
    for place in places:
        text = wording.place(place)
        if isinstance(text, str) and text and text != "unknown":
            return text
    return ""


def _state_of(where: str) -> str:
    _, found, rest = where.rpartition("; state ")
    return STATES.get(rest[:1], "") if found and not rest[1:2].isalnum() else ""


def _when(record: StageRecord) -> Iterator[Fact]:
    begun = clock(record.started)
    if not begun or record.outcome in (Outcome.NOT_SELECTED, Outcome.NOT_REACHED):
        return
    deadline = f"deadline {record.deadline_s:g} s"
    if record.outcome in wording.HUNG and not wording.several_probes(record):
        passed = clock((finite(record.started) or 0) + (finite(record.deadline_s) or 0), date=False)
        yield Fact("Since", f"{begun}; the {deadline} passed at {passed or '?'}")
    else:
        together = " for its probes together" if wording.several_probes(record) else ""
        yield Fact("Since", f"{begun}; ended after {seconds(record.duration_s)}, {deadline}{together}")


def _first_finding(record: StageRecord) -> Finding | None:
    found = [(check, finding) for check, finding in record.findings if check.outcome is not CheckOutcome.PASSED]
    return next((finding for _, finding in found if finding.summary == record.summary), found[0][1] if found else None)


def _unknown(check: Check) -> bool:
    return check.outcome is CheckOutcome.UNKNOWN and check.kind is Kind.BLOCKING


def _also(verdict: Verdict, told: Finding | None) -> tuple[Also, ...]:
    """Everything else that was found: failures first, then warnings, each once."""
    seen = {(told.cause, told.summary)} if told else set()
    rows: list[Also] = []
    for record in verdict.stages:
        for check, finding in record.findings:
            if (
                check.outcome not in (CheckOutcome.FAILED, CheckOutcome.WARNED)
                or (finding.cause, finding.summary) in seen
            ):
                continue
            seen.add((finding.cause, finding.summary))
            blocks = check.outcome is CheckOutcome.FAILED and check.kind is Kind.BLOCKING
            rows.append(Also(record.name, check.subject, wording.named(check, finding), blocks, finding))
    return tuple(sorted(rows, key=lambda row: not row.blocks))
