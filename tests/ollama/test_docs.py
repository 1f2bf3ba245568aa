"""docs/captured-failure.md and the README show what the command prints; this runs it again and compares."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_gpudiscovery import explain_cli
from pytest_gpudiscovery.ollama import versions

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "captured-failure.md"


def test_the_page_shows_the_real_output(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```console\n\$ gpu-discovery (explain [^\n]*)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    ((command, shown),) = blocks
    monkeypatch.chdir(ROOT)
    assert explain_cli.run(command.split()) == 1
    assert capfd.readouterr().out == shown, "regenerate the block: see the command above it"


def test_the_page_shows_the_log_that_is_explained() -> None:
    block = re.search(r"```\n(time=.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert block is not None
    assert block[1] == (ROOT / "tests" / "ollama" / "corpus" / "captured.log").read_text("utf-8")


def test_the_page_has_the_releases_of_the_table() -> None:
    rows = re.findall(r"\| `(\w+\.go):(\d+) \"([^\"]+)\"` \| ([\d. to]+) \|", PAGE.read_text("utf-8"))
    assert len(rows) == 4
    ids = {
        "failure during": "failure",
        "discovering": "start",
        "inference": "result.device",
        "vram-based": "server.vram_context",
    }
    for file, line, message, releases in rows:
        name = next(found for text, found in ids.items() if message.startswith(text))
        found = versions.at(file, int(line), name)
        assert found is not None
        assert versions.words(found) == releases


def test_the_readme_shows_lines_of_the_real_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    block = re.search(
        r"## A failure from the field.*?```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert block is not None
    grep, line, command, *shown = block[1].splitlines()
    log = grep.split()[-1]
    monkeypatch.chdir(ROOT)
    assert [text for text in Path(log).read_text().splitlines() if "failure" in text] == [line]
    assert explain_cli.run(command.split()[2:]) == 1
    said = iter(capfd.readouterr().out.splitlines())
    cut = False
    for text in shown:
        if text != "...":
            assert text in said if cut else text == next(said), text
        cut = text == "..."
