"""--gpu-ollama: what the path is, and archives into a private directory, in real children."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.install import given as module
from pytest_gpudiscovery.options import UsageProblem
from pytest_gpudiscovery.probes import compressed, unpack
from pytest_gpudiscovery.probes.tarstream import ArchiveProblem, TarStream
from pytest_gpudiscovery.supervise.types import Ending, Identity
from tests import fakes
from tests.install import archives
from tests.install.archives import Entry

ZSTD = shutil.which("zstd")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The private directory of a run."""
    made = tmp_path / "run"
    made.mkdir(0o700)
    return made


def prepare(path: Path, run_dir: Path, **changes: Any) -> module.Given:
    keywords: dict[str, Any] = {"name": "ollama", "identity": None, "scale": 1.0, **changes}
    return module.prepare(f"--gpu-ollama={path.name}", str(path), str(run_dir), **keywords)


def tree(folder: Path) -> dict[str, str]:
    """Return what lies below FOLDER: path -> mode of a file, "dir", or the target of a link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        kind = os.readlink(path) if stat.S_ISLNK(mode) else "dir" if stat.S_ISDIR(mode) else f"{stat.S_IMODE(mode):o}"
        found[str(path.relative_to(folder))] = kind
    return found


UNPACKED = {
    "bin": "dir",
    "bin/ollama": "755",
    "lib": "dir",
    "lib/ollama": "dir",
    "lib/ollama/cuda_v12": "dir",
    "lib/ollama/cuda_v12/hard": "644",
    "lib/ollama/cuda_v12/libcudart.so.12": "libcudart.so.12.8.90",
    "lib/ollama/cuda_v12/libcudart.so.12.8.90": "644",
    "lib/ollama/cuda_v12/libggml-cuda.so": "755",
    "lib/ollama/libggml-base.so": "libggml-base.so.0",
    "lib/ollama/libggml-base.so.0": "644",
    "lib/ollama/mlx_cuda_v13": "dir",
    "lib/ollama/mlx_cuda_v13/libcudart.so.12": "../cuda_v12/libcudart.so.12",
}


@pytest.mark.parametrize("name", ["ollama-linux-amd64.tgz", "ollama-linux-amd64.tar.gz", "ollama.tar", "no-suffix"])
def test_a_release_is_unpacked_whatever_its_name_is(tmp_path: Path, run_dir: Path, name: str) -> None:
    archive = tmp_path / name
    archive.write_bytes(archives.tar(archives.RELEASE) if name.endswith(".tar") else archives.tgz(archives.RELEASE))
    given_path = prepare(archive, run_dir)
    assert given_path.path == str(run_dir / "ollama")
    assert tree(run_dir / "ollama") == UNPACKED
    assert stat.S_IMODE((run_dir / "ollama").stat().st_mode) == 0o700
    assert "4 files" in given_path.note
    assert name in given_path.note


@pytest.mark.skipif(ZSTD is None, reason="no zstd to make an archive with")
def test_a_zstd_release_is_unpacked_by_the_program(tmp_path: Path, run_dir: Path) -> None:
    (tmp_path / "a.tar").write_bytes(archives.tar(archives.RELEASE))
    subprocess.run(["zstd", "-q", "-19", "a.tar", "-o", "a.tar.zst"], cwd=tmp_path, check=True)
    prepare(tmp_path / "a.tar.zst", run_dir)
    assert tree(run_dir / "ollama") == UNPACKED
    data = (tmp_path / "a.tar.zst").read_bytes()
    fd = os.open(tmp_path / "a.tar.zst", os.O_RDONLY)
    try:
        read, way = compressed._by_program(fd, "/nowhere")
        assert way.endswith("/zstd")
        assert sum(len(chunk) for chunk in iter(lambda: read(1000), b"")) == len(archives.tar(archives.RELEASE))
    finally:
        os.close(fd)
    (tmp_path / "cut.tar.zst").write_bytes(data[:-10])
    (run_dir / "ollama").rename(run_dir / "before")
    with pytest.raises(UsageProblem, match=r"zstd stream is broken or cut off|cut off before"):
        prepare(tmp_path / "cut.tar.zst", run_dir)


def test_without_any_zstd_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "ZSTD_PLACES", ())
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    with pytest.raises(ArchiveProblem, match=r"Python 3\.14, the package zstandard or the program zstd"):
        compressed.zstd(0, str(tmp_path))


def test_a_prefix_and_a_binary_are_taken_as_they_are(tmp_path: Path, run_dir: Path) -> None:
    for path in (tmp_path, Path("/bin/true")):
        assert prepare(path, run_dir) == module.Given(str(path))
        assert not (run_dir / "ollama").exists()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.zip", b"PK\x03\x04", "got a zip archive"),
        ("a.tar.xz", b"\xfd7zXZ\0", "got an xz archive"),
        ("a.txt", b"hello", "got no ELF file, script or archive"),
        ("empty", b"", "got an empty file"),
        ("a.tgz", gzip.compress(b"no tar at all" * 100, mtime=0), "no tar archive"),
        ("cut.tgz", archives.tgz(archives.RELEASE)[:-30], "cut off"),
        ("rocm.tgz", archives.tgz([Entry("lib/ollama/rocm/libggml-hip.so", b"x")]), "no bin/ollama in the archive"),
        ("evil.tgz", archives.tgz([Entry("../x", b"x")]), r"\.\./x is a path that leaves"),
        ("twice.tgz", archives.tgz([Entry("bin/ollama", b"x"), Entry("bin/ollama", b"y")]), "there twice"),
        ("both.tgz", archives.tgz([Entry("a", kind=b"2", target="b"), Entry("a/x", b"y")]), "symlink and a directory"),
        ("hard.tgz", archives.tgz([Entry("a", kind=b"1", target="b"), Entry("b", kind=b"5")]), "no file of it"),
        (
            "through.tgz",
            archives.tgz([Entry("s/l", kind=b"2", target=".."), Entry("q", kind=b"2", target="s/l/../etc")]),
            "leads through another link",
        ),
        ("large.tgz", archives.tgz([Entry("a", size=1 << 50)]), "more than 24 GB"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, run_dir: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageProblem, match=words) as caught:
        prepare(tmp_path / name, run_dir)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--gpu-ollama={name}: ")
    assert not (tmp_path / "x").exists()


def test_a_device_or_fifo_in_the_paths_place_does_not_block(tmp_path: Path, run_dir: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageProblem, match="no regular file"):
        prepare(tmp_path / "fifo", run_dir)


def test_too_little_space_is_said_before_and_while_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [unpack.RESERVE + 10_000]
    monkeypatch.setattr(unpack, "_free", lambda _: free[0])
    big = [Entry("bin/ollama", bytes(20_000))]
    data = archives.tgz(big)
    (tmp_path / "a.tgz").write_bytes(data)
    fd = os.open(tmp_path / "a.tgz", os.O_RDONLY)
    try:
        with pytest.raises(ArchiveProblem, match=r"too little space.*set TMPDIR"):
            unpack._unpack(fd, "gzip", len(data), str(tmp_path), fakes_journal())
        free[0] = 0
        with pytest.raises(ArchiveProblem, match="too little space"):
            unpack._unpack(fd, "gzip", len(data), str(tmp_path), fakes_journal())
    finally:
        os.close(fd)
    assert not (tmp_path / "bin" / "ollama").exists()


def fakes_journal() -> Any:
    class Silent:
        def observe(self, *_: object) -> None:
            pass

    return Silent()


def test_a_file_system_that_does_not_answer_is_said(tmp_path: Path, run_dir: Path) -> None:
    hang = fakes.hang("unpack /nfs/a.tgz", evidence={"blocked_in": "nfs_wait"})
    with pytest.raises(UsageProblem, match=r"unpack /nfs/a\.tgz did not end within 300 s \(in nfs_wait\)"):
        prepare(tmp_path / "a.tgz", run_dir, supervise=lambda _: hang)


def test_a_defect_of_ours_is_one_line_too(tmp_path: Path, run_dir: Path) -> None:
    broken = fakes.result(Ending.EXITED, exit_code=1, stderr="Traceback\n  x\nKeyError: 'a'\n")
    with pytest.raises(UsageProblem, match=r"without an answer \(exited\): KeyError: 'a'"):
        prepare(tmp_path, run_dir, supervise=lambda _: broken)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root probes as another user")
def test_the_probes_user_can_read_what_was_unpacked_and_nobody_else(tmp_path: Path, run_dir: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(archives.tgz(archives.RELEASE))
    (run_dir / "context.json").write_text("secret")
    (run_dir / "context.json").chmod(0o600)
    os.umask(os.umask(0o077))
    prepare(tmp_path / "a.tgz", run_dir, identity=Identity(65534, 65534))
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder) != "/":
            assert folder.exists()
    assert stat.S_IMODE(run_dir.stat().st_mode) == 0o710
    assert run_dir.stat().st_gid == 65534
    assert stat.S_IMODE((run_dir / "ollama").stat().st_mode) == 0o750


ENTRIES = st.lists(
    st.builds(
        Entry,
        name=st.lists(st.sampled_from(["a", "b", "c", ".", ".."]), min_size=1, max_size=4).map("/".join),
        data=st.sampled_from([b"", b"new"]),
        kind=st.sampled_from([b"0", b"1", b"2", b"5"]),
        target=st.lists(st.sampled_from(["a", "b", "c", ".", "..", "keep"]), min_size=1, max_size=6).map("/".join),
    ),
    max_size=8,
)


@settings(max_examples=400)
@given(entries=ENTRIES)
def test_no_archive_reaches_what_lies_outside(tmp_path_factory: pytest.TempPathFactory, entries: list[Entry]) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "keep").write_text("old")
    (outside / "a").mkdir()
    into = outside / "into"
    into.mkdir()
    data = archives.tar(entries)
    position = [0]

    def read(size: int) -> bytes:
        chunk = data[position[0] : position[0] + size]
        position[0] += len(chunk)
        return chunk

    try:
        unpack.Unpacker(str(into)).unpack(TarStream(read))
    except (ArchiveProblem, OSError):
        pass
    assert sorted(os.listdir(outside)) == ["a", "into", "keep"]
    assert (outside / "keep").read_text() == "old"
    assert os.listdir(outside / "a") == []
    for path in into.rglob("*"):
        assert str(Path(os.path.realpath(path))).startswith(str(into))
        if path.is_file() and not path.is_symlink():
            assert path.stat().st_nlink == 1 or path.read_bytes() in (b"", b"new")
