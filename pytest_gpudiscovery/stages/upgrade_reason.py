"""Why a candidate does not keep every GPU: the finding that blocks it first. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pytest_gpudiscovery.diagnosis.resolver import resolve
from pytest_gpudiscovery.model import CheckOutcome, Finding, StageRecord

DIRECTORY = "dir:"


def of(records: Sequence[StageRecord], used: Sequence[str] = ()) -> Finding | None:
    """Return the finding that blocks first in RECORDS, by the resolver's own ranking; None for none.

    USED are the directories from which the installed Ollama has its GPUs. What is wrong with the candidate's directory
    of that name loses them; another directory may be as unusable in the release that is installed.
    """
    return _first(_only(records, used)) or _first(records)


def _only(records: Sequence[StageRecord], used: Sequence[str]) -> list[StageRecord]:
    """Return RECORDS without the checks of directories that are not USED; none where no used one has failed."""
    mine = {f"{DIRECTORY}{name}" for name in used}
    if not any(check.subject in mine and check.outcome is CheckOutcome.FAILED for r in records for check in r.checks):
        return []
    return [
        dataclasses.replace(
            record,
            checks=tuple(c for c in record.checks if not c.subject.startswith(DIRECTORY) or c.subject in mine),
        )
        for record in records
    ]


def _first(records: Sequence[StageRecord]) -> Finding | None:
    blockers = resolve(records, {record.name: index for index, record in enumerate(records)})
    if not blockers:
        return None
    findings = [finding for record in records for _, finding in record.findings]
    return next((finding for finding in findings if finding.cause == blockers[0].cause), None)
