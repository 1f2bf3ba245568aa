"""Observations as a broken or hostile library could cause them: any part of a healthy one replaced by anything."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from pytest_gpudiscovery.model import Check
from pytest_gpudiscovery.stages.spec import Judgement

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["GPU-", "0000:00:06.0", "99fff950:99fff9", "9.0", "", "rc"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every part of VALUE."""
    found = [prefix] if prefix else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += paths(item, (*prefix, key))
    return found


@st.composite
def mutated(draw: st.DrawFn, healthy: dict[str, Any]) -> dict[str, Any]:
    """Draw HEALTHY with one to three of its parts replaced by anything, or removed."""
    value = copy.deepcopy(healthy)
    for _ in range(draw(st.integers(1, 3))):
        everything = paths(value)
        if not everything:
            break
        *above, last = draw(st.sampled_from(everything))
        holder: Any = value
        for key in above:
            holder = holder[key]
        if draw(st.booleans()):
            holder[last] = draw(ANYTHING)
        else:
            del holder[last]
    return value


def is_sound(judgement: Judgement) -> None:
    """Assert that JUDGEMENT is one that a report can show."""
    assert isinstance(judgement.summary, str)
    for check in judgement.checks:
        assert isinstance(check, Check)
        assert check.prerequisite.startswith("P")
        assert check.finding is None or 0 < len(check.finding.summary) <= 80
