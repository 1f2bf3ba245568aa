"""The results of ci/hardware/*.py on real GPUs, in one form: an object with the FIELDS below for each run of the gate.

`fault` is the name of what was injected, empty for a healthy host; the same fault as another user, or of another
install, has the same name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FIELDS = ("source", "machine", "name", "fault", "expected", "seen", "right", "time")


def read(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the rows of FILES; raises ValueError for a file that holds something else."""
    found: list[dict[str, Any]] = []
    for file in files:
        for row in json.loads(file.read_text(encoding="utf-8")):
            if missing := [name for name in FIELDS if name not in row]:
                raise ValueError(f"{file}: a row lacks {', '.join(missing)}")
            found.append({name: row[name] for name in FIELDS})
    return found
