"""Judges the service's sandbox (P111, P112, P113) and what the caller's shell has otherwise (P114). Pure.

A unit's settings are judged as they stand, whether or not probes could be started with them: a setting that hides the
GPU is the cause, and the nodes that a later stage misses are what follows from it.
"""

from __future__ import annotations

import fnmatch
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_gpudiscovery.model import Check, CheckOutcome, Kind, Severity
from pytest_gpudiscovery.stages.service_env import judge_environment
from pytest_gpudiscovery.stages.spec import found, not_applicable, passed, unknown

ROWS = ("P111", "P112", "P113", "P114")
KINDS = {"P113": Kind.RISK, "P114": Kind.OBSERVABILITY}
NO_SERVICE = "no service is probed as"
LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
# Variables that change discovery without a row of their own: a difference in them is worth a word.
COMPARED = ("LD_LIBRARY_PATH", "LD_PRELOAD", "HOME", "TMPDIR")
COMPARED_PREFIXES = ("CUDA_", "OLLAMA_", "NVIDIA_", "GGML_", "HIP_", "ROCR_")
DIFFERENCES_SHOWN = 12
Seen = Mapping[str, Any]


def judge(
    seen: Seen, service: Seen, env: Mapping[str, str], caller_env: Mapping[str, str], package: Seen
) -> list[Check]:
    """Judge SERVICE (RunContext.service) with what stage 02 has SEEN."""
    checks = _differences(seen, env, caller_env, package)
    if not service:
        return [*(not_applicable(row, NO_SERVICE, KINDS.get(row, Kind.BLOCKING)) for row in ROWS[:3]), *checks]
    return [*_devices(seen, service), *_addresses(service, package), *_rest(service), *checks]


# --- P111: the device nodes -------------------------------------------------------------------------------------------


def _devices(seen: Seen, service: Seen) -> list[Check]:
    name = _name(service)
    if service.get("private_devices"):
        where = {"unit": name, "files": _files(service)}
        return [found("service.devices.private", where, expected="PrivateDevices=no", observed="yes")]
    nodes = seen.get("nodes") or []
    refused = [node for node in nodes if not allowed(service, node, seen.get("devices") or {})]
    if refused:
        facts: dict[str, Any] = {
            "unit": name,
            "paths": ", ".join(node["path"] for node in refused),
            "policy": service.get("device_policy"),
            "allow": "; ".join(service.get("device_allow") or []) or "none",
            "files": _files(service),
        }
        return [found("service.devices.not_allowed", facts, observed=[node["path"] for node in refused])]
    return _running(service, name)


def _running(service: Seen, name: str) -> list[Check]:
    """Judge the device cgroup of the process that runs now."""
    running = service.get("running") or {}
    devices = running.get("devices") or {}
    nodes = devices.get("nodes") or []
    by = ", ".join(devices.get("by") or []) or "no device controller"
    if denied := [node for node in nodes if node["allowed"] is False]:
        facts = {"unit": name, "pid": running.get("pid"), "paths": ", ".join(node["path"] for node in denied), "by": by}
        return [found("service.devices.cgroup_denied", facts, observed=denied)]
    if "process" in service and any(node["allowed"] is None for node in nodes):
        return [unknown("P111", f"the device cgroup of {name}: {devices.get('why')}", observed=nodes)]
    said = f"{name}: {by} lets the nodes through" if nodes else f"{name} hides no device"
    return [passed("P111", reason=said, observed=nodes or None)]


def allowed(service: Seen, node: Seen, drivers: Mapping[str, Sequence[int]]) -> bool:
    """Return whether DevicePolicy= and DeviceAllow= of SERVICE let NODE be read and written (systemd.resource-control).

    NODE: {"path", "major"}; DRIVERS: name in /proc/devices -> its majors.
    """
    policy, entries = service.get("device_policy"), service.get("device_allow") or []
    if policy is None or (policy == "auto" and not entries):
        return True
    access = ""
    for entry in entries:
        name, _, rights = entry.partition(" ")
        rights = rights.strip() or "rwm"
        if name.startswith("char-"):
            majors = [m for driver, ms in drivers.items() if fnmatch.fnmatchcase(driver, name[5:]) for m in ms]
            access += rights if node["major"] in majors or name == f"char-{node['major']}" else ""
        elif name == node["path"]:
            access += rights
    return "r" in access and "w" in access


