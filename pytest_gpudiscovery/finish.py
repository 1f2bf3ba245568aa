"""How a gated pytest run ends: what is missing is run, the verdict written, and the exit code decided by it."""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery import attempts
from pytest_gpudiscovery.adapters import Further
from pytest_gpudiscovery.collection import Choice
from pytest_gpudiscovery.model import Outcome, Verdict
from pytest_gpudiscovery.options import Settings
from pytest_gpudiscovery.reports import exitcodes, github, verdict_json, wording
from pytest_gpudiscovery.reports.console import Console
from pytest_gpudiscovery.run import Run
from pytest_gpudiscovery.signals import EXIT_CODE, Sigterm
from pytest_gpudiscovery.verdict import exit_code

CONCLUSIVE = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
DERIVED = ("evidence", "html")  # modules of reports/ that write files made of the verdict beside verdict.json
ASKED = "asked-{}.json"  # in the run directory, one per pytest-xdist worker


class Selection:
    """Which stages the items of this run ask for, before and after pytest deselected some of them."""

    def __init__(self, choice: Choice, directory: str) -> None:
        self._choice, self._directory = choice, directory
        self._before: set[str] = set()
        self._after: set[str] = set()

    def collected(self, stages: set[str]) -> None:
        """Take STAGES as what was collected."""
        self._before = stages

    def kept(self, stages: set[str], worker: str | None) -> None:
        """Take STAGES as what is left; a worker leaves it in a file for the controller, which collects nothing."""
        self._after = stages
        if worker is not None:
            data = [sorted(self._before), sorted(self._after)]
            Path(self._directory, ASKED.format(worker)).write_text(json.dumps(data), encoding="utf-8")

    def as_json(self, *, collect_only: bool) -> dict[str, Any]:
        """Return the verdict's `selection` object."""
        before, after = set(self._before), set(self._after)
        for path in Path(self._directory).glob(ASKED.format("*")):
            try:
                pair = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue  # a worker that died while it wrote: the others collected the same items
            before.update(pair[0])
            after.update(pair[1])
        narrowed = not self._choice.whole or collect_only or bool(before - after)
        return {"paths": list(self._choice.paths), "whole": self._choice.whole, "narrowed": narrowed}


