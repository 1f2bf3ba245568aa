"""Reports that go elsewhere than to the report directory: Allure, GitHub, JUnit; what leaves the host in them."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.plugin.conftest import Runner

ALLURE = ("pytest_timeout", "allure_pytest.plugin")
SECRET = "hunter2-planted"
PLANTED = dict.fromkeys(("GITHUB_TOKEN", "OLLAMA_API_KEY", "HTTPS_PROXY", "AWS_SECRET_ACCESS_KEY", "PS4"), SECRET)


def results(directory: Path) -> list[str]:
    """Return the names of the results in DIRECTORY, in order."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in directory.glob("*-result.json")]
    return sorted(result["name"] for result in found)


def test_allure_gets_stages_and_no_items(gate: Runner) -> None:
    ended = gate("--alluredir", "allure", "--gpu-until", "enumeration", stages="driver=fail", plugins=ALLURE)
    assert ended.code == 1
    names = results(ended.directory / "allure")
    assert names[0].startswith("00 BLOCKED at 06 driver")
    assert [name[:2] for name in names] == ["00", "06", "07"]
    assert not list((ended.directory / "allure").glob("*-container.json"))


def test_users_own_tests_stay_in_allure(gate: Runner) -> None:
    (gate.directory / "test_mine.py").write_text("def test_mine(): pass\n", encoding="utf-8")
    asked = ("--gpu-until", "kernel", "gpu-discovery/test_04_kernel.py", "test_mine.py")
    ended = gate("--alluredir", "allure", *asked, plugins=ALLURE)
    names = results(ended.directory / "allure")
    assert names[-1] == "test_mine"
    assert names[0].startswith("00 ")
    assert not [name for name in names[1:-1] if not name[:2].isdigit()]


def test_what_cannot_be_written_is_said_and_changes_no_verdict(gate: Runner) -> None:
    summary = str(gate.directory / "missing" / "summary.md")
    plain = gate("--gpu-until", "kernel")
    ended = gate("--gpu-until", "kernel", env={"GITHUB_STEP_SUMMARY": summary})
    assert ended.code == plain.code
    assert ended.verdict["verdict"] == plain.verdict["verdict"]
    assert f"note: {summary}: the GitHub summary report could not be written" in ended.out


def test_annotations_come_before_the_last_line_and_only_on_github(gate: Runner) -> None:
    asked = ("--gpu-until", "driver")
    there = gate(*asked, stages="driver=fail", env={"GITHUB_ACTIONS": "true"})
    lines = there.out.splitlines()
    (line,) = (line for line in lines if line.startswith("::"))
    assert line.startswith("::error title=BLOCKED%3A 06 driver::06 driver: ")
    assert there.last.startswith("gpu-discovery: BLOCKED at 06 driver")
    assert "::error" not in gate(*asked, stages="driver=fail").out


def test_no_report_carries_the_environments_secrets(gate: Runner) -> None:
    summary = gate.directory / "summary.md"
    ended = gate(
        *("--alluredir", "allure", "--junitxml", "junit.xml", "--gpu-until", "enumeration", "-v"),
        stages="driver=hang",
        plugins=ALLURE,
        env={**PLANTED, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)},
    )
    assert ended.code == 1
    files = [path for path in ended.directory.rglob("*") if path.is_file() and path.parent != gate.temporary]
    assert {"summary.md", "junit.xml", "verdict.json", "report.html", "executor.json"} <= {path.name for path in files}
    assert SECRET not in ended.out + ended.err
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_junit_says_what_failed_in_lines(gate: Runner) -> None:
    ended = gate("--junitxml", "junit.xml", "--gpu-until", "driver", stages="driver=fail")
    tree = ElementTree.parse(ended.directory / "junit.xml")
    failures = [node.text or "" for node in tree.iter("failure")]
    assert failures
    assert all(text.startswith("06 driver: ") and "\n   next      : " in text for text in failures)
    assert not [text for text in failures if "Traceback" in text or ".py:" in text]


def test_pytest_html_has_one_row_per_stage_in_order(gate: Runner) -> None:
    plugins = ("pytest_timeout", "pytest_metadata.plugin", "pytest_html.plugin")
    asked = ("--html", "pytest.html", "--self-contained-html", "--gpu-until", "enumeration")
    ended = gate(*asked, stages="driver=fail", plugins=plugins)
    page = (ended.directory / "pytest.html").read_text(encoding="utf-8")
    (blob,) = re.findall(r'data-jsonblob="([^"]*)"', page)
    data = json.loads(unescape(blob))
    rows = [row["resultsTableRow"] for tests in data["tests"].values() for row in tests]
    shown = [re.sub("<[^>]*>", "", " | ".join(row[:3])) for row in rows]
    assert [text.split(" | ")[1][:2] for text in shown] == sorted(text.split(" | ")[1][:2] for text in shown)
    assert any(text.startswith("Failed | 06 driver | failed: ") for text in shown)
    assert "Skipped | 07 enumeration | not reached, because of 06 driver" in shown
    (lost,) = (row for row in rows if "07 enumeration" in row[1])
    assert re.sub("<[^>]*>", "", lost[3]) == ""  # it did not run: not 0.0 ms
    logs = [unescape(row["log"]) for tests in data["tests"].values() for row in tests]
    assert any("06 driver: " in log for log in logs)
    assert not [log for log in logs if re.search(r"^P\d+ .*:\s*$", log, re.MULTILINE)]  # a colon before nothing
    # Its script makes a class of this word and stops at one with a blank in it: no row would be shown.
    assert {row["result"] for tests in data["tests"].values() for row in tests} <= {"Passed", "Failed", "Skipped"}
    assert data["initialSort"] == "original"
    assert "BLOCKED" in page[: page.index("data-jsonblob")] + page[page.index("<h2>Summary") :]


UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")


@pytest.mark.skipif(
    subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False).returncode
    != 0,
    reason="needs user and mount namespaces, for a full disk of its own",
)
def test_a_full_disk_is_said_and_changes_no_verdict(gate: Runner) -> None:
    whole = gate("--gpu-until", "kernel")
    report = whole.directory / "gpu-discovery-report"
    sizes = {path.name: path.stat().st_size for path in report.iterdir()}
    limit = (2 * sizes["verdict.json"] + sizes["report.html"]) // 2  # verdict.json and its successor, not the page
    assert 2 * sizes["verdict.json"] < limit < sizes["report.html"]
    script = f'mount -t tmpfs -o size={limit} none "$1" && shift && "$@"; code=$?; ls -A "$0"; exit $code'
    full = gate(
        command=[*UNSHARE, "sh", "-c", script, report.name, report.name, *gate.command("--gpu-until", "kernel")]
    )
    assert full.code == whole.code
    assert full.out.count("gpu-discovery: READY") == 1
    assert "the html report could not be written: [Errno 28] No space left on device" in full.out
    assert full.out.splitlines()[-1] == "verdict.json", "a half written file was left"
