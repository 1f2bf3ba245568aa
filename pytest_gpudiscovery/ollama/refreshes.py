"""What is kept of the refreshes of one server, of which there is one before each model load: a log may have millions.

A refresh that failed is kept whole, up to a number; of the others only what is counted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_gpudiscovery.ollama.attempts import Discovery

KIND = "refresh"
FAILED_KEPT = 8  # the first that failed; of those after them the newest stay
SLOW_S = 1.5  # half of the 3 s that a refresh has (data/eras.json)


@dataclass
class Refreshes:
    """Counts of refreshes. Times are seconds since 1970, durations seconds; lines begin at 1."""

    seen: int = 0
    failed: int = 0
    slow: int = 0  # took SLOW_S or longer, and did not fail
    fastest_s: float | None = None  # of those that did not fail
    slowest_s: float | None = None
    slowest_at: float | None = None
    slowest_line: int | None = None

    def take(self, found: Discovery) -> None:
        """Count one refresh, which is over."""
        self.seen += 1
        if found.failed_refresh:
            self.failed += 1
        elif found.duration_s is not None:
            self.slow += found.duration_s >= SLOW_S
            self.took(found.duration_s, found.started, found.line)

    def took(self, seconds: float, at: float | None, line: int | None) -> None:
        """Note that a refresh which began AT a time, at LINE, took SECONDS."""
        if self.fastest_s is None or seconds < self.fastest_s:
            self.fastest_s = seconds
        first = self.slowest_line is None or (line is not None and line < self.slowest_line)
        if self.slowest_s is None or seconds > self.slowest_s or (seconds == self.slowest_s and first):
            self.slowest_s, self.slowest_at, self.slowest_line = seconds, at, line

    def and_those(self, kept: Sequence[Discovery]) -> Refreshes:
        """Return these counts with those of the refreshes in KEPT."""
        total = replace(self)
        for entry in kept:
            if entry.kind == KIND:
                total.take(entry)
        return total


def least_wanted(kept: Sequence[Discovery]) -> int:
    """Return the place of the one in KEPT (two or more) that goes when there are too many: never the first.

    The oldest refresh that did not fail; else the oldest that failed, but for the first of those; else the second.
    """
    failed = 0
    spare = None
    for place, entry in enumerate(kept):
        if entry.kind == KIND and entry.failed_refresh:
            failed += 1
            spare = place if failed == FAILED_KEPT + 1 and place else spare
        elif entry.kind == KIND and place:
            return place
    return spare or 1
