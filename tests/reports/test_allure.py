"""Allure's results: a blocked host is not green, times are true, hosts stay apart, hostile text stays text."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.model import Outcome, Verdict
from pytest_gpudiscovery.reports import allure
from tests.reports import samples
from tests.reports.hostile import hostile
from tests.reports.parts import NUMBERS

SECRET = "hunter2-planted"


def written(directory: Path, verdict: Verdict, **environ: str) -> list[dict[str, Any]]:
    """Write VERDICT's results and return them in the order in which they began."""
    before = set(directory.glob("*-result.json"))
    allure.write(str(directory), verdict, environ)
    new = sorted(set(directory.glob("*-result.json")) - before)
    return sorted((json.loads(path.read_text(encoding="utf-8")) for path in new), key=lambda result: result["name"])


def categories(directory: Path, result: dict[str, Any]) -> list[str]:
    """Return the categories that take RESULT, as Allure 2 matches: the whole message."""
    message = result["statusDetails"].get("message", "")
    rules = json.loads((directory / "categories.json").read_text(encoding="utf-8"))
    return [
        rule["name"]
        for rule in rules
        if result["status"] in rule["matchedStatuses"] and re.fullmatch(rule["messageRegex"], message)
    ]


def labels(result: dict[str, Any], name: str) -> list[str]:
    """Return the values of label NAME."""
    return [label["value"] for label in result["labels"] if label["name"] == name]


@pytest.mark.parametrize("name", samples.ALL)
def test_a_result_is_green_only_where_the_host_is_usable(name: str, tmp_path: Path) -> None:
    verdict = samples.ALL[name]()
    results = written(tmp_path, verdict)
    green = [result for result in results if result["status"] == "passed"]
    assert bool(green) == (verdict.verdict.value in ("ready", "degraded"))
    assert not [result for result in results if result["status"] == "skipped" and "not reached" in result["name"]]


@pytest.mark.parametrize("name", samples.ALL)
def test_each_stage_that_was_asked_for_is_in_the_verdicts_steps_in_order(name: str, tmp_path: Path) -> None:
    verdict = samples.ALL[name]()
    steps = written(tmp_path, verdict)[0]["steps"]
    asked = [record for record in verdict.stages if record.outcome is not Outcome.NOT_SELECTED or record.required]
    assert len(steps) == len(asked)
    for step, record in zip(steps, asked, strict=True):
        if record.name in NUMBERS:
            assert step["name"].startswith(f"{NUMBERS[record.name]:02d} {record.name} ")


def test_steps_have_their_true_times(tmp_path: Path) -> None:
    verdict = samples.healthy()
    record = next(record for record in verdict.stages if record.name == "driver")
    result = next(item for item in written(tmp_path, verdict) if item["name"].startswith("06 "))
    assert result["start"] == round(record.started * 1000)
    assert result["stop"] - result["start"] == round(record.duration_s * 1000)
    for shown, step in zip(result["steps"], record.steps, strict=True):
        assert shown["start"] == round((record.started + step.started) * 1000)
        assert shown["stop"] == round((record.started + step.started + (step.duration_s or 0)) * 1000)


def test_a_call_that_did_not_return_is_a_failed_step_that_lasts_to_the_end(tmp_path: Path) -> None:
    result = next(item for item in written(tmp_path, samples.blocked_in_cuinit()) if item["name"].startswith("06 "))
    assert [step["status"] for step in result["steps"]] == ["passed", "failed"]
    assert result["steps"][1]["stop"] == pytest.approx(result["stop"], abs=1)


def test_the_message_is_the_failure_block_and_finds_its_category(tmp_path: Path) -> None:
    results = written(tmp_path, samples.blocked_in_cuinit())
    verdict, driver, *lost = results
    assert "\n   blocked in: ioctl on /dev/nvidiactl < cuInit" in driver["statusDetails"]["message"]
    assert categories(tmp_path, verdict) == ["Host not ready (the verdict)"]
    assert categories(tmp_path, driver) == ["Hang: no answer before the deadline"]
    assert {name for item in lost for name in categories(tmp_path, item)} == {
        "Not reached: a stage before it did not pass"
    }
    assert {item["status"] for item in lost} == {"broken"}


