"""verdict.json: written before the first probe, after each stage and at the end, always by an atomic replace.

A run that is killed therefore leaves an `incomplete` file behind, never the green one of an earlier run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pytest_gpudiscovery.model import Verdict, to_json
from pytest_gpudiscovery.reports.atomic import replace

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


def write(directory: str, verdict: Verdict, *, so_far: bool = False, sync: bool = True) -> None:
    """Replace DIRECTORY/verdict.json by VERDICT; raises OSError and then leaves the file that was there.

    SO_FAR: another one follows soon. It is written without indentation, which costs a tenth of the time.
    SYNC waits for the disk: a host that is about to be rebooted, or that a driver call brings down, keeps the answer.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_json(verdict), indent=None if so_far else 1, default=str) + "\n"
    replace(directory, NAME, text.encode("utf-8", "backslashreplace"), sync=sync)
