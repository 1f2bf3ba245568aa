"""The run's records in files, one per stage, and the lock that lets one probe run at a time.

Files and not memory, because pytest-xdist workers are processes, a replaced worker starts empty, and a record must
outlive a killed run. No wait here is without a limit.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.model import StageRecord, record_from_json, to_json

POLL_S = 0.02
FIRST, LAST = "stage-", ".json"  # around the name of a stage in the name of its record


class LedgerBusyError(Exception):
    """Another process held the run's lock for longer than any stage may take."""


class Ledger:
    """Stage records of one run in directory ROOT."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)
        self._root.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> StageRecord | None:
        """Return the record of stage NAME, None when there is none or it cannot be read."""
        try:
            return record_from_json(json.loads((self._root / f"{FIRST}{name}{LAST}").read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def names(self) -> set[str]:
        """Return the stages that have a record; asked so often that it is one system call or three, not one a stage."""
        try:
            files = os.listdir(self._root)
        except OSError:
            return set()
        return {name[len(FIRST) : -len(LAST)] for name in files if name.startswith(FIRST) and name.endswith(LAST)}

    def write(self, record: StageRecord) -> None:
        """Store RECORD atomically; raises OSError."""
        self._put(f"{FIRST}{record.name}{LAST}", to_json(record))

    def mark_running(self, name: str | None) -> None:
        """Say which stage runs now, so that an interrupted run can name it; None when none does."""
        if name is None:
            with contextlib.suppress(OSError):
                (self._root / "running.json").unlink()
        else:
            self._put("running.json", {"stage": name, "pid": os.getpid(), "started": time.time()})

    def running(self) -> dict[str, Any] | None:
        """Return {stage, pid, started} of the stage that was running last, None when none was."""
        try:
            found = json.loads((self._root / "running.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    @contextlib.contextmanager
    def lock(self, limit_s: float) -> Iterator[None]:
        """Hold the run's lock; raises LedgerBusyError when it is not free within LIMIT_S seconds."""
        until = time.monotonic() + limit_s
        with open(self._root / "lock", "w", encoding="utf-8") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise LedgerBusyError(
                            f"{file.name} is held by another process for over {limit_s:g} s"
                        ) from None
                    time.sleep(POLL_S)
            yield

    def _put(self, name: str, data: Any) -> None:
        temporary = self._root / f".{name}.{os.getpid()}"
        temporary.write_text(json.dumps(data, default=str), encoding="utf-8")
        os.replace(temporary, self._root / name)