@pytest.mark.parametrize(
    ("outcome", "category"),
    [
        (Outcome.FAILED, "Wrong answer"),
        (Outcome.CRASHED, "Crash inside a library"),
        (Outcome.UNKILLABLE, "Hang: no answer before the deadline"),
        (Outcome.PROBE_ERROR, "Probe defect: the gate's own"),
        (Outcome.INTERRUPTED, "No answer: not run or interrupted"),
        (Outcome.NOT_REACHED, "Not reached: a stage before it did not pass"),
    ],
)
def test_every_kind_of_failure_has_one_category(outcome: Outcome, category: str, tmp_path: Path) -> None:
    verdict = samples.blocked_in_cuinit()
    changed = tuple(
        dataclasses.replace(record, outcome=outcome) if record.name == "driver" else record for record in verdict.stages
    )
    results = written(tmp_path, dataclasses.replace(verdict, stages=changed))
    driver = next(item for item in results if item["name"].startswith("06 "))
    assert categories(tmp_path, driver) == [category]


def test_history_follows_a_host_and_tells_hosts_apart(tmp_path: Path) -> None:
    ready, blocked = samples.healthy(), samples.blocked_in_cuinit()
    other = dataclasses.replace(ready, host={**ready.host, "name": "another-host"})
    made_up = dataclasses.replace(ready, simulated={"host": "h100", "faults": []})

    def identity(verdict: Verdict) -> tuple[str, str, str]:
        result = next(item for item in written(tmp_path, verdict) if item["name"].startswith("06 "))
        assert result["parameters"] == [{"name": "host", "value": labels(result, "host")[0]}]
        return result["historyId"], result["testCaseId"], labels(result, "suite")[0]

    assert identity(ready) == identity(blocked)
    assert identity(other)[1] == identity(ready)[1]
    assert len({identity(verdict)[0] for verdict in (ready, other, made_up)}) == 3
    assert len({identity(verdict)[2] for verdict in (ready, other, made_up)}) == 3


def test_several_hosts_and_other_tests_share_an_environment_file(tmp_path: Path) -> None:
    (tmp_path / "environment.properties").write_text("mine = kept\n", encoding="utf-8")
    ready = samples.healthy()
    other = dataclasses.replace(samples.blocked_in_cuinit(), host={**ready.host, "name": "another-host"})
    for verdict in (ready, other, ready):
        written(tmp_path, verdict)
    lines = (tmp_path / "environment.properties").read_text(encoding="utf-8").splitlines()
    assert "mine = kept" in lines
    assert sorted(line for line in lines if line.startswith("verdict.")) == [
        "verdict.another-host = BLOCKED",
        f"verdict.{ready.host['name']} = READY",
    ]
    assert len(lines) == len(set(lines))


def test_the_executor_is_the_job_and_nothing_else_of_the_environment_leaves(tmp_path: Path) -> None:
    environ = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "owner/name",
        "GITHUB_RUN_ID": "42",
        "GITHUB_TOKEN": SECRET,
        "OLLAMA_API_KEY": SECRET,
    }
    written(tmp_path, samples.blocked_in_cuinit(), **environ)
    executor = json.loads((tmp_path / "executor.json").read_text(encoding="utf-8"))
    assert executor["buildUrl"] == "https://github.com/owner/name/actions/runs/42"
    assert executor["reportName"].startswith("BLOCKED on ")
    assert not [path for path in tmp_path.iterdir() if SECRET in path.read_text(encoding="utf-8")]


def test_hostile_text_is_text_and_every_attachment_is_there(tmp_path: Path) -> None:
    for result in written(tmp_path, samples.ALL["hostile"]()):
        shown = [
            result["name"],
            result["statusDetails"].get("message", ""),
            *(item["value"] for item in result["labels"]),
        ]
        shown += [step["name"] for step in result["steps"]]
        assert not [text for text in shown if re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\u2066\ud800]", text)]
        assert "description" not in result  # Allure reads Markdown and markup in it
        assert "descriptionHtml" not in result
        for attachment in result["attachments"]:
            assert re.fullmatch(r"[0-9a-f-]+-attachment\.(csv|html|json|txt)", attachment["source"])
            assert (tmp_path / attachment["source"]).stat().st_size
    for path in tmp_path.iterdir():
        path.read_bytes().decode("utf-8")


def test_long_text_in_every_field_is_cut(tmp_path: Path) -> None:
    allure.write(str(tmp_path), hostile("first " + "\u202e" * 300_000 + " last"), {})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 10_000_000
