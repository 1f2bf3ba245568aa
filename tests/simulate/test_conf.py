"""sim.conf: written by Python, read by C."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.simulate.conf import parse, write
from pytest_gpudiscovery.simulate.errors import SimulationError
from tests.simulate.conftest import Make, ask

KEYS = st.text(st.characters(codec="utf-8", exclude_characters="=\n\0"), min_size=1).filter(lambda k: k[0] != "#")
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\n\0"))
NAMES = """
nvml = ctypes.CDLL("libnvidia-ml.so.1")
assert nvml.nvmlInit_v2() == 0
count, names = ctypes.c_uint(), []
nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
for index in range(count.value):
    handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(256)
    assert nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0
    assert nvml.nvmlDeviceGetName(handle, name, 256) == 0
    names.append(name.value.decode())
say(names)
"""


@settings(database=None)  # a checkout may be read-only
@given(st.dictionaries(KEYS, VALUES))
def test_round_trip(conf: dict[str, str]) -> None:
    assert parse(write(conf)) == conf


@pytest.mark.parametrize("bad", [{"a=b": ""}, {"": "x"}, {"#a": ""}, {"a": "x\ny"}, {"a\n": ""}, {"a": "\0"}])
def test_what_the_format_cannot_hold(bad: dict[str, str]) -> None:
    with pytest.raises(SimulationError, match="cannot hold"):
        write(bad)


def test_the_library_reads_what_was_written(make: Make) -> None:
    host = make("h100x8")
    names = ["plain", "", " blanks ", "a=b=c", "#no comment", "ümläut", "x" * 200, "tab\tand;semicolon"]
    path = Path(host.directory, "sim.conf")
    conf = parse(path.read_text())
    for index, name in enumerate(names):
        conf[f"gpu.{index}.name"] = name
    path.write_text(write(conf))
    assert ask(dataclasses.replace(host), NAMES) == names
