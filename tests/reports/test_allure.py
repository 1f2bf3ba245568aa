"""Allure's results: a blocked host is not green, times are true, hosts stay apart, hostile text stays text."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.model import Outcome, Step, Verdict
from pytest_gpudiscovery.reports import allure, allure_hosts
from pytest_gpudiscovery.reports.allure_hosts import Host
from pytest_gpudiscovery.reports.html_text import visible
from pytest_gpudiscovery.stages.spec import found, passed, unknown
from tests.reports import samples
from tests.reports.hostile import hostile
from tests.reports.parts import NUMBERS

SECRET = "hunter2-planted"
TEMPLATE = Path(__file__).parents[2] / "ci" / "templates" / "allure" / "allurerc.mjs"


def written(directory: Path, verdict: Verdict, **environ: str) -> list[dict[str, Any]]:
    """Write VERDICT's results and return them in the order in which they began."""
    before = set(directory.glob("*-result.json"))
    allure.write(str(directory), verdict, environ)
    new = sorted(set(directory.glob("*-result.json")) - before)
    return sorted((json.loads(path.read_text(encoding="utf-8")) for path in new), key=lambda result: result["name"])


def written_files(directory: Path, verdict: Verdict) -> set[Path]:
    """Write VERDICT's results and return the results and attachments that came."""
    before = set(directory.glob("*-*-*-*-*"))
    allure.write(str(directory), verdict, {})
    return set(directory.glob("*-*-*-*-*")) - before


def with_driver(verdict: Verdict, **changes: Any) -> Verdict:
    """Return VERDICT with stage 06 changed."""
    stages = (
        dataclasses.replace(record, **changes) if record.name == "driver" else record for record in verdict.stages
    )
    return dataclasses.replace(verdict, stages=tuple(stages))


def environment(directory: Path) -> dict[str, str]:
    """Return what Allure shows of environment.properties, in its order: comments are none of it."""
    lines = (directory / "environment.properties").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" = ", 1) for line in lines if not line.startswith("#"))


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
        assert shown["stop"] - shown["start"] == round((step.duration_s or 0) * 1000)  # not of two rounded moments


def test_a_call_that_did_not_return_is_a_failed_step_that_lasts_to_the_end(tmp_path: Path) -> None:
    result = next(item for item in written(tmp_path, samples.blocked_in_cuinit()) if item["name"].startswith("06 "))
    calls = result["steps"][-1]
    assert (calls["name"], calls["status"]) == ("2 timed calls of the probes, 1 without an answer", "failed")
    assert [step["status"] for step in calls["steps"]] == ["passed", "failed"]
    assert calls["steps"][1]["name"] == "cuInit(0) did not return"
    assert calls["steps"][1]["stop"] == pytest.approx(result["stop"], abs=1)


def test_a_program_that_did_not_answer_is_a_failed_step(tmp_path: Path) -> None:
    verdict = samples.blocked_in_cuinit()
    asked = Step("cuda_v12: GET /info", 0.1, 30.0, "timeout")
    for outcome, status in ((Outcome.TIMED_OUT, "failed"), (Outcome.FAILED, "passed")):
        changed = with_driver(verdict, outcome=outcome, steps=(asked,))
        result = next(item for item in written(tmp_path, changed) if item["name"].startswith("06 "))
        assert [step["status"] for step in result["steps"][-1]["steps"]] == [status]


def test_a_failed_stage_begins_with_what_its_checks_found_and_folds_its_calls(tmp_path: Path) -> None:
    check = found("driver.cuinit.hang", {"step": "cuInit(0)", "deadline_s": 45.0}, expected="returns", observed=[])
    verdict = with_driver(
        samples.blocked_in_cuinit(),
        outcome=Outcome.FAILED,
        checks=(passed("P64"), unknown("P47", "not asked"), check),
        steps=(Step("dlopen libcuda.so.1", 0.03, 0.0013, 0), Step("cuInit(0)", 0.3, 0.2, 999)),
    )
    result = next(item for item in written(tmp_path, verdict) if item["name"].startswith("06 "))
    said = [(step["name"].split(":")[0], step["status"]) for step in result["steps"]]
    wrong = f"{check.prerequisite} failed"
    assert said == [
        (wrong, "failed"),
        ("P47 unknown", "broken"),
        ("2 timed calls of the probes; all returned", "passed"),
    ]
    assert result["steps"][0]["parameters"] == [
        {"name": "expected", "value": "returns"},
        {"name": "seen", "value": "nothing"},
    ]


def test_stages_that_did_not_run_stand_behind_the_one_before_them(tmp_path: Path) -> None:
    """Allure 3 sorts by start: a stage without a time of its own must not come first."""
    for name in ("blocked", "incomplete"):
        verdict = samples.blocked_in_cuinit()
        lost = Outcome.NOT_REACHED if name == "blocked" else Outcome.NOT_SELECTED
        changed = tuple(
            dataclasses.replace(record, outcome=lost, required=True, started=0.0)
            if record.outcome in (Outcome.NOT_REACHED, Outcome.NOT_SELECTED)
            else record
            for record in verdict.stages
        )
        results = written(tmp_path / name, dataclasses.replace(verdict, stages=changed))
        assert len(results) > 5
        assert results == sorted(results, key=lambda result: result["start"])
        assert len({result["start"] for result in results[1:]}) == len(results) - 1


