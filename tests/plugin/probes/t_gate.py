"""A probe that does what its request says: ok, fail, warn, unknown, hang, crash, or late (fails the first time)."""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    with open(request["log"], "a", encoding="utf-8") as log:
        log.write(request["stage"] + "\n")  # one line per start: the tests count them
    with journal.step(f"{request['stage']} call") as step:
        if request["mode"] == "hang":
            time.sleep(60)
        elif request["mode"] == "crash":
            os.kill(os.getpid(), signal.SIGABRT)
        step.result = 0
    with open(request["log"], encoding="utf-8") as log:
        first = log.read().split().count(request["stage"]) == 1
    mode = request["mode"]
    return {"bad": mode == "fail" or (mode == "late" and first), "warn": mode == "warn", "unknown": mode == "unknown"}
