"""Builds, in the run's own directory, what unpacking a release over another one would leave: both, the new one on top.

Files are hard links where that is possible, else the program is copied and libraries are symbolic links; nothing of
either install is changed.
"""

from __future__ import annotations

import os
import shutil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal

FILES = 4000  # of one lib/ollama; a release has about 60
DEPTH = 4


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Build the mix. REQUEST: {"old_lib", "new_lib", "new_binary", "into", "gid": who may read it | None}.

    {"stale": files of the old release that the new one does not have, relative to lib/ollama; "built": bool}.
    """
    with journal.step("list both releases"):
        old, new = tree(request["old_lib"]), tree(request["new_lib"])
    stale = sorted(name for name in old if name not in new)
    journal.observe("stale", stale)
    if not stale:
        return {"stale": [], "built": False}
    lib, into = os.path.join(request["into"], "lib", "ollama"), request["into"]
    with journal.step(f"build {into}"):
        os.makedirs(os.path.join(into, "bin"), mode=0o755)
        program = os.path.join(into, "bin", "ollama")
        try:
            os.link(request["new_binary"], program)
        except OSError:
            shutil.copy2(request["new_binary"], program)
        for source, names in ((request["new_lib"], sorted(new)), (request["old_lib"], stale)):
            for name in names:
                _place(os.path.join(source, name), os.path.join(lib, name))
        if request.get("gid") is not None:
            for place, _, _ in os.walk(into):
                os.chown(place, -1, request["gid"])
    return {"stale": stale, "built": True}


def tree(root: str) -> list[str]:
    """Return the files and links below ROOT, relative to it, at most FILES and DEPTH directories down."""
    found: list[str] = []
    todo = [("", 0)]
    while todo and len(found) < FILES:
        place, depth = todo.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, place)), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            name = os.path.join(place, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if depth < DEPTH:
                    todo.append((name, depth + 1))
            else:
                found.append(name)
    return found[:FILES]


def _place(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    try:
        os.link(source, target)
    except OSError:
        os.symlink(source, target)
