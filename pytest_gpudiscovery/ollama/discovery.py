"""Puts the lines of one server together to discoveries: what was tried, how it ended, what was kept and why.

Ollama runs the first pass one directory after the other (30 s each) and the second pass in parallel (30 s for all).
"""

from __future__ import annotations

from collections.abc import Callable

from pytest_gpudiscovery.ollama import attempts as records
from pytest_gpudiscovery.ollama.attempts import Discovery, LeftOut
from pytest_gpudiscovery.ollama.children import TEXT, Children, is_discovery
from pytest_gpudiscovery.ollama.gotime import duration
from pytest_gpudiscovery.ollama.logline import LogLine
from pytest_gpudiscovery.ollama.messages import CHILD, Message
from pytest_gpudiscovery.ollama.passes import ANOTHER_S, settle
from pytest_gpudiscovery.ollama.refreshes import Refreshes, least_wanted
from pytest_gpudiscovery.ollama.words import Word, recognise

DISCOVERIES, WORDS, LEFT_OUT, DEVICES = 40, 100, 200, 64  # of one server, of one discovery
BOOTSTRAP, REFRESH = "bootstrap", "refresh"


class Builder:
    """Takes the lines of one server in their order; `discoveries` is what they tell."""

    def __init__(self) -> None:
        self.discoveries: list[Discovery] = []
        self.refreshes = Refreshes()  # those that are no longer in `discoveries`
        self.words: list[Word] = []  # outside of any discovery
        self._children = Children()
        self._serving = False  # the server's first discovery is over
        self._open: Discovery | None = None

    def feed(self, line: LogLine, message: Message | None, word: Word | None) -> None:
        """Take one line: MESSAGE when it is one of Ollama's, WORD when it is one of a child's."""
        if word is not None and self._open is not None:
            self._children.word(self._open, word)
        elif word is not None and len(self.words) < WORDS:
            self.words.append(word)
        elif message is not None and message.role == CHILD:
            found = self._open or (self.discoveries[-1] if self.discoveries else None)
            if found is not None:
                self._children.line(found, line, message)
        elif message is not None:
            handler = _HANDLERS.get(message.id)
            if handler is not None:
                handler(self, line, message)
            elif message.id in _CHILDREN:
                _CHILDREN[message.id](self._children, self._current(line), line, message)
            elif message.id.startswith(("a.", "c.")):
                self._event(line, message)

    @property
    def idle(self) -> bool:
        """Whether no discovery is going on."""
        return self._open is None

    @property
    def keeps_words(self) -> bool:
        """Whether a child's word outside of any discovery tells something: of many the first are kept."""
        return len(self.words) < WORDS

    @property
    def another_at(self) -> float | None:
        """Return the time after which the start of a child begins another refresh; None: it does not."""
        found = self._open
        if found is None or found.kind != REFRESH or not found.attempts or found.attempts[-1].started is None:
            return None
        return found.attempts[-1].started + ANOTHER_S

    @property
    def unfinished(self) -> Discovery | None:
        """Return the refresh that is going on if all that is known of it is the start of its only child."""
        found = self._open
        if found is None or found.kind != REFRESH or found.begun_in_log or found.complete or found.took_s is not None:
            return None
        told = found.left_out or found.verified or found.overrides or found.notes or found.events or found.devices
        child = found.attempts[0] if len(found.attempts) == 1 else None
        if told or child is None or child.outcome != records.OPEN or child.said or child.started is None:
            return None
        return found if child.announced and child.path is None and child.extra is None else None

    @property
    def serving(self) -> bool:
        """Whether the server's first discovery is over."""
        return self._serving

    def state(self) -> tuple[object, ...]:
        """Return how much is known: equal before and after a line that tells nothing new."""
        last = self.discoveries[-1:]
        return (
            len(self.discoveries),
            self.idle,
            self.refreshes.seen,
            len(self.words),
            self._children.room,
            [
                (found.complete, found.kind, len(found.devices), len(found.left_out), len(found.verified),
                 len(found.overrides), len(found.notes), len(found.events), len(found.texts))
                for found in last
            ],
            [
                (entry.outcome, entry.kind, entry.path, entry.mark, entry.exit_code, entry.devices, entry.process,
                 len(entry.said), len(entry.sources))
                for found in last for entry in found.attempts
            ],
        )  # fmt: skip

    @property
    def all_refreshes(self) -> Refreshes:
        """Return the counts of every refresh."""
        return self.refreshes.and_those(self.discoveries)

    def finish(self) -> None:
        """Say that the log has ended."""
        self._end_open(None)

    # Beginning and end.

    def _begin(self, kind: str, line: LogLine, *, in_log: bool) -> Discovery:
        self._end_open(None)
        found = Discovery(kind, line.time if in_log else None, begun_in_log=in_log, line=line.number)
        if len(self.discoveries) >= DISCOVERIES:
            # The first is the server's start; of the rest those that failed and the newest stay.
            old = self.discoveries.pop(least_wanted(self.discoveries))
            self._children.forget(old)
            if old.kind == REFRESH:
                self.refreshes.take(old)
        self.discoveries.append(found)
        self._open = found
        self._children.begin(found.started)
        return found

    def _current(self, line: LogLine) -> Discovery:
        """Return the open discovery; one whose beginning is not in the log when there is none."""
        if self._open is None:
            return self._begin(REFRESH if self._serving else BOOTSTRAP, line, in_log=False)
        return self._open

    def _end_open(self, time: float | None) -> None:
        found, self._open = self._open, None
        if found is None:
            return
        settle(found)
        if found.ended is None and found.complete:
            found.ended = time if time is not None else self._children.last

    def _start(self, line: LogLine, message: Message) -> None:
        self._begin(BOOTSTRAP, line, in_log=True)
        self._event(line, message)

    def _refresh(self, line: LogLine, _: Message) -> None:
        self._begin(REFRESH, line, in_log=True)

    def _device(self, line: LogLine, _: Message) -> None:
        found = self._result_of(line)
        if not found.devices:
            found.ended = line.time
            self._children.over(found, line.time)
        if len(found.devices) < DEVICES:
            found.devices.append(records.device({key: value[:TEXT] for key, value in line.attributes.items()}))
        found.complete = self._serving = True

    def _vram(self, line: LogLine, _: Message) -> None:
        found = self._result_of(line)
        found.total_vram = line.attributes.get("total_vram", line.attributes.get("total vram"))
        found.ended = found.ended if found.ended is not None else line.time
        found.complete = self._serving = True
        self._end_open(line.time)

    def _result_of(self, line: LogLine) -> Discovery:
        """Return the discovery that a result belongs to: the open one, or the start that has just closed."""
        if self._open is not None and self._open.kind == BOOTSTRAP:
            return self._open
        closed = next((entry for entry in reversed(self.discoveries) if entry.kind == BOOTSTRAP), None)
        if closed is not None and closed.complete:
            return closed
        return self._begin(BOOTSTRAP, line, in_log=False)

    def _took_all(self, line: LogLine, message: Message) -> None:
        last = self.discoveries[-1] if self.discoveries else None
        if (
            message.id == "took.refresh"
            and self.idle
            and last
            and "refresh.failed" in last.events
            and last.took_s is None
        ):
            last.took_s = duration(line.attributes.get("duration", ""))  # the last line of one that failed
            return
        found = self._current(line)
        found.took_s = duration(line.attributes.get("duration", ""))
        if message.id == "took.refresh":
            found.kind, found.complete = REFRESH, True
            self._end_open(line.time)

    def _refresh_failed(self, line: LogLine, message: Message) -> None:
        last = self.discoveries[-1] if self.discoveries else None
        found = last if self._open is None and last is not None and last.kind == REFRESH else self._current(line)
        found.kind, found.complete, found.ended = REFRESH, True, line.time
        _note(found, message.id)
        self._serving = True
        self._end_open(line.time)
        settle(found)

    # Children.

    def _hint(self, line: LogLine, _: Message) -> None:
        self._children.hint(line)

    def _runner(self, line: LogLine, _: Message) -> None:
        if not is_discovery(line):
            return
        found = self._open
        if found is not None and found.kind == REFRESH and found.attempts and line.time is not None:
            started = found.attempts[-1].started
            if started is not None and line.time - started > ANOTHER_S:
                self._end_open(None)  # the one before ended without a word
        self._children.start(self._current(line), line)

    def _environment(self, line: LogLine, _: Message) -> None:
        if self._open is not None:
            self._children.environment(self._open, line)

    def _server_silent(self, line: LogLine, message: Message) -> None:
        found = self._open or (self.discoveries[-1] if self.discoveries else self._current(line))
        self._children.server_silent(found, line, message)

    # What was seen and not used.

    def _first_pass_end(self, line: LogLine, message: Message) -> None:
        found = self._current(line)
        count = line.attributes.get("initial_count", line.attributes.get("count", ""))
        found.initial_count = int(count) if count.isascii() and count.isdigit() and len(count) < 6 else None
        self._children.over(found, line.time)
        _note(found, message.id)

    def _verify(self, line: LogLine, _: Message) -> None:
        found, values = self._current(line), line.attributes
        if len(found.verified) < LEFT_OUT:
            what = " ".join(filter(None, (values.get(key, "") for key in ("description", "compute", "pci_id"))))
            found.verified.append(LeftOut(values.get("library", "")[:TEXT], what[:TEXT], line.text[:TEXT]))

    def _left_out(self, line: LogLine, message: Message) -> None:
        found, values = self._current(line), line.attributes
        if len(found.left_out) < LEFT_OUT:
            keys = ("libDir", "libdir", "library", "id", "description", "device", "pci_id", "requested", "kept_library")
            what = ", ".join(f"{key} {values[key]}" for key in keys if values.get(key))
            found.left_out.append(LeftOut(message.id, what[:TEXT], line.text[:TEXT]))

    def _override(self, line: LogLine, _: Message) -> None:
        found = self._current(line)
        for key, value in list(line.attributes.items())[:4]:
            if len(found.overrides) < LEFT_OUT:
                found.overrides[key[:TEXT]] = value[:TEXT]

    def _event(self, line: LogLine, message: Message) -> None:
        # Processes of era C end up to 5 s after their discovery was given up.
        found = self._open or (self.discoveries[-1] if self.discoveries else self._current(line))
        _note(found, message.id)
        rest = "".join(f" {key}={value}" for key, value in list(line.attributes.items())[:6])
        found.texts[message.id] = (line.message + rest)[:TEXT]
        if message.id == "a.none":
            found.complete, found.ended = True, line.time
        for text in line.attributes.get("stderr", "").splitlines()[:LEFT_OUT]:  # of the native probe
            word = recognise(text)
            if word is not None:
                self._children.word(found, word)


