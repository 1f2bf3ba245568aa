"""A directory for one probe alone: HOME, models and caches of a private Ollama, removed whatever becomes of the probe.

Its name holds the pid of the probe and when that began; a later probe of the same user removes what a machine that was
switched off left behind.
"""

from __future__ import annotations

import os
import time

NAME = "gpu-discovery-home-"
UNIT = "gpu-discovery-"
PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108 - the directory itself is 0700
DEPTH = 12
OLD_S = 3600.0


def make(places: tuple[str, ...] = PLACES) -> str:
    """Return a new directory, mode 0700; raises OSError where there is no place for one."""
    problem: OSError | None = None
    for place in places:
        sweep(place)
        path = f"{place}/{NAME}{os.getpid()}-{time.monotonic_ns()}{_tag()}"
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            problem = problem or error
            continue
        return path
    raise problem or FileNotFoundError(2, "no place for a private directory", places[0])


def _tag() -> str:
    """Return how a name ends in a transient unit, which is removed with the unit; "" elsewhere."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            names = [line.rstrip("\n").rpartition("/")[2] for line in file]
    except OSError:
        return ""
    return next((of_unit(name) for name in names if name.startswith(UNIT) and name.endswith(".service")), "")


def of_unit(unit: str) -> str:
    """Return the end of the names of directories of UNIT (gpu-discovery-PID-N.service)."""
    return f"-of-{unit.removesuffix('.service').removeprefix(UNIT)}"


def sweep(place: str, start: str = NAME) -> None:
    """Remove directories of this user in PLACE whose process is gone: their names begin with START and its pid."""
    try:
        names = [name for name in os.listdir(place) if name.startswith(start)]
    except OSError:
        return
    for name in names:
        path, pid = f"{place}/{name}", name[len(start) :].partition("-")[0]
        try:
            gone = pid.isascii() and pid.isdigit() and not os.path.exists(f"/proc/{pid}")
            found = os.lstat(path)  # old: in a container, pids outside of it look gone
            if gone and found.st_uid == os.geteuid() and found.st_mtime < time.time() - OLD_S:
                remove(path)
        except OSError:
            continue


def remove(path: str, depth: int = DEPTH) -> None:
    """Remove directory PATH with all that is in it; links are not followed, what cannot be removed stays."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and depth:
                    remove(entry.path, depth - 1)
                else:
                    try:
                        os.unlink(entry.path)
                    except OSError:
                        pass
        os.rmdir(path)
    except OSError:
        pass
