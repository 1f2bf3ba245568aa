"""What JUnit files say beside pytest's own: the verdict, the versions, and what each item stands on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pytest_gpudiscovery.model import StageRecord, Verdict
from pytest_gpudiscovery.reports import wording
from pytest_gpudiscovery.reports.html_first import gpu_name
from pytest_gpudiscovery.reports.html_text import visible
from pytest_gpudiscovery.reports.html_values import clip

PREFIX = "gpu_discovery."
VALUE = 1_000  # characters of one property


def suite_properties(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield the properties of the whole run."""
    yield "verdict", verdict.verdict.value
    yield "simulated", "no" if verdict.simulated is None else str(verdict.simulated.get("host", "yes"))
    for name, value in {**verdict.versions, **verdict.host}.items():
        if value is not None:
            yield str(name), str(value)
    yield "probed_as", str(verdict.context.get("as", "caller"))
    for index, blocker in enumerate(verdict.blockers):
        yield f"blocker.{index}", f"{blocker.stage}: {blocker.cause}: {blocker.summary}"
    for index, gpu in enumerate(verdict.gpus):
        yield f"gpu.{index}", str(gpu.get("pci"))
        yield f"gpu.{index}.name", gpu_name(gpu)
        if gpu.get("uuid"):
            yield f"gpu.{index}.uuid", str(gpu["uuid"])


def item_properties(record: StageRecord) -> Iterator[tuple[str, str]]:
    """Yield the properties of one item that asserts over RECORD."""
    yield PREFIX + "stage", record.name
    yield PREFIX + "outcome", record.outcome.value
    yield PREFIX + "duration_s", f"{record.duration_s:.3f}"
    yield PREFIX + "deadline_s", f"{record.deadline_s:g}"
    if record.blocked_by:
        yield PREFIX + "blocked_by", record.blocked_by
    _, finding = wording.worst(record)
    if finding is not None:
        yield PREFIX + "cause", finding.cause


def add_suite_properties(config: pytest.Config, verdict: Verdict) -> None:
    """Add the run's properties to pytest's JUnit file, when one is being written."""
    try:
        from _pytest.junitxml import xml_key  # noqa: PLC0415 - the way of record_testsuite_property, which is a fixture
    except ImportError:  # pragma: no cover - a pytest that moved it
        return
    xml: Any = config.stash.get(xml_key, None)
    if xml is not None:
        for name, value in suite_properties(verdict):
            xml.add_global_property(PREFIX + name, visible(clip(value, VALUE)))