def _is_child(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return f"\nPPid:\t{os.getpid()}\n" in status


class Finish:
    """The end of RUN as pytest's controller (or only process) sees it."""

    def __init__(
        self,
        run: Run,
        settings: Settings,
        choice: Choice,
        console: Console,
        sigterm: Sigterm,
        further: tuple[Further, ...] = (),
    ) -> None:
        """FURTHER are the reports that go elsewhere than to the report directory."""
        self._run, self._settings, self._choice = run, settings, choice
        self._console, self._sigterm, self._further = console, sigterm, further
        self._failed: list[tuple[str, str | None]] = []
        self._was_interrupted = False
        self._written: list[str] = []  # names of the files in the report directory that a person opens
        self.verdict: Verdict | None = None

    def failed(self, nodeid: str, stage: str | None) -> None:
        """Remember that item NODEID, which asserts over STAGE (None: a user's own), failed."""
        self._failed.append((nodeid, stage))

    def conclude(self, status: int, selection: dict[str, Any]) -> tuple[Verdict, int]:
        """Run what is missing, write verdict.json; return the verdict and the exit code. STATUS is pytest's own."""
        run = self._run
        run.selection = selection
        repeats = attempts.Repeats(run, self._settings.repeat, self._console.note)
        try:
            if status == pytest.ExitCode.INTERRUPTED:
                self._interrupted()
            elif status in CONCLUSIVE and selection["whole"] and not selection["narrowed"]:
                run.complete()
                if self._settings.repeat > 1:
                    repeats.go()
        except KeyboardInterrupt:
            status = pytest.ExitCode.INTERRUPTED
            self._interrupted()
        self._sigterm.close()
        self._console.stop()
        run.publish()
        self.verdict = run.verdict()
        if self._settings.repeat > 1:
            self.verdict = repeats.verdict(interrupted=status == pytest.ExitCode.INTERRUPTED)
        self._write(self.verdict)
        return self.verdict, self._exit_code(status, self.verdict)

    def _write(self, verdict: Verdict) -> None:
        """Write the reports; what cannot be written is said and no reason to change the verdict."""
        directory = self._settings.report
        try:
            self._run.close(verdict)
            self._written.append(verdict_json.NAME)
        except OSError as error:
            where = os.path.join(directory, verdict_json.NAME)
            older = "; the one there is of an earlier moment of this run" if self._run.stands() else ""
            self._console.lost(f"{where} could not be written: {error.strerror or error}{older}")
        if self._written:
            for name in DERIVED:
                module = importlib.import_module(f"pytest_gpudiscovery.reports.{name}")
                if self._derive(Further(name, directory, functools.partial(module.write, directory)), verdict):
                    self._written += [module.NAME] if name == "html" else []
        for further in self._further:
            self._derive(further, verdict)
        if self._settings.bundle is not None:
            self._derive(Further("bundle", self._settings.bundle, self._bundle), verdict)

    def _bundle(self, verdict: Verdict) -> None:
        """Pack the evidence; what it asks of the host afterwards is left out where the run had to end."""
        from pytest_gpudiscovery import bundle_cli  # noqa: PLC0415 - only where a bundle was asked for

        until = self._run.context.run_until
        refused = "the run's deadline had passed" if until is not None and time.time() >= until else ""
        refused = "the run was interrupted" if self._was_interrupted else refused
        bundle_cli.make(self._settings.report, self._settings.bundle or "", verdict, refused=refused)

    def _derive(self, report: Further, verdict: Verdict) -> bool:
        try:
            report.write(verdict)
            return True
        except Exception as error:
            # Also a defect of ours: the verdict is written, and its exit code must still be given.
            self._console.lost(f"{report.where}: the {report.name} report could not be written: {error}")
            return False

    def _interrupted(self) -> None:
        self._was_interrupted = True
        pid = (self._run.engine.ledger.running() or {}).get("pid")
        self._run.engine.interrupt("SIGTERM" if self._sigterm.came else "interrupted from the keyboard")
        if isinstance(pid, int) and _is_child(pid):
            # A pytest-xdist worker inside a probe: xdist would wait 10 s for it, and the probe dies with it.
            os.kill(pid, signal.SIGTERM)

    def _exit_code(self, status: int, verdict: Verdict) -> int:
        if status == pytest.ExitCode.INTERRUPTED and self._sigterm.came:
            return EXIT_CODE
        if not self._choice.ours:
            return status  # users' own tests: pytest's result counts, the verdict gates their fixtures
        if self._choice.alone and status == pytest.ExitCode.TESTS_FAILED and not self._unexplained():
            status = pytest.ExitCode.OK  # items failed because of stages, and those are in the verdict
        code = exit_code(verdict, pytest_status=status, strict=self._settings.strict)
        return exitcodes.translate(code, verdict, self._settings.exit, strict=self._settings.strict)

    def _unexplained(self) -> list[str]:
        """The items that failed although their stage did not: a defect of ours, never to be covered by a green."""
        records = self._run.engine.records()
        return [
            nodeid
            for nodeid, stage in self._failed
            if stage is None or stage not in records or records[stage].outcome.lets_others_run
        ]

    def say(self, code: int) -> None:
        """Print the failure blocks and, as the last line of all, the verdict with exit code CODE."""
        verdict, console = self.verdict, self._console
        if verdict is None or code == pytest.ExitCode.USAGE_ERROR:
            return
        if self._choice.alone:
            for record in verdict.stages:
                if record.outcome.blocks or record.outcome is Outcome.PROBE_ERROR:
                    lost = [other.name for other in verdict.stages if other.blocked_by == record.name]
                    console.block(wording.failure_block(record, self._run.numbers, lost, verdict))
            for nodeid in self._unexplained():
                console.note(f"{nodeid} failed although its stage did not")
        if os.environ.get(github.ON) == "true":
            for line in github.commands(verdict):
                console.raw(line)
        written = os.path.join(self._settings.report, ", ".join(reversed(self._written))) if self._written else None
        console.last(verdict, code, written)
