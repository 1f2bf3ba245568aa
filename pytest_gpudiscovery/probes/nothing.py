"""Does next to nothing: that a process of this setup starts, answers and can enter a directory is the fact."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return {"pid", "entered"}: whether this process may look into directory REQUEST["enter"], None without one."""
    path, entered = request.get("enter"), None
    if path is not None:
        with journal.step(f"look into {path}"):
            entered = os.access(f"{path}/.", os.X_OK)
    return {"pid": os.getpid(), "entered": entered}
