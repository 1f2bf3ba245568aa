"""The tar reader against Python's own, and against archives that mean harm."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.probes.tarstream import ArchiveProblem, TarStream, safe_path
from tests.install import archives
from tests.install.archives import Entry

PART = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="/\x7f"), min_size=1, max_size=40
)
PATH = st.lists(PART.filter(lambda part: part not in (".", "..")), min_size=1, max_size=6).map("/".join)


def read(data: bytes) -> list[tuple[Any, bytes]]:
    """Return every member of archive DATA with its data."""
    stream = TarStream(io.BytesIO(data).read)
    return [(member, b"".join(stream.data())) for member in stream]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(files=st.dictionaries(PATH, st.binary(max_size=1500), max_size=5), target=PATH)
def test_what_tarfile_writes_is_read_back(form: int, files: dict[str, bytes], target: str) -> None:
    made = io.BytesIO()
    written = []
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o640
            try:
                archive.addfile(info, io.BytesIO(data))
            except ValueError:
                continue  # too long for ustar
            written.append((name, "file", data, ""))
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, target
        try:
            archive.addfile(info)
            written.append(("link", "symlink", b"", target))
        except ValueError:
            pass
    assert [(m.name, m.kind, data, m.target) for m, data in read(made.getvalue())] == written


def test_a_release_is_read() -> None:
    found = [(member.name, member.kind) for member, _ in read(archives.tar(archives.RELEASE))]
    assert found[0] == ("", "directory")
    assert ("bin/ollama", "file") in found
    assert ("lib/ollama/cuda_v12/hard", "hardlink") in found


def test_long_names_of_both_kinds() -> None:
    name = "lib/ollama/" + "x" * 150
    for header in (archives.pax({"path": name, "mtime": "1.5"}), archives.long_name(name)):
        ((member, data),) = read(archives.tar([Entry("short", b"abc", header=header)]))
        assert (member.name, data) == (name, b"abc")


HOSTILE = {
    "absolute": Entry("/etc/passwd", b"x"),
    "climbing": Entry("lib/../../etc/passwd", b"x"),
    "absolute by pax": Entry("a", b"x", header=archives.pax({"path": "/etc/passwd"})),
    "climbing by a long name": Entry("a", b"x", header=archives.long_name("a/" * 20 + "../" * 21 + "x")),
    "link to an absolute path": Entry("a", kind=b"2", target="/etc"),
    "link that climbs": Entry("lib/a", kind=b"2", target="../../etc"),
    "link that climbs and returns": Entry("a", kind=b"2", target="../a"),
    "link to nothing": Entry("a", kind=b"2"),
    "hard link to an absolute path": Entry("a", kind=b"1", target="/etc/passwd"),
    "hard link that climbs": Entry("a", kind=b"1", target="../../etc/passwd"),
    "character device": Entry("a", kind=b"3"),
    "block device": Entry("a", kind=b"4"),
    "FIFO": Entry("a", kind=b"6"),
    "GNU sparse file": Entry("a", kind=b"S", size=1 << 50),
    "pax sparse file": Entry("a", header=archives.pax({"GNU.sparse.size": "9999999999999"})),
    "unknown type": Entry("a", kind=b"Z"),
    "huge pax header": Entry("a", kind=b"x", size=1 << 40),
    "huge long name": Entry("a", kind=b"L", size=1 << 40),
    "global header that renames": Entry("a", header=archives.pax({"path": "b"}, b"g")),
    "control characters": Entry("a\nb", b"x"),
    "no UTF-8": Entry("\udcff", b"x"),
    "deep": Entry("a", header=archives.pax({"path": "d/" * 40 + "x"})),
    "long part": Entry("a", header=archives.pax({"path": "d" * 256})),
    "negative size by pax": Entry("a", header=archives.pax({"size": "-1"})),
    "broken pax": Entry("a", header=archives.block(Entry("p", b"99 a=b\n", b"x")) + archives.padded(b"99 a=b\n")),
    "directory with data": Entry("a", b"data", kind=b"5"),
}


@pytest.mark.parametrize("entry", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_entry_refuses_the_archive(entry: Entry) -> None:
    with pytest.raises(ArchiveProblem) as caught:
        read(archives.tar([Entry("bin/ollama", archives.ELF), entry]))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_nothing_is_read_into_memory_on_a_headers_word() -> None:
    asked = []

    def source(size: int) -> bytes:
        asked.append(size)
        return stream.read(size)

    stream = io.BytesIO(archives.tar([Entry("a", kind=b"x", size=1 << 40)]))
    with pytest.raises(ArchiveProblem):
        list(TarStream(source))
    assert max(asked) <= 1 << 18


@pytest.mark.parametrize("cut", [1, 511, 513, 1023, 1500])
def test_a_cut_off_archive_is_said(cut: int) -> None:
    data = archives.tar([Entry("a", b"x" * 1000)], end=False)
    with pytest.raises(ArchiveProblem, match="cut off"):
        read(data[:-cut] if cut < len(data) else data)
    with pytest.raises(ArchiveProblem, match="cut off before its end mark"):
        read(data)


@given(st.binary(max_size=3000))
def test_rubbish_is_refused_in_one_line(data: bytes) -> None:
    said = ""
    try:
        read(data)
    except ArchiveProblem as problem:
        said = str(problem)
    assert "\n" not in said


@given(at=st.integers(0, 6000), byte=st.integers(0, 255), entries=st.permutations(archives.RELEASE))
def test_a_changed_byte_never_raises_anything_else(at: int, byte: int, entries: list[Entry]) -> None:
    data = bytearray(archives.tar(entries))
    data[at % len(data)] = byte
    try:
        members = read(bytes(data))
    except ArchiveProblem:
        return
    for member, _ in members:
        assert not member.name.startswith("/")
        assert ".." not in member.name.split("/")


@given(st.text(max_size=60))
def test_a_safe_path_stays_below(path: str) -> None:
    try:
        safe = safe_path(path)
    except ArchiveProblem:
        return
    assert not safe.startswith("/")
    assert ".." not in safe.split("/")
