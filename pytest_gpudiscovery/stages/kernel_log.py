"""Judges the kernel log and the processes that hold the driver's nodes (P38, P39, P86, P87).

An Xid blocks only when the catalogue calls it fatal, it came after the last load of the driver, and no recovery of the
same GPU followed; one of long ago is left to the driver stage. An application's error, however recent, is not a fault
of the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.diagnosis.xid import RECOVERY, KernelLog, Xid, action, read_log, slot, words
from pytest_gpudiscovery.model import Check, CheckOutcome, Kind, Severity
from pytest_gpudiscovery.stages.kernel_driver import Seen, gpus
from pytest_gpudiscovery.stages.spec import found, passed, unknown
from pytest_gpudiscovery.supervise.types import ChildResult, Ending

# Kernel functions in which a task waits for a disk or a file server (mm/filemap.c, mm/page-writeback.c, fs/, block/,
# net/sunrpc/sched.c): a job that reads its data holds the GPU's nodes meanwhile, and none of the driver's locks.
STORAGE = (
    *("folio_wait", "wait_on_page", "__lock_page", "__folio_lock", "io_schedule", "bit_wait_io", "__wait_on_buffer"),
    *("iomap_", "__iomap_", "do_blockdev_direct_IO", "blk_", "__blk", "rq_qos_wait", "submit_bio_wait"),
    *("balance_dirty", "jbd2_", "wait_transaction_locked", "ext4_", "xfs_", "xlog_", "btrfs_", "zil_", "dmu_"),
    *("nfs", "rpc_wait_bit", "request_wait_answer", "fuse_", "ceph_", "cifs_", "smb2_", "cl_sync_io", "osc_", "ll_"),
)
LONG_AGO_S = 6 * 3600.0  # of a fatal Xid: by then somebody has reset the GPU, or nobody works on this host
ALL_ONES = "63"  # current_link_width of a device whose registers read as ones


def read(seen: Seen) -> KernelLog:
    """Return what the look's log lines say."""
    log = seen.get("log") or {}
    return read_log(log.get("lines") or [], log.get("uptime"))


def judge(seen: Seen, log: KernelLog, nodes: list[Mapping[str, Any]], processes: ChildResult | None) -> list[Check]:
    """Judge P38 and P39 from what can be seen, and say in P86 and P87 whether all of it could."""
    checks = _xids(seen, log, nodes) + _bus(seen, log) + _initialisation(log, nodes)
    stuck, visible = _processes(processes)
    checks += stuck
    errno = (seen.get("log") or {}).get("errno")
    if errno:
        reason = f"/dev/kmsg cannot be read ({errno}): Xid errors, GSP failures and suspends stay unseen"
        checks.append(unknown("P86", reason, Kind.OBSERVABILITY))
    else:
        lines = len((seen.get("log") or {}).get("lines") or [])
        checks.append(passed("P86", Kind.OBSERVABILITY, observed={"lines": lines, "driver": log.loaded_version}))
    resumed = log.resumed_at is not None and log.since_load(log.resumed_at)
    if resumed and (seen.get("params") or {}).get("PreserveVideoMemoryAllocations") == 1:
        reason = "suspended since the driver was loaded, and PreserveVideoMemoryAllocations is on"
        checks.append(passed("P39", Kind.RISK, reason=reason, observed=log.age(log.resumed_at)))
    elif resumed:
        checks.append(found("kernel.resume.since_load", {"age": words(log.age(log.resumed_at))}))
    else:
        reason = "the kernel log cannot be read" if errno else "no suspend since the driver was loaded"
        checks.append(unknown("P39", reason, Kind.OBSERVABILITY) if errno else passed("P39", Kind.RISK, reason=reason))
    if not any(check.prerequisite == "P38" and check.outcome is not CheckOutcome.PASSED for check in checks):
        reason = "judged without the kernel log" if errno else "no fatal Xid since the driver was loaded"
        checks.append(passed("P38", reason=reason))
    return [*checks, visible]


def _xids(seen: Seen, log: KernelLog, nodes: list[Mapping[str, Any]]) -> list[Check]:
    groups: dict[tuple[int, str, bool], list[Xid]] = {}
    for xid in log.current():
        groups.setdefault((xid.code, xid.pci, xid.fatal), []).append(xid)
    known = {slot(gpu["pci"]): gpu["pci"] for gpu in gpus(seen)}
    checks = []
    for (code, pci, fatal), same in groups.items():
        last = same[-1]
        if fatal and known and slot(pci) not in known:
            cause = "kernel.log.other_gpu"  # it explains nothing that the GPUs of this host do
        elif fatal:
            cause = "kernel.xid.fatal"
        elif last.kind in ("application", "information"):
            cause = "kernel.xid.application"
        else:
            cause = "kernel.xid.hardware"
        facts = {
            "code": code,
            "pci": pci,
            "age": words(log.age(last.at)),
            "meaning": last.meaning,
            "text": last.text.rstrip("."),
            "discovery": last.discovery,
            "count": len(same),
        }
        evidence = {"name": last.name, "kind": last.kind, "first": log.age(same[0].at), "last": log.age(last.at)}
        doubtful = cause == "kernel.xid.fatal" and _may_be_over(last, log, seen, nodes)
        checks.append(
            found(
                cause,
                facts,
                subject=f"gpu:{known.get(pci, pci)}",
                observed=last.text,
                evidence=evidence,
                severity=Severity.WARNING if doubtful else None,
                confidence=0.4 if doubtful else None,
            )
        )
    return checks


