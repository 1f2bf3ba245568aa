"""Ends in the way that the request names: {"how": ...}."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from pytest_gpudiscovery.probes.journal import Journal

MEGABYTE = b"x" * (1 << 20)


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    how, fd = request["how"], journal._fd
    with journal.step("before"):
        journal.observe("seen", 1)
    if how == "leave":
        os._exit(0)
    elif how == "libc exit":
        ctypes.CDLL(request["lib"]).leave()
    elif how == "exit 3":
        os._exit(3)
    elif how == "SystemExit":
        raise SystemExit(4)
    elif how == "no descriptors":
        ctypes.CDLL(request["lib"])
        if request["opens"]:
            os.close(os.open("/dev/null", os.O_RDONLY))
    elif how == "segv":
        with journal.step("crash"):
            ctypes.string_at(0)
    elif how == "abort":
        os.abort()
    elif how == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "raise":
        raise LookupError("the probe's own mistake")
    elif how == "not JSON":
        no_json: dict[Any, str] = {(1, 2): "a key that JSON does not have"}
        return no_json
    elif how == "close":
        os.closerange(0, 3)
    elif how == "close all and leave":
        os.closerange(0, 64)
        os._exit(0)
    elif how == "half a line":
        os.write(fd, b'{"ev": "answer", "val')
        os._exit(0)
    elif how == "garbage":
        os.write(fd, request["text"].encode("latin-1"))
    elif how == "flood":
        for stream in request["streams"]:
            target = {"stdout": 1, "stderr": 2, "journal": fd}[stream]
            for _ in range(request["megabytes"]):
                left = MEGABYTE + b"\n"
                while left:
                    left = left[os.write(target, left) :]
    elif how == "many steps":
        for index in range(request["count"]):
            with journal.step(f"step {index}"):
                pass
    sys.stdout.write("the end\n")
    return {"how": how}
