"""pytest's side of a gated run: items ask the engine, the verdict decides the exit code.

Records live in files, so selection, order, -x, --lf, workers and their crashes change who asks first and nothing
else. The controller (or the only process) begins the run, shows it and concludes it; workers only ask.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from pytest_gpudiscovery import adapters, attempts, collection, fixtures, options, places, start
from pytest_gpudiscovery import context as contexts
from pytest_gpudiscovery.engine import AFTER_DEADLINE_S
from pytest_gpudiscovery.finish import Finish, Selection
from pytest_gpudiscovery.model import Outcome, StageRecord
from pytest_gpudiscovery.reports import junit, verdict_json, wording
from pytest_gpudiscovery.reports.console import Console, GateReporter
from pytest_gpudiscovery.run import Run
from pytest_gpudiscovery.scratch import Scratch
from pytest_gpudiscovery.signals import Sigchld, Sigterm
from pytest_gpudiscovery.stages.spec import RunContext, longest_of

BELT_S = 30.0  # what pytest-timeout's limit adds to everything that an item may set off
SKIPPED = (Outcome.NOT_REACHED, Outcome.NOT_APPLICABLE, Outcome.NOT_SELECTED, Outcome.INTERRUPTED)
CRASHED_WORKER = "???"  # report.when of pytest-xdist's report on an item whose worker died
USAGE = "gpu_discovery_usage"  # key in a worker's output


def install(config: pytest.Config) -> None:
    """Make CONFIG's run a gated one; raises UsageError."""
    gate = Gate(config)
    manager = config.pluginmanager
    manager.register(gate, "gpudiscovery-gate")
    manager.register(fixtures, "gpudiscovery-fixtures")
    manager.register(collection.Collection(gate.numbers), "gpudiscovery-collection")
    adapters.install(config, gate.choice)
    reporter = manager.get_plugin("terminalreporter")
    if gate.choice.alone and reporter is not None:
        manager.unregister(reporter)
        manager.register(GateReporter(config), "terminalreporter")


