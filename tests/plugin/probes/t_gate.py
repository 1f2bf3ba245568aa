"""A probe that does what its request says: ok, fail, warn, unknown, hang, crash.

late fails the first time; stuck hangs from the second time on, and worse also fails the first time.
"""

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
    with open(request["log"], encoding="utf-8") as log:
        first = log.read().split().count(request["stage"]) == 1
    mode = request["mode"]
    with journal.step(f"{request['stage']} call") as step:
        if mode == "hang" or (mode in ("stuck", "worse") and not first):
            time.sleep(60)
        elif mode == "crash":
            os.kill(os.getpid(), signal.SIGABRT)
        step.result = 0
    bad = mode == "fail" or (mode in ("late", "worse") and first)
    return {"bad": bad, "warn": mode == "warn", "unknown": mode == "unknown", "absent": mode == "absent"}
