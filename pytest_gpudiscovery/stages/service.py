"""02 service: nothing in what Ollama's discovery child inherits keeps it from starting or from seeing the GPU."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, Kind, Severity, StageRecord
from pytest_gpudiscovery.stages import service_sandbox
from pytest_gpudiscovery.stages.endings import signal_words
from pytest_gpudiscovery.stages.looking import in_order, loader_env, look
from pytest_gpudiscovery.stages.service_env import judge_environment
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
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe

ROWS = (
    *("P10", "P11", "P12", "P13", "P14", "P15", "P16", "P77", "P80", "P81", "P82", "P83"),
    *service_sandbox.ROWS,
)
PRELOAD_S = 5.0  # for a program that does nothing: it needs 0.05 s
MB, GB = 1 << 20, 1 << 30
PEAK = 243 * MB  # of the whole path to device memory, measured on an H100
COMFORT = 2 * GB  # CUDA's libraries map 0.9 to 1.3 GB and touch a part of it
TOO_LITTLE_ADDRESS_SPACE = 4 * GB  # cuInit answered 2 with this limit, measured
TOO_FEW_DESCRIPTORS, FEW_DESCRIPTORS = 16, 256  # 16: cuInit answered 100, measured
FEW_TASKS, FEW_CPUS = 64, 0.5
IDENTITY_MAP = [[0, 0, 4294967295]]


def plan(
    context: RunContext, _: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Look at the context without its preloaded objects, then start one program with them."""
    deadline = deadline_for(context, SPEC.name, SPEC.deadline_s)
    if "look" not in results:
        request: dict[str, Any] = {"mode": "look", "env": loader_env(context), "pid": _running(context)}
        return "look", look(context, "service", request, deadline)
    answer = results["look"].answer
    names = _listed(answer if isinstance(answer, dict) else {})
    if "preload" not in results and names and context.view.get("kind") != "root":
        request = {"mode": "preload", "view": dict(context.view), "names": names}
        limit = min(PRELOAD_S * context.scale, deadline)
        return "preload", Probe("service", request, context.env, limit, context.cwd, context.setup)
    return None


def _listed(seen: Mapping[str, Any]) -> list[str]:
    """Return the base names of the objects that LD_PRELOAD, LD_AUDIT and /etc/ld.so.preload name."""
    return [_base(item) for item in seen.get("preload") or []]


def _base(item: Mapping[str, Any]) -> str:
    return str(item["name"]).rpartition("/")[2]


def judge(given: StageInput) -> Judgement:
    """Judge the context; what concerns Ollama alone does not apply where there is none."""
    seen = given.observed("look")
    if "threads" not in seen:
        return Judgement((), "the context could not be looked at", _facts(seen))
    checks = [
        *_preload(seen, given.results.get("preload"), given),
        *_tasks(seen, given.context.service),
        *_memory(seen, given.context.service),
        *judge_environment(seen, given.context.env, given.facts("package")),
        *_library_path(seen),
        *_shim(seen),
        *_namespace(seen, given.context.service),
        *_limits(seen),
        *service_sandbox.judge(
            seen, given.context.service, given.context.env, given.context.caller_env, given.facts("package")
        ),
    ]
    identity = seen["identity"]
    groups = ",".join(str(group) for group in identity["groups"]) or "none"
    summary = f"uid {identity['uid']}, gid {identity['gid']}, groups {groups}; {len(seen['preload'])} preloaded"
    return Judgement(in_order(checks), summary, _facts(seen))


def _preload(seen: Mapping[str, Any], result: ChildResult | None, given: StageInput) -> list[Check]:
    checks = []
    really = result.answer.get("mapped") or [] if result is not None and isinstance(result.answer, dict) else []
    for item in seen["preload"]:
        if _base(item) in really:
            continue
        facts = {"name": item["name"], "base": _base(item), "source": item["source"]}
        facts["problem"] = item["elf"].get("problem") or item["elf"].get("errno")
        if item["token"]:
            checks.append(unknown("P10", f"{item['name']}: ld.so's tokens are not expanded here", Kind.OBSERVABILITY))
        elif item["elf"].get("errno") == "ENOENT":
            checks.append(found("service.preload.missing", facts, observed=item["path"]))
        elif "errno" in item["elf"] or "problem" in item["elf"]:
            checks.append(found("service.preload.unusable", facts, observed=item["path"]))
    if seen["ld_so_preload"]["errno"] not in (None, "ENOENT"):
        reason = f"/etc/ld.so.preload cannot be read: {seen['ld_so_preload']['errno']}"
        checks.append(unknown("P10", reason, Kind.OBSERVABILITY))
    if result is not None:
        checks.append(_started(seen, result, given))
    elif seen["preload"] and given.context.view.get("kind") == "root":
        names = ", ".join(_listed(seen))
        checks.append(unknown("P10", f"{names}: not started, as that needs the process's own mount namespace"))
    return checks or [passed("P10", reason="nothing is preloaded")]


