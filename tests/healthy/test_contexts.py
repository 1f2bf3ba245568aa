"""No false alarm: the gate in processes that are unusual for real: users, namespaces, limits, environments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.healthy import contexts
from tests.healthy.checks import due, is_left_alone
from tests.healthy.rows import Row


@pytest.mark.parametrize("row", due("real"), ids=lambda row: row.name)
def test_a_healthy_context_raises_no_alarm(row: Row) -> None:
    is_left_alone(row)


def test_an_unknown_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'no_such_word'"):
        contexts.make("no_such_word", tmp_path)


@pytest.mark.parametrize(
    ("words", "root"), [("", False), ("-HOME LC_ALL=C limit:nofile=9", False), ("nobody", True), ("hosts:::1", True)]
)
def test_what_only_root_can_make_is_known(words: str, root: bool) -> None:
    assert contexts.needs_root(words) is root
