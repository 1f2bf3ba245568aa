"""Judges the device nodes (P33, P35, P36, P62, P84) and what is only hidden by root or by nvidia-modprobe.

What each fault does further up was measured on an H100, one fault at a time, as root and as an ordinary user. As root
the driver's user space makes missing and wrong nodes anew: the fault is there, and root does not notice it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.diagnosis.xid import KernelLog
from pytest_gpudiscovery.model import Check, Kind, Severity
from pytest_gpudiscovery.stages.kernel_driver import HEALED, Seen
from pytest_gpudiscovery.stages.spec import found, not_applicable, passed

CAP_DAC_OVERRIDE, CAP_MKNOD = 1, 27
CONTROL, UVM = "/dev/nvidiactl", "/dev/nvidia-uvm"
OK = "ok"
# States of a node that a new node, made by the driver's user space, would end.
HEALABLE = ("missing", "not_char", "wrong_number")
CAUSE_OF = {  # state -> cause
    "missing": "kernel.node.missing",
    "not_char": "kernel.node.not_char",
    "wrong_number": "kernel.node.wrong_number",
    "no_permission": "kernel.node.no_permission",
    "nodev": "kernel.node.nodev",
    "cgroup": "kernel.node.cgroup_denied",
    "lsm": "kernel.node.lsm_denied",
    "excluded": "kernel.gpu.excluded",
    "no_driver": "kernel.node.no_driver",
    "gone": "kernel.gpu.gone",
    "init_failed": "kernel.gpu.init_failed",
    "busy": "kernel.gpu.busy",
    "open_failed": "kernel.node.open_failed",
}
MADE_AT_FIRST_USE = "P115"
PASSED = {
    "P33": "every node exists and opens",
    "P35": "no node is denied by the device cgroup",
    "P36": "no node is denied by a security module",
    "P62": "every node has the numbers that the driver was given",
    "P84": "no node lies on a nodev mount",
}


def has_capability(identity: Mapping[str, Any], bit: int) -> bool:
    """Return whether the hexadecimal mask CapEff of IDENTITY holds capability BIT."""
    try:
        return bool(int(str(identity.get("effective") or "0"), 16) >> bit & 1)
    except ValueError:
        return False


def healing(opened: Seen, seen: Seen) -> str | None:
    """Return who would make missing nodes at the first use: "root", "nvidia-modprobe" or None."""
    identity, modprobe = opened.get("identity") or {}, opened.get("modprobe") or {}
    if any(node.get("nodev") for node in opened.get("nodes") or []):
        return None  # a new node would lie on the same mount
    libraries = opened.get("libraries")
    if libraries and not any(library.get("path") for library in libraries):
        return None  # it is libcuda and NVML that make nodes, and neither is here
    if identity.get("uid") == 0:
        allowed = (seen.get("params") or {}).get("ModifyDeviceFiles", 1) != 0
        return "root" if allowed and has_capability(identity, CAP_MKNOD) else None
    if modprobe.get("setuid") and modprobe.get("executable") and not modprobe.get("nosuid"):
        return "nvidia-modprobe"
    return None


def state(node: Mapping[str, Any], identity: Mapping[str, Any], excluded: set[int]) -> str:
    """Return "ok" or the key of CAUSE_OF that says what is wrong with NODE."""
    status, answer = node.get("stat"), node.get("open")
    if status is None:
        return "missing" if node.get("errno") in ("ENOENT", "ENOTDIR") else "lsm"
    if status.get("type") != "char":
        return "not_char"
    if answer == "EPERM":
        return "excluded" if status.get("minor") in excluded and status.get("major") == 195 else "cgroup"
    if answer == "EACCES":
        if node.get("nodev"):
            return "nodev"
        return "lsm" if mode_allows(status, identity) else "no_permission"
    if any(
        want is not None and want != status.get(key)
        for key, want in zip(("major", "minor"), node["expected"], strict=False)
    ):
        return "wrong_number"
    of_a_gpu = {"ENODEV": "gone", "EIO": "init_failed", "EBUSY": "busy"} if node["path"] not in (CONTROL, UVM) else {}
    return {"ok": OK, "ENXIO": "no_driver", **of_a_gpu}.get(str(answer), "open_failed")


def mode_allows(status: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Return whether owner, group and mode of STATUS let IDENTITY read and write, as the kernel decides it."""
    if has_capability(identity, CAP_DAC_OVERRIDE):
        return True
    mode = int(status.get("mode") or 0)
    if status.get("uid") == identity.get("uid"):
        mode >>= 6
    elif status.get("gid") in (identity.get("gid"), *(identity.get("groups") or ())):
        mode >>= 3
    return mode & 6 == 6


