"""The parent's half of the progress journal: what a child said, from bytes that it may have written while it died.

Nothing that a child writes can raise here, grow without a limit, or later fail to be written as JSON.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.model import Step

BYTES = 8 << 20  # of a whole journal; what comes after is counted and dropped
STEPS = 10_000
KEYS = 10_000
DEPTH = 100  # nested containers in one line; json.dumps of the verdict must not reach Python's recursion limit
NAME = 500  # characters of a step's name or an observation's key
DIGITS = 300  # of one integer; beyond it, conversion takes quadratic time


@dataclass
class _Open:
    name: str
    started: float
    duration_s: float | None = None
    result: Any = None


class Transcript:
    """Feeds on the bytes of the journal pipe. Times in the result are seconds after SPAWNED (time.monotonic())."""

    def __init__(self, spawned: float) -> None:
        self._spawned = spawned
        self._half = bytearray()
        self._taken = self.dropped = self.garbage = 0
        self._steps: list[_Open] = []
        self._by_id: dict[int, _Open] = {}
        self.observed: dict[str, Any] = {}
        self.answered, self.answer = False, None
        self.begun = False  # the probe's own code was reached
        self.refused: str | None = None  # why the child would not run the probe

    def feed(self, data: bytes, now: float) -> None:
        """Take the next DATA, read at NOW (time.monotonic())."""
        room = BYTES - self._taken
        self.dropped += max(0, len(data) - room)
        data = data[: max(0, room)]
        self._taken += len(data)
        if b"\n" not in data:
            self._half += data
            return
        *lines, rest = (bytes(self._half) + data).split(b"\n")
        self._half = bytearray(rest)
        for line in lines:
            self._line(line, now)

    def steps(self) -> tuple[Step, ...]:
        """Return the steps in the order of their start; one that never ended has no duration."""
        return tuple(Step(step.name, step.started, step.duration_s, step.result) for step in self._steps)

    def notes(self) -> list[str]:
        """Return what has to be said about the journal itself."""
        notes = []
        if self.dropped:
            notes.append(f"journal: {self.dropped} bytes beyond {BYTES >> 20} MiB were dropped")
        if self.garbage:
            notes.append(f"journal: {self.garbage} lines could not be read")
        return notes

    def _line(self, line: bytes, now: float) -> None:
        value = decode(line)
        take = getattr(self, f"_on_{value.get('ev')}", None) if isinstance(value, dict) else None
        if take is None or not take(value, now):
            self.garbage += 1

    def _seconds(self, value: Any, now: float) -> float:
        """Return the child's clock VALUE as seconds after the spawn, within the child's life so far."""
        time = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else now
        return round(min(max(time, self._spawned), now) - self._spawned, 6)

    def _on_start(self, line: dict[str, Any], now: float) -> bool:
        name, key = line.get("step"), line.get("id")
        if not isinstance(name, str) or not isinstance(key, int) or len(self._steps) >= STEPS:
            return False
        step = _Open(name[:NAME], self._seconds(line.get("t"), now))
        self._steps.append(step)
        self._by_id[key] = step
        return True

    def _on_end(self, line: dict[str, Any], now: float) -> bool:
        key = line.get("id")
        step = self._by_id.pop(key, None) if isinstance(key, int) else None
        if step is None:
            return False
        step.duration_s = round(max(0.0, self._seconds(line.get("t"), now) - step.started), 6)
        step.result = line.get("result")
        return True

    def _on_begin(self, line: dict[str, Any], now: float) -> bool:  # noqa: ARG002
        """The probe's interpreter runs: the exec before it, which could not end its own step, is over."""
        self.begun = True
        for step in self._by_id.values():
            step.duration_s = round(self._seconds(now, now) - step.started, 6)
        self._by_id.clear()
        return True

    def _on_observe(self, line: dict[str, Any], now: float) -> bool:  # noqa: ARG002
        key = line.get("key")
        if not isinstance(key, str) or (len(self.observed) >= KEYS and key not in self.observed):
            return False
        self.observed[key[:NAME]] = line.get("value")
        return True

    def _on_answer(self, line: dict[str, Any], now: float) -> bool:  # noqa: ARG002
        self.answered, self.answer = True, line.get("value")
        return True

    def _on_refused(self, line: dict[str, Any], now: float) -> bool:  # noqa: ARG002
        if self.begun or not isinstance(line.get("value"), str):
            return False
        self.refused = line["value"]
        return True


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= DIGITS else text


def _float(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def decode(line: bytes) -> Any:
    """Return the JSON value of LINE, None when there is none.

    Strict JSON comes out whatever went in: NaN, infinities and integers of more than DIGITS digits become strings,
    lone surrogates are escaped, and a line nested deeper than DEPTH is no value.
    """
    try:
        value = json.loads(line, parse_constant=str, parse_int=_integer, parse_float=_float)
    except (ValueError, RecursionError, MemoryError):
        return None
    if line.count(b"[") + line.count(b"{") > DEPTH and _too_deep(value):
        return None
    if b"\\ud" in line or b"\\uD" in line:
        return _clean(value)
    return value


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, (list, dict))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value
