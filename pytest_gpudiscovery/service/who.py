"""Who probes run as, and what is known of the service behind it. Plain data: no file, no process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_gpudiscovery.supervise.types import Identity

NATIVE = ("nvml", "driver", "enumeration", "runtime", "load", "backend", "bootstrap", "serve")
EVERY = ("package", "service", "loopback", "kernel", *NATIVE)


@dataclass(frozen=True)
class Missing:
    """One part of a service's context that probes do not have."""

    what: str
    why: str
    stages: tuple[str, ...] = ()  # whose answer may be another one for the service


@dataclass(frozen=True)
class Who:
    """The identity and environment that probes get, and what is said about them in the verdict."""

    identity: Identity | None
    source: str
    env: Mapping[str, str] | None = None  # None: the caller's
    cwd: str | None = None
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # RLIMIT name -> (soft, hard)
    binary: str | None = None  # what the service starts, as a path below `root`
    root: str | None = None  # its root directory where that is not ours
    pid: int | None = None  # of the running service, whose /proc/PID stands for /proc/self
    netns: str | None = None  # path of its network namespace where that is not ours and can be entered
    mntns: str | None = None  # likewise; only where it has our root directory, with our interpreter in it
    sandbox: Mapping[str, Any] = field(default_factory=dict)  # what stage 02 judges: see service/sandbox.py
    transient: tuple[str, ...] = ()  # NAME=VALUE of a transient unit with the same properties
    missing: tuple[Missing, ...] = ()
    refused: str = ""  # why a service that was found cannot be probed as
    notes: tuple[str, ...] = ()

    @property
    def identity_name(self) -> str:
        """The user's name, or the number where it has none."""
        return (self.identity.name or str(self.identity.uid)) if self.identity else "nobody in particular"


CALLER = Who(None, "caller")


def refused(what: str, why: str) -> Who:
    """Return the caller, who stands in for a service that cannot be adopted, because WHAT cannot be had: WHY."""
    return Who(None, "caller", missing=(Missing(what, why),), refused=f"{what} cannot be adopted ({why})")
