"""Which Ollama binary this host means: the given one, the service's, the running server's, PATH's, a usual one.

Of running processes only what cannot block is read (comm, status, exe): cmdline waits for the memory map of a process
that is stuck in the driver, which is exactly the one to be found.
"""

from __future__ import annotations

import os

from pytest_gpudiscovery.probes import libraries
from pytest_gpudiscovery.probes.facts import kind, link_target, names, number, pairs, text
from pytest_gpudiscovery.probes.host import HostView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

BELOW = ("bin/ollama", "ollama", "usr/bin/ollama")  # a prefix: a release's, a build's, an image's root
USUAL = (
    "/usr/local/bin/ollama",
    "/usr/bin/ollama",
    "/bin/ollama",
    "/opt/ollama/bin/ollama",
    "/snap/ollama/current/bin/ollama",
    "/home/linuxbrew/.linuxbrew/bin/ollama",
    "/run/current-system/sw/bin/ollama",
    "/nix/var/nix/profiles/default/bin/ollama",
)
SNAP = "/snap/ollama/current/bin/ollama"  # /snap/bin/ollama is a link to snapd's own program
SCRIPT_LIMIT = 65536
STARTED = r"/[\w@%+=:,./-]*ollama[\w.-]*"  # what a distribution's wrapper script may start
PROCESSES_LIMIT = 100_000
DELETED = " (deleted)"


def find_binary(view: HostView, wanted: str | None, hints: Sequence[tuple[str, str]], path: str) -> dict[str, Any]:
    """Return the binary: {"path", "realpath", "source", "executable", "mode", "uid", "gid", "size", "elf", "tried"}.

    "script" says whether it begins with "#!" and starts a program that could not be told.

    WANTED is a binary or an install prefix. Without it HINTS, (source, path) in the order of their weight, then the
    running server, PATH and the usual places are searched. "wrapper" is the script that was found first, "others"
    lists {"path", "source"} of different files that the rest of the search would give, "server" the running server.
    {"path": None, "tried"} when there is none; "problem" says why WANTED cannot be used, "instead" what is there.
    """
    server: dict[str, Any] | None = None
    if wanted:
        options = [("given", wanted)] if kind(view, wanted) == "file" else [("given", f"{wanted}/{x}") for x in BELOW]
    else:
        server = running(view)
        options = list(hints)
        options += [("running", server["exe"])] if server else []
        options += [("PATH", f"{part}/ollama") for part in path.split(":") if part.startswith("/")]
        options += [("usual", usual) for usual in USUAL]
    tried: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    for source, option in options:
        if option in tried:
            continue
        tried.append(option)
        entry = _look(view, option)
        if entry is not None:
            found.setdefault(entry["realpath"], {**entry, "source": source})
    if not found:
        return {"path": None, "tried": tried, "server": server} | (
            {"problem": "no ollama binary there", "instead": _instead(view, wanted)} if wanted else {}
        )
    first, *others = found.values()
    rest = [{"path": entry["path"], "source": entry["source"]} for entry in others]
    return {**first, "tried": tried, "others": rest, "server": server}


def _instead(view: HostView, wanted: str) -> str:
    """Return in words what lies at WANTED, or at bin/ollama below it, in the place of a program; "" for nothing."""
    for path in (wanted, f"{wanted.rstrip('/')}/{BELOW[0]}"):
        try:
            what: str | None = view.stat(path)["type"]
        except PermissionError:
            return f"{path} lies behind a directory that this user may not search"
        except OSError:
            what = None
        if what is None and (target := link_target(view, path)) is not None:
            return f"{path} is a link that leads nowhere ({target})"
        if what is not None and path != wanted:
            return f"{path} is no regular file ({what})"
    return ""


def _look(view: HostView, option: str) -> dict[str, Any] | None:
    """Return the facts of the program behind OPTION, a wrapper script's target in its place; None without one."""
    if kind(view, option) != "file":
        return None
    real, wrapper = view.realpath(option), None
    if real.endswith("/snap") and kind(view, SNAP) == "file":
        real = view.realpath(SNAP)
    target = _started_by(view, real)
    if target is not None:
        real, wrapper = view.realpath(target), real
    status = view.stat(real)
    return {
        "path": option,
        "realpath": real,
        "wrapper": wrapper,
        "script": text(view, real, 2) == "#!",
        "executable": view.access(real, os.X_OK),
        "mode": status["mode"],
        "uid": status["uid"],
        "gid": status["gid"],
        "size": status["size"],
        "elf": libraries.elf(view, real),
    }


def _started_by(view: HostView, path: str) -> str | None:
    """Return the ELF program called *ollama* that script PATH names first, None for a binary or a script without."""
    try:
        head = view.read(path, SCRIPT_LIMIT)
    except OSError:
        return None
    if not head.startswith(b"#!"):
        return None
    import re  # noqa: PLC0415 - costs 6 ms, and few installs have a wrapper script

    for option in re.findall(STARTED, head.decode("utf-8", "replace")):
        if kind(view, option) == "file" and "class" in libraries.elf(view, option):
            return str(option)
    return None


def running(view: HostView) -> dict[str, Any] | None:
    """Return {"pid", "uid", "exe", "deleted"} of the Ollama server that runs on this host, None without one.

    That is a process called ollama which none of that name started; of several the one with the lowest number.
    `deleted`: the file was replaced since, so the server still runs the old one.
    """
    found: dict[int, dict[str, Any]] = {}
    for name in names(view, "/proc")[:PROCESSES_LIMIT]:
        pid = number(name)
        if pid is None or text(view, f"/proc/{pid}/comm", 64) != "ollama":
            continue
        status = pairs(text(view, f"/proc/{pid}/status", 8192) or "")
        try:
            exe = view.readlink(f"/proc/{pid}/exe")
        except OSError:
            exe = ""  # another user's
        found[pid] = {
            "pid": pid,
            "parent": number(status.get("PPid")),
            "uid": number((status.get("Uid") or "").split("\t")[0]),
            "exe": exe.removesuffix(DELETED),
            "deleted": exe.endswith(DELETED),
        }
    servers = [entry for entry in found.values() if entry["parent"] not in found and entry["exe"].startswith("/")]
    return min(servers, key=lambda entry: entry["pid"], default=None)
