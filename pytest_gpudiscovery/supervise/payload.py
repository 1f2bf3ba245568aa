"""What travels to a supervised child: the sources of the probes and the task, as JSON in a memfd."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.supervise.types import Probe

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("probes",)  # packages of pytest_gpudiscovery whose modules a probe may import

# What `ps` shows; everything else is in the memfd. argv: memfd number, probe name[, number of interpreters tried].
STUB = (
    "import os,sys,json;f=int(sys.argv[1]);P=json.loads(os.pread(f,os.fstat(f).st_size,0));"
    "G={'__name__':'boot'};exec(compile(P['boot'],P['boot_file'],'exec'),G);G['main'](P)"
)


@functools.cache
def _shipped(packages: tuple[str, ...]) -> dict[str, tuple[str, str, bool]]:
    """Return {module name: (file name for tracebacks, source text, is a package)} of PACKAGES and those above."""
    sources = {ROOT.name: (f"{ROOT.name}/__init__.py", "", True)}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            sources.update([_entry(path, path.relative_to(ROOT.parent))])
    return sources


@functools.cache
def _extra(directory: Path) -> dict[str, tuple[str, str, bool]]:
    """Return the probes in DIRECTORY; raises ValueError when one would take a shipped probe's place."""
    sources = dict(_entry(path, Path(ROOT.name, "probes", path.name)) for path in sorted(directory.glob("*.py")))
    sources.pop(f"{ROOT.name}.probes", None)
    if taken := sources.keys() & _shipped(SHIPPED).keys():
        raise ValueError(f"{directory}: {', '.join(sorted(taken))}: a shipped module has this name")
    return sources


def _entry(path: Path, name: Path) -> tuple[str, tuple[str, str, bool]]:
    package = name.name == "__init__.py"
    parts = name.parent.parts if package else name.with_suffix("").parts
    return ".".join(parts), (str(name), path.read_text(encoding="utf-8"), package)


def pack(
    probe: Probe, *, journal_fd: int, go_fd: int, interpreters: Sequence[str], extra: Path | None, traceback_after_s: float
) -> int:
    """Write the payload for PROBE into a new memfd and return its descriptor.

    TRACEBACK_AFTER_S is when, in seconds after its begin, the child prints its Python stacks (0: never). Raises OSError, and
    TypeError or ValueError for a request that is not JSON.
    """
    sources = _shipped(SHIPPED)
    if extra is not None:
        sources = {**sources, **_extra(extra)}
    setup, identity = probe.setup, probe.setup.identity
    boot_file, boot_text, _ = sources[f"{ROOT.name}.probes.boot"]
    task: dict[str, Any] = {
        "boot": boot_text,
        "boot_file": boot_file,
        "sources": sources,
        "module": probe.module,
        "request": dict(probe.request),
        "setup": {
            "identity": identity and {"uid": identity.uid, "gid": identity.gid, "groups": list(identity.groups)},
            "private_dev": setup.private_dev,
            "no_new_privs": setup.no_new_privs,
            "drop_mknod": setup.drop_mknod,
            "limits": {name: list(pair) for name, pair in setup.limits.items()},
        },
        "interpreters": list(interpreters),
        "site": probe.site,
        "cwd": probe.cwd,
        "env_names": list(probe.env),
        # A relative entry would let the current directory of the child decide what is imported.
        "sys_path": [path for path in sys.path if os.path.isabs(path)] if probe.site else [],
        "python": list(sys.version_info[:2]),
        "journal_fd": journal_fd,
        "go_fd": go_fd,
        "parent_pid": os.getpid(),
        "traceback_after_s": traceback_after_s,
    }
    data = json.dumps(task).encode()
    fd = os.memfd_create("gpu-discovery-probe")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd
