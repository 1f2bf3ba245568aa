"""verdict.json: written before the first probe, after each stage and at the end, always by an atomic replace.

A run that is killed therefore leaves an `incomplete` file behind, never the green one of an earlier run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pytest_gpudiscovery.model import Verdict, to_json

NAME = "verdict.json"
PREVIOUS = "verdict.previous.json"


def begin(directory: str, verdict: Verdict) -> None:
    """Move an older verdict aside and write VERDICT (incomplete, nothing has run) to DIRECTORY; raises OSError."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(path / NAME, path / PREVIOUS)
    except FileNotFoundError:
        pass  # the first run in this directory
    write(directory, verdict)


def write(directory: str, verdict: Verdict) -> None:
    """Replace DIRECTORY/verdict.json by VERDICT; raises OSError and then leaves the file that was there."""
    path = Path(directory)
    temporary = path / f".{NAME}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(to_json(verdict), file, indent=1, default=str)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())  # a host that is about to be rebooted must keep the answer
        os.replace(temporary, path / NAME)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
