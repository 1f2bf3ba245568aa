"""verdict.json: written before the first probe, after each stage and at the end, always by an atomic replace.

A run that is killed therefore leaves an `incomplete` file behind, never the green one of an earlier run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

from pytest_gpudiscovery.model import StageRecord, Verdict, to_json
from pytest_gpudiscovery.reports.atomic import replace

NAME = "verdict.json"
PREVIOUS = "verdict.previous.json"

_texts: dict[int, tuple[StageRecord, str]] = {}  # by id of the record, which is kept so that the id stays its own


def aside(directory: str) -> bool:
    """Move an older verdict aside while it is not yet known what will run; return whether there was one to move.

    Where it cannot be moved, `begin` says so.
    """
    with contextlib.suppress(OSError):
        os.replace(Path(directory, NAME), Path(directory, PREVIOUS))
        return True
    return False


def back(directory: str) -> None:
    """Undo `aside`: nothing ran, so what an earlier run said still stands."""
    with contextlib.suppress(OSError):
        os.replace(Path(directory, PREVIOUS), Path(directory, NAME))


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

    SO_FAR: another one follows soon. It has no indentation, and a stage's text is made once: a tenth of the time.
    SYNC waits for the disk: a host that is about to be rebooted, or that a driver call brings down, keeps the answer.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    text = (_so_far(verdict) if so_far else json.dumps(to_json(verdict), indent=1, default=str)) + "\n"
    replace(directory, NAME, text.encode("utf-8", "backslashreplace"), sync=sync)


def _so_far(verdict: Verdict) -> str:
    """Return VERDICT as JSON; what was made of a stage's record, which never changes, is kept for the next time."""
    kept = {id(record): _texts.get(id(record)) or (record, _compact(record)) for record in verdict.stages}
    _texts.clear()
    _texts.update(kept)
    rest = to_json(dataclasses.replace(verdict, stages=()))
    del rest["stages"]
    return f'{_compact(rest)[:-1]}, "stages": [{", ".join(text for _, text in kept.values())}]}}'


def _compact(value: object) -> str:
    return json.dumps(to_json(value), default=str)
