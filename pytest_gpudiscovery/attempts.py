"""More than one run: `--gpu-wait` asks until the host is ready, `--gpu-repeat` asks whether it stays so."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from pytest_gpudiscovery.model import State, Verdict
from pytest_gpudiscovery.run import LEDGER, Run

PAUSES_S = (1.0, 2.0, 3.0, 5.0)  # between attempts; the last one is repeated
WORST_FIRST = (State.BLOCKED, State.INCOMPLETE, State.DEGRADED, State.READY)

Say = Callable[[str], None]


def wait_until_ready(run: Run, seconds: float, say: Say) -> None:
    """Run the whole gate until it is ready or degraded; no attempt begins later than SECONDS from now.

    The records of the last attempt stay, and only they are shown stage by stage.
    """
    until = time.monotonic() + seconds
    show, run.show = run.show, None
    attempt = 1
    while True:
        run.complete()
        verdict = run.verdict()
        pause = PAUSES_S[min(attempt, len(PAUSES_S)) - 1]
        left = until - time.monotonic()
        if verdict.verdict in (State.READY, State.DEGRADED) or left < pause:
            break
        say(f"attempt {attempt}: {_in_short(verdict)}; asking again for {left:.0f} s")
        time.sleep(pause)
        run.again()
        attempt += 1
    run.notes.append(f"--gpu-wait: {verdict.verdict.value} at attempt {attempt}")
    run.show = show
    run.show_all()


def repeat(run: Run, first: Verdict, times: int, say: Say) -> Verdict:
    """Run the whole gate TIMES - 1 times more; return the worst verdict, with a note on what differed."""
    verdicts = [first]
    for number in range(2, times + 1):
        other = run.apart(f"{LEDGER}-{number}")
        other.complete()
        verdicts.append(other.verdict())
        say(f"run {number} of {times}: {_in_short(verdicts[-1])}")
    worst = min(verdicts, key=lambda verdict: WORST_FIRST.index(verdict.verdict))
    return dataclasses.replace(
        worst, notes=(*worst.notes, differences(verdicts)), duration_s=round(time.time() - run.started, 3)
    )


def differences(verdicts: Sequence[Verdict]) -> str:
    """Return one sentence on which stages ended differently between the runs."""
    seen: dict[str, list[str]] = {}
    for verdict in verdicts:
        for record in verdict.stages:
            seen.setdefault(record.name, []).append(record.outcome.value)
    differing = [f"{name} {', '.join(outcomes)}" for name, outcomes in seen.items() if len(set(outcomes)) > 1]
    return f"--gpu-repeat: {len(verdicts)} runs, {'; '.join(differing) if differing else 'all ended alike'}"


def _in_short(verdict: Verdict) -> str:
    first = verdict.blockers[0] if verdict.blockers else None
    return verdict.verdict.value + (f" at {first.stage}: {first.summary}" if first else "")
