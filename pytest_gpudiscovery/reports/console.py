"""The terminal: one line per stage as it happens, progress while one is slow, the failure block, the verdict last."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import pytest
from _pytest.terminal import TerminalReporter

from pytest_gpudiscovery.model import Outcome, StageRecord, State, Verdict
from pytest_gpudiscovery.reports import wording

SHOW_PROGRESS_AFTER_S = 1.0
TICK_S = 0.5
LOG_AFTER_S = 10.0  # in a log; then at 20 s, 40 s, ...
COLOURS: Mapping[Outcome, str] = {
    Outcome.PASSED: "green",
    Outcome.WARNED: "yellow",
    Outcome.FAILED: "red",
    Outcome.TIMED_OUT: "red",
    Outcome.CRASHED: "red",
    Outcome.UNKILLABLE: "red",
    Outcome.PROBE_ERROR: "red",
    Outcome.INTERRUPTED: "yellow",
}
VERDICT_COLOURS: Mapping[State, str] = {
    State.READY: "green",
    State.DEGRADED: "yellow",
    State.BLOCKED: "red",
    State.INCOMPLETE: "yellow",
}
Running = Callable[[], "tuple[str, float, float] | None"]  # stage, begin in Unix time, deadline in seconds


class GateReporter(TerminalReporter):  # type: ignore[misc]  # final for typing; plugins replace it all the same
    """pytest's reporter when only packaged suites run: errors and warnings as ever, our lines instead of dots."""

    @property
    def showheader(self) -> bool:
        """Ours is the only header."""
        return False

    @property
    def showlongtestinfo(self) -> bool:
        """One line per stage, not per item."""
        return False

    @property
    def showfspath(self) -> bool:
        """The suites' paths say nothing to a user."""
        return False

    @showfspath.setter
    def showfspath(self, value: bool | None) -> None:
        """pytest-xdist sets it."""

    def _determine_show_progress_info(self) -> Any:
        return False

    def pytest_collection(self) -> None:
        """Say nothing: collecting the suites takes no time."""

    def report_collect(self, final: bool = False) -> None:
        """Say nothing: how many items a stage has is of no interest."""

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Say nothing: the last line says what was interrupted."""

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(
        self,
        session: pytest.Session,  # noqa: ARG002 - the signature is pytest's
        exitstatus: int | pytest.ExitCode,
    ) -> Generator[None, None, None]:
        """Say what went wrong around the gate, if anything; no blank line, no counts, no other plugin's summary.

        Theirs are about the user's own tests, and one of them (hypothesis) takes longer than the gate itself.
        """
        yield
        if exitstatus != pytest.ExitCode.INTERNAL_ERROR:
            self.summary_errors()
            self.summary_failures()
            self.summary_warnings()


class Console:
    """Writes the gate's own lines. `quiet` leaves only the last one, `steps` adds every step of every stage."""

    def __init__(self, config: pytest.Config, numbers: Mapping[str, int], *, quiet: bool, steps: bool) -> None:
        self._config, self._numbers = config, numbers
        self._quiet, self._steps = quiet, steps
        self._progress = Progress(numbers)

    def watch(self, running: Running) -> None:
        """Show how long the running stage has taken; RUNNING is asked twice a second.

        On a terminal it is one line that changes; in a log, a line now and then, so that nobody takes it for dead.
        """
        terminal = self._reporter
        if self._quiet or terminal is None:
            return
        self._progress.start(running, live=terminal.hasmarkup and sys.stdout.isatty())

    def stop(self) -> None:
        """End what `watch` began."""
        self._progress.stop()

    def header(self, text: str, simulated: Mapping[str, Any] | None) -> None:
        """Say first that nothing here is real, where that is so, and what is asked for."""
        if simulated is not None:
            self._line(f"SIMULATED host {simulated_words(simulated)}: this says nothing about this machine", bold=True)
        self._line(text)

    def note(self, text: str) -> None:
        """Say TEXT once, however many processes meet it."""
        self._line(f"note: {wording.one_line(text)}")

    def lost(self, text: str) -> None:
        """Say that a report could not be written; where only the verdict is printed, on standard error."""
        if self._quiet:
            print(f"note: {wording.one_line(text)}", file=sys.stderr, flush=True)
        else:
            self.note(text)

    def error(self, text: str) -> None:
        """Say what is wrong with how pytest was called, as pytest says it."""
        self._line(f"ERROR: {text}", always=True, red=True)

    def stage(self, record: StageRecord) -> None:
        """Say how one stage ended."""
        duration = "" if record.outcome in _NOTHING_RAN else f"{record.duration_s:9.3f} s"
        text = record.summary
        if record.outcome is Outcome.NOT_REACHED and record.blocked_by is not None:
            text = f"because of {wording.label(self._numbers[record.blocked_by], record.blocked_by)}"
        colour = COLOURS.get(record.outcome)
        with self._writer() as write:
            if write is None or self._quiet:
                return
            write(f"{wording.label(self._numbers[record.name], record.name):<16}")
            write(f"{wording.words(record.outcome):<14}", **({colour: True} if colour else {}))
            write(laid_out(f"{duration:<11}  ", wording.one_line(text), self._width()) + "\n")
            for step in record.steps if self._steps else ():
                took = f"{step.duration_s:9.3f} s" if step.duration_s is not None else "  not ended"
                result = "" if step.result is None else f" = {step.result}"
                # The time first: a step's name may be a path of any length.
                text = wording.one_line(step.name) + wording.one_line(result)[:100]
                write(f"{took}  {folded(text, self._width(), STEP_COLUMN)}\n")

    def block(self, text: str) -> None:
        """Say what failed, in the shape that all reports share."""
        self._line("")
        for line in text.split("\n"):
            # A command stays whole, to be copied; so does all of a log.
            stays = line.startswith(f"{wording.INDENT}next ")
            head, rest = line[:BLOCK_COLUMN], line[BLOCK_COLUMN:]
            self._line(line if stays else head + folded(rest, self._width(), BLOCK_COLUMN))

    def raw(self, text: str) -> None:
        """Say a line that a CI system reads, as it is."""
        self._line(text)

    def last(self, verdict: Verdict, exit_code: int, report: str | None) -> None:
        """Say the verdict; always, and as the last line."""
        if report is not None:
            self._line(f"report: {report}")
        text = wording.last_line(verdict, self._numbers, exit_code)
        self._line(text, always=True, bold=True, **{VERDICT_COLOURS[verdict.verdict]: True})

    def _line(self, text: str, *, always: bool = False, **markup: bool) -> None:
        with self._writer() as write:
            if write is not None and (always or not self._quiet):
                write(text, **markup)  # without the line's end: colours are reset before it
                write("\n")

    def _width(self) -> int | None:
        """The columns of the terminal; None for a log, where nothing is folded."""
        terminal = self._reporter
        return int(terminal._tw.fullwidth) if terminal is not None and terminal.isatty else None

    @property
    def _reporter(self) -> Any:
        return self._config.pluginmanager.get_plugin("terminalreporter")

    @contextlib.contextmanager
    def _writer(self) -> Iterator[Callable[..., None] | None]:
        """Give a function that writes to the real terminal, also while pytest captures a test's output."""
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        terminal = self._reporter
        with capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext():
            self._progress.clear()
            if terminal is None:
                yield lambda text, **_: (sys.stdout.write(text), None)[1]
                sys.stdout.flush()
                return
            terminal.ensure_newline()
            yield terminal.write
            terminal.flush()