def test_an_earlier_run_of_a_host_leaves_no_green_beside_a_verdict_that_is_blocked(tmp_path: Path) -> None:
    ready, blocked = samples.healthy(), samples.blocked_in_cuinit()
    other = dataclasses.replace(ready, host={**ready.host, "name": "another-host"})
    kept = {path.name for path in written_files(tmp_path, other)}
    mine = tmp_path / "0f1e2d3c-0000-4000-8000-000000000000-result.json"
    mine.write_text("{}", encoding="utf-8")
    allure.write(str(tmp_path), ready, {})
    allure.write(str(tmp_path), blocked, {})
    assert kept <= {path.name for path in tmp_path.iterdir()}
    assert mine.exists()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*-result.json")]
    here = [result for result in results if result and labels(result, "host") == ["gpu-node-17"]]
    assert here
    assert not [result["name"] for result in here if result["status"] == "passed"]
    attached = {item["source"] for result in results if result for item in result["attachments"]}
    assert {path.name for path in tmp_path.glob("*-attachment.*")} == attached


def test_a_line_that_somebody_wrote_removes_nothing_but_results(tmp_path: Path) -> None:
    victim = tmp_path / "victim-result.json"
    victim.write_text("{}", encoding="utf-8")
    (tmp_path / "results").mkdir()
    said = {"name": "gpu-node-17", "verdict": "ready", "simulated": False, "at": "", "rows": {}}
    lines = [
        json.dumps({**said, "files": ["../victim-result.json", str(victim), "victim-result.json", 7]}),
        json.dumps({**said, "files": "../victim-result.json"}),
        json.dumps([said]),
        "{",
        "[" * 100_000,
    ]
    for line in lines:
        place = tmp_path / "results" / "environment.properties"
        place.write_text(f"# gpu-discovery: host {line}\n", encoding="utf-8")
        (tmp_path / "results" / "victim-result.json").write_text("{}", encoding="utf-8")
        allure.write(str(tmp_path / "results"), samples.healthy(), {})
        assert victim.exists()
        assert (tmp_path / "results" / "victim-result.json").exists()


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
    shown = environment(tmp_path)
    assert shown["mine"] == "kept"
    assert shown["verdict"] == "1 BLOCKED, 1 READY"
    assert list(shown)[2:4] == ["another-host", ready.host["name"]]  # the worst first
    assert shown["another-host"].startswith("BLOCKED at 06 driver; ")
    assert shown[str(ready.host["name"])].startswith("READY")
    assert shown["driver"] == ready.versions["driver"]
    executor = json.loads((tmp_path / "executor.json").read_text(encoding="utf-8"))
    assert executor["reportName"] == "1 BLOCKED, 1 READY"


def test_the_environment_of_one_host_has_plain_keys_and_the_next_command(tmp_path: Path) -> None:
    written(tmp_path, samples.blocked_in_cuinit())
    shown = environment(tmp_path)
    assert list(shown)[:6] == ["verdict", "gpus", "driver", "cuda", "ollama", "next"]
    assert shown["verdict"] == "BLOCKED at 06 driver"
    assert shown["cuda"] == "13.0"
    assert shown["next"].startswith("dmesg ")
    assert shown["gpus"] == "GPUs not enumerated"  # nobody looked: that is not "none"


@given(st.lists(st.text(max_size=100), min_size=1, max_size=3, unique=True), st.text(), st.booleans())
def test_what_hosts_are_called_survives_the_file(names: list[str], value: str, simulated: bool) -> None:
    hosts = [Host(name, "blocked", simulated, "06 driver", {"driver": value}, ()) for name in names]
    text = allure_hosts.text_of(["mine = kept"], hosts)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "environment.properties").write_bytes(text.encode())
        others, again = allure_hosts.read(directory)
    assert others == ["mine = kept"]
    assert set(again) == {visible(name) for name in names}
    shown = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+ = .*", line) for line in shown)
    assert len({line.partition(" = ")[0] for line in shown}) == len(shown)


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
    assert executor["reportName"] == executor["buildName"] == "BLOCKED at 06 driver on gpu-node-17"
    assert not [path for path in tmp_path.iterdir() if SECRET in path.read_text(encoding="utf-8")]


def test_the_template_of_allure_3_reads_what_is_written(tmp_path: Path) -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    result = written(tmp_path, samples.blocked_in_cuinit())[0]
    read = {name: json.loads((tmp_path / name).read_text("utf-8")) for name in re.findall(r'read\("([^"]+)"', text)}
    assert set(read) == {"executor.json", "categories.json"}
    assert read["executor.json"]["reportName"]
    hidden = re.search(r"hideLabels: (\[[^]]*\])", text)
    assert hidden is not None
    names = {label["name"] for label in result["labels"]}
    # Allure 3 takes the severity beside a result's title from its label: hidden, every blocker would be "normal".
    assert set(json.loads(hidden[1])) == names - {"host", "severity", "tag"}


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
