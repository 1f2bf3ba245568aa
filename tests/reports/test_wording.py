"""What is said of a finding: where it is, what a child that never answered was asked, and nothing twice."""

from __future__ import annotations

import dataclasses

from pytest_gpudiscovery.model import Outcome
from pytest_gpudiscovery.reports import github, html, wording
from pytest_gpudiscovery.reports.html_story import NUMBERS, tell
from pytest_gpudiscovery.stages.spec import found
from tests.reports import parts, samples
from tests.reports.page import Page


def closure(*directories: str) -> str:
    """Return the block of a closure stage in which the same library is missing from DIRECTORIES."""
    facts = {"error": "libx.so: not found", "name": "libx.so", "requester": "liby.so", "directory": "d", "path": "p"}
    checks = [
        found("closure.toolkit.missing", facts, subject=f"dir:{name}", expected="loads", observed="libx.so: not found")
        for name in directories
    ]
    summary = checks[0].finding.summary if checks[0].finding else ""
    checks = [dataclasses.replace(check, observed=summary) for check in checks]
    stage = parts.record("closure", Outcome.FAILED, summary, checks=tuple(checks))
    return wording.failure_block(stage, NUMBERS, [])


def test_each_finding_is_said_with_its_directory() -> None:
    lines = closure("cuda_v12", "cuda_v13").splitlines()
    assert lines[1] == "   about     : cuda_v12"
    assert next(line for line in lines if line.startswith("   also")).startswith("   also      : cuda_v13: ")
    assert not [line for line in lines if line.startswith(("   expected", "   seen"))], "that is the first line"


def test_a_child_that_never_answered_is_told_with_its_place_and_its_question() -> None:
    made = samples.hung_child()
    stage = next(record for record in made.stages if record.name == "bootstrap")
    block = wording.failure_block(stage, NUMBERS, ["serve"])
    assert "   blocked in: futex < runner_init (ollama); state S" in block
    assert "   last step : cuda_v12: GET /info: no answer in 30.0 s" in block
    assert "   also      : cuda_v13: " in block
    facts = {fact.label: fact for fact in tell(made).facts}
    assert str(facts["Blocked in"].value).startswith("futex < runner_init")
    assert "no answer in 30.0 s" in str(facts["Last step"].value)


def test_nothing_seen_is_said() -> None:
    check = dataclasses.replace(found("driver.cuinit.slow", {"seconds": 8.4}), observed=[], expected="one")
    assert wording.seen(check, "x") == "nothing"
    assert wording.seen(dataclasses.replace(check, observed=0), "x") == 0


def test_the_root_cause_is_an_error_for_github_though_its_stage_is_not_required() -> None:
    made = samples.eight_gpus()
    stages = tuple(dataclasses.replace(record, required=False) for record in made.stages)
    commands = list(github.commands(dataclasses.replace(made, stages=stages)))
    assert next(line.partition(" ")[0] for line in commands if "07 enumeration" in line) == "::error"


def test_an_upgrade_is_a_table_of_what_is_installed_and_what_would_be() -> None:
    page = Page(html.render(samples.upgrade()))
    section = next(part for part in page.root.all("section") if part.attributes.get("aria-labelledby") == "upgrade")
    rows = [[cell.text for cell in row.children] for row in section.all("tr")]
    assert ["", "Installed", "Candidate", "Candidate unpacked over it"] in rows
    assert ["Version", "0.16.3", "0.32.15", "0.32.15"] in rows
    assert ["What stops it", "nothing", "closure.driver_floor", "closure.driver_floor"] in rows
    assert ["cuda_v13", "sm_50", "none"] in rows
    assert "0.32.15 loses 0000:1b:00.0" in section.text
    assert "1 library found elsewhere" in section.text
    assert not [part for part in Page(html.render(samples.healthy())).root.all("h2") if part.text == "Upgrade"]
