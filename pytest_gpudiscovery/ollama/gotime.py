"""Times as Go writes them: RFC 3339 time stamps, durations."""

from __future__ import annotations

import functools
import re
from datetime import datetime, timezone

# Year to second in groups 1 to 6, the fraction in 7, the zone in 8.
STAMP = r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?\s?(Z|[+-]\d\d:?\d\d)?"
_RFC3339 = re.compile(STAMP)
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,12})?)(h|ms|m|s|µs|μs|us|ns)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "μs": 1e-6, "us": 1e-6, "ns": 1e-9}
ZONE = 8


def stamp(text: str) -> tuple[float | None, int | None]:
    """Return seconds since 1970 and the offset from UTC in seconds of an RFC 3339 time; None for what is missing."""
    found = _RFC3339.match(text)
    return seconds(found) if found else (None, None)


def seconds(found: re.Match[str], *, zoned: bool = True) -> tuple[float | None, int | None]:
    """Return the time that groups 1 to 7 of FOUND give (and 8, the zone, when ZONED), as `stamp` does."""
    zone = found[ZONE] if zoned else None
    offset = None
    if zone is not None:
        sign = -1 if zone[0] == "-" else 1
        offset = 0 if zone == "Z" else sign * (int(zone[1:3]) * 3600 + int(zone[-2:]) * 60)
    try:
        second = int(found[6])
        if second > 59:
            return None, None
        whole = _minute(*found.group(1, 2, 3, 4, 5)) - (offset or 0) + second
        return whole + float(f"0.{found[7] or 0}"), offset
    except (ValueError, OverflowError):
        return None, None


@functools.lru_cache(1024)
def _minute(year: str, month: str, day: str, hour: str, minute: str) -> float:
    return datetime(int(year), int(month), int(day), int(hour), int(minute), tzinfo=timezone.utc).timestamp()


def duration(text: str) -> float | None:
    """Return the seconds of a Go duration such as 30.0028s, 1m2.5s or 251.3ms; None for anything else."""
    total, end = 0.0, 0
    for part in _DURATION.finditer(text[:100]):
        if part.start() != end:
            return None
        total, end = total + float(part[1]) * _UNITS[part[2]], part.end()
    return round(total, 9) if end and end == len(text) else None
