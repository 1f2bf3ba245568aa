"""The terminal: lines that fit, a log that shows life, nothing that a log would act on."""

from __future__ import annotations

import os
import threading
import time

import pytest

from pytest_gpudiscovery.reports import console
from pytest_gpudiscovery.reports.wording import one_line

TEXT = "uid 0, gid 0, groups none; 0 preloaded; a limit of 64 MiB of locked memory; cgroup without a limit"
BEFORE = "    0.051 s  "


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_a_folded_line_fits_and_loses_nothing(width: int) -> None:
    lines = console.laid_out(BEFORE, TEXT, width).split("\n")
    head = console.COLUMN - len(BEFORE)
    assert all(len(line) <= width for line in lines[1:])
    assert head + len(lines[0]) <= max(width, console.COLUMN)
    assert " ".join(" ".join(lines).split()) == " ".join((BEFORE + TEXT).split())


def test_a_log_is_not_folded() -> None:
    assert console.laid_out(BEFORE, TEXT, None) == BEFORE + TEXT


def test_a_long_word_is_not_lost() -> None:
    assert "x" * 15 in console.laid_out(BEFORE, "x" * 300, 40)


def test_a_line_of_ours_is_one_line_without_control_characters() -> None:
    assert one_line("a\r\n::error::b\x1b[2J\x07\u202e") == "a ::error::b\\x1b[2J\\x07\\u202e"


def test_in_a_log_a_slow_stage_shows_life_in_whole_lines(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "TICK_S", 0.01)
    monkeypatch.setattr(console, "LOG_AFTER_S", 12.0)
    read, write = os.pipe()
    with open(write, "w", encoding="utf-8") as stream, capfd.disabled():
        monkeypatch.setattr("sys.stdout", stream)
        progress = console.Progress({"driver": 6})
        begun = time.time() - 13.0
        progress.start(lambda: ("driver", begun, 45.0), live=False)
        said = os.read(read, 100)
        progress.stop()
    os.close(read)
    assert said == b"... 06 driver  13 s of 45 s\n"


def test_where_no_thread_can_be_started_there_is_no_progress_and_nothing_else_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    progress = console.Progress({"driver": 6})
    progress.start(lambda: None, live=False)
    progress.stop()
