"""The simulated driver reads CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER as the recorded one did, value by value."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests import recorded_visible
from tests.simulate.conftest import Make, ask

# A driver reads its environment once: each value is asked in a process of its own.
CHILD = """
def answer(variables):
    os.environ.update(variables)
    cuda = ctypes.CDLL("libcuda.so.1")
    code, count, found = cuda.cuInit(0), ctypes.c_int(0), []
    if code == 0:
        cuda.cuDeviceGetCount(ctypes.byref(count))
    for ordinal in range(count.value):
        uuid = ctypes.create_string_buffer(16)
        cuda.cuDeviceGetUuid_v2(uuid, ordinal)
        found.append(uuid.raw.hex())
    return [code, found]
answers = []
for variables in json.loads(sys.stdin.read()):
    mine, theirs = os.pipe()
    if os.fork() == 0:
        os.write(theirs, json.dumps(answer(variables)).encode())
        os._exit(0)
    os.close(theirs)
    with open(mine) as pipe:
        answers.append(json.loads(pipe.read() or "null"))
    os.wait()
say(answers)
"""


@pytest.mark.parametrize("count", [1, 2])
def test_every_recorded_value(make: Make, count: int) -> None:
    host = make("h100" if count == 1 else "h100x2")
    conf = Path(host.directory, "sim.conf")
    uuids = recorded_visible.UUIDS[:count]
    others = [line for line in conf.read_text().splitlines() if not re.match(r"gpu\.\d\.uuid=", line)]
    conf.write_text("\n".join([*others, *(f"gpu.{gpu}.uuid={uuid}" for gpu, uuid in enumerate(uuids)), ""]))
    rows = recorded_visible.rows(count)
    asked = [{"CUDA_VISIBLE_DEVICES": row.value, "CUDA_DEVICE_ORDER": row.order} for row in rows]
    given = [{name: value for name, value in one.items() if value is not None} for one in asked]
    digits = [uuid[4:].replace("-", "") for uuid in uuids]
    answers = ask(host, CHILD, stdin=json.dumps(given))
    wrong = [
        (row.template, row.order, answer)
        for row, answer in zip(rows, answers, strict=True)
        if answer != [row.code, [digits[gpu] for gpu in row.gpus]]
    ]
    assert wrong == []


def test_the_beginning_of_two_uuids_names_none(make: Make) -> None:
    given = [{"CUDA_VISIBLE_DEVICES": "GPU-00000000"}]
    assert ask(make("h100x2"), CHILD, stdin=json.dumps(given)) == [[100, []]]
    assert ask(make("h100"), CHILD, stdin=json.dumps(given))[0][0] == 0
