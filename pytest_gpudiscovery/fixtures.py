"""Fixtures and markers of the gate, for the packaged suites and for users' own tests.

Under `--gpu-discovery` an unmet marker or fixture fails the test that asked for it, with the failure block of the
stage that is to blame; without it plugin.py skips the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import pytest

from pytest_gpudiscovery.collection import stage_of
from pytest_gpudiscovery.model import Check, CheckOutcome, Kind, Outcome, StageRecord, Verdict
from pytest_gpudiscovery.reports import wording
from pytest_gpudiscovery.run import Run
from pytest_gpudiscovery.stages.spec import StageSpec

RUN: pytest.StashKey[Run] = pytest.StashKey()  # the run that this pytest process takes part in
GIB = 1 << 30
IDENTITY_STAGE = "enumeration"  # where sysfs, NVML and CUDA are laid side by side
FIXTURE_STAGES = {
    "gpus": IDENTITY_STAGE,
    "h100": IDENTITY_STAGE,
    "ollama_install": "package",
    "library_closure": "closure",
}
VIEWS = ("cuda", "nvml", "runtime", "ggml", "ollama", "sysfs")  # the nearest to what a test will use comes first
SIGNATURES = {
    "gpu": "gpu(count=1, name=None, cc=None, memory=None): COUNT GPUs whose name contains NAME, of compute capability "
    "CC (9.0) or higher, with at least MEMORY GiB",
    "gpu_ready": "gpu_ready(until=None): every stage up to UNTIL passed",
}


# -- markers ------------------------------------------------------------------------------------------------------


def check_markers(item: pytest.Item, stages: Mapping[str, StageSpec]) -> None:
    """Raise UsageError, with the right signature, when ITEM uses one of our markers in a way that means nothing."""
    name = stage_of(item)
    if name is not None and name not in stages:
        raise pytest.UsageError(f"{item.nodeid}: gpu_stage({name!r}): the stages are {', '.join(stages)}")
    for marker in item.iter_markers("gpu"):
        wanted = marker.kwargs
        good = (
            not marker.args
            and wanted.keys() <= {"count", "name", "cc", "memory"}
            and isinstance(wanted.get("count", 1), int)
            and wanted.get("count", 1) >= 1
            and isinstance(wanted.get("name") or "", str)
            and (wanted.get("cc") is None or _cc(wanted["cc"]) is not None)
            and isinstance(wanted.get("memory") or 0, (int, float))
        )
        if not good:
            raise pytest.UsageError(f"{item.nodeid}: expected {SIGNATURES['gpu']}")
    for marker in item.iter_markers("gpu_ready"):
        until = marker.kwargs.get("until", marker.args[0] if marker.args else None)
        if len(marker.args) + len(marker.kwargs) > 1 or not marker.kwargs.keys() <= {"until"}:
            raise pytest.UsageError(f"{item.nodeid}: expected {SIGNATURES['gpu_ready']}")
        if until is not None and until not in stages:
            raise pytest.UsageError(f"{item.nodeid}: gpu_ready({until!r}): the stages are {', '.join(stages)}")


def needs(item: pytest.Item, run: Run) -> Iterator[str]:
    """Yield the stages that ITEM will ask for, by its markers and fixtures."""
    name = stage_of(item)
    if name is not None:
        yield name
    if item.get_closest_marker("gpu") is not None:
        yield IDENTITY_STAGE
    for marker in item.iter_markers("gpu_ready"):
        yield _until(marker) or run.engine.target
    for fixture in getattr(item, "fixturenames", ()):
        if fixture in FIXTURE_STAGES:
            yield FIXTURE_STAGES[fixture]
        elif fixture == "gpu_verdict":
            yield from run.engine.selected


def require(item: pytest.Item, run: Run) -> None:
    """Fail ITEM, before any of its fixtures is set up, when one of its gpu or gpu_ready markers is not met."""
    for marker in item.iter_markers("gpu_ready"):
        target = _until(marker) or run.engine.target
        record = run.ensure(target)
        if record.outcome is Outcome.NOT_APPLICABLE or not record.outcome.lets_others_run:
            _fail(record, run)
        for name in run.engine.ancestors(target):
            _must_be_answered(run.ensure(name), run)
    for marker in item.iter_markers("gpu"):
        gpus = _gpus(run)
        fitting = [gpu for gpu in gpus if fits(gpu, **_without_count(marker.kwargs))]
        count = marker.kwargs.get("count", 1)
        if len(fitting) < count:
            wanted = ", ".join(f"{key}={value!r}" for key, value in marker.kwargs.items())
            pytest.fail(
                f"gpu({wanted}): {len(fitting)} of {count} such GPUs; this host has {_list(gpus)}", pytrace=False
            )


def _must_be_answered(record: StageRecord, run: Run) -> None:
    """Fail when RECORD did not pass, or when nobody was allowed to look at something that can block."""
    if not record.outcome.lets_others_run:
        _fail(record, run)
    for check in record.checks:
        if check.outcome is CheckOutcome.UNKNOWN and check.kind is Kind.BLOCKING:
            where = wording.label(run.numbers[record.name], record.name)
            pytest.fail(f"{where}: {check.prerequisite} is unknown: {check.reason}", pytrace=False)


def fits(gpu: Mapping[str, Any], *, name: str | None = None, cc: Any = None, memory: Any = None) -> bool:
    """Whether GPU (an entry of verdict.json's `gpus`) has NAME in its name, at least CC and at least MEMORY GiB."""
    if name is not None and name.lower() not in str(seen(gpu, "name") or "").lower():
        return False
    if cc is not None and (_cc(seen(gpu, "cc")) or (0, 0)) < (_cc(cc) or (0, 0)):
        return False
    return memory is None or memory_gib(gpu) >= float(memory)


def seen(gpu: Mapping[str, Any], key: str) -> Any:
    """Return KEY of GPU as the first of its views that has it says, None when none has."""
    views = gpu.get("views") or {}
    for view in VIEWS:
        value = (views.get(view) or {}).get(key)
        if value is not None:
            return value
    return None


def memory_gib(gpu: Mapping[str, Any]) -> float:
    """Return the total memory of GPU in GiB, 0.0 when no view says it."""
    total = seen(gpu, "total_memory")
    if total is None:
        memory = seen(gpu, "memory")
        total = memory.get("total") if isinstance(memory, dict) else memory
    return float(total) / GIB if isinstance(total, (int, float)) else 0.0


def _cc(value: Any) -> tuple[int, int] | None:
    """Return compute capability VALUE ("9.0", 9.0, (9, 0)) as a pair, None when it is none."""
    parts = value if isinstance(value, (list, tuple)) else str(value).split(".")
    try:
        major, minor = (int(part) for part in parts)
    except (TypeError, ValueError):
        return None
    return major, minor


def _without_count(wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in wanted.items() if key != "count"}


def _until(marker: pytest.Mark) -> str | None:
    until = marker.kwargs.get("until", marker.args[0] if marker.args else None)
    return None if until is None else str(until)


def _list(gpus: list[Mapping[str, Any]]) -> str:
    return (
        ", ".join(
            f"{seen(gpu, 'name')} (CC {'.'.join(map(str, _cc(seen(gpu, 'cc')) or ('?',)))}, {memory_gib(gpu):.1f} GiB)"
            for gpu in gpus
        )
        or "none"
    )


# -- fixtures -----------------------------------------------------------------------------------------------------


def _run(request: pytest.FixtureRequest) -> Run:
    run: Run = request.config.stash[RUN]
    return run


def _verdict(request: pytest.FixtureRequest) -> Verdict:
    run = _run(request)
    run.complete()
    return run.verdict()


def _record(request: pytest.FixtureRequest) -> StageRecord:
    name = stage_of(request.node)
    if name is None:
        pytest.fail(f"gpu_stage_record: {request.node.nodeid} needs a marker gpu_stage(name)", pytrace=False)
    return _run(request).ensure(name)


def _h100(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    gpus = _gpus(_run(request))
    found = next((gpu for gpu in gpus if fits(gpu, name="H100")), None)
    if found is None:
        pytest.fail(f"h100: this host has {_list(gpus)}", pytrace=False)
    return found


# What the fixtures of plugin.py give under --gpu-discovery.
VALUES: Mapping[str, Callable[[pytest.FixtureRequest], Any]] = {
    "gpu_verdict": _verdict,
    "gpu_stage_record": _record,
    "gpus": lambda request: _gpus(_run(request)),
    "h100": _h100,
    "ollama_install": lambda request: _facts(_run(request), "ollama_install"),
    "library_closure": lambda request: _facts(_run(request), "library_closure"),
}


@pytest.fixture
def discovery_stage(request: pytest.FixtureRequest, gpu_stage_record: StageRecord) -> StageUnderTest:
    """The stage that a packaged suite asserts over."""
    return StageUnderTest(gpu_stage_record, _run(request))


def _gpus(run: Run) -> list[Mapping[str, Any]]:
    record = run.ensure(IDENTITY_STAGE)
    if not record.outcome.lets_others_run:
        _fail(record, run)
    return list(run.verdict().gpus)


def _facts(run: Run, fixture: str) -> Mapping[str, Any]:
    record = run.ensure(FIXTURE_STAGES[fixture])
    if record.outcome is Outcome.NOT_APPLICABLE or not record.outcome.lets_others_run:
        _fail(record, run)
    return record.facts if isinstance(record.facts, dict) else {}


def _fail(record: StageRecord, run: Run) -> NoReturn:
    """Fail with the block of the stage that is to blame for RECORD."""
    root = run.engine.records().get(record.blocked_by or "", record)
    text = wording.failure_block(root, run.numbers, run.explains(root.name))
    if root is not record:
        text = f"{wording.label(run.numbers[record.name], record.name)} was not reached\n{text}"
    pytest.fail(text, pytrace=False)


class StageUnderTest:
    """What the packaged suites say about one stage. Each method passes, skips with the reason, or fails."""

    def __init__(self, record: StageRecord, run: Run) -> None:
        self.record, self._run = record, run

    def passes(self) -> None:
        """The probe ended by itself, in time, and no blocking prerequisite failed."""
        if not self.record.outcome.lets_others_run:
            _fail(self.record, self._run)

    def meets(self, *rows: str) -> None:
        """None of the prerequisites ROWS failed, and one of them at least has an answer."""
        checks = [check for check in self.record.checks if check.prerequisite in rows]
        if any(check.outcome is CheckOutcome.FAILED and check.kind is Kind.BLOCKING for check in checks):
            _fail(self.record, self._run)
        if any(check.outcome in _ANSWERS for check in checks):
            return
        pytest.skip(wording.one_line(f"{', '.join(rows)}: {_why(checks) if checks else self._no_answer()}"))

    def _no_answer(self) -> str:
        if self.record.outcome.lets_others_run:
            return "has no meaning here"
        return f"no answer, {wording.words(self.record.outcome)}: {self.record.summary}"


_ANSWERS = (CheckOutcome.PASSED, CheckOutcome.WARNED, CheckOutcome.FAILED)


def _why(checks: list[Check]) -> str:
    return "; ".join(dict.fromkeys(f"{check.outcome.value.replace('_', ' ')}, {check.reason}" for check in checks))
