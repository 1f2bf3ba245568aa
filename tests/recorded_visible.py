"""What a real driver made of CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, value by value (stages/data/visible.json)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Unlike in the first digit, as those of the recorded GPUs; none begins with 0, e or deadbeef.
UUIDS = ("GPU-b7c1a2d3-4e5f-4607-8819-2a3b4c5d6e7f", "GPU-3f9e8d7c-6b5a-4490-a8b7-c6d5e4f30211")
_DATA = json.loads((Path(__file__).parent / "stages/data/visible.json").read_text(encoding="utf-8"))
_LENGTHS = {8: 12, 5: 9, 6: 6, 2: 6, 1: 5}  # {u8}: so many characters of {u}
_FIELD = re.compile(r"\{(\w+?)(\d*)\}")


@dataclass(frozen=True)
class Asked:
    """One value and what the driver answered: the code of cuInit, the GPUs by their number on the host."""

    template: str | None
    value: str | None
    order: str | None
    code: int
    gpus: tuple[int, ...]


def rows(count: int) -> list[Asked]:
    """Return what was recorded on the host with COUNT GPUs (1 or 2), filled in with the first COUNT of UUIDS."""
    found = []
    for template, code, gpus, *order in _DATA["one" if count == 1 else "two"]:
        value = None if template is None else _fill(template, UUIDS[:count])
        found.append(Asked(template, value, order[0] if order else None, code, tuple(gpus)))
    return found


def _fill(template: str, uuids: Sequence[str]) -> str:
    u, v = uuids[0], uuids[-1]
    whole = {"ul": u.lower(), "uu": u.upper(), "nop": u[4:], "ndash": "GPU-" + u[4:].replace("-", "")}
    whole["odd"] = "GPU-" + "-".join(u[4:12])

    def one(match: re.Match[str]) -> str:
        name, number = match[1], int(match[2] or 0)
        if name in ("x", "commas"):
            return number * ("x" if name == "x" else ",")
        if name in ("u", "v"):
            text = u if name == "u" else v
            return text[: _LENGTHS[number]] if number else text
        return whole[name]

    return _FIELD.sub(one, template)
