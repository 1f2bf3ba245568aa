"""The results of ci/hardware/*.py on real GPUs, in one form: an object with the FIELDS below for each run of the gate.

`fault` is the name of what was injected, empty for a healthy host; the same fault as another user, or of another
install, has the same name. Read are the scripts' own JSON (ci/hardware/comparable.py), and their tables as they are
kept in docs/evidence, whose lines say whether the row was right, what was injected, and what the gate said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FIELDS = ("source", "machine", "name", "fault", "expected", "seen", "right", "time")


MACHINE = re.compile(r"^machine: (.*)$", re.MULTILINE)
HEALTHY = re.compile(
    r"none|healthy\b.*|as uid 65534|EAGER, machine code|user namespace alone|MPS directory \w+|/proc/driver hidden"
    r"|/sys hidden|no /dev/shm|HOME cannot be written|no locked memory"
)
# What was injected, for whom or into which install, what the gate said, seconds, stage and cause
GATE = re.compile(
    r"^(?P<mark>ok|WRONG) +(?P<name>\S.*?) {2,}(?:(?P<user>root|nobody) +)?"
    r"(?P<verdict>ready|degraded|blocked|incomplete) +(?P<time>[\d.]+) s *(?P<said>.*)$"
)
LONG = re.compile(
    r"^(?P<mark>ok|WRONG) +(?P<name>\S.*?) (?P<user>root|nobody) +(?P<verdict>ready|degraded|blocked|incomplete)"
    r" +(?P<time>[\d.]+) s *(?P<said>.*)$"
)
AGREES = re.compile(
    r"^(?P<mark>ok|WRONG) +(?P<user>machine|newer|ptx|llama) +(?P<name>\S.*?) +ollama: (?P<ollama>.*?) +[\d.]+ s"
    r" +gate: (?P<verdict>\w+) +(?P<time>[\d.]+) s *(?P<said>.*)$"
)


def read(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the rows of FILES; raises ValueError for a file that holds something else."""
    found: list[dict[str, Any]] = []
    for file in files:
        if file.suffix == ".txt":
            found += kept(file)
            continue
        for row in json.loads(file.read_text(encoding="utf-8")):
            if missing := [name for name in FIELDS if name not in row]:
                raise ValueError(f"{file}: a row lacks {', '.join(missing)}")
            found.append({name: row[name] for name in FIELDS})
    return found


def kept(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a table of docs/evidence; raises ValueError for one that has none."""
    text = file.read_text(encoding="utf-8")
    machine = MACHINE.search(text)
    lines = [AGREES.match(line) or LONG.match(line) or GATE.match(line) for line in text.splitlines()]
    rows = [
        {
            "source": file.stem,
            "machine": machine[1] if machine else "unknown",
            "name": f"{line['name'].strip()} ({line['user']})" if line["user"] else line["name"].strip(),
            "fault": "" if HEALTHY.fullmatch(line["name"].strip()) else line["name"].strip(),
            "expected": "as written in the script" if line["mark"] == "ok" else "otherwise",
            "seen": " ".join(f"{line['verdict']} {line['said']}".split()),
            "right": line["mark"] == "ok",
            "time": float(line["time"]),
        }
        for line in lines
        if line is not None
    ]
    if not rows:
        raise ValueError(f"{file}: no table of ci/hardware in it")
    return rows
