"""One run of the whole engine on a simulated host: real probes in real children, without a pytest process around it."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from pytest_gpudiscovery import context
from pytest_gpudiscovery.engine import Engine
from pytest_gpudiscovery.model import CheckOutcome, Verdict
from pytest_gpudiscovery.options import Settings
from pytest_gpudiscovery.verdict import conclude
from tests.matrix.rows import SHORT


def run_gate(
    text: str,
    *,
    until: str | None = "runtime",
    profile: str = "any",
    hangs: bool = False,
    **changes: Any,
) -> Verdict:
    """Return the verdict on simulated host TEXT; HANGS shortens the deadlines."""
    with tempfile.TemporaryDirectory() as run_dir:
        settings = Settings(
            until=until, simulate=text, profile=profile, stage_timeout=SHORT if hangs else {}, **changes
        )
        built = context.build(settings, run_dir)
        engine = Engine(built, run_dir + "/ledger")
        started = time.time()
        engine.complete()
        return conclude(engine, started=started, selection={})


def primary(verdict: Verdict) -> tuple[str, str, str]:
    """Return (stage, outcome, cause) of the first blocker, three empty strings when nothing blocks."""
    if not verdict.blockers:
        return ("", "", "")
    first = verdict.blockers[0]
    return (first.stage, first.outcome.value, first.cause)


def warnings(verdict: Verdict) -> set[str]:
    """Return the causes of all findings that are not merely notes."""
    return {
        finding.cause
        for record in verdict.stages
        for check, finding in record.findings
        if check.outcome in (CheckOutcome.FAILED, CheckOutcome.WARNED)
    }
