"""Reads the driver's lines of the kernel log: Xid errors, failed initialisations, loads of the driver, suspends.

The catalogue of Xid codes is `data/xid.json`. A record of /dev/kmsg is `prio,sequence,microseconds,flags;text`
(Documentation/ABI/testing/dev-kmsg); the microseconds count from boot. Pure functions over text.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_gpudiscovery.diagnosis.catalogue import DATA

RECOVERY = 154  # GPU_RECOVERY_ACTION_CHANGED: the driver's own word on what a GPU needs

_RECORD = re.compile(r"^\d{1,10},\d{1,20},(\d{1,18}),[^;]{0,64};(.*)$", re.DOTALL)
# Since 2012: `NVRM: Xid (PCI:0000:06:00): 79, pid=..., GPU has fallen off the bus.` Before: without `PCI:`.
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]{4,20})[^)]{0,100}\): (\d{1,5}),? ?(.*)$")
_ACTION = re.compile(r"changed from 0x[0-9a-fA-F]{1,8}\b.{0,60}? to 0x([0-9a-fA-F]{1,8})\b")
_GPU = r"GPU (?:at )?(?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)"
_INIT_FAILED = re.compile(rf"NVRM: {_GPU}: (?:RmInitAdapter|rm_init_adapter) failed(.*)$")
_OFF_BUS = re.compile(rf"NVRM: {_GPU}: GPU has fallen off the bus")
_LOADED = re.compile(r"NVRM: loading NVIDIA UNIX.*?(\d{3}\.\d{1,3}(?:\.\d{1,3})?)")
_RESUMED = re.compile(r"PM: (?:suspend|hibernation).{0,20} exit")
_LOAD_ERROR = re.compile(
    r"(?:nvidia[\w-]*|nouveau).{0,120}?"
    r"(?:signature|Key was rejected|Unknown symbol|version magic|disagrees about version|Lockdown)"
    r"|NVRM: (?:No NVIDIA GPU found|None of the NVIDIA devices were initialized|The NVIDIA probe routine failed"
    r"|The NVIDIA GPU .{0,80}not supported|This can occur when a driver such as)",
    re.IGNORECASE,
)
_GSP = re.compile(
    r"NVRM: .{0,80}(?:Cannot initialize GSP firmware RM|unexpected WPR2 already up|failed to wait for GFW boot)"
    r"|firmware load for nvidia/\S{1,60}gsp\S{0,40} failed"
)


@dataclass(frozen=True)
class Xid:
    """One Xid error. `at` is in seconds after boot; `fatal` says that the GPU takes no new work because of it."""

    code: int
    pci: str  # as the log has it, domain:bus:device without the function
    at: float | None
    text: str
    name: str
    meaning: str
    kind: str  # a key of `classes` in xid.json, or "unlisted"
    fatal: bool
    discovery: str


@dataclass(frozen=True)
class KernelLog:
    """What the kernel log says of the driver, oldest first. Times are seconds after boot."""

    xids: tuple[Xid, ...] = ()
    loaded_at: float | None = None  # the last load of the driver that the log still has
    loaded_version: str | None = None
    resumed_at: float | None = None
    init_failed: tuple[Mapping[str, Any], ...] = ()  # {"pci", "at", "text"}
    off_bus: tuple[Mapping[str, Any], ...] = ()
    load_errors: tuple[str, ...] = ()
    gsp: tuple[Mapping[str, Any], ...] = ()  # {"at", "text"}: the GPU's system processor could not be started
    now: float | None = None
    recovered: Mapping[str, float] = field(default_factory=dict)  # pci -> when Xid 154 said that nothing is needed

    def age(self, at: float | None) -> float | None:
        """Return how many seconds ago AT was, None when that cannot be known."""
        return None if at is None or self.now is None else max(0.0, self.now - at)

    def current(self) -> tuple[Xid, ...]:
        """Return the Xid errors since the last driver load that no later recovery of the same GPU has ended."""
        return tuple(
            xid for xid in self.xids if self.since_load(xid.at) and not _before(xid.at, self.recovered.get(xid.pci))
        )

    def since_load(self, at: float | None) -> bool:
        """Return whether AT is not before the last driver load; an unknown time counts as now."""
        return not _before(at, self.loaded_at)


def _before(at: float | None, limit: float | None) -> bool:
    return at is not None and limit is not None and at < limit


@functools.cache
def catalogue() -> Mapping[str, Any]:
    """Return xid.json with `xids` as a mapping from code to entry."""
    data = json.loads((DATA / "xid.json").read_text(encoding="utf-8"))
    return {**data, "xids": {entry["code"]: entry for entry in data["xids"]}}


def read_log(lines: Iterable[str], now: float | None = None) -> KernelLog:
    """Return what LINES (records of /dev/kmsg, or bare messages) say; NOW is the uptime in seconds."""
    xids: list[Xid] = []
    init_failed: list[Mapping[str, Any]] = []
    off_bus: list[Mapping[str, Any]] = []
    load_errors: list[str] = []
    gsp: list[Mapping[str, Any]] = []
    recovered: dict[str, float] = {}
    loaded_at = resumed_at = None
    loaded_version = None
    for line in lines:
        record = _RECORD.match(line)
        at, text = (int(record[1]) / 1e6, record[2]) if record else (None, line)
        if found := _XID.search(text):
            xid = describe(int(found[2]), found[1], at, found[3].strip())
            xids.append(xid)
            if xid.code == RECOVERY and action(xid.text) == 0 and at is not None:
                recovered[xid.pci] = at
        elif found := _INIT_FAILED.search(text):
            init_failed.append({"pci": slot(found[1]), "at": at, "text": text.strip()})
        elif found := _OFF_BUS.search(text):
            off_bus.append({"pci": slot(found[1]), "at": at, "text": text.strip()})
        elif found := _LOADED.search(text):
            loaded_at, loaded_version = at, found[1]
        elif _RESUMED.search(text):
            resumed_at = at
        elif _GSP.search(text):
            gsp.append({"at": at, "text": text.strip()})
        elif _LOAD_ERROR.search(text):
            load_errors.append(text.strip())
    return KernelLog(
        xids=tuple(xids),
        loaded_at=loaded_at,
        loaded_version=loaded_version,
        resumed_at=resumed_at,
        init_failed=tuple(init_failed),
        off_bus=tuple(off_bus),
        load_errors=tuple(load_errors[-20:]),
        gsp=tuple(gsp),
        now=now,
        recovered=recovered,
    )


def describe(code: int, pci: str, at: float | None, text: str) -> Xid:
    """Return Xid CODE with what the catalogue knows of it; of Xid 154 the action in its TEXT decides."""
    entry = catalogue()["xids"].get(code)
    if entry is None:
        unlisted = "This code is not in the catalogue: look it up in NVIDIA's list."
        return Xid(code, slot(pci), at, text, "", "not in the catalogue", "unlisted", False, unlisted)
    meaning, fatal = entry["meaning"], bool(entry["fatal"])
    if code == RECOVERY:
        wanted = catalogue()["recovery_actions"].get(str(action(text)))
        if wanted is not None:
            meaning, fatal = f"recovery action: {wanted['name']}", bool(wanted["fatal"])
    discovery = entry.get("discovery") or catalogue()["classes"][entry["class"]]
    return Xid(code, slot(pci), at, text, entry["name"], meaning, entry["class"], fatal, discovery)


def action(text: str) -> int | None:
    """Return the recovery action that the TEXT of an Xid 154 changes to, None when it names none."""
    found = _ACTION.search(text)
    return int(found[1], 16) if found else None


def slot(pci: str) -> str:
    """Return domain:bus:device of a PCI address, lower case, four digits of domain, no function."""
    parts = pci.lower().partition(".")[0].split(":")
    if len(parts) == 3:
        return f"{parts[0][-4:].rjust(4, '0')}:{parts[1]}:{parts[2]}"
    return ":".join(parts)


def words(seconds: float | None) -> str:
    """Return an age in words a person reads: "3 min", "2 h", "5 days", "an unknown time"."""
    if seconds is None:
        return "an unknown time"
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
