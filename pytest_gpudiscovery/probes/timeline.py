"""What a discovery child opens, initialises and touches, in order of time: from ld.so's own account, and strace's.

ld.so writes its account to the child's stderr without a time: a line gets that of its coming. Driver nodes are seen as
descriptors, looked at every 10 ms; strace, where it is installed, sees every open.
"""

from __future__ import annotations

import os
import re

from pytest_gpudiscovery.loader import lddebug

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal

EVENTS = 400
REST = 32_768  # characters of the child's own words that are kept
NODES = "/dev/nvidia"
WORDS = {lddebug.MAPPING: "opened", lddebug.CONSTRUCTOR: "initialised"}
ACCOUNT = re.compile(r"^\s*\d+:\t")
OPEN = re.compile(r'^(?:\[pid +\d+\] )?\d+\.\d+ open(?:at2?)?\((?:[^,"]+, )?"([^"]+)".*\) = (-?\d+)(?: ([A-Z]+))?')
LIBRARY = re.compile(r"\.so(\.[\d.]+)?$")
PLACES = ("/usr/bin", "/bin", "/usr/local/bin")  # a service's PATH may lack them
CALL = re.compile(r"^(?:\[pid +\d+\] )?\d+\.\d+ |^strace: ")
SAID = ("Server listening on", "ggml backend load all from path", "ggml_cuda_init", "load_backend:", "system_info:")
TRACED = ("-f", "-qq", "-ttt", "-s", "512", "-e", "trace=open,openat,openat2", "-e", "signal=none")


class Timeline:
    """Takes the lines and the ticks of one child. `events`: {"at": seconds, "what", "name"}; also journal steps."""

    def __init__(self, journal: Journal, prefix: str) -> None:
        self._journal, self._prefix = journal, prefix
        self.events: list[dict[str, Any]] = []
        self.rest = ""
        self._seen: set[tuple[str, str]] = set()

    def line(self, at: float, text: str) -> None:
        """Take one line of the child's output."""
        if ACCOUNT.match(text):
            stop = lddebug.last_stop(text)
            if stop is not None and stop.doing in WORDS:
                self._add(at, WORDS[stop.doing], stop.path)
            return
        opened = OPEN.match(text)
        if opened is not None:
            self._opened(at, opened[1], int(opened[2]), opened[3])
            return
        if CALL.match(text):
            return
        self.rest = (self.rest + text + "\n")[-REST:]
        mark = next((mark for mark in SAID if mark in text), None)
        if mark is not None:
            self._add(at, "said", text[text.index(mark) :][:160])

    def tick(self, pid: int, at: float) -> None:
        """Look at the descriptors of PID."""
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            return
        for name in names:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            self._node(at, target, "has open")

    def _opened(self, at: float, path: str, result: int, why: str | None) -> None:
        if path.startswith(NODES):
            self._node(at, path, "opened" if result >= 0 else f"could not open ({why})")
        elif LIBRARY.search(path) and result >= 0 and (path, "opened") not in self._seen:
            self._seen.add((path, "opened"))
            self._add(at, "opened", path)

    def _node(self, at: float, path: str, what: str) -> None:
        if path.startswith(NODES) and (path, what) not in self._seen:
            self._seen.add((path, what))
            self._add(at, what, path)

    def _add(self, at: float, what: str, name: str) -> None:
        if len(self.events) < EVENTS:
            self.events.append({"at": round(at, 4), "what": what, "name": name})
            with self._journal.step(f"{self._prefix}{what} {name}") as step:
                step.result = f"at {at:.3f} s"  # steps are what every report shows


def strace(env: dict[str, str]) -> str | None:
    """Return the strace on the PATH of ENV or where distributions put it, None where there is none."""
    places = (f"{part}/strace" for part in (*env.get("PATH", "").split(":"), *PLACES) if part.startswith("/"))
    return next((place for place in places if os.access(place, os.X_OK)), None)


def under_strace(program: str, env: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return what stands before the child's argv, and the environment of strace: ld.so's variables are the child's."""
    theirs = {name: value for name, value in env.items() if name.startswith(("LD_", "GLIBC_TUNABLES"))}
    words = [word for name, value in theirs.items() for word in ("-E", f"{name}={value}")]
    return [program, *TRACED, *words], {name: value for name, value in env.items() if name not in theirs}
