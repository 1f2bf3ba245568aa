"""Asks systemd about one unit: what it has loaded, whether it runs, and what its cgroup allows. Changes nothing.

A systemd that does not answer hangs this child, never the gate.
"""

from __future__ import annotations

import os

from pytest_gpudiscovery.probes import devicecgroup
from pytest_gpudiscovery.probes.host import LiveView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal

PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "ExecMainStatus",
    "FragmentPath",
    "DropInPaths",
    "NeedDaemonReload",
    "MainPID",
    "ControlGroup",
)
OUTPUT_LIMIT = 1 << 20


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return {"show": {property: text}, "environment": {...}, "devices": [...]} of unit REQUEST["unit"].

    REQUEST["systemctl"] is the program. `environment` is systemd's own, None when it was not told; `devices` is what
    the device cgroup of the running service allows (devicecgroup.py), None when it does not run.
    """
    program, unit = request["systemctl"], request["unit"]
    with journal.step(f"systemctl show {unit}") as step:
        wanted = [f"--property={name}" for name in PROPERTIES]
        said, status = output([program, "show", "--no-pager", *wanted, "--", unit])
        step.result = status
    show = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if status != 0 or "LoadState" not in show:
        return {"show": {}, "why": " ".join(said.split())[-200:] or f"systemctl ended with {status}"}
    journal.observe("show", show)
    with journal.step("systemctl show-environment") as step:
        said, step.result = output([program, "show-environment"])
        pairs = (line.split("=", 1) for line in said.splitlines() if "=" in line)
        environment = dict(pairs) if step.result == 0 else None
    devices = None
    if show.get("MainPID", "0") not in ("0", ""):
        with journal.step("read the service's device cgroup"):
            devices = devicecgroup.of_process(LiveView(), int(show["MainPID"]))
    return {"show": show, "environment": environment, "devices": devices}


def output(argv: list[str]) -> tuple[str, int]:
    """Run ARGV and return what it printed on both outputs, and its exit status; raises OSError."""
    out, child_out = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, child_out, 1), (os.POSIX_SPAWN_DUP2, child_out, 2)]
    pid = os.posix_spawn(argv[0], argv, {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, file_actions=actions)
    os.close(child_out)
    parts, left = [], OUTPUT_LIMIT
    while left > 0 and (part := os.read(out, left)):
        parts.append(part)
        left -= len(part)
    os.close(out)
    return b"".join(parts).decode("utf-8", "replace"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
