"""Which items a gated pytest run has: the packaged suites, from any directory, whatever the user's ini says.

The suites are collected by our own collectors with fixed node ids (`gpu-discovery/test_06_driver.py::...`), so that
python_files, python_functions, norecursedirs, rootdir or the import mode cannot hide or rename them. They run alone
unless paths were given; then pytest's own arguments, selection and conftest files are left as they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PREFIX = "gpu-discovery"
KEYWORD = "gpudiscovery_suite"  # on every packaged item and its reports; a node id could also be a user's file
# Looked up and not imported by name: in an editable install setuptools maps the package to the folder suites/.
FOLDER = Path(importlib.import_module("pytest_gpudiscovery.suites").__path__[0])
# What the user's ini (addopts) may have set for his own tests and must not do to the gate. -x is dealt with in
# hooks.py, the order by OrderGuard.
AMBIENT = ("markexpr", "keyword", "deselect", "lf", "stepwise", "stepwise_skip", "numprocesses", "dist", "tx")
# pytest-xdist 3.8 may wait for ever for the tests of a worker that died and was replaced, where it hands them out so.
NEVER_REPLACE = ("loadscope", "loadfile", "loadgroup")


@dataclass(frozen=True)
class Choice:
    """What the arguments of this run ask for."""

    alone: bool  # only packaged suites: pytest's own reporting, conftest files and ambient selection step aside
    whole: bool  # no paths and no node ids: the whole gate
    paths: tuple[str, ...]
    restored: tuple[tuple[str, Any], ...] = ()  # ambient options put back to what the command line says

    @property
    def ours(self) -> bool:
        """Whether packaged suites are among what was asked for, so that the verdict counts for the exit code."""
        return self.alone or any(map(is_ours, self.paths))


CHOICE: pytest.StashKey[Choice] = pytest.StashKey()
RESTARTS: pytest.StashKey[str | None] = pytest.StashKey()  # of --max-worker-restart, where it was put aside


def choose(early_config: pytest.Config, args: list[str], parser: pytest.Parser) -> None:
    """Decide what this run is about, and add the suites to ARGS when no path was given."""
    known = early_config.known_args_namespace
    paths = tuple(known.file_or_dir)
    ours = [is_ours(path) for path in paths]
    alone = all(ours)
    restored: tuple[tuple[str, Any], ...] = ()
    if not paths:
        args.append(str(FOLDER))
        known.file_or_dir = [str(FOLDER)]
    else:
        known.file_or_dir = [translate(path) for path in paths]
    if alone:
        # No conftest above the suites is ours, and the current directory's has no say in a gate.
        known.confcutdir = str(FOLDER)
        given = parser.parse_known_args(list(map(str, early_config.invocation_params.args)))
        restored = tuple(
            (name, getattr(given, name))
            for name in AMBIENT
            if hasattr(given, name) and getattr(given, name) != getattr(known, name, None)
        )
    early_config.stash[CHOICE] = Choice(alone, not paths, paths, restored)


def is_ours(path: str) -> bool:
    """Whether PATH names the packaged suites or something in them."""
    name = path.split("::", maxsplit=1)[0].rstrip("/")
    return name == PREFIX or name.startswith(PREFIX + "/") or Path(name) == FOLDER or FOLDER in Path(name).parents


def translate(path: str) -> str:
    """Return PATH with a node id of ours turned into the file that pytest can find."""
    if path.rstrip("/") == PREFIX:
        return str(FOLDER)
    return str(FOLDER) + path[len(PREFIX) :] if path.startswith(PREFIX + "/") else path


def apply(config: pytest.Config) -> None:
    """Apply the choice to the fully parsed CONFIG, before pytest-xdist reads how many workers are wanted."""
    choice = config.stash[CHOICE]
    config.args[:] = [translate(arg) for arg in config.args]
    for name, value in choice.restored:
        setattr(config.option, name, value)
    if getattr(config.option, "dist", "no") in NEVER_REPLACE:
        config.stash[RESTARTS] = config.option.maxworkerrestart
        config.option.maxworkerrestart = "0"
    if choice.alone:
        config.option.maxfail = 0  # a stage that did not pass keeps the next ones from running; -x would hide them


def refuse_unknown(choice: Choice) -> None:
    """Raise UsageError when CHOICE names a suite that there is not."""
    for path in choice.paths:
        name = path.partition("::")[0].rstrip("/")
        if name.startswith(PREFIX + "/") and not (FOLDER / name[len(PREFIX) + 1 :]).is_file():
            known = ", ".join(sorted(file.name for file in FOLDER.glob("test_*.py")))
            raise pytest.UsageError(f"{name}: no such suite; there are {known}")


class SuiteDirectory(pytest.Directory):
    """The packaged suites."""

    def collect(self) -> Iterable[pytest.Collector]:
        """Yield one collector per suite file, in the order of the stages."""
        for path in sorted(FOLDER.glob("test_*.py")):
            module: SuiteModule = SuiteModule.from_parent(self, path=path, nodeid=f"{PREFIX}/{path.name}")
            module.keywords[KEYWORD] = True
            yield module


class SuiteModule(pytest.Module):
    """One packaged suite file."""

    def funcnamefilter(self, name: str) -> bool:
        """Ours are called test_*, whatever python_functions says."""
        return name.startswith("test_")

    def classnamefilter(self, name: str) -> bool:  # noqa: ARG002
        """There are no classes in the suites."""
        return False

    def _getobj(self) -> ModuleType:
        # By its installed name: pytest's own import would put the folder above the suites on sys.path.
        return importlib.import_module(f"pytest_gpudiscovery.suites.{self.path.stem}")


class Collection:
    """The hooks that make pytest use the collectors above, in the order of the stages."""

    def __init__(self, numbers: dict[str, int]) -> None:
        self._numbers = numbers

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        """Collect the suites' folder by our own collector."""
        if path != FOLDER:
            return None
        directory: SuiteDirectory = SuiteDirectory.from_parent(parent, path=path, nodeid=PREFIX)
        return directory

    @pytest.hookimpl(tryfirst=True)
    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Never ignore the suites, nor (a virtual environment, say) the folders above them."""
        return False if collection_path == FOLDER or collection_path in FOLDER.parents else None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> Generator[None, object, object]:
        """Register the order guard now, as the last plugin: the last one registered is the outermost wrapper."""
        session.config.pluginmanager.register(OrderGuard(self._numbers), "gpudiscovery-order")
        return (yield)


class OrderGuard:
    """Keeps the suites first and in the order of the stages, against random-order plugins and a user's conftest."""

    def __init__(self, numbers: dict[str, int]) -> None:
        self._numbers = numbers

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, None, None]:
        """Put the items back after everybody else has had a turn."""
        place = {item: index for index, item in enumerate(items)}
        yield
        shuffled = {item: index for index, item in enumerate(items)}

        def key(item: pytest.Item) -> tuple[int, int, int]:
            if not isinstance(item.parent, SuiteModule):
                return (1, 0, shuffled[item])  # a user's tests keep the order that his plugins gave them
            return (0, self._numbers.get(stage_of(item) or "", 0), place.get(item, 0))

        items.sort(key=key)


def stage_of(item: pytest.Item) -> str | None:
    """Return the stage that ITEM's gpu_stage marker names, None without one; raises UsageError when it is misused."""
    marker = item.get_closest_marker("gpu_stage")
    if marker is None:
        return None
    if len(marker.args) != 1 or marker.kwargs or not isinstance(marker.args[0], str):
        raise pytest.UsageError(f"{item.nodeid}: gpu_stage takes one stage name: gpu_stage(name)")
    return marker.args[0]
