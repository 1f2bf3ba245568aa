"""The child's half of the progress journal: JSON lines on an inherited pipe, one os.write each.

A line is one of
    {"ev": "start", "id": n, "step": name, "t": monotonic seconds}
    {"ev": "end", "id": n, "t": ..., "result": any JSON}
    {"ev": "observe", "key": name, "value": any JSON}      what is known so far; survives a later hang
    {"ev": "answer", "value": any JSON}                    the probe's answer; without it exit 0 is no answer
    {"ev": "begin"}                                        setup is done, the probe's own code comes next
    {"ev": "refused", "value": reason}                     setup failed: the probe must not run
Half a line (the child died while it wrote) is harmless: the parent drops it.
"""

from __future__ import annotations

import os
import time

from pytest_gpudiscovery.probes.wire import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs every probe 10 ms
    from typing import Any


class Step:
    """An open step; set `result` before the block ends."""

    def __init__(self, journal: Journal, name: str) -> None:
        self._journal, self._name = journal, name
        self.result: Any = None

    def __enter__(self) -> Step:
        self._id = self._journal._start(self._name)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and self.result is None:
            self.result = {"error": f"{type(error).__name__}: {error}"}
        self._journal._write({"ev": "end", "id": self._id, "t": time.monotonic(), "result": self.result})


class Journal:
    """Writes steps, observations and the answer to file descriptor FD."""

    def __init__(self, fd: int) -> None:
        self._fd, self._count = fd, 0

    def apart(self, first: int) -> Journal:
        """Return a journal for a process forked from this one: its steps are numbered from FIRST on.

        Lines of up to PIPE_BUF (4096) bytes do not mix with those of others; keep what such a process says short.
        """
        other = Journal(self._fd)
        other._count = first
        return other

    def step(self, name: str) -> Step:
        """Return a context manager that times NAME; a step that never ends names the call that hung."""
        return Step(self, name)

    def observe(self, key: str, value: Any) -> None:
        """Say at once that KEY was seen as VALUE, so that the fact outlives a later hang or crash."""
        self._write({"ev": "observe", "key": key, "value": value})

    def answer(self, value: Any) -> None:
        """Give the probe's answer. Called once, by the child's entry point."""
        self._write({"ev": "answer", "value": value})

    def begin(self) -> None:
        """Say that setup is done. Called once, by the child's entry point."""
        self._write({"ev": "begin"})

    def refuse(self, reason: str) -> None:
        """Say why the probe will not run. Called by the child's entry point, which then ends."""
        self._write({"ev": "refused", "value": reason})

    def _start(self, name: str) -> int:
        self._count += 1
        self._write({"ev": "start", "id": self._count, "step": name, "t": time.monotonic()})
        return self._count

    def _write(self, line: dict[str, Any]) -> None:
        data = (dumps(line) + "\n").encode()
        try:
            while data:  # a pipe takes large lines in pieces
                data = data[os.write(self._fd, data) :]
        except OSError as error:  # a traceback on stderr is all that is left, and not taken for a defect of ours
            raise OSError(
                error.errno, "the gate's journal was closed: a library closed descriptors of others"
            ) from None
