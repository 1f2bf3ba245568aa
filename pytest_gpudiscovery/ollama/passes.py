"""Which pass a child of a discovery is of, and what follows for each child once the discovery is known as a whole.

The first pass runs one child per directory, one after the other; those of the second pass (validation) run at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from pytest_gpudiscovery.ollama import attempts as records
from pytest_gpudiscovery.ollama.attempts import Attempt, Discovery
from pytest_gpudiscovery.ollama.eras import FIRST_PASS, REFRESH, VALIDATION

ANOTHER_S = 4.0  # children of one refresh start within its 3 s
VALIDATING = "GGML_CUDA_INIT"  # what only the second pass adds (v0.16.3:ml/device.go:550)


def pass_of(found: Discovery, extra: Mapping[str, str] | None) -> str:
    """Return the pass that a child of FOUND with the EXTRA environment is of, as far as that says it."""
    if extra is not None and VALIDATING in extra:
        return VALIDATION
    if found.kind == "refresh":
        return REFRESH
    return FIRST_PASS if found.begun_in_log else records.UNKNOWN


def settle(found: Discovery) -> None:
    """Draw what follows from the whole discovery: the passes that its lines left open, and each child's devices."""
    for entry in found.attempts:
        if entry.outcome == records.OPEN and (found.complete or entry is not found.attempts[-1]):
            entry.outcome = records.ENDED
        if found.kind == "refresh" and entry.kind != VALIDATION:
            entry.kind = REFRESH
        elif entry.kind == records.UNKNOWN and entry.extra is not None:
            entry.kind = _kind_by_time(found, entry)
    first = [entry for entry in found.attempts if entry.kind in (FIRST_PASS, records.UNKNOWN)]
    silent = [entry for entry in first if entry.outcome == records.ENDED]
    for entry in silent:
        if found.initial_count == 0:
            entry.outcome, entry.devices = records.NO_DEVICE, 0
        elif found.verified:
            entry.devices = sum(seen.why == entry.path for seen in found.verified)
            entry.outcome = records.DEVICES if entry.devices else entry.outcome
    if not any(left.why == "filtered.init" for left in found.left_out):
        for entry in found.attempts:
            if entry.kind == VALIDATION and entry.outcome == records.ENDED and entry.took_s is not None:
                entry.outcome, entry.devices = records.DEVICES, 1


def _kind_by_time(found: Discovery, entry: Attempt) -> str:
    """Return the pass of ENTRY, whose discovery does not begin in the log."""
    if found.complete:
        return FIRST_PASS
    took = entry.duration_s if entry.announced or entry.took_s is not None else None
    if took is None or entry.outcome != records.TIMED_OUT:
        return records.UNKNOWN
    return REFRESH if took < ANOTHER_S else FIRST_PASS
