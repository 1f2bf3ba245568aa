"""--gpu-as pid:N of a process that is stuck in the kernel with its memory map locked: no environment of it."""

from __future__ import annotations

import time
from pathlib import Path

from pytest_gpudiscovery.service import process
from pytest_gpudiscovery.service.who import EVERY
from pytest_gpudiscovery.supervise.child import EVIDENCE_S, KILL_WAIT_S
from tests.supervise.conftest import silent_write
from tests.supervise.test_dstate import SLACK_S, hang

__all__ = ["silent_write"]


def test_what_can_be_seen_is_seen_and_the_rest_is_said_in_time(silent_write: Path) -> None:
    stuck = hang("mmap", silent_write)
    assert stuck.pid is not None
    began = time.monotonic()
    who = process.asked_for(stuck.pid, scale=0.3)
    assert time.monotonic() - began < 0.3 * process.LOOK_S + EVIDENCE_S + KILL_WAIT_S + SLACK_S
    assert who.identity is not None
    assert str(who.sandbox["process"]["state"]).startswith("D")
    assert who.limits["RLIMIT_NOFILE"]
    assert who.refused == f"the environment of process {stuck.pid} cannot be read"
    (lost, *_) = who.missing
    assert lost.stages == EVERY
    assert lost.why == f"read /proc/{stuck.pid}/environ did not return: the process is stuck in the kernel"
