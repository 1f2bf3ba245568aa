"""Where other plugins write their reports: a place that takes none is said, and changes neither verdict nor exit code.

pytest and its plugins raise at a directory that cannot be made and at a disk that is full, which ends the run with a
traceback and an exit code (1 or 3) that would say something of the host.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator

import pytest

# option of pytest, allure-pytest and pytest-html -> the flag, and whether it names a directory
PLACES = {"xmlpath": ("--junitxml", False), "allure_report_dir": ("--alluredir", True), "htmlpath": ("--html", False)}
UNUSABLE = pytest.StashKey[list[str]]()


def check(config: pytest.Config) -> None:
    """Put aside each report of CONFIG whose place takes none, before its plugin looks; `said` has the sentences."""
    found: list[str] = []
    for name, (flag, is_directory) in PLACES.items():
        given = getattr(config.option, name, None)
        if not given:
            continue
        path = os.path.join(config.invocation_params.dir, os.path.expanduser(os.path.expandvars(str(given))))
        trouble = _trouble(path if is_directory else os.path.dirname(path), path)
        if trouble:
            setattr(config.option, name, None)
            found.append(f"{flag}={given} is not written: {trouble}")
    config.stash[UNUSABLE] = found


def said(config: pytest.Config) -> list[str]:
    """Return what `check` has put aside, a sentence each."""
    return config.stash.get(UNUSABLE, [])


def _trouble(directory: str, path: str) -> str:
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        return f"{directory}: {error.strerror}"
    for place in (directory, path):
        if os.path.exists(place) and not os.access(place, os.W_OK):
            return f"{place} may not be written"
    return ""


class Guard:
    """Keeps a report that cannot be written at the end from ending the run; SAY gets the sentence."""

    def __init__(self, config: pytest.Config, say: Callable[[str], None]) -> None:
        self._config, self._say = config, say

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        """Take what the disk says to another plugin for what it is: no verdict on the host."""
        try:
            yield
        except OSError as error:
            given = {flag: getattr(self._config.option, name, None) for name, (flag, _) in PLACES.items()}
            asked = ", ".join(f"{flag}={value}" for flag, value in given.items() if value)
            with contextlib.suppress(OSError):
                self._say(f"a report of another plugin ({asked or 'none was asked for'}) could not be written: {error}")
