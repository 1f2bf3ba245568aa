"""One lookup over every family of error that discovery meets: what a code, a signal or ld.so's words mean.

The tables are data (`data/errors.json`, `data/xid.json`, with their sources). Any value is answered: what no table
knows comes back with `known` False.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from pytest_gpudiscovery.diagnosis import errors, xid
from pytest_gpudiscovery.diagnosis.catalogue import DATA

SHELL_SIGNAL = 128  # a shell and a container runtime say 128 + number for a signal
LIMIT = 4_000  # characters of a text that are looked at: a symbol of C++ may be long, a log line has an end


@dataclass(frozen=True)
class Meaning:
    """What VALUE of FAMILY is called and means when Ollama's discovery meets it."""

    family: str
    label: str  # "100 CUDA_ERROR_NO_DEVICE", "11 SIGSEGV", "symbol_version"
    discovery: str  # at least one sentence
    cause: str | None  # id in the catalogue; None where it is no fault, or says too little alone
    parts: tuple[tuple[str, str], ...] = ()  # of a dlerror text: name, symbol, version, ...
    known: bool = True


def meaning(family: str, value: int | str | None) -> Meaning:
    """Return what VALUE means in FAMILY (one of FAMILIES); raises KeyError for another family.

    VALUE is a number, a text for "dlerror", None where there was none. A negative exit code is a signal, as in
    subprocess.
    """
    return _LOOKUPS[family](value)


def _api(family: str, lookup: Callable[[int | None], errors.Code]) -> Callable[[int | str | None], Meaning]:
    def find(value: int | str | None) -> Meaning:
        code = lookup(_number(value))
        return Meaning(family, code.label, code.discovery, code.cause, known=code.known)

    return find


def _xid(value: int | str | None) -> Meaning:
    code = _number(value)
    entry = xid.catalogue()["xids"].get(code)
    if entry is None:
        return _unknown("xid", value)
    says = str(entry.get("discovery") or "") or xid.catalogue()["classes"][entry["class"]]
    cause = {"application": "kernel.xid.application"}.get(
        entry["class"], "kernel.xid.fatal" if entry.get("fatal") else "kernel.xid.hardware"
    )
    return Meaning("xid", f"{code} {entry['name']}", says, cause)


def _signal(value: int | str | None) -> Meaning:
    entry = _table("signal").get(_number(value))
    if entry is None:
        return _unknown("signal", value)
    return Meaning("signal", f"{entry['code']} {entry['name']}", str(entry["discovery"]), _cause(entry))


def _exit(value: int | str | None) -> Meaning:
    code = _number(value)
    if code is not None and code < 0:
        return dataclasses.replace(_signal(-code), family="exit")
    entry = _table("exit").get(code)
    if entry is not None:
        return Meaning("exit", f"{code} {entry['name']}", str(entry["discovery"]), _cause(entry))
    if code is not None and code > SHELL_SIGNAL and (found := _signal(code - SHELL_SIGNAL)).known:
        return Meaning("exit", f"{code} (128 + {found.label.partition(' ')[2]})", found.discovery, found.cause)
    return _unknown("exit", value)


def _dlerror(value: int | str | None) -> Meaning:
    text = str(value or "")[:LIMIT]
    for pattern, entry in _patterns():
        found = pattern.search(text)
        if found is not None:
            parts = tuple((key, part) for key, part in found.groupdict().items() if part)
            return Meaning("dlerror", str(entry["name"]), str(entry["discovery"]), _cause(entry), parts)
    return _unknown("dlerror", text)


def _unknown(family: str, value: object) -> Meaning:
    said = " ".join(str("" if value is None else value).split())[:80]
    return Meaning(family, said or "no value", "No table of the gate's names this.", None, known=False)


def _number(value: int | str | None) -> int | None:
    if isinstance(value, int):
        return value
    return int(value) if value and re.fullmatch(r"-?[0-9]{1,9}", value) else None


def _cause(entry: dict[str, object]) -> str | None:
    return str(entry["cause"]) if entry["cause"] else None


@functools.cache
def _table(name: str) -> dict[object, dict[str, object]]:
    return {entry["code"]: entry for entry in _data()[name]}


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], dict[str, object]], ...]:
    return tuple((re.compile(str(entry["pattern"])), entry) for entry in _data()["dlerror"])


@functools.cache
def _data() -> dict[str, list[dict[str, object]]]:
    loaded: dict[str, list[dict[str, object]]] = json.loads((DATA / "errors.json").read_text(encoding="utf-8"))
    return loaded


_LOOKUPS: dict[str, Callable[[int | str | None], Meaning]] = {
    "cuda": _api("cuda", errors.cuda),
    "runtime": _api("runtime", errors.runtime),
    "nvml": _api("nvml", errors.nvml),
    "xid": _xid,
    "dlerror": _dlerror,
    "exit": _exit,
    "signal": _signal,
}
FAMILIES = tuple(_LOOKUPS)
