"""The readers on bytes: any content is an answer, and what the formats promise is read back."""

from __future__ import annotations

import importlib
import os
import re
import resource
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.loader import predict, read_architectures, read_images
from pytest_gpudiscovery.loader.architectures import parse_architectures
from pytest_gpudiscovery.loader.elf import Elf
from pytest_gpudiscovery.loader.files import CHUNK, File, Root
from pytest_gpudiscovery.loader.hostld import host_loader, legacy_subdirectories, parse_diagnostics
from pytest_gpudiscovery.loader.ldsocache import Cache, compare_names
from pytest_gpudiscovery.loader.mounts import Mounts, may_block, parse_mountinfo
from pytest_gpudiscovery.loader.problems import Refused, Skipped
from pytest_gpudiscovery.loader.rules import CHANGES, NEWEST, OLDEST, rules_for
from pytest_gpudiscovery.loader.symbols import gnu_hash, sysv_hash

fuzz = importlib.import_module("ci.loader.fuzz")  # a command, not a package
SMALL = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LIBC = host_loader()


# -- files


@SMALL
@given(content=st.binary(max_size=3 * 64), offset=st.integers(-10, 400), size=st.integers(-10, 400))
def test_reads_are_slices(tmp_path: Path, content: bytes, offset: int, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    file = File(Root(), str(path))
    assert file.read(offset, size) == (content[offset : offset + size] if offset >= 0 and size > 0 else b"")
    file.close()


def test_reads_cross_chunks(tmp_path: Path) -> None:
    content = os.urandom(3 * CHUNK + 17)
    (tmp_path / "file").write_bytes(content)
    file = File(Root(), str(tmp_path / "file"))
    assert file.read(CHUNK - 3, 7) == content[CHUNK - 3 : CHUNK + 4]
    assert file.unpack(struct.Struct("<Q"), CHUNK - 4) == struct.unpack_from("<Q", content, CHUNK - 4)
    assert file.unpack(struct.Struct("<Q"), len(content) - 7) is None
    assert file.read(len(content) - 4, 100) == content[-4:]
    file.close()


def test_strings_cross_chunks_and_end(tmp_path: Path) -> None:
    content = b"x" * (CHUNK - 2) + b"name\0" + b"tail without end"
    (tmp_path / "file").write_bytes(content)
    file = File(Root(), str(tmp_path / "file"))
    assert file.string(CHUNK - 2) == b"name"
    assert file.string(CHUNK + 3) is None
    assert file.string(1 << 60) is None
    file.close()


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "text").write_text("no library" * 20)
    for path in (str(tmp_path), str(tmp_path / "text"), "/nonexistent", "/dev/null", shutil.which("true") or ""):
        predict(path, env={}, exe=None)
        read_images(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_root_keeps_links_inside(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/real.so").write_text("inside")
    (tmp_path / "link.so").symlink_to("/lib/real.so")
    (tmp_path / "up.so").symlink_to("../../../../lib/real.so")
    (tmp_path / "loop.so").symlink_to("/loop.so")
    root = Root(str(tmp_path))
    assert root.read("/link.so") == root.read("/up.so") == b"inside"
    with pytest.raises(OSError, match="symbolic links"):
        root.read("/loop.so")
    with pytest.raises(FileNotFoundError):
        root.read("/etc/hostname")


# -- ELF


@SMALL
@given(content=st.binary(max_size=256))
def test_any_bytes_are_refused_or_passed_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(content)
    with pytest.raises((Refused, Skipped)):
        Elf(Root(), str(path)).load(LIBC.rules)
    assert not predict(str(path), env={}, loader=LIBC).loads
    assert read_images(str(path)).images == ()


@SMALL
@given(name=st.binary(max_size=40))
def test_hashes_fit_32_bits(name: bytes) -> None:
    assert 0 <= gnu_hash(name) < 1 << 32
    assert 0 <= sysv_hash(name) < 1 << 28


def test_hashes_of_the_specifications() -> None:
    assert (gnu_hash(b""), gnu_hash(b"printf"), gnu_hash(b"syscall")) == (0x1505, 0x156B2BB8, 0xBAC212A0)
    assert (sysv_hash(b""), sysv_hash(b"printf"), sysv_hash(b"GLIBC_2.2.5")) == (0, 0x077905A6, 0x09691A75)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_fuzz_run_finds_no_violation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without guidance: the same targets, seeds and checks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fuzz", "--blind", "--count", "2500", "--seed", "3"])
    target, seeds = importlib.import_module("fuzz_target"), importlib.import_module("fuzz_seeds")
    cases = [case for number, case in enumerate(seeds.ALL) if number % 10 == 0 or "cache_with" in case.__name__]
    monkeypatch.setattr(seeds, "ALL", cases)
    monkeypatch.setattr(target, "SLOW", 20.0)
    # The test process holds more than the readers, and may have held more before.
    monkeypatch.setattr(target, "PEAK", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) + (256 << 20))
    assert fuzz.main() == 0
    printed = capsys.readouterr().out
    assert "2500 mutants, every one answered" in printed
    outcomes = {line.strip().partition(" ")[2] for line in printed.splitlines()}
    assert {"elf: read", "elf: error", "dlopen: loads", "fatbin: read by magic", "fatbin: read by sections"} <= outcomes
    assert any(outcome.startswith("cache: ") and outcome.endswith("names found") for outcome in outcomes)


def test_lines_of_functions_are_counted(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "X = 1\n\n\ndef f(a):\n    if a:\n        return [\n            1,\n        ]\n"
    )
    lines = fuzz.lines_of(tmp_path / "module.py")
    assert {5, 6} <= lines <= {5, 6, 7}


# -- ld.so.cache

NAMES = st.text("ab019._-", min_size=1, max_size=12).map(str.encode)


@SMALL
@given(first=NAMES, second=NAMES)
def test_order_of_names_is_antisymmetric(first: bytes, second: bytes) -> None:
    one, other = compare_names(first, second), compare_names(second, first)
    assert (one == 0) == (other == 0)
    if not any(c in b"-._" for c in first + second):  # below digits and letters the C code is not symmetric either
        assert (one > 0) == (other < 0)


def test_order_of_names_is_numeric() -> None:
    assert compare_names(b"libz.so.9", b"libz.so.10") < 0
    assert compare_names(b"libz.so.10", b"libz.so.9") > 0
    assert compare_names(b"libz.so.1", b"libz.so.01") == 0
    assert compare_names(b"libz.so", b"libz.so.1") < 0


@pytest.mark.skipif(not Path("/etc/ld.so.cache").exists(), reason="this system has no ld.so.cache")
def test_every_entry_of_this_system_is_found() -> None:
    command = shutil.which("ldconfig", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert command is not None
    listed = subprocess.run([command, "-p"], capture_output=True, text=True, timeout=30, check=True).stdout
    first: dict[str, str] = {}
    for line in listed.splitlines()[1:]:
        name, _, rest = line.strip().partition(" (")
        kind, _, path = rest.partition(") => ")
        if kind == "libc6,x86-64":
            first.setdefault(name, path)
    cache = Cache(Root(), "/etc/ld.so.cache", LIBC.rules)
    assert len(first) > 10
    assert {name: cache.lookup(name) for name in first} == first
    assert cache.lookup("libnone.so.99") is None
    cache.close()


def build_cache(entries: list[tuple[bytes, bytes, int]], names: list[bytes]) -> bytes:
    """Return a cache with the glibc-hwcaps extension; ENTRIES in the descending order that ldconfig writes."""
    start = 48 + 24 * len(entries)
    strings = b""
    at: dict[bytes, int] = {}
    for text in [text for name, path, _ in entries for text in (name, path)] + names:
        if text not in at:
            at[text] = start + len(strings)
            strings += text + b"\0"
    extension = start + len(strings) + 7 & -8
    table = b"".join(struct.pack("<iIIIQ", 0x303, at[n], at[p], 0, wanted) for n, p, wanted in entries)
    head = b"glibc-ld.so.cache1.1" + struct.pack("<IIB3xI12x", len(entries), len(strings), 2, extension)
    offsets = b"".join(struct.pack("<I", at[name]) for name in names)
    tail = struct.pack("<IIIIII", 0xEAA42174, 1, 1, 0, extension + 24, len(offsets)) + offsets
    return (head + table + strings).ljust(extension, b"\0") + tail


@pytest.mark.parametrize(
    ("active", "found"),
    [(("x86-64-v4", "x86-64-v3"), "/v4/l"), (("x86-64-v3",), "/v3/l"), ((), "/l")],
)
def test_best_subdirectory_of_a_cache(tmp_path: Path, active: tuple[str, ...], found: str) -> None:
    extended = 1 << 62
    entries = [(b"l.so", b"/v3/l", extended), (b"l.so", b"/v4/l", extended | 1), (b"l.so", b"/l", 0)]
    (tmp_path / "cache").write_bytes(build_cache(entries, [b"x86-64-v3", b"x86-64-v4"]))
    cache = Cache(Root(), str(tmp_path / "cache"), rules_for(NEWEST), active)
    assert cache.why == ""
    assert cache.lookup("l.so") == found
    cache.close()


@SMALL
@given(content=st.binary(max_size=400), name=st.text(max_size=8))
def test_a_hostile_cache_finds_something_or_nothing(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / "cache").write_bytes(b"glibc-ld.so.cache1.1" + struct.pack("<I", len(content) // 24) + content)
    cache = Cache(Root(), str(tmp_path / "cache"), LIBC.rules, LIBC.hwcaps)
    assert cache.lookup(name) is None or cache.entries
    cache.close()


# -- facts of the loader, rules, mounts


def test_facts_from_the_file_are_those_that_the_loader_tells() -> None:
    asked = host_loader()
    assert asked.source == "--list-diagnostics"
    read = host_loader(root=Root("/proc/self/root"))  # another root: nothing is run
    assert read.source == "file"
    same = ("version", "directories", "hwcaps", "isa", "library", "subdirectories")
    assert {name: getattr(read, name) for name in same} == {name: getattr(asked, name) for name in same}


def test_masked_capabilities_show() -> None:
    if "x86-64-v3" not in LIBC.hwcaps:
        pytest.skip("this CPU has no x86-64-v3")
    masked = host_loader(tunables="glibc.cpu.hwcaps=-AVX2")
    assert "x86-64-v3" not in masked.hwcaps


V2, V3 = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
HASWELL = f"vendor_id : GenuineIntel\nflags : {V2} {V3}\n"
SKYLAKE_X = f"vendor_id : GenuineIntel\nflags : {V2} {V3} avx512f avx512bw avx512cd avx512dq avx512vl\n"


def old_loader(directory: Path, name: str, *strings: bytes) -> str:
    """Write what the fallback reads of a loader: its name, and its constants with the default directories."""
    constants = (b"", b"library path", b"/lib/x86_64-linux-gnu/", b"/usr/lib/x86_64-linux-gnu/", b"/lib/", b"/usr/lib/")
    (directory / name).write_bytes(b"\x7fELF" + b"\0".join((*constants, b"", *strings)) + b"\0")
    (directory / name).chmod(0o755)
    return str(directory / name)


@pytest.mark.parametrize(
    ("name", "strings", "version", "cpu", "hwcaps", "platform"),
    [
        ("ld-2.28.so", (), (2, 28), HASWELL, (), "haswell"),
        ("ld-2.31.so", (), (2, 31), SKYLAKE_X, (), "haswell"),
        (
            "ld-linux-x86-64.so.2",
            (b"ld.so (GNU libc) stable release version 2.33.\n",),
            (2, 33),
            HASWELL,
            (3, 2),
            "haswell",
        ),
        (
            "ld-linux-x86-64.so.2",
            (b"GNU C Library (GNU libc) stable release version 2.27.",),
            (2, 27),
            "",
            (),
            "x86_64",
        ),
    ],
)
def test_facts_of_loaders_that_cannot_be_asked(
    tmp_path: Path,
    name: str,
    strings: tuple[bytes, ...],
    version: tuple[int, int],
    cpu: str,
    hwcaps: tuple[int, ...],
    platform: str,
) -> None:
    """glibc before 2.34 has no --list-diagnostics: the file tells, and /proc/cpuinfo."""
    (tmp_path / "cpuinfo").write_text(cpu)
    found = host_loader(old_loader(tmp_path, name, *strings), cpuinfo=str(tmp_path / "cpuinfo"))
    assert (found.source, found.version, found.platform) == ("file", version, platform)
    assert found.directories == ("/lib/x86_64-linux-gnu/", "/usr/lib/x86_64-linux-gnu/", "/lib/", "/usr/lib/")
    assert found.library == "lib/x86_64-linux-gnu"
    assert found.hwcaps == tuple(f"x86-64-v{level}" for level in hwcaps)
    assert found.rules == rules_for(version)
    legacy = [place for place in found.subdirectories if place and not place.startswith("glibc-hwcaps/")]
    assert legacy[0] == ("tls/haswell/avx512_1/x86_64/" if cpu == SKYLAKE_X else f"tls/{platform}/x86_64/")


def test_a_backported_tunable_is_seen_in_the_file(tmp_path: Path) -> None:
    assert not host_loader(old_loader(tmp_path, "ld-2.31.so")).rules.surplus_tunables
    assert host_loader(old_loader(tmp_path, "ld-2.31.so", b"optional_static_tls")).rules.surplus_tunables


@pytest.mark.parametrize("script", ["exit 1", "echo 'cannot open --list-diagnostics' >&2; exit 127", "exec sleep 60"])
def test_a_loader_that_gives_no_answer_is_read_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """What glibc 2.33 does with an option that it does not know, and a loader that never ends."""
    monkeypatch.setattr("pytest_gpudiscovery.loader.hostld.ANSWER_SECONDS", 0.3)
    path = tmp_path / "ld-2.32.so"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    found = host_loader(str(path))
    assert (found.source, found.version, found.directories) == ("file", (2, 32), ("/lib64/", "/usr/lib64/"))


@pytest.mark.parametrize("path", ["/lib/ld-musl-x86_64.so.1", "/nonexistent/ld.so", "/etc/hostname"])
def test_what_is_no_glibc_is_said(path: str) -> None:
    with pytest.raises(Refused) as refused:
        host_loader(path)
    assert refused.value.kind == "unsupported"


def test_order_of_legacy_directories() -> None:
    names = legacy_subdirectories(0b10, "haswell")
    assert names[:3] == ["tls/haswell/x86_64/", "tls/haswell/", "tls/x86_64/"]
    assert names[-1] == "x86_64/"
    assert len(names) == 7


@given(text=st.text(max_size=200))
def test_any_text_is_parsed(text: str) -> None:
    parse_diagnostics(text)
    parse_mountinfo(text)
    parse_architectures(text.encode("utf-8", "surrogatepass"))


def test_rules_change_in_order() -> None:
    versions = [since for since, _ in CHANGES]
    assert versions == sorted(versions)
    assert versions[0] > OLDEST
    assert versions[-1] <= NEWEST
    assert rules_for((2, 28)).legacy_hwcaps
    assert not rules_for((2, 28)).refuses_pie
    assert rules_for((2, 99)) == rules_for(NEWEST)
    assert rules_for((2, 40)).unversioned_aborts
    assert not rules_for((2, 41)).unversioned_aborts


def test_the_innermost_and_latest_mount_counts(tmp_path: Path) -> None:
    lines = [
        "22 1 0:1 / / rw - ext4 /dev/vda rw",
        "23 22 0:2 / /mnt rw,noexec - nfs4 server:/x rw",
        "24 22 0:3 / /mnt rw - fuse.sshfs x rw",
        "25 22 0:4 / /mnt/with\\040space rw - autofs x rw",
        "malformed",
    ]
    table = tmp_path / "mountinfo"
    table.write_text("\n".join(lines))
    mounts = Mounts(str(table))
    assert mounts.of("/usr/lib/x.so")[0] == "ext4"
    assert mounts.of("/mnt/x.so")[0] == "fuse.sshfs"
    assert mounts.of("/mnt/with space/x.so")[0] == "autofs"
    assert mounts.of("/mntx")[0] == "ext4"
    assert [kind for kind in ("nfs", "fuse.sshfs", "ext4", "9p", "overlay", "cifs") if may_block(kind)] == [
        "nfs",
        "fuse.sshfs",
        "9p",
        "cifs",
    ]


LISTS = re.compile(rb"\0((?:\d{3,4},){1,63}\d{3,4})(?=\0)|ARCHS = ((?:\d{3,4},){0,63}\d{3,4})")


@given(
    st.lists(
        st.sampled_from([b"\0", b"0,", b"500", b"610,", b"7", b"900", b"1200", b",", b"ARCHS = ", b"x"]), max_size=40
    )
)
def test_the_quick_search_for_architectures_finds_what_a_regular_expression_does(parts: list[bytes]) -> None:
    data = b"".join(parts)
    expected: tuple[int, ...] = ()
    for found in LISTS.finditer(data):
        numbers = [int(part) for part in (found[1] or found[2]).split(b",")]
        if numbers == sorted(numbers) and all(number % 10 == 0 and number >= 200 for number in numbers):
            expected = tuple(number // 10 for number in numbers)
            break
    assert parse_architectures(data) == expected


def test_architectures_of_no_library() -> None:
    assert read_architectures("/nonexistent") == ()
    assert parse_architectures(b"system_info: CUDA : ARCHS = 500,610,900 | USE_GRAPHS = 1") == (50, 61, 90)
    assert parse_architectures(b"CUDA : ARCHS = 900 | x") == (90,)
    assert parse_architectures(b"\x00750,800,900\x00") == (75, 80, 90)
    assert parse_architectures(b"\x00204\x00\x00750,700\x00") == ()
