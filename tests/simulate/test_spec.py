"""The text after --gpu-simulate."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery import simulate
from pytest_gpudiscovery.simulate.machines import HOSTS
from pytest_gpudiscovery.simulate.registry import FAULTS
from pytest_gpudiscovery.simulate.spec import SimulationSpec, parse

# A value may hold commas and colons; text after a comma that is itself a fault name would start the next fault.
VALUES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S"))).filter(
    lambda text: not any(word.partition("=")[0] in FAULTS for word in text.split(",")[1:])
)
ONE = st.tuples(st.sampled_from(sorted(FAULTS)), st.none() | VALUES)


@settings(database=None)  # a checkout may be read-only
@given(st.sampled_from(sorted(HOSTS)), st.lists(ONE, max_size=4))
def test_what_is_written_is_read_back(host: str, faults: list[tuple[str, str | None]]) -> None:
    spec = SimulationSpec(host, tuple(faults))
    assert parse(str(spec)) == spec


@settings(database=None)  # a checkout may be read-only
@given(st.text())
def test_any_text_is_a_spec_or_one_line(text: str) -> None:
    spec, problem = None, ""
    try:
        spec = parse(text)
    except simulate.SimulationError as error:
        problem = str(error)
    if spec is None:
        assert len(problem.splitlines()) == 1
    else:
        assert spec.host in HOSTS
        assert all(name in FAULTS for name, _ in spec.faults)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("h10", "did you mean h100"),
        ("", "gpu-discovery faults"),
        ("h100:", "gpu-discovery faults"),
        ("h100:driver.cuinit.82", "did you mean driver.cuinit."),
        ("h100:driver.cuinit.802,nonsense", "'nonsense'"),
        ("h100:hang.cuinit.path=/x,libcuda.mising=1", None),
    ],
)
def test_unknown_names_get_the_nearest(text: str, hint: str | None) -> None:
    if hint is None:  # a value swallows what is no fault name
        assert parse(text).faults == (("hang.cuinit.path", "/x,libcuda.mising=1"),)
        return
    with pytest.raises(simulate.SimulationError, match="no simulated") as caught:
        parse(text)
    assert hint in str(caught.value)


def test_values_may_hold_commas() -> None:
    spec = parse("h100x2:env.cuda_visible_devices=1,0,driver.cuinit.slow=0.5")
    assert spec.faults == (("env.cuda_visible_devices", "1,0"), ("driver.cuinit.slow", "0.5"))
