"""Ollama's eras of GPU discovery, their sub-ranges and time budgets: data/eras.json, looked up by version."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.ollama import versions
from pytest_gpudiscovery.ollama.versions import Releases, load, number

A, B, C = "A", "B", "C"
FIRST_PASS, VALIDATION, REFRESH = "first_pass", "validation", "refresh"


@dataclass(frozen=True)
class Era:
    """One way in which Ollama has looked for GPUs. `last` is None while it goes on."""

    id: str  # A, B or C
    first: str
    last: str | None
    mechanism: str
    source: str

    @property
    def releases(self) -> Releases:
        """The releases of this era."""
        return versions.between(self.first, self.last)


@dataclass(frozen=True)
class SubRange:
    """A range of releases inside an era in which discovery did the same."""

    id: str  # B5
    first: str
    last: str | None
    changed: str  # against the range before
    source: str

    @property
    def releases(self) -> Releases:
        """The releases of this range."""
        return versions.between(self.first, self.last)


@functools.cache
def eras() -> tuple[Era, ...]:
    """Return every era, oldest first."""
    return tuple(Era(**entry) for entry in load("eras")["eras"])


@functools.cache
def sub_ranges() -> tuple[SubRange, ...]:
    """Return every sub-range, oldest first."""
    return tuple(SubRange(**entry) for entry in load("eras")["sub_ranges"])


def era_of(version: str) -> Era | None:
    """Return the era of VERSION ("0.16.3", "v0.30.0-rc1"), None for what is no version number.

    A candidate counts as its release; a version newer than every known one counts as the last era's.
    """
    this = number(version)
    if this is None:
        return None
    return next((era for era in reversed(eras()) if this >= (number(era.first) or ())), None)


def eras_in(found: Releases) -> tuple[Era, ...]:
    """Return the eras that have a release in FOUND."""
    return tuple(era for era in eras() if era.releases & found)


def sub_ranges_in(found: Releases) -> tuple[SubRange, ...]:
    """Return the sub-ranges that have a release in FOUND."""
    return tuple(entry for entry in sub_ranges() if entry.releases & found)


def budget_s(kind: str, found: Releases = 0, *, directory: str = "", windows: bool = False) -> float:
    """Return the seconds that the releases FOUND (0: any) give to KIND for DIRECTORY (a basename: cuda_v12).

    KIND is first_pass, validation, refresh, native_probe or wait_delay; raises KeyError for another one. Where the
    releases in FOUND differ, the longer time is meant only when all of them give it.
    """
    for entry in load("eras")["budgets"]:
        releases = versions.between(entry["first"], entry["last"])
        special = entry["directory"] is not None or entry["os"] is not None
        if (
            entry["id"] == kind
            and (entry["directory"] is None or directory.startswith(entry["directory"]))
            and (entry["os"] is None or windows)
            and (not special or (found & ~releases == 0 and (found != 0 or entry["os"] is not None)))
        ):
            return float(entry["seconds"])
    raise KeyError(kind)


def second_pass(found: Releases) -> frozenset[str]:
    """Return the libraries (CUDA, ROCm, Vulkan) that some release in FOUND starts a second pass for."""
    return frozenset(
        library
        for entry in load("eras")["second_pass"]
        if versions.between(entry["first"], entry["last"]) & found
        for library in entry["devices"]
    )


def announces_children(found: Releases) -> bool:
    """Return whether every release in FOUND writes "starting runner" at INFO for each discovery child."""
    entry = load("eras")["starting_runner"]
    return found != 0 and found & ~versions.between(entry["first"], entry["last"]) == 0


def hidden(era: str, level: str) -> list[dict[str, Any]]:
    """Return what LEVEL (INFO, DEBUG or TRACE) hides in ERA: [{"text", "source", ...}]."""
    return [entry for entry in load("eras")["hidden"] if era in entry["eras"] and entry["level"] == level]