def _note(found: Discovery, event: str) -> None:
    if len(found.events) < LEFT_OUT or event not in found.events:
        found.events.append(event)


_HANDLERS: dict[str, Callable[[Builder, LogLine, Message], None]] = {
    "start": Builder._start,
    "start.a": Builder._start,
    "start.a_old": Builder._start,
    "refresh": Builder._refresh,
    "result.device": Builder._device,
    "server.vram_context": Builder._vram,
    "server.vram_low": Builder._vram,
    "took.all": Builder._took_all,
    "took.refresh": Builder._took_all,
    "refresh.failed": Builder._refresh_failed,
    "runner.start_trace": Builder._hint,
    "runner.spawning": Builder._hint,
    "runner.start": Builder._runner,
    "runner.env": Builder._environment,
    "c.timeout": Builder._server_silent,
    "first_pass.end": Builder._first_pass_end,
    "verify": Builder._verify,
    "override": Builder._override,
    **dict.fromkeys(
        (
            "filtered.init",
            "filtered.overlap",
            "filtered.duplicate",
            "skip.requested",
            "skip.jetpack",
            "skip.vulkan",
            "c.arch",
            "c.no_memory",
            "c.driver_old",
            "c.igpu",
        ),
        Builder._left_out,
    ),
}
_CHILDREN: dict[str, Callable[[Children, Discovery, LogLine, Message], None]] = {
    "failure": Children.failed,
    "failure.c": Children.failed,
    "took": Children.took,
    "runner.exited": Children.exited,
    "runner.devices": Children.enumerated,
    "runner.spawn_failed": Children.not_started,
    "c.start": Children.processes,
    "c.watchdog": Children.watchdog,
}
