"""What is asked of a supervised child, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pytest_gpudiscovery.model import Step


class Ending(str, Enum):
    """How the child's life ended, as the supervisor saw it."""

    ANSWERED = "answered"  # exit 0 and an answer in the journal
    NO_ANSWER = "no_answer"  # exit 0 without one (a library called exit(0), or pipes were closed)
    EXITED = "exited"  # exit code other than 0
    SIGNALLED = "signalled"  # ended by a signal that was not ours
    TIMED_OUT = "timed_out"  # SIGKILL at the deadline ended it
    UNKILLABLE = "unkillable"  # SIGKILL did not end it; abandoned
    NOT_SPAWNED = "not_spawned"  # fork, exec or the identity failed before the probe began


@dataclass(frozen=True)
class Identity:
    """Who the child runs as. Only root can ask for somebody else than itself."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Setup:
    """What the child does to itself before the probe's code runs (design rule 10)."""

    identity: Identity | None = None  # None: as the caller
    private_dev: bool = False  # root only: own mount namespace, tmpfs copy of /dev
    no_new_privs: bool = True
    drop_mknod: bool = False  # root that cannot have a private /dev gives up CAP_MKNOD instead
    interpreter: str | None = None  # exec this one after the identity was dropped
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # RLIMIT name -> (soft, hard)
    netns: str | None = None  # root only: path of the network namespace to enter
    mntns: str | None = None  # root only: path of the mount namespace to enter; it must have our root directory
    transient: tuple[str, ...] = ()  # root only: started by systemd as a transient unit with these NAME=VALUE


@dataclass(frozen=True)
class Probe:
    """One probe to run: module `pytest_gpudiscovery.probes.NAME`, its request, its world, its deadline.

    A stage of another plugin brings probes of its own: every module in its `directory` travels to the child as if it
    were one of ours, so none may have the name of one of ours.
    """

    module: str  # short name, e.g. "driver"
    request: Mapping[str, Any]
    env: Mapping[str, str]
    deadline_s: float
    cwd: str = "/"
    setup: Setup = Setup()
    site: bool = False  # True: the child may import installed packages (second witnesses only)
    directory: str = ""  # where the module is, when it is not one of ours


@dataclass(frozen=True)
class ChildResult:
    """What became of the child. `answer` is None unless `ending` is ANSWERED."""

    ending: Ending
    exit_code: int | None
    signal: int | None
    started: float  # Unix time
    duration_s: float
    steps: tuple[Step, ...]
    observed: Mapping[str, Any]  # every `observe` of the child, also of one that hung
    answer: Any
    stdout: str
    stderr: str
    evidence: Mapping[str, Any]  # empty unless it hung or outlived SIGKILL
    notes: tuple[str, ...] = ()
    pid: int | None = None

    @property
    def open_step(self) -> Step | None:
        """The innermost step that had not ended: where the child was."""
        return next((step for step in reversed(self.steps) if step.duration_s is None), None)

    @property
    def python_failed(self) -> bool:
        """Whether an exception of the gate's own Python code ended the child: that says nothing of the host.

        Once the child is set up it says so in its journal; what a library writes to stderr is no proof of it. Nor is an
        exception the gate's fault after a library took the descriptors that the code needs.
        """
        if self.ending is not Ending.EXITED or self.exit_code != 1 or "lowered" in self.observed:
            return False
        early = "setup" not in self.observed and "Traceback (most recent call last)" in self.stderr
        return early or "traceback" in self.observed
