"""What one discovery consists of: children (attempts), devices, devices that were left out. Plain records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_gpudiscovery.ollama.eras import FIRST_PASS, VALIDATION
from pytest_gpudiscovery.ollama.words import Word

UNKNOWN = "unknown"
# How an attempt ended. The first ones are told by the line "failure during GPU discovery".
TIMED_OUT, CRASHED, HTTP_ERROR, WRONG_SERVER = "timed_out", "crashed", "http_error", "wrong_server"
SPAWN_FAILED, FAILED = "spawn_failed", "failed"
CANCELED = "canceled"  # given up because the server was told to stop
EXITED, NO_DEVICE, DEVICES = "exited", "no_device", "devices"
ENDED, OPEN = "ended", "open"  # it ended, and the log does not say how; it has not ended in this log
SHORTEST_S = 29.5  # of the times after which a server gives a child up at its start, by coarse time stamps

# error= of that line, v0.16.3:ml/device.go:622-670; v0.32.15:discover/runner.go:584 and llama_server.go:152
TIMEOUTS = ("failed to finish discovery before timeout", "context deadline exceeded")
_ERRORS = (
    (re.compile(r"context canceled"), CANCELED),
    (re.compile("|".join(TIMEOUTS)), TIMED_OUT),
    (re.compile(r"runner crashed"), CRASHED),
    (re.compile(r"runner error: "), HTTP_ERROR),
    (re.compile(r"llamarunner free vram reporting not supported"), WRONG_SERVER),
    (
        re.compile(r"fork/exec |exec: |no such file or directory|permission denied|resource temporarily unavailable"),
        SPAWN_FAILED,
    ),
)
_SIZE = re.compile(r"([\d.]{1,12}) (B|KiB|MiB|GiB|TiB)")
_GIB = {"B": 2**-30, "KiB": 2**-20, "MiB": 2**-10, "GiB": 1.0, "TiB": 1024.0}
_VENDORS = (("cuda", "nvidia"), ("rocm", "amd"), ("hip", "amd"), ("vulkan", "vulkan"))


def outcome_of(error: str) -> str:
    """Return how an attempt ended whose failure line has ERROR."""
    return next((outcome for pattern, outcome in _ERRORS if pattern.search(error)), FAILED)


def cut_timeout(error: str, took_s: float | None) -> bool:
    """Whether ERROR is what a cut line left of a timeout's, and the time fits: no other failure takes 30 s."""
    return took_s is not None and took_s >= SHORTEST_S and any(text.startswith(error) for text in TIMEOUTS)


def too_soon(attempt: Attempt) -> bool:
    """Whether ATTEMPT, of the first pass, was given up long before its time: the server was told to stop.

    Era B has the words of a timeout for that too (v0.16.3:ml/device.go:630).
    """
    took = attempt.duration_s
    return attempt.kind == FIRST_PASS and attempt.announced and took is not None and took < SHORTEST_S


def paths(text: str) -> tuple[str, ...]:
    """Return the directories of OLLAMA_LIBRARY_PATH as slog writes it ([a b]) or as the child has it (a:b).

    None of a list that a cut line ends in the middle: its last names the directory that the child was for.
    """
    if text.startswith("["):
        # A path may hold blanks; every path after the first begins with a slash or a drive.
        parts = re.split(r" (?=/|[A-Za-z]:[\\/])", text.strip("[]"))
        return tuple(parts) if text.endswith("]") else ()
    windows = re.match(r"[A-Za-z]:\\", text) is not None
    return tuple(part for part in text.split(";" if windows else ":"))


def pairs(text: str) -> dict[str, str]:
    """Return the variables of extra_envs, as a Go map (map[A:b C:d]) or as a list ([A=b C=d], before 0.12.7)."""
    inner = re.fullmatch(r"(?:map)?\[(.*)\]", text, re.DOTALL)
    if inner is None:
        return {}
    sign = ":" if text.startswith("map") else "="
    found = re.findall(
        rf"(?:^| )([A-Za-z_][A-Za-z0-9_]*){sign}(.*?)(?= [A-Za-z_][A-Za-z0-9_]*{sign}|$)", inner[1], re.DOTALL
    )
    return dict(found[:100])


@dataclass
class Attempt:
    """One discovery child (era C: one directory's processes). Times are seconds since 1970."""

    kind: str = UNKNOWN  # first_pass, validation, refresh, unknown
    path: str | None = None  # the directory, None where the log does not name it; "" when it is empty
    libraries: tuple[str, ...] = ()  # OLLAMA_LIBRARY_PATH
    extra: Mapping[str, str] | None = None
    started: float | None = None
    announced: bool = False  # `started` is the child's own start, not the end of what was before it
    waited_s: float | None = None  # between the end of what was before it and its start
    ended: float | None = None
    took_s: float | None = None  # as the server measured it
    outcome: str = OPEN
    error: str = ""
    detail: str = ""
    exit_code: int | None = None
    devices: int | None = None
    port: str = ""
    environment: Mapping[str, str] | None = None  # of the child, by allowlist; None where no line shows it
    mark: str | None = None  # how far its own output shows it
    said: list[Word] = field(default_factory=list)
    lines_captured: int | None = None
    process: str = ""  # era C: which of its processes was running
    sources: list[str] = field(default_factory=list)

    @property
    def directory(self) -> str:
        """Return the basename of the directory: cuda_v12; "ollama" when there was no GPU directory."""
        return "" if not self.path else re.split(r"[/\\]", self.path.rstrip("/\\"))[-1]

    @property
    def windows(self) -> bool:
        """Whether the path is one of Windows."""
        return bool(self.path and re.match(r"[A-Za-z]:\\", self.path))

    @property
    def vendor(self) -> str | None:
        """Return nvidia, amd, vulkan, other or none (the top directory alone); None when the directory is unknown."""
        if self.path is None:
            return None
        if len(self.libraries) < 2 and not re.match(r"(cuda|rocm|vulkan)", self.directory):
            return "none"
        return next((vendor for name, vendor in _VENDORS if self.directory.startswith(name)), "other")

    @property
    def duration_s(self) -> float | None:
        """Return how long it took: as the server measured it, else from the times of the lines."""
        if self.took_s is not None:
            return self.took_s
        if self.started is None or self.ended is None:
            return None
        return round(max(0.0, self.ended - self.started), 6)


