"""Other plugins' and CI systems' reports: what they would say of our items themselves, and what we say instead."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest

from pytest_gpudiscovery import collection
from pytest_gpudiscovery.model import StageRecord, Verdict

ALLURE_DIR = "allure_report_dir"  # where allure-pytest keeps --alluredir


class Further(NamedTuple):
    """A report beside the report directory's: its name, where it goes, and what writes it."""

    name: str
    where: str
    write: Callable[[Verdict], None]


def install(config: pytest.Config, choice: collection.Choice) -> None:
    """Keep allure-pytest from reporting our items one by one: `reports/allure.py` reports the stages."""
    if not getattr(config.option, ALLURE_DIR, None) or not choice.ours:
        return
    manager = config.pluginmanager
    if choice.alone and manager.get_plugin("allure_listener") is not None:
        manager.unregister(name="allure_listener")
        return
    import allure_commons  # noqa: PLC0415 - 20 ms, and only where allure-pytest has loaded it

    for plugin in allure_commons.plugin_manager.get_plugins():
        if type(plugin).__name__ == "AllureFileLogger":
            _drop_ours(plugin)


def _drop_ours(logger: Any) -> None:
    """Let LOGGER write every result but those of the packaged suites."""
    report_item = logger._report_item

    def report(item: Any) -> None:
        if not str(getattr(item, "fullName", "") or "").startswith(OURS):
            report_item(item)

    logger._report_item = report


OURS = ("pytest_gpudiscovery.suites.", f"{collection.PREFIX}.", f"{collection.PREFIX}/")


def html_rows(
    config: pytest.Config,
    choice: collection.Choice,
    records: Callable[[], Mapping[str, StageRecord]],
    verdict: Callable[[], Verdict | None],
    directory: str,
) -> None:
    """Let pytest-html, where it writes a report (`--html`), show stages instead of our items.

    RECORDS and VERDICT are asked when it does; DIRECTORY is where report.html is.
    """
    if choice.ours and getattr(config.option, "htmlpath", None):
        from pytest_gpudiscovery.reports.pytest_html import Rows  # noqa: PLC0415 - only where it is asked for

        config.pluginmanager.register(Rows(records, verdict, directory), "gpudiscovery-html")


def further(config: pytest.Config, choice: collection.Choice) -> tuple[Further, ...]:
    """Return the reports that CONFIG and the environment ask for."""
    if config.option.collectonly or not choice.ours:
        return ()
    found = []
    directory = getattr(config.option, ALLURE_DIR, None)
    if directory:
        where = os.path.join(config.invocation_params.dir, directory)
        found.append(Further("allure", where, _allure(where)))
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        found.append(Further("GitHub summary", os.environ["GITHUB_STEP_SUMMARY"], _github))
    return tuple(found)


def _allure(directory: str) -> Callable[[Verdict], None]:
    def write(verdict: Verdict) -> None:
        from pytest_gpudiscovery.reports import allure  # noqa: PLC0415 - only where it is asked for

        allure.write(directory, verdict, os.environ)

    return write


def _github(verdict: Verdict) -> None:
    from pytest_gpudiscovery.reports import github  # noqa: PLC0415 - likewise

    github.summarize(verdict, os.environ)
