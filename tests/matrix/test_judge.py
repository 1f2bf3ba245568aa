"""What counts as right, and the numbers that are made of it: pure functions over fed answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.matrix import markdown, rows, tally
from tests.matrix.inject import Seen
from tests.matrix.judge import judge
from tests.matrix.rows import Row

PRIMARY = {"stage": "driver", "outcome": "failed", "cause": "driver.cuinit.999", "row": "P42", "text": "answered 999"}
BLOCKED = Seen(verdict="blocked", exit=1, primary=PRIMARY, findings=[{**PRIMARY}])
READY = Seen(verdict="ready", exit=0)
AUTHOR = Row("author", "driver.cuinit.999", "h100", "runtime", "blocked", "driver", "failed", "driver.cuinit.999")
BLIND = dataclasses.replace(AUTHOR, origin="blind", cause="", rows=("P42",), says="999")


def test_what_is_right_is_right_in_everything() -> None:
    for row in (AUTHOR, BLIND):
        found = judge(row, BLOCKED)
        assert found.right
        assert (found.false_green, found.false_block) == (False, False)


@pytest.mark.parametrize(
    ("row", "seen", "wrong"),
    [
        (dataclasses.replace(AUTHOR, stage="nvml"), BLOCKED, {"stage"}),
        (dataclasses.replace(AUTHOR, outcome="timed_out"), BLOCKED, {"stage"}),
        (dataclasses.replace(AUTHOR, cause="driver.cuinit.100"), BLOCKED, {"cause"}),
        (dataclasses.replace(BLIND, rows=("P43",)), BLOCKED, {"cause"}),
        (dataclasses.replace(BLIND, says="fabric"), BLOCKED, {"cause"}),
        (AUTHOR, dataclasses.replace(BLOCKED, exit=0), {"exit"}),
        (AUTHOR, dataclasses.replace(BLOCKED, exit=None), {"exit", "in_time"}),
        (AUTHOR, dataclasses.replace(BLOCKED, late=["driver took 9 s of 7 s"]), {"in_time"}),
        (AUTHOR, dataclasses.replace(BLOCKED, left=["pid 7"]), {"clean"}),
        (AUTHOR, dataclasses.replace(BLOCKED, traceback="Traceback"), {"clean"}),
    ],
)
def test_each_difference_is_seen(row: Row, seen: Seen, wrong: set[str]) -> None:
    found = judge(row, seen)
    assert {name for name in ("stage", "cause", "exit", "in_time", "clean") if not getattr(found, name)} == wrong


def test_a_green_where_something_blocks_and_a_block_where_nothing_does() -> None:
    assert judge(AUTHOR, READY).false_green
    assert judge(dataclasses.replace(AUTHOR, verdict="degraded"), READY).false_green
    healthy = Row("healthy", "-", "h100", "runtime", "ready", cause="-")
    assert judge(healthy, BLOCKED).false_block
    assert not judge(healthy, READY).false_block
    either = dataclasses.replace(AUTHOR, alternatives=(("ready", "-", "-"),))
    assert not judge(either, READY).false_green


def test_an_alternative_is_as_right_as_what_was_expected() -> None:
    row = dataclasses.replace(BLIND, stage="kernel", alternatives=(rows.answer("blocked/driver/failed"),))
    assert judge(row, BLOCKED).right
    assert rows.answer("degraded/-/-") == ("degraded", "-", "-")
    assert rows.answer("blocked") == ("blocked", "*", "*")


def test_a_correction_is_counted_beside_what_was_written() -> None:
    row = dataclasses.replace(BLIND, rows=("P43",), corrected="blocked/driver/failed/P42/999", why="by the mechanism")
    judged = [judge(row, BLOCKED)]
    before, after = tally.count(judged), tally.count(tally.corrected(judged))
    assert (before.cause, after.cause) == (0, 1)
    assert before.broken
    assert not after.broken
    page = markdown.page(tally.summary(judged, {}, []))
    assert "corrected: by the mechanism" in page


def test_the_confusion_table_has_the_stage_that_was_named() -> None:
    judged = [judge(AUTHOR, BLOCKED), judge(dataclasses.replace(AUTHOR, stage="nvml"), BLOCKED)]
    assert tally.confusion(judged) == {"driver": {"driver": 1}, "nvml": {"driver": 1}}


@pytest.mark.parametrize("line", ["faults\tverdict\n\tblocked\n", "faults\tverdict\twith\nx\tblocked\tnoise 1\n"])
def test_a_line_that_cannot_be_read_is_an_error(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "author.tsv").write_text(line)
    monkeypatch.setattr(rows, "DATA", tmp_path)
    with pytest.raises(ValueError, match=r"author|with"):
        rows.read("author")