COLUMN = 43  # where the text of a stage's line begins
STEP_COLUMN = 13  # where the text of a step begins
BLOCK_COLUMN = 15  # where the text of a line of the failure block begins
NARROW = 90  # columns; below, the text has lines of its own
INDENT = 3


def laid_out(before: str, text: str, width: int | None) -> str:
    """Return the rest of a stage's line, BEFORE and TEXT, folded for a terminal of WIDTH columns."""
    if width is None or COLUMN + len(text) <= width:
        return (before + text).rstrip()
    if width >= NARROW:
        return before + folded(text, width, COLUMN)
    return f"{before.rstrip()}\n{' ' * INDENT}{folded(text, width, INDENT)}"


def folded(text: str, width: int | None, indent: int) -> str:
    """Return TEXT folded for a terminal of WIDTH columns, its lines after the first one INDENT columns in."""
    if width is None:
        return text
    # A path is not broken: the terminal does that, and gives it back whole when it is copied.
    lines = textwrap.wrap(text, max(20, width - indent), break_on_hyphens=False, break_long_words=False)
    return ("\n" + " " * indent).join(lines)


_NOTHING_RAN = (Outcome.NOT_REACHED, Outcome.NOT_SELECTED)


def simulated_words(simulated: Mapping[str, Any]) -> str:
    """Return "h100, fault driver.hang"."""
    faults = simulated.get("faults") or ()
    faults = [faults] if isinstance(faults, str) else faults
    return ", ".join([str(simulated.get("host", "")), *(f"fault {fault}" for fault in faults)])


class Progress:
    """How long the running stage has taken, beside its deadline.

    On a terminal a line that is overwritten twice a second; elsewhere a line after LOG_AFTER_S, then at twice the time.
    """

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = numbers
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._shown = False
        self._live = False
        self._fd = -1

    def start(self, running: Running, *, live: bool) -> None:
        """Begin; RUNNING says which stage runs now, LIVE that lines can be overwritten."""
        try:
            self._fd = os.dup(sys.stdout.fileno())  # pytest points the original elsewhere while a test runs
        except (OSError, ValueError, AttributeError):
            return  # no file behind it: somebody collects what we print
        self._live = live
        thread = threading.Thread(target=self._run, args=(running,), name="gpu-discovery-progress", daemon=True)
        with contextlib.suppress(RuntimeError):  # no task is left (a container's pids limit): a stage will say so
            thread.start()
            self._thread = thread

    def stop(self) -> None:
        """End within a second, whatever the terminal does."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)
            self._thread = None
            self.clear()

    def clear(self) -> None:
        """Remove the line, before something else is written."""
        with self._lock:
            if self._shown:
                self._shown = False
                os.write(self._fd, b"\r\x1b[K")

    def _run(self, running: Running) -> None:
        said, due = 0.0, LOG_AFTER_S
        while not self._stop.wait(TICK_S):
            now = running()
            if now is None:
                continue
            name, begun, deadline = now
            if begun != said:
                said, due = begun, LOG_AFTER_S
            elapsed = time.time() - begun
            if elapsed < (SHOW_PROGRESS_AFTER_S if self._live else due):
                continue
            due *= 2
            text = f"{wording.label(self._numbers.get(name, 0), name)}  {elapsed:.0f} s of {deadline:g} s"
            if elapsed > deadline:
                text += ": stopping it, keeping evidence"
            with self._lock, contextlib.suppress(OSError):  # a log that takes no more must not end the thread loudly
                if not self._stop.is_set():
                    self._shown = self._live
                    os.write(self._fd, b"\r\x1b[K" + text.encode() if self._live else f"... {text}\n".encode())
