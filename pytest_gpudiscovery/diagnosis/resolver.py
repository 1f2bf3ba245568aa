"""From all findings to one primary cause; the rest are consequences, or stand beside it.

Ranking, in this order:
1. Only a failed blocking check, or a stage that hung, crashed or could not be killed, is a candidate.
2. A candidate whose catalogue entry is `explained_by` a cause that was also found (failed or warned) is its
   consequence: it is listed under the explaining cause. Explanations are followed to their root. `*` stands for
   every cause that failed in an earlier stage: what Ollama's own children meet is the sum of what was tested before.
3. Of the roots, the smaller stage number comes first, then the smaller `rank` in the catalogue, then the subject,
   the cause id and the summary. So the result does not depend on the order in which findings are given.
4. What is left beside the first root is an independent blocker, listed after it.
   Its confidence is its finding's, less where the gate could not look for what would explain it (certainty.py).
   Roots that stop a required stage come before all others: what merely failed beside them does not block.
5. Where Ollama itself sees every GPU (`gate.disagrees`, docs/decisions/0006), what failed in earlier stages that are
   not required is listed under that: nothing of it stops Ollama.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_gpudiscovery.diagnosis import catalogue, certainty
from pytest_gpudiscovery.diagnosis.patterns import matches
from pytest_gpudiscovery.model import Blocker, CheckOutcome, Finding, Kind, Outcome, StageRecord

OVERRULES = "gate.disagrees"
EVERYTHING = "*"  # in `explained_by`: every failed cause of an earlier stage


@dataclass(frozen=True)
class _Found:
    record: StageRecord
    number: int
    subject: str
    finding: Finding
    failed: bool

    @property
    def key(self) -> tuple[int, int, str, str, str]:
        cause = catalogue.causes().get(self.finding.cause)
        rank = cause.rank if cause else 0
        return (self.number, rank, self.subject, self.finding.cause, self.finding.summary)


def resolve(records: Iterable[StageRecord], numbers: Mapping[str, int]) -> tuple[Blocker, ...]:
    """Return the blockers of RECORDS, primary first; NUMBERS gives each stage's place in the order of reading."""
    records = sorted(records, key=lambda record: numbers[record.name])
    found = sorted(
        (
            _Found(record, numbers[record.name], check.subject, finding, check.outcome is CheckOutcome.FAILED)
            for record in records
            for check, finding in record.findings
            if check.outcome in (CheckOutcome.FAILED, CheckOutcome.WARNED)
        ),
        key=lambda item: item.key,
    )
    overruling = next((item for item in found if item.finding.cause == OVERRULES), None)
    roots: dict[tuple[str, str, str], tuple[_Found, _Found, list[str]]] = {}
    required = set()  # keys of the roots that stop a required stage
    for item in found:
        if not item.failed:
            continue
        root = _root(item, found)
        if overruling is not None and not item.record.required and item.number < overruling.number:
            root = overruling
        if item.record.required:
            required.add(root.key)
        entry = roots.setdefault((root.record.name, root.subject, root.finding.cause), (root, item, []))
        if item.finding.cause != root.finding.cause:
            entry[2].append(item.finding.cause)
    ordered = sorted(roots.values(), key=lambda entry: (entry[0].key not in required, entry[0].key))
    return tuple(_blocker(root, blocked, consequences, records) for root, blocked, consequences in ordered)


def _root(item: _Found, found: list[_Found]) -> _Found:
    seen = {item.finding.cause}
    while True:
        cause = catalogue.causes().get(item.finding.cause)
        explains = next(
            (
                other
                for other in found
                if other.finding.cause not in seen and cause and _explains(other, item, _patterns(other, cause))
            ),
            None,
        )
        if explains is None:
            return item
        seen.add(explains.finding.cause)
        item = explains


def _patterns(other: _Found, cause: catalogue.Cause) -> tuple[str, ...]:
    """Return the patterns of CAUSE by which OTHER may explain it.

    A pattern that is a whole stage ("driver.") means whatever went wrong there: not a risk that was merely said.
    """
    entry = catalogue.causes().get(other.finding.cause)
    if other.failed or entry is None or entry.kind is Kind.BLOCKING:
        return cause.explained_by
    return tuple(pattern for pattern in cause.explained_by if pattern.find(".") != len(pattern) - 1)


def _explains(other: _Found, item: _Found, patterns: tuple[str, ...]) -> bool:
    if EVERYTHING in patterns and other.failed and other.number < item.number:
        return True
    return matches(other.finding.cause, patterns)


def _blocker(root: _Found, blocked: _Found, consequences: list[str], records: list[StageRecord]) -> Blocker:
    # The stage that is named is the one that stopped the gate; the cause is the root, which may lie in an earlier,
    # merely warned stage (a fatal Xid in the kernel log explains the cuInit that hangs).
    stage = blocked.record if not root.failed and root.finding.cause != OVERRULES else root.record
    explained = tuple(
        record.name for record in records if record.outcome is Outcome.NOT_REACHED and record.blocked_by == stage.name
    )
    confidence, surer = certainty.of(root.finding, records)
    return Blocker(
        stage=stage.name,
        subject=root.subject,
        outcome=stage.outcome,
        cause=root.finding.cause,
        summary=root.finding.summary,
        explains=explained,
        consequences=tuple(dict.fromkeys(consequences)),
        confidence=confidence,
        surer=surer,
    )
