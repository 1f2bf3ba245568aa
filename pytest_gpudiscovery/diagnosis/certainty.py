"""How sure a blocker is, and what would make it surer (`data/certainty.json`).

The confidence is that of the finding. It is lowered where the gate was not allowed to look for something that would
explain it: a hang of cuInit with a kernel log that nobody could read may be the consequence of an Xid.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import Any

from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.diagnosis.patterns import longest, meet
from pytest_gpudiscovery.model import CheckOutcome, Finding, StageRecord


def of(finding: Finding, records: Iterable[StageRecord]) -> tuple[float, str]:
    """Return the confidence of FINDING as a blocker among RECORDS, and the sentence, "" where it is sure enough."""
    known = catalogue.causes().get(finding.cause)
    patterns = known.explained_by if known else ()
    open_rows = {
        check.prerequisite
        for record in records
        for check in record.checks
        if check.outcome is CheckOutcome.UNKNOWN and check.prerequisite in _data()["unseen"]
    }
    unseen = [entry for row, entry in sorted(_data()["unseen"].items()) if row in open_rows]
    unseen = [entry for entry in unseen if meet(entry["hides"], patterns)]
    confidence = round(max(0.1, finding.confidence - sum(entry["by"] for entry in unseen)), 3)
    if confidence >= _data()["limit"]:
        return confidence, ""
    return confidence, unseen[0]["surer"] if unseen else sentence(finding.cause)


def sentence(cause_id: str) -> str:
    """Return what would make CAUSE_ID surer: its own words, else the longest pattern's; "" for an unknown id."""
    known = catalogue.causes().get(cause_id)
    return (known.surer if known else "") or longest(cause_id, _data()["surer"]) or ""


@functools.cache
def _data() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((catalogue.DATA / "certainty.json").read_text(encoding="utf-8"))
    return loaded
