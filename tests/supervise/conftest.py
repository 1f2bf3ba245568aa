"""Rigs as fixtures: a test that needs one that cannot be built here is skipped with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.supervise import rigs


@pytest.fixture(scope="session")
def hang_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a stripped library whose functions hang."""
    try:
        return rigs.library(tmp_path_factory.mktemp("lib"))
    except rigs.Unavailable as why:
        pytest.skip(str(why))


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """A directory in which every create sleeps in state D until the test ends."""
    try:
        with rigs.frozen(tmp_path) as directory:
            yield directory
    except rigs.Unavailable as why:
        pytest.skip(str(why))


@pytest.fixture
def silent_lookup(tmp_path: Path) -> Iterator[Path]:
    """A path whose lookup is never answered."""
    try:
        with rigs.fuse(tmp_path, "lookup") as path:
            yield path / "f"
    except rigs.Unavailable as why:
        pytest.skip(str(why))


@pytest.fixture
def silent_write(tmp_path: Path) -> Iterator[Path]:
    """A file whose dirty pages are never written."""
    try:
        with rigs.fuse(tmp_path, "write") as path:
            yield path / "f"
    except rigs.Unavailable as why:
        pytest.skip(str(why))
