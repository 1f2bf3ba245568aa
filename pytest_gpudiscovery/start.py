"""How a gated pytest run starts: every value is checked before anything runs, and what it will do is said first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import pytest

from pytest_gpudiscovery import __version__, options, places, stages
from pytest_gpudiscovery.collection import CHOICE, RESTARTS, Choice
from pytest_gpudiscovery.plugin import OPTIONS
from pytest_gpudiscovery.reports import exitcodes, wording
from pytest_gpudiscovery.run import Run
from pytest_gpudiscovery.stages.spec import StageSpec


def stage_table(config: pytest.Config) -> dict[str, StageSpec]:
    """Return every stage by name, those of other plugins included; raises UsageError for one that does not fit in."""
    table = dict(stages.table())
    for added in config.hook.pytest_gpudiscovery_stages(config=config):
        for spec in added:
            taken = next(
                (old.name for old in table.values() if old.name == spec.name or old.number == spec.number), None
            )
            unknown = [name for name in (*spec.after, *spec.soft_after) if name not in table]
            if taken is not None or unknown:
                why = f"has the name or number of {taken}" if taken else f"comes after unknown stages: {unknown}"
                raise pytest.UsageError(f"pytest_gpudiscovery_stages: stage {spec.number} {spec.name} {why}")
            table[spec.name] = spec
    return dict(sorted(table.items(), key=lambda entry: entry[1].number))


def settle(config: pytest.Config, table: Mapping[str, StageSpec]) -> options.Settings:
    """Return the settings of CONFIG; raises UsageProblem."""
    given = {option.name: config.getoption(option.name) for option in OPTIONS}
    asked = [str(arg).partition("=")[0] for arg in config.invocation_params.args]
    for option in OPTIONS:
        if option.command_line_only and given[option.name] is not None and option.flag not in asked:
            raise options.UsageProblem(f"addopts: only the command line may ask for {option.flag}")
    return options.settle(
        given,
        os.environ,
        lambda name: _ini(config, name),
        stages=tuple(table),
        invocation_dir=str(config.invocation_params.dir),
        ini_dir=str(config.inipath.parent if config.inipath else config.rootpath),
    )


def _ini(config: pytest.Config, name: str) -> Any:
    try:
        return config.getini(name)
    except pytest.UsageError as error:  # pytest 9 says so itself, without the name of the setting
        raise ValueError(str(error)) from None


def refuse_distribution(config: pytest.Config) -> None:
    """Raise UsageError for pytest-xdist's ways to other hosts: one dead host would end the run for all of them."""
    remote = [spec for spec in config.getoption("tx", None) or () if "popen" not in spec.partition("//")[0]]
    if config.getoption("dist", "no") == "each" or remote:
        what = f"--tx {remote[0]}" if remote else "--dist each"
        raise pytest.UsageError(
            f"{what}: the gate asks one host; start it on every host (srun, ansible, ssh) and collect verdict.json"
        )


def refuse_partial_repeat(config: pytest.Config, choice: Choice, times: int) -> None:
    """Raise UsageError for --gpu-repeat over less than the whole gate: what would be repeated is the whole gate."""
    if times <= 1:
        return
    narrowing = (("-k", "keyword"), ("-m", "markexpr"), ("--deselect", "deselect"))
    what = [flag for flag, name in narrowing if getattr(config.option, name, None)]
    what += () if choice.whole else (choice.paths[0],)
    if what:
        raise pytest.UsageError(partial_repeat(times, what[0]))


def partial_repeat(times: int, what: str) -> str:
    """Return what is said when WHAT leaves out a part of the gate that is to run TIMES times."""
    return f"--gpu-repeat {times} repeats the whole gate: not together with {what}"


def post_mortem(config: pytest.Config) -> int | None:
    """Explain the log that --gpu-ollama-log names and return the exit code; None when it was not asked for.

    Nothing is collected and nothing on the host is probed. Raises UsageError.
    """
    if hasattr(config, "workerinput") or not _names_a_log(config):
        return None
    try:
        settings = settle(config, stage_table(config))
    except options.UsageProblem as problem:
        raise pytest.UsageError(str(problem)) from None
    if settings.ollama_log is None:
        return None
    from pytest_gpudiscovery import ollama_log  # noqa: PLC0415 - a gate has no use for it

    paths = config.stash[CHOICE].paths
    try:
        return ollama_log.explain(settings, paths, quiet=getattr(config.option, "verbose", 0) < 0)
    except options.UsageProblem as problem:
        raise pytest.UsageError(str(problem)) from None


def _names_a_log(config: pytest.Config) -> bool:
    if config.getoption("gpu_ollama_log") is not None or os.environ.get("GPU_DISCOVERY_OLLAMA_LOG"):
        return True
    with contextlib.suppress(ValueError):  # said by whoever settles
        return bool(_ini(config, "gpu_ollama_log"))
    return False


def usage_exit(config: pytest.Config) -> int | None:
    """Return the exit code after a UsageError where --gpu-exit asks for another one than pytest's, None otherwise.

    Read from where it was given: the error may be about any other setting.
    """
    choice = config.stash.get(CHOICE, None)
    if choice is None or not choice.ours or hasattr(config, "workerinput"):
        return None
    given = config.getoption("gpu_exit") or os.environ.get("GPU_DISCOVERY_EXIT")
    if given is None:
        with contextlib.suppress(ValueError):  # that may be what the error is about
            given = _ini(config, "gpu_exit")
    return exitcodes.usage(str(given)) if given in exitcodes.CONVENTIONS else None


def absent(config: pytest.Config, choice: Choice) -> list[str]:
    """Return what is said once: plugins that are not loaded, ambient options that were put aside."""
    notes = places.said(config)
    if not has_timeout(config):
        notes.append("pytest-timeout is not loaded: there is no outer limit around the stages' own deadlines")
    if config.pluginmanager.is_blocked("xdist"):
        notes.append("pytest-xdist is switched off: -n is not available")
    if config.stash.get(RESTARTS, None) not in (None, "0"):
        notes.append(
            f"--max-worker-restart {config.stash[RESTARTS]} put aside: with --dist {config.getoption('dist')} "
            "pytest-xdist may wait for ever for the tests of a worker that it replaced; --dist load replaces them"
        )
    if choice.restored:
        names = ", ".join(name for name, _ in choice.restored)
        notes.append(f"{names} of addopts (ini file or PYTEST_ADDOPTS) put aside: meant for other tests")
    return notes


def has_timeout(config: pytest.Config) -> bool:
    """Whether pytest-timeout is loaded, by its entry point or by `-p pytest_timeout`."""
    return any(config.pluginmanager.hasplugin(name) for name in ("timeout", "pytest_timeout"))


def header(run: Run, profile: str) -> str:
    """Return the line that says what is asked of whom."""
    adopted: Mapping[str, Any] = run.context.adopted
    target = wording.label(run.numbers[run.engine.target], run.engine.target)
    who = f"probing as {adopted.get('as', 'caller')}, uid {adopted.get('uid', os.geteuid())}"
    return f"gpu-discovery {__version__}: up to {target}, profile {profile}, {who}"