@dataclass
class Device:
    """One line "inference compute": a device that was kept, or the CPU."""

    id: str
    library: str
    name: str
    compute: str
    driver: str
    pci_id: str
    directories: str
    total: str
    available: str

    @property
    def is_gpu(self) -> bool:
        """Whether it is no CPU."""
        return self.library.lower() != "cpu"

    @property
    def total_gib(self) -> float | None:
        """Return its whole memory, None where the log gives no size."""
        found = _SIZE.fullmatch(self.total)
        try:
            return float(found[1]) * _GIB[found[2]] if found else None
        except ValueError:
            return None

    @property
    def sane(self) -> bool | None:
        """Whether compute capability and PCI id can be those of an NVIDIA GPU; None for other libraries."""
        return sane(self.compute, self.pci_id) if self.library.lower() == "cuda" else None


def device(values: Mapping[str, str]) -> Device:
    """Return the device of a line "inference compute" that has the attributes VALUES."""
    return Device(
        id=values.get("id", ""),
        library=values.get("library", ""),
        name=values.get("description") or values.get("name", ""),
        compute=values.get("compute", ""),
        driver=values.get("driver", ""),
        pci_id=values.get("pci_id", ""),
        directories=values.get("libdirs", ""),
        total=values.get("total", ""),
        available=values.get("available", ""),
    )


def sane(compute: str, pci_id: str) -> bool:
    """Return whether COMPUTE and PCI_ID, as logged, can be those of an NVIDIA GPU; an empty PCI id says nothing."""
    if re.fullmatch(r"\d{1,2}\.\d", compute) is None or compute == "0.0":
        return False
    return pci_id == "" or re.fullmatch(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]", pci_id) is not None


@dataclass
class LeftOut:
    """A device or directory that was seen and not used. `why` is an id of messages.json."""

    why: str
    what: str
    text: str


@dataclass
class Discovery:
    """One discovery: at the server's start (bootstrap), or the refresh before a model is loaded."""

    kind: str  # bootstrap, refresh
    started: float | None = None
    ended: float | None = None
    took_s: float | None = None
    attempts: list[Attempt] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    verified: list[LeftOut] = field(default_factory=list)  # devices that the second pass was started for
    initial_count: int | None = None
    total_vram: str | None = None
    overrides: dict[str, str] = field(default_factory=dict)
    notes: list[Word] = field(default_factory=list)  # of no attempt in particular
    events: list[str] = field(default_factory=list)  # ids of other messages, in their order
    texts: dict[str, str] = field(default_factory=dict)  # the text of the last one of each
    complete: bool = False  # its result is in the log
    begun_in_log: bool = False  # its first line is in the log
    line: int | None = None  # of the log, where it begins: from 1

    @property
    def duration_s(self) -> float | None:
        """Return how long it took, None when the log does not have both ends."""
        if self.took_s is not None:
            return self.took_s
        if self.started is None or self.ended is None:
            return None
        return round(max(0.0, self.ended - self.started), 6)

    @property
    def failed_refresh(self) -> bool:
        """Whether it is a refresh that gave no answer in time."""
        if self.kind != "refresh":
            return False
        return "refresh.failed" in self.events or any(child.outcome == TIMED_OUT for child in self.attempts)

    @property
    def may_hide_a_timeout(self) -> bool:
        """Whether a child may have timed out although no line says so: it took that long, or nobody knows how long.

        In a whole log a timeout has its line at every level; of an excerpt, or of a log that begins in the middle, only
        the time says that there was none. Not for era A, which has no such timeout.
        """
        if any(attempt.outcome == TIMED_OUT for attempt in self.attempts):
            return False
        took = self.duration_s
        if took is None:
            return True
        measured = [attempt for attempt in self.attempts if (attempt.took_s or SHORTEST_S) < SHORTEST_S]
        parallel = max((attempt.took_s or 0.0 for attempt in measured if attempt.kind == VALIDATION), default=0.0)
        alone = sum(attempt.took_s or 0.0 for attempt in measured if attempt.kind != VALIDATION)
        return took - alone - parallel >= SHORTEST_S

    @property
    def canceled(self) -> bool:
        """Whether the server was told to stop before a child had answered."""
        return any(attempt.outcome == CANCELED for attempt in self.attempts)

    @property
    def found_gpu(self) -> bool | None:
        """Whether a GPU was kept; None while the log has no result, or that of a server that was told to stop."""
        if any(device.is_gpu for device in self.devices):
            return True
        if self.canceled:
            return None
        if self.devices or self.total_vram == "0 B" or "a.none" in self.events:
            return False
        return None

    def words(self, attempt: Attempt | None = None) -> list[Word]:
        """Return what the child of ATTEMPT said, or (None) every child, and what nobody in particular said."""
        spoken = [attempt] if attempt is not None else self.attempts
        return [word for entry in spoken for word in entry.said] + list(self.notes)