class Gate:
    """The state of one gated pytest process, and the hooks that change with it."""

    run: Run

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.choice = config.stash[collection.CHOICE]
        self.stages = start.stage_table(config)
        self.numbers = {name: spec.number for name, spec in self.stages.items()}
        self._worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        self._settings = options.Settings()
        self._directory = ""
        self._selection = Selection(self.choice, "")
        self._console: Console | None = None  # None in a worker
        self._finish: Finish | None = None  # likewise
        self._usage = ""  # what a worker found wrong with users' markers

    # -- the run begins -------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Check everything that was asked for, then begin or join the run; nothing has run yet when this refuses."""
        if self._worker is not None:
            given = self._worker["gpu_discovery"]
            self._directory = given["directory"]
            context = contexts.load(self._directory)
            self.run = Run(context, self.stages, started=given["started"], report=given["report"])
            self.run.unfinished = given["unfinished"]
        else:
            self._begin()
        self._selection = Selection(self.choice, self._directory)
        self.config.stash[fixtures.RUN] = self.run

    def _begin(self) -> None:
        config = self.config
        start.refuse_distribution(config)
        collection.refuse_unknown(self.choice)
        sigchld = Sigchld()
        sigchld.heed()
        config.add_cleanup(sigchld.restore)
        try:
            self._settings = settings = start.settle(config, self.stages)
            scratch = Scratch()
            self._directory = scratch.path
            config.add_cleanup(scratch.remove)
            start.refuse_partial_repeat(config, self.choice, settings.repeat)
            context = _build(settings, self._directory)
        except options.UsageProblem as problem:
            raise pytest.UsageError(str(problem)) from None
        contexts.save(context)
        verbosity = getattr(config.option, "verbose", 0)  # -p no:terminal takes the option away
        quiet = verbosity < 0 or settings.exit != "pytest"
        self._console = console = Console(config, self.numbers, quiet=quiet, steps=verbosity > 0)
        self.run = Run(context, self.stages, started=time.time(), report=settings.report, show=console.stage)
        self.run.notes += start.absent(config, self.choice)
        if settings.repeat > 1:
            self.run.unfinished = attempts.progress(1, settings.repeat)
        try:
            trouble = self.run.begin()
        except options.UsageProblem as problem:
            raise pytest.UsageError(str(problem)) from None
        if trouble is not None:
            self.run.notes.append(trouble)
        sigterm = Sigterm()
        further = adapters.further(config, self.choice)
        self._finish = finish = Finish(self.run, settings, self.choice, console, sigterm, further)
        if self.choice.ours:
            config.pluginmanager.register(places.Guard(config, console.note), "gpudiscovery-guard")
        adapters.html_rows(config, self.choice, self._records, lambda: finish.verdict, settings.report)
        config.add_cleanup(lambda: finish.say(_exit_status(config)))
        config.add_cleanup(sigterm.restore)
        config.add_cleanup(console.stop)
        sigterm.catch()
        self._silence_xdist()

    def _records(self) -> Mapping[str, StageRecord]:
        """The records so far; asked anew each time, because a repeated run has a new engine."""
        return self.run.engine.records()

    def _silence_xdist(self) -> None:
        """Leave the terminal to our own lines; a crashed worker is said by pytest_runtest_logreport below."""
        session: Any = self.config.pluginmanager.get_plugin("dsession")
        if self.choice.alone and session is not None:
            session.terminal = None
            self.config.pluginmanager.unregister(name="terminaldistreporter")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a pytest-xdist worker where the run is."""
        run = self.run
        shared = {"directory": self._directory, "started": run.started, "report": run.report}
        node.workerinput["gpu_discovery"] = {**shared, "unfinished": run.unfinished}

    # -- items ----------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Check our markers, stop after the target, and note which stages are asked for before any deselection."""
        selected = self.run.engine.selected
        items[:] = [
            item
            for item in items
            if collection.KEYWORD not in item.keywords or collection.stage_of(item) in (None, *selected)
        ]
        try:
            for item in items:
                fixtures.check_markers(item, self.stages)
        except pytest.UsageError as error:
            if self._worker is None:
                raise
            # Raised here it would be an internal error of the worker; the controller turns it into exit code 4.
            self.config.workeroutput[USAGE] = str(error)  # type: ignore[attr-defined]
            items.clear()
        self._selection.collected(_stages_of(items))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which stages are still asked for, and put pytest-timeout's belt around the items."""
        worker = self._worker["workerid"] if self._worker is not None else None
        self._selection.kept(_stages_of(session.items), worker)
        if self._settings.repeat > 1 and self._selection.as_json(collect_only=False)["narrowed"]:
            what = "a selection that leaves out stages"  # by --lf, a conftest or another plugin
            raise pytest.UsageError(start.partial_repeat(self._settings.repeat, what))
        if start.has_timeout(self.config):
            limits = [longest_of(self.run.context, spec) for spec in self.stages.values()]
            limit = sum(limits) + AFTER_DEADLINE_S * len(limits) + BELT_S
            for item in session.items:
                if collection.stage_of(item) is not None:
                    item.add_marker(pytest.mark.timeout(limit, method="signal", func_only=False), append=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Say what will run; wait for the host if asked to; run what users' items need outside of their time limits."""
        if self._console is not None:
            context = self.run.context
            self._console.header(start.header(self.run, self._settings.profile), context.simulated)
            for note in (*context.notes, *self.run.notes):
                self._console.note(note)
        if self.config.option.collectonly:
            return
        if self._console is not None:
            self._console.watch(self.run.running)
            if self._settings.wait is not None:
                attempts.wait_until_ready(self.run, self._settings.wait, self._console.note)
        if not self.choice.alone:
            for item in session.items:
                for name in fixtures.needs(item, self.run):
                    self.run.ensure(name)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Run the stage that ITEM asserts over; skip with the reason when it could not be reached."""
        name = collection.stage_of(item)
        if name is not None:
            record = self.run.ensure(name)
            item.user_properties.extend(junit.item_properties(record))
            if record.outcome in SKIPPED:
                pytest.skip(_why_skipped(record))
        fixtures.require(item, self.run)

    # -- reports --------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Print nothing per item for the suites: a stage has one line."""
        return ("", "", "") if _is_ours(report) else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Show the stages that ended meanwhile (in a worker, too), and remember what failed."""
        if self._finish is None or self._console is None:
            return
        self.run.publish()
        if not report.failed:
            return
        if report.when == CRASHED_WORKER:
            text = f"{report.longrepr}; what it was running is asked again"
            self.run.notes.append(text)
            self._console.note(text)
            if _is_ours(report):
                return
        self._finish.failed(report.nodeid, _stage_property(report))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what a worker found wrong with users' markers."""
        self._usage = self._usage or (getattr(node, "workeroutput", None) or {}).get(USAGE, "")

    # -- the run ends ---------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Conclude, before pytest and its plugins write their reports."""
        if self._finish is None or self._console is None:
            return
        if self._usage:
            exitstatus = pytest.ExitCode.USAGE_ERROR
            self._console.error(self._usage)
        selection = self._selection.as_json(collect_only=self.config.option.collectonly)
        verdict, code = self._finish.conclude(int(exitstatus), selection)
        junit.add_suite_properties(self.config, verdict)
        session.exitstatus = code


def _exit_status(config: pytest.Config) -> int:
    session: Any = config.pluginmanager.get_plugin("session")
    return int(getattr(session, "exitstatus", pytest.ExitCode.INTERNAL_ERROR))


def _stages_of(items: list[pytest.Item]) -> set[str]:
    return {name for item in items if (name := collection.stage_of(item)) is not None}


def _build(settings: options.Settings, directory: str) -> RunContext:
    """Return the context of a run; a release archive takes its time, and who kills it meanwhile finds no old green."""
    moved = verdict_json.aside(settings.report)
    try:
        return contexts.build(settings, directory)
    except options.UsageProblem:
        if moved:
            verdict_json.back(settings.report)
        raise


def _is_ours(report: pytest.TestReport) -> bool:
    if report.when == CRASHED_WORKER:
        return report.nodeid.startswith(collection.PREFIX + "/")  # pytest-xdist knows no more of the item
    return collection.KEYWORD in report.keywords


def _stage_property(report: pytest.TestReport) -> str | None:
    return next((str(value) for name, value in report.user_properties if name == junit.PREFIX + "stage"), None)


def _why_skipped(record: StageRecord) -> str:
    start_of_it = f"{wording.words(record.outcome)}: "
    return wording.one_line(record.summary if record.summary.startswith(start_of_it) else start_of_it + record.summary)
