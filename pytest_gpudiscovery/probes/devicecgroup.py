"""What another process's device cgroup allows, without joining it: v1's list, v2's eBPF programs read and interpreted.

On cgroup v2 the controller is a BPF_PROG_TYPE_CGROUP_DEVICE program per cgroup; all that are in effect must return
non-zero (kernel/bpf/cgroup.c, __cgroup_bpf_check_dev_permission). Whatever their interpreter (bpf.py) does not know is
"cannot be told", never a guess.
"""

from __future__ import annotations

import os

from pytest_gpudiscovery.probes import bpf
from pytest_gpudiscovery.probes.facts import names, number, text
from pytest_gpudiscovery.probes.host import HostView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROOT = "/sys/fs/cgroup"
CONTROL_PATH = "/dev/nvidiactl"
CONTROL = (195, 255)  # /dev/nvidiactl; a GPU's own node is 195:N, /dev/nvidia-uvm has a number of its own each boot


def of_process(view: HostView, pid: int) -> dict[str, Any]:
    """Return {"by": [...], "why": text | None, "nodes": [{"path", "major", "minor", "allowed"}]} for process PID.

    `allowed` of /dev/nvidiactl, each GPU's node and /dev/nvidia-uvm is True, False, or None where it cannot be told;
    `why` says what could not be read.
    """
    wanted = nvidia_nodes(view)
    lines = (text(view, f"/proc/{pid}/cgroup") or "").splitlines()
    if not lines:
        nodes = [{**node, "allowed": None} for node in wanted]
        return {"by": [], "why": f"/proc/{pid}/cgroup cannot be read", "nodes": nodes}
    rules, by, why = _v1(view, lines)
    programs, problem = _v2(lines)
    if programs:
        by.append(f"{len(programs)} eBPF programs" if len(programs) > 1 else "an eBPF program")
    nodes = []
    for node in wanted:
        answers = [] if rules is None else [listed(rules, node["major"], node["minor"])]
        try:
            answers += [bool(bpf.run(program, node["major"], node["minor"])) for program in programs or ()]
        except bpf.UnknownInstruction as error:
            problem = problem or str(error)
        denied = False in answers
        nodes.append({**node, "allowed": False if denied else None if (problem or why) else True})
    return {"by": by, "why": why or problem, "nodes": nodes}


def nvidia_nodes(view: HostView) -> list[dict[str, Any]]:
    """Return {"path", "major", "minor"} of the nodes that CUDA opens, by the numbers that the driver was given."""
    minors = sorted(
        int(name.removeprefix("nvidia"))
        for name in names(view, "/dev")
        if number(name.removeprefix("nvidia")) is not None
    )
    found = [{"path": CONTROL_PATH, "major": CONTROL[0], "minor": CONTROL[1]}]
    found += [{"path": f"/dev/nvidia{minor}", "major": CONTROL[0], "minor": minor} for minor in minors or [0]]
    for line in (text(view, "/proc/devices") or "").splitlines():
        major, _, name = line.strip().partition(" ")
        if name == "nvidia-uvm" and (value := number(major)) is not None:
            found.append({"path": "/dev/nvidia-uvm", "major": value, "minor": 0})
    return found


def _v1(view: HostView, lines: list[str]) -> tuple[list[str] | None, list[str], str | None]:
    """Return (the lines of devices.list, what was read, why not); None for a host without that controller."""
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "devices" in controllers.split(","):
            place = f"{ROOT}/devices{path.rstrip('/')}/devices.list"
            said = text(view, place)
            return (None, [], f"{place} cannot be read") if said is None else (said.splitlines(), [place], None)
    return None, [], None


def listed(rules: list[str], major: int, minor: int) -> bool:
    """Return whether devices.list RULES ("c 195:* rwm") let a character device be read and written."""
    access = ""
    for rule in rules:
        fields = rule.split()
        if len(fields) != 3 or fields[0] not in ("a", "c"):
            continue
        first, _, second = fields[1].partition(":")
        if first in ("*", str(major)) and second in ("*", str(minor)):
            access += fields[2]
    return "r" in access and "w" in access


def _v2(lines: list[str]) -> tuple[list[bytes] | None, str | None]:
    """Return (the instructions of every program in effect, why they cannot be had)."""
    path = next((line.partition("::")[2] for line in lines if line.startswith("0::")), None)
    if path is None or path.startswith("/.."):
        return None, None if path is None else "its cgroup lies outside of ours"
    mounts = [place for place in (f"{ROOT}/unified", ROOT) if os.path.exists(f"{place}/cgroup.procs")]
    if not mounts:
        return None, None
    try:
        return bpf.device_programs(mounts[0] + path), None
    except OSError as error:
        return None, f"the eBPF programs of {mounts[0]}{path} cannot be read: {error.strerror}"