def _started(seen: Mapping[str, Any], result: ChildResult, given: StageInput) -> Check:
    names = _listed(seen)
    sources = sorted({item["source"] for item in seen["preload"]})
    first = next((item["path"] for item in seen["preload"] if item["path"]), "")
    facts = {
        "names": ", ".join(names),
        "first": first,
        "source": ", ".join(sources),
        "deadline_s": min(PRELOAD_S * given.context.scale, given.deadline_s),
        "ending": signal_words(result.signal) if result.signal else f"exit code {result.exit_code}",
        "stderr": result.stderr.strip()[-300:] or "none",
    }
    if result.ending in (Ending.TIMED_OUT, Ending.UNKILLABLE):
        return found("service.preload.hang", facts, evidence=dict(result.evidence), observed=names)
    if result.ending is Ending.NOT_SPAWNED:
        return unknown("P10", "; ".join(result.notes) or "the program with the preload list was not started")
    if result.ending is not Ending.ANSWERED:
        return found("service.preload.crash", facts, observed=names)
    mapped = (result.answer or {}).get("mapped") or []
    if not mapped:
        return passed("P10", reason="nothing of the preload list was mapped", observed=names)
    return found("service.preload.present", {**facts, "names": ", ".join(mapped)}, observed=mapped)


def _running(context: RunContext) -> int | None:
    """Return the process whose cgroup counts where probes could not be started by systemd, in one like it."""
    if context.setup.transient or context.view.get("kind") == "recorded":
        return None
    pid = (context.service.get("running") or {}).get("pid")
    return pid if isinstance(pid, int) else None


def _set_limit(now: Mapping[str, Any] | None, service: Mapping[str, Any], setting: str) -> Mapping[str, Any] | None:
    """Return the tighter of a cgroup's limit NOW and what the unit's SETTING says, as {"max", "free"}."""
    said = service.get(setting)
    if not isinstance(said, int) or (now is not None and now["max"] <= said):
        return now
    return {"max": said, "free": said if now is None else min(said, now["free"])}


def _tasks(seen: Mapping[str, Any], service: Mapping[str, Any]) -> list[Check]:
    pids, cpu = _set_limit(seen["cgroup"]["pids"], service, "tasks_max"), seen["cgroup"]["cpu"]
    quota = service.get("cpus")
    if isinstance(quota, float) and (cpu is None or quota < cpu["cpus"]):
        cpu = {"cpus": quota, "throttled_s": 0.0}
    facts = {
        **seen["threads"],
        "uid": seen["identity"]["uid"],
        "errno": seen["fork"]["errno"],
        "nproc": _limit_words(seen["limits"]["NPROC"][0]),
        "address_space": _limit_words(seen["limits"]["AS"][0]),
        "data": _limit_words(seen["limits"].get("DATA", [-1])[0]),
        "pids": pids["max"] if pids else "no limit",
    }
    if seen["fork"]["errno"]:
        return [found("service.fork.refused", facts, observed=seen["fork"]["errno"])]
    if seen["threads"]["started"] < seen["threads"]["wanted"]:
        return [found("service.threads.refused", facts, observed=seen["threads"])]
    checks = []
    if pids and pids["free"] < FEW_TASKS:
        checks.append(found("service.pids.few", pids, expected=FEW_TASKS, observed=pids["free"]))
    if cpu and cpu["cpus"] < FEW_CPUS:
        checks.append(found("service.cpu.quota", cpu, expected=FEW_CPUS, observed=cpu["cpus"]))
    return checks or [passed("P11", reason="fork and threads work", observed=seen["threads"])]


def _memory(seen: Mapping[str, Any], service: Mapping[str, Any]) -> list[Check]:
    limit, available = _set_limit(seen["cgroup"]["memory"], service, "memory_max"), seen["available"]
    file = (limit or {}).get("file") or "/sys/fs/cgroup/memory.max"  # a limit of the unit alone has none
    if limit and limit["max"] < PEAK:
        facts = {"max_mb": limit["max"] / MB, "file": file}
        return [found("service.memory.limit", facts, expected=PEAK, observed=limit["max"])]
    places = [(available, "MemAvailable")] if available is not None else []
    places += [(limit["free"], f"the cgroup's {posixpath.basename(file)}")] if limit else []
    if not places:
        return [unknown("P12", "neither /proc/meminfo nor the cgroup can be read", Kind.OBSERVABILITY)]
    free, where = min(places)
    if free < COMFORT:
        facts = {"free_mb": free / MB, "where": where, "file": file}
        return [found("service.memory.low", facts, expected=COMFORT, observed=free)]
    return [passed("P12", observed={"free": free, "by": where})]


