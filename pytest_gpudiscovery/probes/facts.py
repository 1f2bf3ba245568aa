"""Small reads through a HostView whose failure is an answer: None, or an empty list, where there is nothing to read."""

from __future__ import annotations

import errno
import os

from pytest_gpudiscovery.probes.host import HostView, LiveView

DIGITS_LIMIT = 20  # a longer number is no number that the kernel writes


def text(view: HostView, path: str, limit: int = 1 << 18) -> str | None:
    """Return the stripped text of PATH, at most LIMIT bytes of it; None when it cannot be read."""
    try:
        return view.read(path, limit).decode("utf-8", "replace").strip()
    except OSError:
        return None


def names(view: HostView, path: str) -> list[str]:
    """Return the names in directory PATH, [] when it cannot be listed."""
    try:
        return view.listdir(path)
    except OSError:
        return []


def kind(view: HostView, path: str) -> str | None:
    """Return what PATH is ("file", "dir", "char", "other"), None when it cannot be found."""
    try:
        return str(view.stat(path)["type"])
    except OSError:
        return None


def link(view: HostView, path: str) -> str | None:
    """Return the last part of symlink PATH's target, None when PATH is no symlink."""
    try:
        return view.readlink(path).rpartition("/")[2]
    except OSError:
        return None


def link_target(view: HostView, path: str) -> str | None:
    """Return what symlink PATH holds, None when PATH is no symlink."""
    try:
        return view.readlink(path)
    except OSError:
        return None


def number(value: str | None) -> int | None:
    """Return the whole number that VALUE is, None for anything else ("max", "", None)."""
    word = (value or "").strip()
    return int(word) if word.isascii() and word.isdigit() and len(word) <= DIGITS_LIMIT else None


def errno_name(error: OSError) -> str:
    """Return the symbolic name of ERROR's errno, e.g. "EACCES"."""
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def own_status() -> dict[str, str]:
    """Return the `Name: value` lines of this process's own /proc/self/status, {} where /proc is hidden."""
    return pairs(text(LiveView(), "/proc/self/status") or "")


def pairs(lines: str) -> dict[str, str]:
    """Return the `Name: value` lines of LINES, values stripped of blanks and quotes."""
    found = {}
    for line in lines.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip()] = value.strip().strip('"')
    return found


def identity() -> dict[str, object]:
    """Return who this process is, its capabilities as hexadecimal masks, and what was taken from it (proc(5))."""
    status = own_status()
    return {
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "groups": sorted(os.getgroups()),
        "effective": status.get("CapEff"),
        "bounding": status.get("CapBnd"),
        "no_new_privs": status.get("NoNewPrivs"),
        "seccomp": status.get("Seccomp"),
    }
