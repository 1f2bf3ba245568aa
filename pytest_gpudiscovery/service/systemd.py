"""A systemd unit as systemd itself has it loaded, else as its files say; and whether probes can be started by systemd.

Every question to systemd is asked by a supervised child: one that does not answer costs its deadline and no more.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from pytest_gpudiscovery import unit_files
from pytest_gpudiscovery.options import UsageProblem
from pytest_gpudiscovery.service import unit as units
from pytest_gpudiscovery.service.who import Who, refused
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.transient import PROGRAM
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Identity, Probe, Setup
from pytest_gpudiscovery.unit_files import Unit, UnitProblem

BOOTED = "/run/systemd/system"  # sd_booted(3)
SYSTEMCTL = ("/usr/bin/systemctl", "/bin/systemctl")
ASK_S, START_S = 5.0, 8.0
DEFAULT_UNIT = "ollama.service"

Supervise = Callable[[Probe], ChildResult]


def found_here(scale: float = 1.0, *, supervise: Supervise = run) -> Who | None:
    """Return the service that this host has by its unit files, None without one. systemd is asked as root only."""
    try:
        if unit_files.read_unit(DEFAULT_UNIT) is None:
            return None
    except UnitProblem as problem:
        return refused(f"systemd unit {DEFAULT_UNIT}", str(problem))
    return _who(DEFAULT_UNIT, scale, supervise, ask=os.geteuid() == 0)


def asked_for(name: str, scale: float = 1.0, *, supervise: Supervise = run) -> Who:
    """Return who unit NAME (--gpu-as systemd:NAME) runs as; raises UsageProblem when there is no such unit."""
    unit = name if name.endswith(".service") else f"{name}.service"
    found = _who(unit, scale, supervise, ask=True)
    if found is None:
        places = ", ".join(unit_files.DIRECTORIES[4:6] + unit_files.DIRECTORIES[7:9])
        raise UsageProblem(f"--gpu-as=systemd:{name}: no unit {unit}, neither known to systemd nor in {places}")
    return found


def booted() -> str | None:
    """Return the path of systemctl where systemd runs this host, None otherwise."""
    if not os.path.isdir(BOOTED):
        return None
    return next((path for path in SYSTEMCTL if os.access(path, os.X_OK)), None)


def _who(name: str, scale: float, supervise: Supervise, *, ask: bool) -> Who | None:
    systemctl = booted() if ask else None
    answer: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()
    if systemctl is not None:
        result = supervise(Probe("systemd", {"systemctl": systemctl, "unit": name}, _own_env(), ASK_S * scale))
        answer = {**result.observed, **(result.answer if isinstance(result.answer, dict) else {})}
        if not answer.get("show"):
            why = answer.get("why") or f"it did not answer within {ASK_S * scale:g} s"
            notes = (f"systemd could not be asked about {name} ({why}): its files were read instead",)
    show: Mapping[str, str] = answer.get("show") or {}
    try:
        unit = _unit(name, show)
    except UnitProblem as problem:
        return refused(f"systemd unit {name}", str(problem))
    if unit is None:
        return None
    may_run = bool(show) and os.geteuid() == 0 and os.access(PROGRAM, os.X_OK)
    who = units.from_unit(unit, manager_env=answer.get("environment"), may_run=may_run)
    if may_run and not who.refused:
        who = _try_out(who, unit, scale, supervise)
    who = dataclasses.replace(who, notes=(*who.notes, *notes, *_state(name, show)))
    running = {"pid": _number(show.get("MainPID")), "active": show.get("ActiveState"), "devices": answer.get("devices")}
    return dataclasses.replace(who, sandbox={**who.sandbox, "running": running if show else None})


def _own_env() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin"}


def _unit(name: str, show: Mapping[str, str]) -> Unit | None:
    state = show.get("LoadState")
    if state == "not-found":
        return None
    if state == "masked":
        raise UnitProblem("it is masked")
    if show.get("FragmentPath"):
        try:
            dropins = shlex.split(show.get("DropInPaths", ""))
        except ValueError:
            dropins = []
        return unit_files.merge(name, (show["FragmentPath"], *dropins))
    return unit_files.read_unit(name)


def _try_out(who: Who, unit: Unit, scale: float, supervise: Supervise) -> Who:
    """Return WHO if systemd starts a probe with the unit's properties, else WHO as it is without systemd."""
    setup = Setup(identity=who.identity, transient=who.transient)
    result = supervise(Probe("nothing", {}, _own_env(), START_S * scale, setup=setup))
    if result.ending is Ending.ANSWERED:
        return who if who.identity is not None else dataclasses.replace(who, identity=_made(result, unit))
    said = [line for line in (*result.stderr.splitlines(), *result.notes) if line.strip()]
    why = said[-1].strip()[:200] if said else result.ending.value
    return units.without_systemd(who, unit, f"systemd-run: {why}")


def _made(result: ChildResult, unit: Unit) -> Identity | None:
    """Return the user that systemd made for the probe of RESULT (DynamicUser=), None for root."""
    seen = result.observed.get("setup") or {}
    if not seen.get("uid"):
        return None
    return Identity(seen["uid"], seen["gid"], tuple(seen["groups"]), unit.name.partition(".")[0])


def _state(name: str, show: Mapping[str, str]) -> tuple[str, ...]:
    """Return what is worth saying of the state in which systemd has the unit."""
    said = []
    if show.get("NeedDaemonReload") == "yes":
        said.append(f"{name}: its files changed since systemd read them; what is probed is what they say now")
    if show.get("ActiveState") == "failed":
        status = show.get("ExecMainStatus") or "?"
        said.append(f"{name} has failed (result {show.get('Result') or '?'}, status {status})")
    return tuple(said)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() and text != "0" else None
