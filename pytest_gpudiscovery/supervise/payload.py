"""What travels to a supervised child: the sources of the probes and the task, marshalled in a memfd."""

from __future__ import annotations

import functools
import json
import marshal
import os
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.supervise.types import Probe

ROOT = Path(__file__).resolve().parent.parent
BOOT = f"{ROOT.name}.probes.boot"
SHIPPED = ("probes", "loader")  # packages of pytest_gpudiscovery whose modules a probe may import

# What `ps` shows; everything else is in the memfd. argv: memfd number, probe name[, interpreters tried so far].
# The marshalled code of boot.py is used where it fits: compiling the text takes as long as all that boot.py does.
RUN = (
    "G={'__name__':'boot'};exec(marshal.loads(P['boot_code']) if P['boot_code'] and "
    "P['magic']==sys.modules['_frozen_importlib_external'].MAGIC_NUMBER else "
    "compile(P['boot'],P['boot_file'],'exec'),G);G['main'](P)"
)
STUB = "import os,sys,marshal;f=int(sys.argv[1]);P=marshal.loads(os.pread(f,os.fstat(f).st_size,0));" + RUN
MARSHAL_VERSION = 2  # every Python 3 reads it

ALWAYS = ("setup", "journal")  # what boot.py imports of probes
IMPORT = re.compile(r"\b(?:from|import)\s+pytest_gpudiscovery\.([\w.]+)(?:[ \t]+import[ \t]+(\([^)]*|[^\n#]*))?")

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


@functools.cache
def _marshalled(module: str, extra: Path | None, own: bool) -> bytes:
    """Return what probe MODULE may import, with EXTRA, marshalled; OWN: for this interpreter itself, whose code fits.

    Without the texts of what is compiled, half the size, it stays below a caller's RLIMIT_FSIZE of 1 MiB. Without what
    the probe never asks for, a tenth, a child starts in a fifth less time.
    """
    sources = _shipped(SHIPPED) if extra is None else {**_shipped(SHIPPED), **_extra(extra)}
    sources = {name: sources[name] for name in sorted(needed(f"{ROOT.name}.probes.{module}", sources))}
    if own:
        sources = {
            name: (file, "" if code else text, package, code) for name, (file, text, package, code) in sources.items()
        }
    return marshal.dumps(sources, MARSHAL_VERSION)


def needed(probe: str, sources: Mapping[str, Source]) -> set[str]:
    """Return the names in SOURCES of all that module PROBE can import, with what it starts with and its packages.

    Read from the texts, so an import inside a function counts too. A package itself imports nothing unasked; whoever
    asks it for a name that is no module (`from pytest_gpudiscovery.loader import predict`) may get any module of it.
    """
    found: set[str] = set()
    ahead = {probe, *(f"{ROOT.name}.probes.{name}" for name in ALWAYS)} & sources.keys()
    while ahead:
        name = ahead.pop()
        found.add(name)
        above = {name.rpartition(".")[0] for name in found}
        _, text, package, _ = sources[name]
        for module, names in () if package else IMPORT.findall(text):
            target = f"{ROOT.name}.{module}"
            inside = {f"{target}.{word}" for word in re.findall(r"(?:^|,)[\s(]*(\w+)", names)}
            if sources.get(target, ("", "", False, b""))[2] and not inside <= sources.keys():
                inside = {other for other in sources if other.startswith(f"{target}.")}
            ahead |= (inside | {target}) & sources.keys()
        ahead = (ahead | above & sources.keys()) - found
    return found


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
    setup, identity = probe.setup, probe.setup.identity
    boot_file, boot_text, _, boot_code = _shipped(SHIPPED)[BOOT]
    task: dict[str, Any] = {
        "boot": boot_text,
        "boot_file": boot_file,
        "boot_code": boot_code,
        "stub": STUB,
        "sources": _marshalled(probe.module, extra, not interpreters),
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
