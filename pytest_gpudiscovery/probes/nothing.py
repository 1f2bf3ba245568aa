"""Does next to nothing: that a process of this setup starts, answers and can enter a directory is the fact."""

from __future__ import annotations

import os

from pytest_gpudiscovery.probes.facts import errno_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return {"pid", "entered", "chdir"}.

    `entered`: whether this process may look into directory REQUEST["enter"]; `chdir`: the errno of making
    REQUEST["chdir"] its working directory and asking for its name, as os.Getwd does; None where nothing was asked.
    """
    path, entered = request.get("enter"), None
    if path is not None:
        with journal.step(f"look into {path}"):
            entered = os.access(f"{path}/.", os.X_OK)
    directory, failed = request.get("chdir"), None
    if directory is not None:
        with journal.step(f"chdir {directory}"):
            try:
                os.chdir(directory)
                os.stat(".")
                os.getcwd()
            except OSError as error:
                failed = errno_name(error)
    return {"pid": os.getpid(), "entered": entered, "chdir": failed}
