"""The records of a post-mortem as plain JSON values: discoveries, attempts, times."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from pytest_gpudiscovery.ollama.attempts import Attempt, Discovery


def discovery(entry: Discovery, offset: int | None, *, child_output: bool) -> dict[str, Any]:
    """Return ENTRY; times are ISO 8601 in the writer's zone (OFFSET seconds from UTC), durations seconds.

    CHILD_OUTPUT says whether the children's own output is in the log: without it, that one was started says nothing.
    """
    return {
        "kind": entry.kind,
        "started": time_of(entry.started, offset),
        "line": entry.line,
        "duration_s": entry.duration_s,
        "complete": entry.complete,
        "begun_in_log": entry.begun_in_log,
        "initial_count": entry.initial_count,
        "total_vram": entry.total_vram,
        "devices": [{**vars(device), "gpu": device.is_gpu} for device in entry.devices],
        "attempts": [attempt_of(attempt, offset, child_output=child_output) for attempt in entry.attempts],
        "left_out": [vars(left) for left in entry.left_out],
        "overrides": entry.overrides,
        "said": [vars(word) for word in entry.notes],
    }


def attempt_of(attempt: Attempt, offset: int | None, *, child_output: bool) -> dict[str, Any]:
    """Return ATTEMPT, likewise."""
    return {
        "pass": attempt.kind,
        "directory": attempt.directory or None,
        "path": attempt.path,
        "started": time_of(attempt.started, offset),
        "duration_s": attempt.duration_s,
        "start_is_logged": attempt.announced,
        "outcome": attempt.outcome,
        "error": attempt.error or None,
        "detail": attempt.detail or None,
        "exit_code": attempt.exit_code,
        "devices": attempt.devices,
        "extra": dict(attempt.extra) if attempt.extra is not None else None,
        "environment": dict(attempt.environment) if attempt.environment is not None else None,
        "mark": attempt.mark if child_output or attempt.mark != "spawned" else None,
        "lines_captured": attempt.lines_captured,
        "process": attempt.process or None,
        "said": [vars(word) for word in attempt.said],
    }


def time_of(seconds: float | None, offset: int | None) -> str | None:
    """Return SECONDS since 1970 as ISO 8601 with milliseconds; None for no time or one that no calendar has."""
    if seconds is None:
        return None
    try:
        zone = timezone(timedelta(seconds=offset or 0))
        return datetime.fromtimestamp(seconds, zone).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None
