"""Reports that other plugins and CI systems take: what they are given is text, and a full disk is no verdict."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

from tests.plugin.conftest import Runner

ALL = ("pytest_timeout", "allure_pytest.plugin", "pytest_metadata.plugin", "pytest_html.plugin")
# Escapes of a terminal, workflow commands after every kind of line end, markup, an invalid byte, a bidirectional one.
EVIL = "\x1b[2J\x1b]0;t\x07\n::error title=x::y\r\n##[error]z\x0b<script>alert(1)</script>]]>\udcff\u202e\u2028::stop::"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f\u202e\u2028\udcff]")


def test_what_a_host_says_is_text_in_every_report(gate: Runner) -> None:
    asked = ("-v", "--junitxml=junit.xml", "--alluredir=allure", "--html=page.html", "--self-contained-html")
    github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(gate.directory / "summary.md")}
    ended = gate(*asked, stages="driver=fail kernel=fail", plugins=ALL, env={"FAKE_TEXT": EVIL, **github})
    assert ended.code == 1, ended.out[-2000:] + ended.err[-2000:]
    assert not ACTS.search(ended.out.replace("\n", ""))
    assert len(ended.out) < 200_000, "ten megabytes are cut"
    commands = [line for line in ended.out.splitlines() if line.startswith(("::", "##["))]
    assert commands
    assert all(re.fullmatch(r"::(error|warning) title=[^:,]*::[^\n]*", line) for line in commands)
    suite = ElementTree.parse(gate.directory / "junit.xml").getroot()
    assert "told to fail" in str(next(suite.iter("failure")).text)
    assert not ACTS.search("".join(suite.itertext()))
    for path in [gate.directory / "summary.md", gate.directory / "page.html", *(gate.directory / "allure").iterdir()]:
        text = path.read_bytes().decode("utf-8")
        assert len(text) < 6_000_000
        if path.suffix == ".json":
            json.loads(text)
        elif path.suffix in (".md", ".html"):
            assert "<script>alert" not in text
    assert "<script>alert" not in (gate.directory / "gpu-discovery-report" / "report.html").read_text(encoding="utf-8")


def test_a_place_that_takes_no_report_is_said_and_changes_nothing(gate: Runner) -> None:
    (gate.directory / "file").touch()
    ended = gate("--junitxml=/dev/full", "--alluredir=file/a", "--html=file/page.html", plugins=ALL)
    assert ended.code == 0, ended.out + ended.err
    assert "--alluredir=file/a is not written: " in ended.out
    assert "--html=file/page.html is not written: " in ended.out
    assert "(--junitxml=/dev/full) could not be written: [Errno 28]" in ended.out
    assert ended.last.startswith("gpu-discovery: READY")
    assert ended.verdict["verdict"] == "ready"