def _may_be_over(last: Xid, log: KernelLog, seen: Seen, nodes: list[Mapping[str, Any]]) -> bool:
    """Whether the GPU may have been reset since LAST, which only drivers that log Xid 154 say.

    It happened long ago, no Xid 154 says that a reset is still due, and the GPU's node opens. The driver stage then
    asks the GPU itself; what hangs or fails there is explained by this finding all the same.
    """
    age = log.age(last.at)
    if age is None or age < LONG_AGO_S:
        return False
    actions = [action(xid.text) for xid in log.xids if xid.code == RECOVERY and xid.pci == last.pci]
    minors = {f"/dev/nvidia{gpu['minor']}" for gpu in gpus(seen) if slot(gpu["pci"]) == last.pci}
    return not any(actions) and any(node["path"] in minors and node.get("open") == "ok" for node in nodes)


def _bus(seen: Seen, log: KernelLog) -> list[Check]:
    """Judge what says that a GPU no longer answers, where no Xid 79 says it as well."""
    lost = {xid.pci for xid in log.current() if xid.fatal}
    gone: dict[str, str] = {}
    for entry in log.off_bus:
        if log.since_load(entry["at"]):
            gone[entry["pci"]] = f"{entry['text']} ({words(log.age(entry['at']))} ago)."
    for gpu in (seen.get("pci") or {}).get("gpus", []):
        if gpu.get("width") == ALL_ONES:
            gone[slot(gpu["pci"])] = f"Its link width reads as {ALL_ONES}: the registers are all ones."
    return [
        found("kernel.gpu.off_bus", {"pci": pci, "evidence": text}, subject=f"gpu:{pci}", observed=text)
        for pci, text in gone.items()
        if pci not in lost
    ]


def _initialisation(log: KernelLog, nodes: list[Mapping[str, Any]]) -> list[Check]:
    """Judge failed initialisations: an open() that works now is the better witness, so they only warn."""
    checks = []
    for entry in [entry for entry in log.gsp if log.since_load(entry["at"])][-1:]:
        facts = {"age": words(log.age(entry["at"])), "text": entry["text"]}
        checks.append(found("kernel.gsp.failed", facts, observed=entry["text"], confidence=_doubt(nodes)))
    latest = {entry["pci"]: entry for entry in log.init_failed if log.since_load(entry["at"])}
    for pci, entry in latest.items():
        facts = {"pci": pci, "age": words(log.age(entry["at"])), "text": entry["text"]}
        checks.append(found("kernel.gpu.init_failed_earlier", facts, subject=f"gpu:{pci}", observed=entry["text"]))
    return checks


def _doubt(nodes: list[Mapping[str, Any]]) -> float | None:
    return 0.3 if nodes and all(node.get("open") == "ok" for node in nodes) else None


def _processes(result: ChildResult | None) -> tuple[list[Check], Check]:
    """Return the findings about stuck tasks, and P87: whether every process could be looked at."""
    if result is None:
        return [], unknown("P87", "not reached: an earlier probe of this stage ended first", Kind.OBSERVABILITY)
    if result.ending is not Ending.ANSWERED or not isinstance(result.answer, dict):
        step = result.open_step.name if result.open_step else "the scan"
        reason = (
            f"{step}: no answer ({result.ending.value}); a task that locks its own /proc entries is stuck somewhere"
        )
        return [], unknown("P87", reason, Kind.OBSERVABILITY)
    checks = []
    for task in result.answer.get("stuck") or []:
        if str(task.get("wchan") or "").startswith(STORAGE):
            continue
        facts = {**task, "node": task["nodes"][0], "wchan": task["wchan"] or "an unknown function"}
        checks.append(found("kernel.processes.stuck", facts, observed=task))
    hidden = result.answer.get("hidden") or 0
    if hidden:
        reason = f"{hidden} process(es) in state D whose open files only root may see"
        return checks, unknown("P87", reason, Kind.OBSERVABILITY)
    holders = [f"{holder['comm']} ({holder['pid']})" for holder in result.answer.get("holders") or []]
    return checks, passed("P87", Kind.OBSERVABILITY, observed={"holders": holders})