def _library_path(seen: Mapping[str, Any]) -> list[Check]:
    other = (seen["libcuda_without"] or {}).get("realpath")
    first = next((item for item in seen["library_path"] if item["libcuda"]), None)
    if first is None:
        return [passed("P16", reason="LD_LIBRARY_PATH brings no libcuda.so.1")]
    library = first["libcuda"]
    facts = {"directory": first["directory"], "path": library["path"], "other": other or "libcuda.so.1 (none found)"}
    if library["stub"]:
        return [found("service.ld_library_path.stub", facts, expected=other, observed=library["path"])]
    if other is None or library["realpath"] == other:
        reason = "the only one that the loader finds" if other is None else "what the loader would take anyway"
        return [passed("P16", reason=f"{library['path']} is {reason}", observed=library)]
    without = seen["libcuda_without"] or {}
    if library["version"] and all(library[key] == without.get(key) for key in ("version", "size")):
        reason = f"{library['path']} is a second copy of {other}: one version, one size"
        return [passed("P16", reason=reason, observed=library)]
    return [found("service.ld_library_path.conflict", facts, expected=other, observed=library["realpath"])]


def _shim(seen: Mapping[str, Any]) -> list[Check]:
    if seen["preload"]:
        reason = "something is preloaded; which device it would need is not known"
        return [unknown("P77", reason, Kind.OBSERVABILITY)]
    return [not_applicable("P77", "no shim stands between Ollama and the driver", Kind.RISK)]


def _namespace(seen: Mapping[str, Any], service: Mapping[str, Any]) -> list[Check]:
    uid_map, ours = seen["namespaces"]["uid_map"], seen["namespaces"]["proc_is_ours"]
    if (other := service.get("process")) is not None:
        uid_map, ours = other.get("uid_map") or None, True  # its own /proc is that of its pid namespace
    if uid_map is None:
        return [unknown("P81", "/proc/self/uid_map cannot be read", Kind.OBSERVABILITY)]
    if uid_map == IDENTITY_MAP and ours is not False:
        return [passed("P81", observed=uid_map)]
    # Both together is the case that was measured to answer 304. A mapping alone is every rootless or unprivileged
    # container: what it takes away (the group of a node) is met where the nodes are opened, so it is only a note.
    both = uid_map != IDENTITY_MAP and ours is False
    facts = {"uid_map": uid_map, "proc": "belongs to another pid namespace" if ours is False else "is this one's own"}
    return [
        found(
            "service.user_namespace",
            facts,
            expected=IDENTITY_MAP,
            observed=uid_map,
            severity=Severity.BLOCKER if both else Severity.NOTE if ours else None,
            confidence=0.85 if both else None,
        )
    ]


def _limits(seen: Mapping[str, Any]) -> list[Check]:
    space, descriptors = seen["limits"]["AS"][0], seen["limits"]["NOFILE"][0]
    seconds, data = (seen["limits"].get(name, [-1])[0] for name in ("CPU", "DATA"))
    checks = []
    if seconds >= 0:
        checks.append(found("service.limit.cpu_time", {"seconds": seconds}, expected="unlimited", observed=seconds))
    if data >= 0:
        checks.append(found("service.limit.data", {"limit_mb": data / MB}, expected="unlimited", observed=data))
    if space < 0:
        checks.append(passed("P82", observed="unlimited"))
    else:
        name = "address_space" if space <= TOO_LITTLE_ADDRESS_SPACE else "address_space_finite"
        checks.append(found(f"service.limit.{name}", {"limit_gb": space / GB}, expected="unlimited", observed=space))
    if descriptors < 0 or descriptors >= FEW_DESCRIPTORS:
        checks.append(passed("P83", observed=_limit_words(descriptors)))
    else:
        name = "descriptors" if descriptors <= TOO_FEW_DESCRIPTORS else "descriptors_few"
        facts = {"limit": descriptors}
        checks.append(found(f"service.limit.{name}", facts, expected=FEW_DESCRIPTORS, observed=descriptors))
    return checks


def _limit_words(limit: int) -> str:
    return "unlimited" if limit < 0 else str(limit)


def _facts(seen: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "identity": seen.get("identity"),
        "limits": seen.get("limits"),
        "preload": [item["path"] for item in seen.get("preload") or [] if item.get("path")],
        "user_namespace": (seen.get("namespaces") or {}).get("uid_map") not in (None, IDENTITY_MAP),
    }


SPEC = StageSpec(
    number=2,
    name="service",
    title="what the discovery child inherits",
    after=("package",),
    deadline_s=10.0,
    rows=ROWS,
    plan=plan,
    judge=judge,
    hang_causes={"": "service.look_hang"},
    optional=frozenset({"preload"}),
)
