"""GitHub: a workflow command stays one command, and the summary stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pytest_gpudiscovery.model import State
from pytest_gpudiscovery.reports import github
from tests.reports import samples

COMMAND = re.compile(r"::(error|warning) title=([^:,]*)::(.*)")


@pytest.mark.parametrize("name", samples.ALL)
def test_every_annotation_is_one_well_formed_command(name: str) -> None:
    verdict = samples.ALL[name]()
    said = list(github.commands(verdict))
    for line in said:
        assert COMMAND.fullmatch(line)
        assert not re.search("[\x00-\x1f\x7f\u2028]", line)
    errors = [line for line in said if line.startswith("::error")]
    assert bool(errors) == (verdict.verdict in (State.BLOCKED, State.INCOMPLETE))


def test_the_annotation_is_the_failure_block() -> None:
    line = next(iter(github.commands(samples.blocked_in_cuinit())))
    match = COMMAND.fullmatch(line)
    assert match is not None
    assert match[2] == "BLOCKED%3A 06 driver"
    assert (
        match[3]
        .replace("%0A", "\n")
        .startswith("06 driver: cuInit(0) did not return within 45 s\n   blocked in: ioctl")
    )


class Elements(HTMLParser):
    """Collects the names of the elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take one element."""
        self.names.add(tag)
        assert not attrs


@pytest.mark.parametrize("name", samples.ALL)
def test_the_summary_has_no_element_but_ours_and_no_block_that_ends_early(name: str) -> None:
    text = github.summary(samples.ALL[name]())
    page = Elements()
    page.feed(text)
    assert page.names <= {"h2", "p", "code", "table", "tr", "th", "td", "details", "summary", "pre"}
    for block in text.strip().split("\n\n"):
        assert re.match("<(h2|p|table|details)>", block), "a blank line inside a block: what follows is Markdown"
        assert re.search("</(h2|p|table|details)>$", block)
    assert len(text) < 1 << 20


def test_the_summary_says_it_first(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("of an earlier step\n", encoding="utf-8")
    github.summarize(samples.blocked_in_cuinit(), {github.SUMMARY: str(path)})
    text = path.read_text(encoding="utf-8")
    assert text.startswith("of an earlier step\n")
    assert "<h2>GPU discovery: BLOCKED</h2>" in text
    assert text.count("○ not reached") == 2
    github.summarize(samples.blocked_in_cuinit(), {})
