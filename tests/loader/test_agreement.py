"""Every crafted case: the prediction and the real loader agree in outcome, message, files and their order.

The host's loader always; others are unpacked libc6 packages below the directories in LOADER_ROOTS
(ci/loader/loaders.py).
"""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.loader import cases_candidates, cases_objects, cases_process, cases_search
from tests.loader.oracle import Builder, Case, Loader, build_probe, predicted, real
from tests.privileges import MAY_MOUNT

MODULES = (cases_search, cases_candidates, cases_objects, cases_process)
INTERPRETER = "/lib64/ld-linux-x86-64.so.2"


def cases_of(module: ModuleType) -> list[Callable[[Builder], Case]]:
    """Return the module's own functions that take a Builder."""
    found = [
        value for _, value in inspect.getmembers(module, inspect.isfunction) if value.__module__ == module.__name__
    ]
    return [value for value in found if list(inspect.signature(value).parameters) == ["b"]]


def loaders() -> list[Loader]:
    """Return the host's loader and those of LOADER_ROOTS."""
    found = [Loader("host", INTERPRETER)]
    for root in filter(None, os.environ.get("LOADER_ROOTS", "").split(":")):
        libc = next(Path(root).glob("**/libc.so.6"))
        interpreter = next(libc.parent.glob("ld-linux-x86-64.so.2"))
        found.append(Loader(Path(root).name, str(interpreter), str(libc.parent)))
    return found


ALL = [case for module in MODULES for case in cases_of(module)]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that other users may enter, as a service's library directory is."""
    directory = Path(tempfile.mkdtemp(prefix="loader-cases-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module", params=loaders(), ids=lambda loader: loader.name)
def probe(request: pytest.FixtureRequest, place: Path) -> tuple[Loader, str]:
    return request.param, build_probe(place, request.param)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
def test_prediction_is_what_the_loader_does(
    build: Callable[[Builder], Case], probe: tuple[Loader, str], place: Path
) -> None:
    loader, program = probe
    directory = place / f"{loader.name}-{build.__name__}"
    directory.mkdir()
    case = build(Builder(directory, program))
    if (case.mounts and not MAY_MOUNT) or (case.uid is not None and os.geteuid() != 0):
        pytest.skip("changes user or mounts: needs root, for mounts with CAP_SYS_ADMIN")
    if case.exe is not None and loader.directory is not None:
        pytest.skip("brings its own executable, which starts the host's loader")
    happened = real(case, program)
    assert predicted(case, program) == happened
    if case.loads is not None and loader.directory is None:
        assert (happened.outcome == "loads") is case.loads, happened


def test_there_are_enough_cases() -> None:
    assert len({build.__name__ for build in ALL}) == len(ALL) >= 98
