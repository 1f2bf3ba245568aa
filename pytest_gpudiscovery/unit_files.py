"""systemd's unit files and environment files: found, read and merged as systemd does; nobody is asked.

A broken host's systemd may not answer, and a container has none; the files are there in both.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass

DIRECTORIES = (  # systemd.unit(5), the strongest first
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
)
FILE_LIMIT = 1 << 20  # bytes of one file
FILES_LIMIT = 200  # drop-ins of one unit


class UnitProblem(Exception):
    """Why a unit cannot be read, as one line."""


@dataclass(frozen=True)
class Unit:
    """A unit as its files say: the assignments of [Service] in the order in which they count."""

    name: str
    files: tuple[str, ...]
    assignments: tuple[tuple[str, str], ...]
    unread: tuple[str, ...] = ()  # drop-ins that may not be read

    def all(self, name: str) -> list[str]:
        """Return the values of list setting NAME; an empty assignment has dropped those before it."""
        found: list[str] = []
        for key, value in self.assignments:
            if key == name:
                found = [*found, value] if value else []
        return found

    def last(self, name: str) -> str:
        """Return the value of setting NAME that counts, "" where there is none."""
        return next((value for key, value in reversed(self.assignments) if key == name), "")


def read_unit(name: str, directories: tuple[str, ...] = DIRECTORIES) -> Unit | None:
    """Return unit NAME with its drop-ins, None when this host has none.

    Raises UnitProblem for a unit that is masked or whose own file may not be read.
    """
    template = _template(name)
    path = next((p for n in (name, template) if n for d in directories if os.path.lexists(p := f"{d}/{n}")), None)
    if path is None:
        return None
    if os.path.realpath(path) == os.devnull or (os.path.isfile(path) and os.path.getsize(path) == 0):
        raise UnitProblem(f"{name} is masked ({path})")
    if not os.access(path, os.R_OK):
        raise UnitProblem(f"{path} may not be read")
    return merge(name, (path, *_dropins(name, template, directories)))


def merge(name: str, files: tuple[str, ...]) -> Unit:
    """Return unit NAME out of FILES, the unit's own first; raises UnitProblem when that one cannot be read."""
    assignments: list[tuple[str, str]] = []
    unread: list[str] = []
    for index, path in enumerate(files):
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                assignments += service_section(file.read(FILE_LIMIT))
        except OSError as error:
            if index == 0:
                raise UnitProblem(f"{path}: {error.strerror}") from None
            unread.append(path)
    return Unit(name, files, tuple(assignments), tuple(unread))


def service_section(text: str) -> list[tuple[str, str]]:
    """Return the assignments of [Service] in TEXT; a line that ends in a backslash goes on, over comments too."""
    found: list[tuple[str, str]] = []
    section, pending = "", ""
    for raw in text.splitlines():
        line = raw.strip() if not pending else raw.rstrip()
        if line.lstrip()[:1] in ("#", ";"):
            continue  # also in the middle of a line that goes on
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        line, pending = (pending + line).strip(), ""
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line:
            name, _, value = (part.strip() for part in line.partition("="))
            found.append((name, value))
    return found


def _template(name: str) -> str | None:
    """Return "a@.service" for the instance "a@b.service"."""
    stem, dot, kind = name.rpartition(".")
    head, at, instance = stem.partition("@")
    return f"{head}@{dot}{kind}" if at and instance else None


def _dropins(name: str, template: str | None, directories: tuple[str, ...]) -> list[str]:
    """Return the drop-ins of NAME: of all services, of its prefixes (a- of a-b), of its template, and its own."""
    kind = name.rpartition(".")[2]
    stem = name.removesuffix(f".{kind}").partition("@")[0]
    parts = stem.split("-")
    prefixes = ["-".join(parts[:count]) + f"-.{kind}" for count in range(1, len(parts))]
    folders = [f"{owner}.d" for owner in (kind, *prefixes, template, name) if owner]
    found: dict[str, str] = {}
    for folder in folders:  # a file of the same name in a more specific folder or a stronger directory replaces
        for directory in reversed(directories):
            place = os.path.join(directory, folder)
            if os.path.isdir(place):
                found |= {x: os.path.join(place, x) for x in sorted(os.listdir(place)) if x.endswith(".conf")}
    return [found[x] for x in sorted(found)][:FILES_LIMIT]


def read_env_file(path: str) -> dict[str, str]:
    """Return the NAME=VALUE lines of PATH (systemd EnvironmentFile form); raises OSError or ValueError with a line."""
    found = {}
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, raw in enumerate(file.read(FILE_LIMIT).splitlines(), 1):
            line = raw.strip()
            if not line or line[0] in "#;":
                continue
            name, equals, value = line.partition("=")
            name = name.removeprefix("export ").strip()
            if not equals or not name or not name.replace("_", "a").isalnum():
                raise ValueError(f"{path}:{number}: expected NAME=VALUE, got {line[:40]!r}")
            value = value.strip()
            if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            found[name] = value
    return found


def env_files(pattern: str) -> dict[str, str]:
    """Return the variables of every file that PATTERN (EnvironmentFile=, a leading "-" tolerates absence) matches.

    Raises OSError or ValueError.
    """
    optional, path = pattern.startswith("-"), pattern.removeprefix("-")
    matches = sorted(glob.glob(path)) or [path]
    found: dict[str, str] = {}
    for match in matches:
        try:
            found |= read_env_file(match)
        except (OSError, ValueError):
            if not optional:
                raise
    return found
