"""What travels to a supervised child: the sources of the probes and the task, marshalled in a memfd."""

from __future__ import annotations

import functools
import json
import marshal
import os
import struct
import sys
from collections.abc import Sequence
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.supervise.types import Probe

ROOT = Path(__file__).resolve().parent.parent
BOOT = f"{ROOT.name}.probes.boot"
SHIPPED = ("probes", "loader")  # packages of pytest_gpudiscovery whose modules a probe may import

# What `ps` shows; everything else is in the memfd. argv: memfd number, probe name[, interpreters tried so far].
STUB = (
    "import os,sys,marshal;f=int(sys.argv[1]);P=marshal.loads(os.pread(f,os.fstat(f).st_size,0));"
    "G={'__name__':'boot'};exec(compile(P['boot'],P['boot_file'],'exec'),G);G['main'](P)"
)
MARSHAL_VERSION = 2  # every Python 3 reads it

Source = tuple[str, str, bool, bytes]  # file, text, is a package, marshalled code of this interpreter or b""


@functools.cache
def _shipped(packages: tuple[str, ...]) -> dict[str, Source]:
    """Return the modules of PACKAGES by name, and an empty package above them."""
    sources: dict[str, Source] = {ROOT.name: (f"{ROOT.name}/__init__.py", "", True, b"")}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            sources.update([_entry(path, path.relative_to(ROOT.parent))])
    return sources


@functools.cache
def _extra(directory: Path) -> dict[str, Source]:
    """Return the probes in DIRECTORY; raises ValueError when one would take a shipped module's place."""
    paths = (path for path in sorted(directory.iterdir()) if path.suffix == ".py")
    sources = dict(_entry(path, Path(ROOT.name, "probes", path.name)) for path in paths)
    if taken := sources.keys() & _shipped(SHIPPED).keys():
        raise ValueError(f"{directory}: {', '.join(sorted(taken))}: a shipped module has this name")
    return sources


def _entry(path: Path, place: Path) -> tuple[str, Source]:
    """Return name and source of the module in file PATH, as if it lay at PLACE (relative to our package's parent)."""
    package = place.name == "__init__.py"
    name = ".".join(place.parent.parts if package else place.with_suffix("").parts)
    return name, (str(path), path.read_text(encoding="utf-8"), package, _code(path))


def _code(path: Path) -> bytes:
    """Return the marshalled code that __pycache__ has for PATH, b"" when it has none or an old one.

    Compiling is left to the child then: it needs three or four modules, and we would compile all of them.
    """
    try:
        cached = Path(cache_from_source(str(path))).read_bytes()
        seen = path.stat()
    except (OSError, NotImplementedError):
        return b""
    stamp = struct.pack("<III", 0, int(seen.st_mtime) & 0xFFFFFFFF, seen.st_size & 0xFFFFFFFF)  # PEP 552, by time
    return cached[16:] if cached[:16] == MAGIC_NUMBER + stamp else b""


def pack(
    probe: Probe,
    *,
    journal_fd: int,
    go_fd: int,
    interpreters: Sequence[str],
    extra: Path | None,
    traceback_after_s: float,
) -> int:
    """Write the payload for PROBE into a new memfd and return its descriptor.

    TRACEBACK_AFTER_S is when, in seconds after its begin, the child prints its Python stacks. Raises OSError, and
    TypeError or ValueError for a request that is not JSON.
    """
    sources = _shipped(SHIPPED)
    if extra is not None:
        sources = {**sources, **_extra(extra)}
    if not interpreters:
        # This interpreter itself: its code fits, and half the size stays below a caller's RLIMIT_FSIZE of 1 MiB.
        sources = {
            name: (file, "" if code and name != BOOT else text, package, code)
            for name, (file, text, package, code) in sources.items()
        }
    setup, identity = probe.setup, probe.setup.identity
    boot_file, boot_text, *_ = sources[BOOT]
    task: dict[str, Any] = {
        "boot": boot_text,
        "boot_file": boot_file,
        "stub": STUB,
        "sources": sources,
        "magic": MAGIC_NUMBER,
        "module": probe.module,
        "request": json.loads(json.dumps(dict(probe.request))),
        "setup": {
            "identity": identity and {"uid": identity.uid, "gid": identity.gid, "groups": list(identity.groups)},
            "private_dev": setup.private_dev,
            "no_new_privs": setup.no_new_privs,
            "drop_mknod": setup.drop_mknod and not setup.transient,  # its unit has dropped it
            "limits": {name: list(pair) for name, pair in setup.limits.items()},
            "netns": setup.netns,
            "mntns": setup.mntns,
        },
        # Whom systemd starts is no child of ours, and gets its environment with the exec that follows.
        "transient": bool(setup.transient),
        "env": dict(probe.env) if setup.transient else None,
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
    data = marshal.dumps(task, MARSHAL_VERSION)
    fd = os.memfd_create("gpu-discovery-probe")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd
