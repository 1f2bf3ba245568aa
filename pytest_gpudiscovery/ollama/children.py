"""The children of one discovery: which line is about which of them, when it began and ended, how far it came.

With INFO alone the lines name only directories that failed; what is inferred from times is marked by `announced` and
`waited_s` of the attempt.
"""

from __future__ import annotations

from collections.abc import Callable

from pytest_gpudiscovery.ollama import attempts as records
from pytest_gpudiscovery.ollama.attempts import Attempt, Discovery
from pytest_gpudiscovery.ollama.eras import VALIDATION
from pytest_gpudiscovery.ollama.gotime import duration
from pytest_gpudiscovery.ollama.logline import LogLine
from pytest_gpudiscovery.ollama.messages import Message
from pytest_gpudiscovery.ollama.passes import VALIDATING, pass_of
from pytest_gpudiscovery.ollama.words import Word, further, recognise

ATTEMPTS, WORDS = 256, 100  # of one discovery, of one child
ALL_ATTEMPTS, ALL_WORDS = 1000, 1000  # of one server: what a log can make us keep is bounded
TEXT = 400
SOURCES = 8  # of one child
PARALLEL_S = 0.010  # children of the first pass start at least one poll of /info apart (v0.16.3:ml/device.go:625)
STAMP_S = 0.002  # what two time stamps of the same moment may differ by
# What is kept of a child's environment: no secret has one of these names.
KEPT = ("CUDA_", "GGML_", "ROCR_", "HIP_", "HSA_", "GPU_", "LD_LIBRARY_PATH", "OLLAMA_LIBRARY_PATH", "OLLAMA_DEBUG",
        "OLLAMA_LLM_LIBRARY", "OLLAMA_VULKAN", "OLLAMA_GPU_OVERHEAD")  # fmt: skip
MARKS = {
    "child.engine": "main",
    "child.listening": "listening",
    "child.system": "system",
    "child.dummy": "system",
    "child.infos": "memory",
}


def is_discovery(line: LogLine) -> bool:
    """Return whether LINE, "starting runner", starts a discovery child; one with --model serves a model."""
    command = line.attributes.get("cmd", "")
    return "--ollama-engine" in command and "--model" not in command


class Children:
    """Assigns lines to the children of the discovery that is open."""

    def __init__(self) -> None:
        self.last: float | None = None  # when the last thing of the discovery ended
        self._hint: tuple[str, ...] | None = None  # the directories that the next child is for
        self._attempts = self._words = 0
        self._speaking: Attempt | None = None  # the child whose line came last

    @property
    def room(self) -> tuple[int, int]:
        """Return how many children and words are kept."""
        return self._attempts, self._words

    def begin(self, time: float | None) -> None:
        """Say that a discovery begins at TIME."""
        self.last, self._hint, self._speaking = time, None, None

    def forget(self, found: Discovery) -> None:
        """Say that FOUND is not kept any more: others may have its room."""
        self._attempts -= len(found.attempts)
        self._words -= len(found.notes) + sum(len(attempt.said) for attempt in found.attempts)

    def hint(self, line: LogLine) -> None:
        """Note which directory the next child is for."""
        values = line.attributes
        text = values.get("libDirs", values.get("OLLAMA_LIBRARY_PATH", ""))
        self._hint = records.paths(text) if text else None

    def start(self, found: Discovery, line: LogLine) -> None:
        """A child is started."""
        if found.started is None and not found.attempts:
            found.started = line.time  # the beginning is not in the log: the first child is what there is
        last = found.attempts[-1] if found.attempts else None
        if last is not None and found.initial_count is None and self._is_over(last, line.time):
            last.outcome, last.ended = records.ENDED, line.time  # the first pass runs one child after the other
            self.last = line.time
        command = line.attributes.get("cmd", "")
        attempt = Attempt(started=line.time, announced=True, mark="spawned", port=command.rpartition("--port ")[2][:5])
        if self.last is not None and line.time is not None:
            attempt.waited_s = round(max(0.0, line.time - self.last), 6)
        if self._hint is not None:
            _name(attempt, self._hint)
            self._hint = None
        self._add(found, attempt)

    def environment(self, found: Discovery, line: LogLine) -> None:
        """The environment of the child that was just started."""
        attempt, values = found.attempts[-1] if found.attempts else None, line.attributes
        if attempt is None or attempt.environment is not None or attempt.outcome != records.OPEN:
            return
        if "OLLAMA_LIBRARY_PATH" in values:
            attempt.environment = {key: value[:TEXT] for key, value in values.items() if key.startswith(KEPT)}
            _name(attempt, records.paths(values["OLLAMA_LIBRARY_PATH"]))
            attempt.kind = VALIDATION if VALIDATING in values else attempt.kind

    def failed(self, found: Discovery, line: LogLine, _: Message) -> None:
        """A child gave no answer."""
        attempt = self._which(found, line, lambda entry: not entry.error)
        attempt.error = line.attributes.get("error", "")[:TEXT]
        self._last_words(attempt, line)
        attempt.outcome = records.outcome_of(attempt.error)
        self._ended(attempt, line)
        if attempt.outcome == records.FAILED and records.cut_timeout(attempt.error, attempt.duration_s):
            attempt.outcome = records.TIMED_OUT
        elif attempt.outcome == records.TIMED_OUT and found.kind == "bootstrap" and records.too_soon(attempt):
            attempt.outcome = records.CANCELED

    def took(self, found: Discovery, line: LogLine, _: Message) -> None:
        """How long a child took, as the server measured it."""
        attempt = self._which(found, line, lambda entry: entry.took_s is None)
        attempt.took_s = duration(line.attributes.get("duration", ""))
        if not attempt.announced:
            attempt.started = None if line.time is None or attempt.took_s is None else line.time - attempt.took_s
        if attempt.outcome == records.OPEN:
            attempt.outcome = records.ENDED
        self._ended(attempt, line)

    def exited(self, found: Discovery, line: LogLine, _: Message) -> None:
        """A child exited with a code."""
        attempt = self._which(found, line, lambda entry: entry.exit_code is None and not entry.error)
        attempt.exit_code = _number(line.attributes.get("code", ""))
        attempt.outcome = records.EXITED
        self._last_words(attempt, line)
        self._ended(attempt, line)

    def enumerated(self, found: Discovery, line: LogLine, _: Message) -> None:
        """What a child answered: devices=[] or a Go struct per device."""
        attempt = self._which(found, line, lambda entry: entry.devices is None)
        text = line.attributes.get("devices", "").strip()
        if attempt.outcome in (records.OPEN, records.ENDED):
            attempt.devices = 0 if text in ("", "[]") else max(1, text.count("DeviceID:") or text.count("{{"))
            attempt.outcome = records.DEVICES if attempt.devices else records.NO_DEVICE

    def not_started(self, found: Discovery, line: LogLine, _: Message) -> None:
        """A child could not be started."""
        attempt = next((entry for entry in reversed(found.attempts) if entry.outcome == records.OPEN), None)
        attempt = attempt or self._add(found, Attempt(started=line.time))
        attempt.outcome, attempt.error = records.SPAWN_FAILED, line.attributes.get("error", "")[:TEXT]
        self._ended(attempt, line)

    def processes(self, found: Discovery, line: LogLine, _: Message) -> None:
        """Era C: the processes of one directory are started."""
        attempt = self._add(found, Attempt(started=line.time, announced=True))
        _name(attempt, records.paths(line.attributes.get("libDirs", "")))

    def watchdog(self, found: Discovery, line: LogLine, message: Message) -> None:
        """Era C: a directory's time is up."""
        attempt = self._which(found, line, lambda entry: message.id not in entry.sources)
        _heard(attempt, message.id)
        attempt.process = attempt.process or "llama-server --list-devices or gpu-discover"

    def server_silent(self, found: Discovery, line: LogLine, message: Message) -> None:
        """Era C: process 1 had not said system_info when the time was up. Comes up to 5 s after the failure."""
        attempt = self._which(found, line, lambda entry: entry.lines_captured is None)
        attempt.lines_captured = _number(line.attributes.get("lines_captured", ""))
        attempt.process = "llama-server"
        _heard(attempt, message.id)

    def over(self, found: Discovery, time: float | None) -> None:
        """The pass is over: every child that runs has ended."""
        for attempt in found.attempts:
            if attempt.outcome == records.OPEN:
                attempt.outcome, attempt.ended = records.ENDED, time

    def line(self, found: Discovery, line: LogLine, message: Message) -> None:
        """Take a line in Ollama's format that a child wrote. It may come when the child is long gone."""
        port = line.message.rpartition(":")[2] if message.id == "child.listening" else ""
        path = line.attributes.get("path", "") if message.id == "child.load" else ""
        attempt = _speaker(found, port, path, line.time)
        self._speaking = attempt
        if attempt is None:
            return
        mark = MARKS.get(message.id)
        if message.id == "child.load":
            # lib/ollama comes first, with the CPU variants, then the GPU directory below it.
            alone = len(attempt.libraries) < 2 or path != attempt.path
            mark = "top_directory" if alone else "gpu_directory"
        attempt.mark = further(attempt.mark, mark)

    def word(self, found: Discovery, word: Word) -> None:
        """Take a line in a child's own words: of the child whose line came last, or of one that has not spoken yet."""
        running = _speaker(found, "", "", None)
        fresh = running is not None and running.mark in (None, "spawned")
        last = next((entry for entry in found.attempts if entry is self._speaking), None)
        attempt = running if last is None or (word.early and fresh) else last
        kept = found.notes if attempt is None else attempt.said
        self._keep(kept, [word])
        if attempt is not None:
            attempt.mark = further(attempt.mark, word.mark)

    def _which(self, found: Discovery, line: LogLine, fits: Callable[[Attempt], bool]) -> Attempt:
        """Return the attempt that LINE is about, a new one if need be.

        It has OLLAMA_LIBRARY_PATH or libDirs, and may have extra_envs; a line that was cut may lack any of them.
        """
        values = line.attributes
        text = values.get("OLLAMA_LIBRARY_PATH", values.get("libDirs"))
        libraries = () if text is None else records.paths(text)
        extra = records.pairs(values["extra_envs"]) if values.get("extra_envs", "").endswith("]") else None
        kind = pass_of(found, extra)
        path = libraries[-1] if libraries else None

        def same(entry: Attempt) -> bool:
            if extra is not None and (entry.kind not in (kind, records.UNKNOWN) or entry.extra not in (None, extra)):
                return False
            return fits(entry)

        attempt = next((entry for entry in reversed(found.attempts) if entry.path == path and same(entry)), None)
        if attempt is None:
            unnamed = [e for e in found.attempts if e.path is None and e.outcome == records.OPEN and same(e)]
            attempt = (unnamed[0] if kind == VALIDATION else unnamed[-1]) if unnamed else None
        if attempt is None:
            attempt = self._add(found, Attempt(started=self.last))
        _name(attempt, libraries)
        if extra is not None:
            attempt.extra, attempt.kind = extra, kind
        return attempt

    def _add(self, found: Discovery, attempt: Attempt) -> Attempt:
        if len(found.attempts) < ATTEMPTS and self._attempts < ALL_ATTEMPTS:
            found.attempts.append(attempt)
            self._attempts += 1
        return attempt

    def _ended(self, attempt: Attempt, line: LogLine) -> None:
        if line.time is not None:
            attempt.ended = self.last = line.time
        if line.source:
            _heard(attempt, line.source)

    def _keep(self, kept: list[Word], new: list[Word]) -> None:
        new = new[: max(0, min(WORDS - len(kept), ALL_WORDS - self._words))]
        kept += new
        self._words += len(new)

    def _last_words(self, attempt: Attempt, line: LogLine) -> None:
        """detail=: the child's error lines, which the server shows at a level that hides the rest of its output."""
        attempt.detail = line.attributes.get("detail", "")[:TEXT]
        found = (recognise(text) for text in attempt.detail.splitlines()[:WORDS])
        self._keep(attempt.said, [word for word in dict.fromkeys(found) if word and word not in attempt.said])

    def _is_over(self, attempt: Attempt, time: float | None) -> bool:
        """Whether ATTEMPT, of the first pass, was over when another child started at TIME."""
        if attempt.outcome != records.OPEN or attempt.kind == VALIDATION:
            return False
        return attempt.started is None or time is None or time - attempt.started > PARALLEL_S


def _heard(attempt: Attempt, source: str) -> None:
    if len(attempt.sources) < SOURCES:
        attempt.sources.append(source)


def _name(attempt: Attempt, libraries: tuple[str, ...]) -> None:
    if libraries and attempt.path is None:
        attempt.libraries, attempt.path = libraries, libraries[-1]


def _speaker(found: Discovery, port: str, path: str, time: float | None) -> Attempt | None:
    """Return the child that wrote a line: by its PORT or PATH, by TIME, else the only one that can be meant.

    What a child prints reaches the log through a pipe, often after the server's own line about its end.
    """
    able = [entry for entry in found.attempts if time is None or _lived(entry, time)]
    if time is None:
        able = [entry for entry in able if entry.outcome == records.OPEN]
    by_name = [entry for entry in able if (port and entry.port == port) or (path and entry.path == path)]
    able = by_name or able
    # Children of the second pass run at the same time, and nothing says which of them printed a line.
    return able[-1] if len(able) == 1 or (able and able[-1].kind != VALIDATION) else None


def _lived(attempt: Attempt, time: float) -> bool:
    """Whether the child of ATTEMPT may have written a line at TIME; time stamps have milliseconds."""
    began = attempt.started is None or attempt.started - STAMP_S <= time
    ended = attempt.ended if attempt.outcome != records.OPEN else None
    return began and (ended is None or time <= ended + STAMP_S)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None
