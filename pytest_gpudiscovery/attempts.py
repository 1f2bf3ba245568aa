"""More than one run: `--gpu-wait` asks until the host is ready, `--gpu-repeat` asks whether it stays so.

Neither starts another run after a probe hung: a second child may make a stuck driver worse.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence

from pytest_gpudiscovery.model import State, Verdict
from pytest_gpudiscovery.run import LEDGER, Run

PAUSES_S = (1.0, 2.0, 3.0, 5.0)  # between attempts; the last one is repeated
SHORTEST_ATTEMPT_S = 2.0  # what a gate takes on a healthy host; with less left of the run no attempt can answer
WORST_FIRST = (State.BLOCKED, State.INCOMPLETE, State.DEGRADED, State.READY)

Say = Callable[[str], None]


def wait_until_ready(run: Run, seconds: float, say: Say) -> None:
    """Run the whole gate until it is ready or degraded; no attempt begins later than SECONDS from now.

    The records of the last attempt stay, and only they are shown stage by stage. One that the run's deadline cut off
    says less than the one before it, whose records are then put back.
    """
    until = time.monotonic() + seconds
    show, run.show = run.show, None
    attempt, longest, why, before = 1, SHORTEST_ATTEMPT_S, "", None
    while True:
        begun = time.monotonic()
        run.complete()
        verdict = run.verdict()
        if verdict.verdict in (State.READY, State.DEGRADED):
            break
        if before is not None and run.time_left() <= 0:
            run.back()
            verdict, attempt, why = before, attempt - 1, "; the next one was cut off by --gpu-deadline"
            break
        if run.hung() is not None:
            why = f"; {_no_more(run)}"
            break
        longest = max(longest, time.monotonic() - begun)
        pause = PAUSES_S[min(attempt, len(PAUSES_S)) - 1]
        left = until - time.monotonic()
        if left < pause or run.time_left() < pause + longest:
            break
        say(f"attempt {attempt}: {_in_short(verdict)}; asking again for {left:.0f} s")
        time.sleep(pause)
        run.again()
        attempt, before = attempt + 1, verdict
    run.notes.append(f"--gpu-wait: {verdict.verdict.value} at attempt {attempt}{why}")
    run.show = show
    run.show_all()


def progress(number: int, times: int) -> str:
    """Return the note of a verdict that is published before the last of TIMES runs has ended."""
    return f"--gpu-repeat: run {number} of {times}"


class Repeats:
    """TIMES runs of the whole gate, the first of which is RUN."""

    def __init__(self, run: Run, times: int, say: Say) -> None:
        self._run, self._times, self._say = run, times, say
        self._verdicts: list[Verdict] = []
        self._hung = ""  # why there were fewer runs and their result stands all the same

    def go(self) -> None:
        """Take RUN, which is complete, as the first run and do the others; KeyboardInterrupt goes through."""
        current = self._run
        for number in range(1, self._times + 1):
            if number > 1:
                current = self._run.apart(f"{LEDGER}-{number}")
                current.unfinished = progress(number, self._times)
                current.complete()
                if current.time_left() <= 0:
                    return  # cut off by --gpu-deadline: no answer
                self._say(f"run {number} of {self._times}: {_in_short(current.verdict())}")
            self._verdicts.append(current.verdict())
            if number < self._times and current.hung() is not None:
                self._hung = _no_more(current)
                return
            if current.time_left() <= 0:
                return

    def verdict(self, *, interrupted: bool) -> Verdict:
        """Return the worst verdict: incomplete when runs are missing, at least degraded when runs differed."""
        verdicts = self._verdicts or [self._run.verdict()]
        worst = min(verdicts, key=lambda verdict: WORST_FIRST.index(verdict.verdict))
        state = worst.verdict
        if state is State.READY and _differing(verdicts):
            state = State.DEGRADED
        note = differences(verdicts)
        done = len(self._verdicts)
        if interrupted or (done < self._times and not self._hung):
            # A blocked run is an answer, however many were to follow; an interrupted run as a whole is none.
            state = state if state is State.BLOCKED and not interrupted else State.INCOMPLETE
            note = _short_of(done, self._times, verdicts)
        elif self._hung:
            note = f"{_short_of(done, self._times, verdicts)}; {self._hung}"
        return dataclasses.replace(
            worst,
            verdict=state,
            notes=(*worst.notes, note),
            duration_s=round(time.time() - self._run.started, 3),
        )


def differences(verdicts: Sequence[Verdict]) -> str:
    """Return one sentence on what differed between the runs: outcomes of stages, GPUs, versions."""
    return f"--gpu-repeat: {len(verdicts)} runs, {'; '.join(_differing(verdicts)) or 'all ended alike'}"


def _differing(verdicts: Sequence[Verdict]) -> list[str]:
    stages: dict[str, list[str]] = {}
    for verdict in verdicts:
        for record in verdict.stages:
            stages.setdefault(record.name, []).append(record.outcome.value)
    said = [f"{name} {', '.join(outcomes)}" for name, outcomes in stages.items() if len(set(outcomes)) > 1]
    # A run that did not get as far as the GPUs or a version says nothing of them; its outcomes differ already.
    gpus = [text for verdict in verdicts if (text := _gpus(verdict))]
    if len(set(gpus)) > 1:
        said.append(f"GPUs {' | '.join(dict.fromkeys(gpus))}")
    for key in dict.fromkeys(key for verdict in verdicts for key in verdict.versions):
        values = [json.dumps(v.versions[key], default=str) for v in verdicts if v.versions.get(key) is not None]
        if len(set(values)) > 1:
            said.append(f"version of {key} {', '.join(dict.fromkeys(values))}")
    return said


def _gpus(verdict: Verdict) -> str:
    """Return which GPUs there were, whatever their order: PCI address and UUID of each."""
    return ", ".join(sorted(f"{gpu.get('pci')} {_uuid(gpu)}".strip() for gpu in verdict.gpus))


def _uuid(gpu: dict[str, object]) -> str:
    views = gpu.get("views")
    each = views.values() if isinstance(views, dict) else ()
    found = (gpu.get("uuid"), *(view.get("uuid") for view in each if isinstance(view, dict)))
    return "/".join(dict.fromkeys(str(uuid) for uuid in found if uuid))


def _short_of(done: int, times: int, verdicts: Sequence[Verdict]) -> str:
    differing = _differing(verdicts)
    return f"--gpu-repeat: {done} of {times} runs{', ' if differing else ''}{'; '.join(differing)}"


def _no_more(run: Run) -> str:
    return f"the {run.hung()} probe hung, and no further one is sent after it"


def _in_short(verdict: Verdict) -> str:
    first = verdict.blockers[0] if verdict.blockers else None
    return verdict.verdict.value + (f" at {first.stage}: {first.summary}" if first else "")