# --- P112: address families and addresses -----------------------------------------------------------------------------


def _addresses(service: Seen, package: Seen) -> list[Check]:
    name, families = _name(service), service.get("families")
    if families and ("AF_INET" in families["names"]) is not families["allowed"]:
        kind = "lets only" if families["allowed"] else "forbids"
        facts = {"unit": name, "kind": kind, "names": " ".join(families["names"]) or "none", "files": _files(service)}
        return [found("service.sandbox.no_inet", facts, expected="AF_INET", observed=families)]
    denied, let = service.get("ip_deny") or [], service.get("ip_allow") or []
    if _covers(denied) and not _covers(let):
        facts = {"unit": name, "denied": " ".join(denied), "files": _files(service)}
        # Era C asks llama-server's output, not its port, for the devices; a model is loaded over HTTP in every era.
        lower = Severity.WARNING if package.get("era") == "C" else None
        return [
            found("service.sandbox.loopback_denied", facts, severity=lower, observed={"deny": denied, "allow": let})
        ]
    return [passed("P112", reason=f"{name} leaves IPv4 and loopback", observed=families)]


def _covers(entries: Sequence[str]) -> bool:
    """Whether one of ENTRIES (IPAddressDeny=) covers all of 127.0.0.0/8, or at least 127.0.0.1."""
    for entry in entries:
        if entry in ("any", "localhost"):
            return True
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            continue
        if network.version == LOOPBACK.version and LOOPBACK[1] in network:
            return True
    return False


# --- P113: what is not known to be harmless ---------------------------------------------------------------------------


def _rest(service: Seen) -> list[Check]:
    name = _name(service)
    checks = []
    if service.get("proc_subset") == "pid":
        checks.append(found("service.sandbox.proc_hidden", {"unit": name, "files": _files(service)}, observed="pid"))
    if service.get("private_users"):
        checks.append(found("service.sandbox.private_users", {"unit": name, "files": _files(service)}, observed=True))
    state = str((service.get("process") or {}).get("state") or "")
    if state.startswith(("D", "T", "t")):
        facts = {"unit": name, "state": state, "pid": (service.get("process") or {}).get("pid")}
        checks.append(found("service.process.stuck", facts, observed=state))
    return checks or [passed("P113", Kind.RISK, reason=f"{name} has no other setting that is known to matter")]


def _name(service: Seen) -> str:
    process = service.get("process") or {}
    return str(service.get("unit") or f"process {process.get('pid')}")


def _files(service: Seen) -> str:
    return ", ".join(service.get("files") or []) or "its unit"


# --- P114: the caller's shell -----------------------------------------------------------------------------------------


def _differences(seen: Seen, env: Mapping[str, str], caller_env: Mapping[str, str], package: Seen) -> list[Check]:
    """Say where a try from the caller's shell would end otherwise than the service does."""
    if not caller_env:
        return [not_applicable("P114", "probes have the caller's own environment", Kind.OBSERVABILITY)]
    names = sorted(name for name in {*env, *caller_env} if name in COMPARED or name.startswith(COMPARED_PREFIXES))
    other = [name for name in names if env.get(name) != caller_env.get(name)]
    ours, theirs = (_failing(judge_environment(seen, variables, package)) for variables in (env, caller_env))
    if ours != theirs:
        facts = {
            "names": ", ".join(other[:DIFFERENCES_SHOWN]),
            "only": "the service" if ours - theirs else "your shell",
            "causes": ", ".join(sorted(ours ^ theirs)),
        }
        return [found("service.differs.outcome", facts, observed=other)]
    if other:
        counted = {"count": len(other), "names": ", ".join(other[:DIFFERENCES_SHOWN])}
        return [found("service.differs.environment", counted, observed=other)]
    return [passed("P114", Kind.OBSERVABILITY, reason="the caller's shell has the same variables that matter")]


def _failing(checks: Sequence[Check]) -> set[str]:
    return {
        check.finding.cause
        for check in checks
        if check.finding is not None and check.outcome in (CheckOutcome.FAILED, CheckOutcome.WARNED)
    }
