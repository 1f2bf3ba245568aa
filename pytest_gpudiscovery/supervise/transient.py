"""A probe as a transient unit: systemd starts it with a service's own properties, outside of that service's cgroup.

The child is then no child of ours: systemd-run is, and waits for it. Three descriptors travel to it (--pipe): the
payload as its stdin, the journal as its stdout, everything that it prints as its stderr. It dies with its unit: by our
SIGKILL through the unit's cgroup, and by RuntimeMaxSec= when we are gone.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Sequence

from pytest_gpudiscovery.probes import private
from pytest_gpudiscovery.supervise.payload import RUN

PROGRAM = "/usr/bin/systemd-run"
ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")  # v2; hybrid; v1
JOURNAL_FD = 3
BOUNDING = "CapabilityBoundingSet"
MKNOD = "CAP_MKNOD"
# The first interpreter has no environment of the service's: the full one comes with the exec that follows, so that no
# variable passes through systemd, where everybody could read it.
STUB = "import os,sys,marshal;os.dup2(1,3);os.dup2(2,1);P=marshal.loads(os.pread(0,os.fstat(0).st_size,0));" + RUN
AFTER_DEADLINE_S = 10  # what RuntimeMaxSec= gives beyond the deadline
ENDED = re.compile(r"^Main processes terminated with: code=(\w+)/status=(\w+)\s*$", re.MULTILINE)
OWN = (
    *("Running as unit", "Finished with result", "Main processes terminated with", "Service runtime", "CPU time"),
    *("IO bytes", "IP traffic", "Memory peak", "Memory swap peak", "Press "),
)
SAID = re.compile(rf"^({'|'.join(OWN)}).*\n?", re.MULTILINE)
# What systemd-run says when the probe was not even started.
REFUSED = re.compile(r"^(Failed to |Unknown assignment|Job for \S+ failed|Access denied).*$", re.MULTILINE)
# What systemd itself exits with for a unit whose sandbox it could not set up (systemd.exec(5), process exit codes).
EXIT_CODES = range(200, 246)
_count = itertools.count(1)


def name() -> str:
    """Return a unit name that no other run uses."""
    return f"gpu-discovery-{os.getpid()}-{next(_count)}.service"


def argv(unit: str, properties: Sequence[str], command: Sequence[str], deadline_s: float) -> list[str]:
    """Return the command line that runs COMMAND as transient unit UNIT with PROPERTIES (NAME=VALUE, in order)."""
    own = (
        f"RuntimeMaxSec={int(deadline_s) + AFTER_DEADLINE_S}",
        "TimeoutStopSec=2",
        "KillMode=control-group",
        "KillSignal=SIGKILL",
        "NoNewPrivileges=yes",  # as for every probe: no setuid nvidia-modprobe may change the host
        _clean_up(unit),
    )
    options = ["--pipe", "--wait", "--collect", "--no-ask-password", "--service-type=exec", f"--unit={unit}"]
    return [PROGRAM, *options, *(f"--property={item}" for item in (*properties, *own)), "--", *command]


def _clean_up(unit: str) -> str:
    """Return what removes private directories however UNIT ends: its guardian dies with the rest of its cgroup.

    systemd runs it as the service's user and in its sandbox, where those directories are.
    """
    tag = private.of_unit(unit)
    paths = " ".join(f"{place}/{private.NAME}*{tag}" for place in private.PLACES)
    return f"ExecStopPost=-/bin/sh -c 'rm -rf -- {paths}'"


def capabilities(values: Sequence[str]) -> str | None:
    """Return one value for VALUES of a capability setting, None for none: over D-Bus the last one would replace all.

    As in a unit file: names are added, names after "~" are taken away, an empty value takes all away.
    """
    inverted = False
    names: list[str] | None = None
    for value in values:
        tilde, words = value.startswith("~"), value.removeprefix("~").split()
        if not value:
            inverted, names = False, []
        elif names is None:
            inverted, names = tilde, words
        elif tilde is inverted:
            names = [*names, *(word for word in words if word not in names)]
        else:
            names = [name for name in names if name not in words]
    return None if names is None else ("~" if inverted else "") + " ".join(names)


def without_mknod(properties: Sequence[str]) -> list[str]:
    """Return PROPERTIES with a bounding set that lacks CAP_MKNOD: what runs in the unit makes no device node."""
    values = [item.partition("=")[2] for item in properties if item.startswith(f"{BOUNDING}=")]
    merged = capabilities([*values, f"~{MKNOD}"])
    return [*(item for item in properties if not item.startswith(f"{BOUNDING}=")), f"{BOUNDING}={merged}"]


def slice_of(properties: Sequence[str]) -> str:
    """Return the slice that PROPERTIES name, the system's where they name none."""
    named = [item.partition("=")[2] for item in properties if item.startswith("Slice=")]
    return named[-1] if named and named[-1] else "system.slice"


def directories(unit: str, slice_name: str) -> list[str]:
    """Return where the cgroup of UNIT can be: a-b.slice lies in a.slice."""
    parts = slice_name.removesuffix(".slice").split("-") if slice_name != "-.slice" else []
    above = "".join(f"/{'-'.join(parts[:count])}.slice" for count in range(1, len(parts) + 1))
    return [f"{root}{above}/{unit}" for root in ROOTS]


def pids(unit: str, slice_name: str) -> list[int]:
    """Return the processes of UNIT, lowest number first; [] when there are none."""
    for directory in directories(unit, slice_name):
        try:
            with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
                return sorted(int(line) for line in file.read(65536).split() if line != "0")
        except (OSError, ValueError):
            continue
    return []


def kill(unit: str, slice_name: str) -> None:
    """Send SIGKILL to every process of UNIT, at once where the kernel can (cgroup.kill, since 5.14)."""
    for directory in directories(unit, slice_name):
        try:
            with open(f"{directory}/cgroup.kill", "w", encoding="ascii") as file:
                file.write("1")
        except OSError:
            continue
    for pid in pids(unit, slice_name):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass  # it has ended meanwhile


def ending(stderr: str) -> int | None:
    """Return the signal that ended the unit's main process by what systemd-run printed, None when none did."""
    match = ENDED.search(stderr)
    if match is None or match[1] not in ("killed", "dumped"):
        return None
    number = getattr(signal, f"SIG{match[2]}", None)
    return int(number) if number is not None else int(signal.SIGKILL)


def refusal(stderr: str) -> str | None:
    """Return the line in which systemd-run says that it did not start the unit, None when it did."""
    match = REFUSED.search(stderr)
    return None if match is None else match[0]


def set_up_failed(code: int) -> str | None:
    """Return what CODE says of a unit that systemd could not set up, None for a code of the program's own."""
    return f"systemd could not set it up: exit status {code} (systemd.exec(5))" if code in EXIT_CODES else None


def own_words(stderr: str) -> str:
    """Return STDERR without what systemd-run itself printed."""
    return SAID.sub("", stderr)
