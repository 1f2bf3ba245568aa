"""evidence/STAGE-PROBE.txt: what is in them, that they are safe to `cat`, and that nobody else's file is touched."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.reports import evidence
from pytest_gpudiscovery.reports.html_text import visible
from tests.reports import hostile, parts, samples


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory / "evidence"))


def test_a_hung_probe_leaves_its_streams_threads_and_forensics(tmp_path: Path) -> None:
    (path,) = evidence.write(str(tmp_path), samples.blocked_in_cuinit())
    assert path == str(tmp_path / "evidence" / "driver-driver.txt")
    text = Path(path).read_text(encoding="utf-8")
    for line in (
        "stage      : driver",
        "outcome    : unkillable",
        "open step  : cuInit(0)",
        "ending     : unkillable",
        f"blocked in : {parts.CUINIT}",
        "== stderr ==\nNVRM: API mismatch suspected",
        "== stdout ==\n(empty)",
        "== threads at the deadline ==",
        "rwsem_down_read_slowpath+0x2c4",
        "== everything else that was seen (JSON) ==",
        '"symbol": "cuInit"',
    ):
        assert line in text, line


def test_a_healthy_host_leaves_no_directory(tmp_path: Path) -> None:
    assert evidence.write(str(tmp_path), samples.healthy()) == []
    assert not list(tmp_path.iterdir())


def test_a_probe_that_answered_leaves_no_file(tmp_path: Path) -> None:
    made = samples.healthy()
    answered = {"witness": {"ending": "answered", "stdout": "", "stderr": "", "notes": ["pynvml is not installed"]}}
    stage = dataclasses.replace(made.stages[6], evidence=answered)
    assert evidence.write(str(tmp_path), dataclasses.replace(made, stages=(stage,))) == []


def test_a_defect_of_ours_leaves_its_traceback(tmp_path: Path) -> None:
    made = samples.healthy()
    stage = dataclasses.replace(made.stages[5], evidence={"traceback": "Traceback ...\nKeyError: 'x'\n"})
    (path,) = evidence.write(str(tmp_path), dataclasses.replace(made, stages=(stage,)))
    assert path.endswith("driver-traceback.txt")
    assert "KeyError: 'x'" in Path(path).read_text()


def test_a_simulated_host_is_said_in_the_file(tmp_path: Path) -> None:
    (path,) = evidence.write(str(tmp_path), samples.simulated())
    assert Path(path).read_text().splitlines()[1].startswith("SIMULATED")


def test_the_files_of_an_earlier_run_go_and_others_stay(tmp_path: Path) -> None:
    evidence.write(str(tmp_path), samples.hung())
    place = tmp_path / "evidence"
    (place / "driver-driver.txt").rename(place / "nvml-nvml.txt")
    victim = tmp_path / "victim.txt"
    victim.write_text(evidence.MAGIC)
    (place / "mine.txt").write_text("notes of a person")
    (place / "short.txt").write_text("p")
    (place / "link.txt").symlink_to(victim)
    (place / "dangling.txt").symlink_to(tmp_path / "nowhere")
    (place / "directory.txt").mkdir()
    os.mkfifo(place / "pipe.txt")  # opening it would wait for a writer
    (place / "driver-driver.log").write_text(evidence.MAGIC)
    evidence.write(str(tmp_path), samples.healthy())
    kept = ["dangling.txt", "directory.txt", "driver-driver.log", "link.txt", "mine.txt", "pipe.txt", "short.txt"]
    assert names(tmp_path) == kept
    assert victim.exists()


def test_a_link_in_place_of_the_directory_or_of_a_file_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "old.txt").write_text(evidence.MAGIC)
    (tmp_path / "evidence").symlink_to(elsewhere)
    with pytest.raises(OSError, match="evidence"):
        evidence.write(str(tmp_path), samples.hung())
    assert os.listdir(elsewhere) == ["old.txt"]
    (tmp_path / "evidence").unlink()
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "driver-driver.txt").symlink_to(elsewhere / "old.txt")
    evidence.write(str(tmp_path), samples.hung())
    assert (elsewhere / "old.txt").read_text() == evidence.MAGIC
    assert not (tmp_path / "evidence" / "driver-driver.txt").is_symlink()


def test_a_directory_that_is_not_there_is_an_oserror_only_when_there_is_something_to_write(tmp_path: Path) -> None:
    assert evidence.write(str(tmp_path / "nowhere"), samples.healthy()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        evidence.write(str(tmp_path / "file"), samples.hung())


def test_sizes_are_bounded(tmp_path: Path) -> None:
    big = "\x1b[31m" + "x\n" * 5_000_000
    paths = evidence.write(str(tmp_path), hostile.hostile(big))
    sizes = [os.path.getsize(path) for path in paths]
    assert max(sizes) < 6_000_000
    assert "characters cut" in Path(paths[0]).read_text()
    many = dataclasses.replace(samples.hung().stages[5], evidence={f"p{index}": "x" for index in range(10_000)})
    paths = evidence.write(str(tmp_path), dataclasses.replace(samples.hung(), stages=(many,)))
    assert len(paths) == evidence.FILES
    assert len(names(tmp_path)) == evidence.FILES


@settings(max_examples=40, deadline=None)
@given(
    st.text(st.characters(), max_size=300)
    | st.sampled_from(["..", ".", "/", "../../x", "-rf", "\x00", "CON", hostile.EVIL])
)
def test_any_name_and_text_gives_safe_names_and_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    directory = tmp_path_factory.mktemp("report")
    paths = evidence.write(str(directory), hostile.hostile(text))
    assert len(set(paths)) == len(paths) == 6
    for path in paths:
        assert os.path.dirname(path) == str(directory / "evidence")
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.txt", os.path.basename(path)), path
        content = Path(path).read_bytes().decode()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", content)
    assert visible(text) in Path(paths[0]).read_bytes().decode()
