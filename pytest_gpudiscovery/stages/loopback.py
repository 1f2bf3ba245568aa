"""03 loopback: a port can be bound, localhost resolves, TCP arrives, the temporary directory takes a file."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, Kind, StageRecord
from pytest_gpudiscovery.stages.looking import in_order
from pytest_gpudiscovery.stages.spec import (
    Judgement,
    RunContext,
    StageInput,
    StageSpec,
    deadline_for,
    found,
    not_applicable,
    passed,
    unknown,
)
from pytest_gpudiscovery.supervise.types import ChildResult, Probe

ROWS = ("P17", "P18", "P19", "P20", "P21")
IFF_UP = 1
SLOW_S = 1.0  # of the 30 s that a discovery child has
FEW_PORTS = 1000
TMP_CAUSES = {
    "ENOENT": "loopback.tmp.missing",
    "ENOTDIR": "loopback.tmp.missing",
    "EACCES": "loopback.tmp.denied",
    "EPERM": "loopback.tmp.denied",
    "EROFS": "loopback.tmp.denied",
    "ENOSPC": "loopback.tmp.full",
    "EDQUOT": "loopback.tmp.full",
}


def plan(
    context: RunContext, _: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Do once, in the child's own environment, what Ollama and its child do."""
    if results:
        return None
    request = {"view": dict(context.view), "tmpdir": context.env.get("TMPDIR") or "/tmp"}  # noqa: S108 - os.TempDir()
    deadline = deadline_for(context, SPEC.name, SPEC.deadline_s)
    return "loopback", Probe("loopback", request, context.env, deadline, context.cwd, context.setup)


def judge(given: StageInput) -> Judgement:
    """Judge each action by what it gave; what an earlier hang left out is unknown."""
    seen = given.observed("loopback")
    if "bind" not in seen:
        return Judgement((), "nothing was seen")
    checks = [*_bind(seen), *_resolve(seen), *_tcp(seen), *_ports(seen), *_tmp(seen, given)]
    resolved = seen.get("resolve") or {}
    summary = f"port {seen['bind']['port']} bound, localhost in {1000 * resolved.get('seconds', 0):.0f} ms"
    return Judgement(in_order(checks), summary, {"resolve": seen.get("resolve"), "tmp": seen.get("tmp")})


def _bind(seen: Mapping[str, Any]) -> list[Check]:
    lo, bound = seen["lo"], seen["bind"]
    checks = []
    if _is_down(lo):
        checks.append(found("loopback.lo.down", lo, expected="up", observed=lo))
    if bound["errno"]:
        checks.append(found("loopback.bind.failed", bound, expected="a port", observed=bound["errno"]))
    return checks or [passed("P17", observed=bound["port"])]


def _is_down(lo: Mapping[str, Any]) -> bool:
    try:
        flags: int | None = int(str(lo.get("flags") or ""), 16)
    except ValueError:
        flags = None
    asked = lo.get("ifr_flags")
    # operstate of a loopback interface that is up is "unknown"
    return (
        lo.get("operstate") == "down"
        or (flags is not None and not flags & IFF_UP)
        or (isinstance(asked, int) and not asked & IFF_UP)
    )


def _resolve(seen: Mapping[str, Any]) -> list[Check]:
    answer = seen.get("resolve")
    if answer is None:
        return [unknown("P18", "not reached", Kind.RISK)]
    hosts = seen.get("hosts")
    facts = {**answer, "hosts": "nothing (not readable)" if hosts is None else ", ".join(hosts) or "nothing"}
    facts["addresses"] = ", ".join(answer["addresses"])
    if answer["error"]:
        return [found("loopback.localhost.unresolved", facts, observed=answer["error"])]
    if answer["seconds"] >= SLOW_S:
        return [found("loopback.localhost.slow", facts, expected=SLOW_S, observed=answer["seconds"])]
    if not any(_is_loopback(address) for address in answer["addresses"]):
        return [found("loopback.localhost.foreign", facts, expected="127.0.0.1 or ::1", observed=answer["addresses"])]
    return [passed("P18", observed=answer)]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _tcp(seen: Mapping[str, Any]) -> list[Check]:
    answer = seen.get("tcp")
    if answer is None:
        reason = "no port could be bound" if seen["bind"]["errno"] else "not reached"
        return [not_applicable("P19", reason) if seen["bind"]["errno"] else unknown("P19", reason, Kind.RISK)]
    causes = {"ETIMEDOUT": "dropped", "EPROTO": "changed"}
    if answer["errno"]:
        cause = f"loopback.tcp.{causes.get(answer['errno'], 'refused')}"
        return [found(cause, answer, expected="request and reply", observed=answer)]
    return [passed("P19", observed={"seconds": answer["seconds"]})]


def _ports(seen: Mapping[str, Any]) -> list[Check]:
    ports = seen.get("ports")
    if ports is None:
        return [unknown("P20", "ip_local_port_range cannot be read", Kind.OBSERVABILITY)]
    count = max(0, ports[1] - ports[0] + 1)
    if count < FEW_PORTS:
        facts = {"count": count, "first": ports[0], "last": ports[1]}
        return [found("loopback.ports.narrow", facts, expected=FEW_PORTS, observed=count)]
    return [passed("P20", Kind.RISK, observed=ports)]


def _tmp(seen: Mapping[str, Any], given: StageInput) -> list[Check]:
    answer = seen.get("tmp")
    if answer is None:
        return [unknown("P21", "not reached", Kind.RISK)]
    if answer["errno"]:
        identity = given.context.setup.identity
        facts = {**answer, "uid": identity.uid if identity else given.context.adopted.get("uid", "?")}
        cause = TMP_CAUSES.get(answer["errno"], "loopback.tmp.failed")
        if cause == "loopback.tmp.missing" and answer.get("is_dir"):
            cause = "loopback.tmp.failed"  # a pseudo file system takes no files and says ENOENT
        return [found(cause, facts, expected="a file", observed=answer["errno"])]
    return [passed("P21", observed=answer)]


SPEC = StageSpec(
    number=3,
    name="loopback",
    title="loopback and the temporary directory",
    after=("service",),
    deadline_s=5.0,
    rows=ROWS,
    plan=plan,
    judge=judge,
    hang_causes={
        "resolve localhost": "loopback.localhost.hang",
        # No step was open: the last one, which has no limit of its own, ended together with the deadline.
        "the loopback probe": "loopback.localhost.hang",
        "write a file": "loopback.tmp.hang",
        "tcp 127.0.0.1": "loopback.tcp.hang",
    },
)