def states(nodes: list[Mapping[str, Any]], seen: Seen, identity: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return path -> state of every node."""
    excluded = {gpu["minor"] for gpu in (seen.get("proc_gpus") or {}).get("gpus", []) if gpu.get("excluded")}
    return {node["path"]: state(node, identity or {}, excluded) for node in nodes}


def withheld(known: Mapping[str, str], seen: Seen) -> set[str]:
    """Return the nodes among KNOWN (path -> state) that a container was not given: another GPU's is there and opens.

    With CDI, or a device plugin that passes nodes alone, /proc/driver/nvidia/gpus still names every GPU of the host.
    """
    minors = [path for path in known if path not in (CONTROL, UVM)]
    if not (seen.get("platform") or {}).get("container") or not any(known[path] == OK for path in minors):
        return set()
    return {path for path in minors if known[path] == "missing"}


def judge(
    seen: Seen, opened: Seen, healer: str | None, log: KernelLog, env: Mapping[str, str], *, finished: bool = True
) -> list[Check]:
    """Judge every node; a GPU's own node blocks only when no GPU has a good one.

    FINISHED False: the probe hung in one of them, so the nodes after it are not absent but were not reached.
    """
    nodes, identity = opened.get("nodes") or [], opened.get("identity") or {}
    if not nodes:
        return []
    known = states(nodes, seen, identity)
    minors = [path for path in known if path not in (CONTROL, UVM)]
    one_works = any(known[path] == OK for path in minors)
    checks: list[Check] = []
    container = bool((seen.get("platform") or {}).get("container"))
    if container and all(value == "missing" for value in known.values()):
        facts = {"visible": env.get("NVIDIA_VISIBLE_DEVICES", "not set")}
        checks.append(found("kernel.container.no_devices", facts, severity=Severity.WARNING if healer else None))
    absent = withheld(known, seen)
    for node in nodes:
        what = known[node["path"]]
        if what == OK:
            continue
        if node["path"] in absent:
            reason = f"{node['path']} was not given to this container"
            checks.append(not_applicable("P33", reason, subject=subject_of(node["path"], seen)))
            continue
        lower = (what in HEALABLE and healer is not None) or (node["path"] in minors and one_works)
        checks.append(
            found(
                CAUSE_OF[what],
                {**facts_of(node, identity, seen), "healing": HEALED.get(healer or "", ""), "log": _log_of(log)},
                subject=subject_of(node["path"], seen),
                severity=Severity.WARNING if lower else None,
                expected=node["expected"],
                observed={"stat": node["stat"], "errno": node["errno"], "open": node["open"]},
                confidence=0.7 if lower else None,
            )
        )
    broken = [path for path, what in known.items() if what in HEALABLE and path not in absent]
    if not minors and finished:  # /proc/driver/nvidia names no GPU and /dev holds none: the first one stands for all
        broken.append("/dev/nvidia0")
        facts = {"path": "/dev/nvidia0", "healing": HEALED.get(healer or "", "")}
        checks.append(found("kernel.node.missing", facts, severity=Severity.WARNING if healer else None))
    if broken and healer is not None:
        names = ", ".join(path.rpartition("/")[2] for path in broken[:3])
        modprobe = (opened.get("modprobe") or {}).get("path")
        cause = "kernel.node.healed_by_root" if healer == "root" else "kernel.node.healed_by_modprobe"
        checks.append(found(cause, {"paths": names, "modprobe": modprobe}, observed=broken))
    checks.append(_beforehand(broken, checks))
    judged = {check.prerequisite for check in checks if check.finding is not None}
    observed = {path: node["open"] for path, node in zip(known, nodes, strict=True)}
    return checks + [passed(row, reason=why, observed=observed) for row, why in PASSED.items() if row not in judged]


def _beforehand(broken: list[str], checks: list[Check]) -> Check:
    """Return P115, whether every node is there before the first use, or the check of CHECKS that has said so."""
    said = next((check for check in checks if check.prerequisite == MADE_AT_FIRST_USE), None)
    if said is not None:
        checks.remove(said)
        return said
    if broken:
        return not_applicable(MADE_AT_FIRST_USE, "nobody here would make the nodes that are missing", Kind.RISK)
    return passed(MADE_AT_FIRST_USE, Kind.RISK, reason="no node has to be made at the first use")


def facts_of(node: Mapping[str, Any], identity: Mapping[str, Any], seen: Seen) -> dict[str, Any]:
    """Return what the catalogue's sentences about NODE need."""
    status = node.get("stat") or {}
    major, minor = node["expected"]
    return {
        "path": node["path"],
        "pci": subject_of(node["path"], seen).partition(":")[2] or "?",
        "type": status.get("type"),
        "major": status.get("major"),
        "minor": status.get("minor"),
        "expected": f"{'?' if major is None else major}:{'any' if minor is None else minor}",
        "mode": f"{status.get('mode') or 0:04o}",
        "owner": f"{status.get('uid')}:{status.get('gid')}",
        "uid": identity.get("uid"),
        "gid": identity.get("gid"),
        "groups": identity.get("groups"),
        "errno": node.get("open") or node.get("errno"),
    }


def subject_of(path: str, seen: Seen) -> str:
    """Return gpu:PCI for the node of a GPU that the module has named, else host."""
    tail = path.removeprefix("/dev/nvidia")
    for gpu in (seen.get("proc_gpus") or {}).get("gpus", []):
        if gpu.get("minor") is not None and str(gpu["minor"]) == tail:
            return f"gpu:{gpu['pci']}"
    return "host"


def _log_of(log: KernelLog) -> str:
    lines = [str(entry["text"]) for entry in (*log.gsp, *log.init_failed)]
    return lines[-1][:300] if lines else "nothing about it (or not readable)"
