"""What a supervised child does to itself before its probe runs: /dev, limits, privileges, identity, directory."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from pytest_gpudiscovery.probes.journal import Journal

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38  # linux/prctl.h
PR_SET_PTRACER = 0x59616D61  # "Yama"
PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: Any, *rest: Any) -> None:
    """Call prctl(2); raises OSError."""
    if _libc.prctl(option, value, *(rest or (0, 0, 0))) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def apply(payload: dict[str, Any], journal: Journal) -> str | None:
    """Apply PAYLOAD's setup. Returns None when the probe may run, else why it must not; may exec and not return."""
    setup = payload["setup"]
    missed: list[dict[str, str]] = []
    done: dict[str, Any] = {"uid": os.geteuid(), "gid": os.getegid(), "groups": os.getgroups()}
    if setup["no_new_privs"]:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
    if payload["cwd"] != "/":
        with journal.step(f"chdir({payload['cwd']!r})"):
            try:
                os.chdir(payload["cwd"])
            except OSError as error:
                return f"working directory {payload['cwd']}: {error.strerror}"
    else:
        os.chdir("/")
    _tie(payload)
    journal.observe("setup", {**done, "interpreter": sys.executable, "not_done": missed})
    return None


def _tie(payload: dict[str, Any]) -> None:
    """Tie this process to its supervisor, after the last change of identity (that clears PR_SET_PDEATHSIG)."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL.value)
    if os.getppid() != payload["parent_pid"]:
        os._exit(1)  # the supervisor died before the line above took effect
    # Daemons that a library forks stay our children, so that the supervisor finds them while we live.
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY)  # Yama allows only ancestors: forensics is a sibling
    except OSError:
        pass  # a kernel without Yama needs no permission
