"""What a Closure tells beyond the outcome: candidates, shadows, consequences, copies, other roots; and how it is
rendered.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_gpudiscovery.loader import Image, Images, ProcessModel, predict, will_run
from pytest_gpudiscovery.loader.hostld import host_loader
from pytest_gpudiscovery.loader.record import dataclass, plain
from pytest_gpudiscovery.loader.render import closure_json, closure_text, explain_text, images_json, images_text
from tests.loader.oracle import NEW, Builder

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def build(tmp_path: Path) -> Builder:
    return Builder(tmp_path, "")


def test_candidates_and_shadows_are_told(build: Builder) -> None:
    for place in ("b", "c", "d"):
        build.library(f"{place}/libd.so")
    (build / "a").mkdir()
    (build / "a/libd.so").symlink_to("gone")
    root = build.library("root.so", needs=("b/libd.so",), flags=(NEW, f"-Wl,-rpath,{build / 'd'}"))
    path = ":".join(["/nonexistent", *(str(build / place) for place in "abc")])
    closure = predict(root, env={"LD_LIBRARY_PATH": path})
    found = closure.of("libd.so")
    assert found is not None
    assert found.path == str(build / "b/libd.so")
    assert found.rule == "LD_LIBRARY_PATH"
    assert found.requester == root
    verdicts = [(tried.path.removeprefix(str(build.directory)), tried.verdict) for tried in found.tried]
    assert ("/a/libd.so", "No such file or directory") in verdicts
    assert verdicts[-1] == ("/b/libd.so", "used")
    assert ("/nonexistent/", "no such directory") in verdicts
    assert [item[0] for item in found.shadows] == [str(build / "c/libd.so"), str(build / "d/libd.so")]
    assert found.shadows[-1][1] == f"DT_RUNPATH of {root}"


def test_all_missing_files_are_told_and_their_symbols_follow(build: Builder) -> None:
    build.library("z/libp.so", "int p(void) { return 1; }")
    build.library("z/libq.so", "int q(void) { return 1; }")
    source = "int p(void); int q(void); int f(void) { return p() + q(); }"
    root = build.library("root.so", source, needs=("z/libp.so", "z/libq.so"))
    closure = predict(root, env={})
    assert closure.outcome == "error"
    assert closure.message == "libp.so: cannot open shared object file: No such file or directory"
    assert closure.missing == ("libp.so", "libq.so")
    assert [(item.kind, item.follows) for item in closure.problems] == [
        ("file", False),
        ("file", False),
        ("symbol", True),
        ("symbol", True),
    ]


def test_every_missing_symbol_and_version_is_told(build: Builder) -> None:
    source = "int p(void); int q(void); int f(void) { return p() + q(); }"
    closure = predict(build.library("root.so", source), env={})
    assert [item.text.partition(": ")[2] for item in closure.problems] == ["undefined symbol: p", "undefined symbol: q"]


def test_facts_of_objects(build: Builder) -> None:
    source = "__attribute__((constructor)) static void c(void) {} __thread int t; int *f(void) { return &t; }"
    root = build.library("lib/libfacts.so.1", source)
    closure = predict(root, env={})
    assert closure.loads
    item = closure.objects[0]
    assert (item.soname, item.path, item.rule) == ("libfacts.so.1", root, "path")
    assert item.constructors >= 2  # DT_INIT or frame_dummy, and ours
    assert item.tls_size == 4
    assert not item.executable_stack
    assert not item.truncated
    assert item.size == os.stat(root).st_size
    assert 0 < item.cold_bytes <= item.size
    assert item.file_system
    assert closure.address_space >= item.span
    assert [found.path for found in closure.outside((str(build / "lib"),))] == []
    assert [found.path for found in closure.outside(("/usr",))] == [root]


def test_two_copies_under_two_names_are_told(build: Builder) -> None:
    build.library("z/libcudart.so.12")
    build.library("z/libcudart.so.13")
    root = build.library("root.so", needs=("z/libcudart.so.12", "z/libcudart.so.13"))
    closure = predict(root, env={"LD_LIBRARY_PATH": str(build / "z")})
    assert closure.duplicates == ((str(build / "z/libcudart.so.12"), str(build / "z/libcudart.so.13")),)


def test_bindings_name_the_defining_file(build: Builder) -> None:
    build.library("z/libp.so", "int p(void) { return 1; }")
    source = "int p(void); __attribute__((weak)) int w(void); int f(void) { return p() + (w ? w() : 0); }"
    root = build.library("root.so", source, needs=("z/libp.so",))
    closure = predict(root, env={"LD_LIBRARY_PATH": str(build / "z")}, bindings=True)
    found = {symbol: path for requester, symbol, _, path in closure.bindings if requester == root}
    assert found["p"] == str(build / "z/libp.so")
    assert found["w"] == ""
    assert predict(root, env={"LD_LIBRARY_PATH": str(build / "z")}).bindings == ()


def test_another_root(build: Builder) -> None:
    """An unpacked container: its own libc, loader and links, nothing of this host."""
    root = build / "root"
    libc = Path(os.path.realpath(predict("libm.so.6", env={}).process[-1]))
    loader = Path(os.path.realpath("/lib64/ld-linux-x86-64.so.2"))
    (root / "lib64").mkdir(parents=True)
    shutil.copy(loader, root / "lib64/ld-linux-x86-64.so.2")
    shutil.copy(libc, root / "lib64/real-libc.so")
    library = build.library("root/opt/libx.so")
    dependency = predict(library.removeprefix(str(root)), env={"LD_LIBRARY_PATH": "/lib64"}, root=str(root))
    assert dependency.outcome == "no start"
    assert "libc.so.6: cannot open shared object file" in dependency.message
    (root / "lib64/libc.so.6").symlink_to("/lib64/real-libc.so")
    closure = predict("/opt/libx.so", env={"LD_LIBRARY_PATH": "/lib64"}, root=str(root))
    assert closure.loads, closure.message
    assert closure.loader is not None
    assert closure.loader.source == "file"
    assert [item.path for item in closure.objects] == ["/opt/libx.so"]


@pytest.mark.parametrize("exe", ["/nonexistent/program", "/etc/hostname", "/etc"])
def test_a_program_that_cannot_be_is_an_answer(exe: str) -> None:
    closure = predict("libm.so.6", env={}, exe=exe)
    assert not closure.loads
    assert closure.message
    assert closure.problems[0].kind == "process"


def test_a_program_whose_loader_is_gone_or_another_machines_does_not_start(build: Builder) -> None:
    (build / "ld.so").write_bytes(Path("/lib64/ld-linux-x86-64.so.2").read_bytes())
    build.patch("ld.so", 18, b"\xb7\0")  # EM_AARCH64
    for interpreter, reason in ((build / "ld.so", "aarch64"), (build / "gone.so", "No such file")):
        program = build.executable("program", f"-Wl,--dynamic-linker={interpreter}")
        closure = predict("libm.so.6", env={}, exe=program, loader=host_loader())
        assert closure.outcome == "no start"
        assert reason in closure.message
        assert not predict("libm.so.6", env={}, exe=program).loads


def test_a_static_program_has_no_dlopen(build: Builder) -> None:
    (build / "m.c").write_text("void _start(void) { for (;;) {} }")
    build.cc("-static", "-nostdlib", "-o", "program", "m.c")
    assert predict("libm.so.6", env={}, exe=str(build / "program")).outcome == "unsupported"


def test_musl_is_recognised(build: Builder) -> None:
    program = build.executable("program", "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1")
    closure = predict("libm.so.6", env={}, exe=program)
    assert closure.outcome == "unsupported"
    assert "musl" in closure.message
    assert closure_text(closure).splitlines() == [f"libm.so.6: unsupported: {closure.message}"]


def test_preload_complaints_do_not_decide(build: Builder) -> None:
    closure = predict(build.library("root.so"), env={"LD_PRELOAD": "/nonexistent/x.so"})
    assert closure.loads
    assert closure.problems[0].kind == "preload"
    assert "cannot be preloaded (cannot open shared object file" in closure.problems[0].text


def test_the_environment_is_ignored_by_a_secure_program(build: Builder) -> None:
    build.library("z/libp.so")
    root = build.library("root.so", needs=("z/libp.so",))
    env = {"LD_LIBRARY_PATH": str(build / "z"), "LD_PRELOAD": str(build / "z/libp.so")}
    assert predict(root, env=env).loads
    assert not predict(root, env=env, process=ProcessModel(secure=True)).loads


def test_rendering_puts_problems_first(build: Builder) -> None:
    build.library("z/libp.so", "int p(void) { return 1; }")
    source = "int p(void); int f(void) { return p(); }"
    root = build.library("root.so", source, needs=("z/libp.so",))
    text = closure_text(predict(root, env={}))
    lines = text.splitlines()
    assert lines[0].startswith(f"{root}: error: libp.so: cannot open")
    assert "  problem: libp.so: cannot open shared object file: No such file or directory   (for root.so)" in lines
    assert "  1 symbols or versions are missing because of it" in lines
    assert any(line.startswith(f"root.so => {root}   [path, ") and line.endswith(" kB]") for line in lines)
    assert "  libp.so => NOT FOUND   [not found]" in lines


def test_a_file_that_is_there_but_not_taken_is_said(build: Builder) -> None:
    """ld.so's own words are "No such file or directory"."""
    build.library("z/libp.so")
    root = build.library("root.so", needs=("z/libp.so",))
    build.patch("z/libp.so", 18, b"\xb7\0")
    lines = closure_text(predict(root, env={"LD_LIBRARY_PATH": str(build / "z")})).splitlines()
    assert f"    passed over: {build / 'z/libp.so'}: built for another machine: aarch64" in lines
    assert "  libp.so => NOT USABLE   [not found]" in lines
    for offset, content, words in ((4, b"\1", "wrong ELF class: ELFCLASS32"), (5, b"\2", "not little-endian")):
        alone = build.library("alone.so")
        build.patch("alone.so", offset, content)
        text = closure_text(predict(alone, env={}))
        assert words in text.splitlines()[0]
        assert "=>" not in text  # no tree of one file that is refused


def test_the_tree_shows_each_file_where_it_was_mapped(build: Builder) -> None:
    """Breadth first: root's own request maps libq.so, although libp.so needs it too and comes first."""
    build.library("z/libq.so")
    build.library("z/libp.so", needs=("z/libq.so",))
    root = build.library("root.so", needs=("z/libp.so", "z/libq.so"))
    lines = closure_text(predict(root, env={"LD_LIBRARY_PATH": str(build / "z")})).splitlines()
    assert [line.partition(" => ")[0] for line in lines if " => " in line and "already" not in line] == [
        "root.so",
        "  libp.so",
        "  libq.so",
    ]
    assert any(line.startswith("already in the process: libc.so.6 => ") for line in lines)
    assert any(line.startswith("  3 new files, ") and "constructors would run" in line for line in lines)
    assert any(line.endswith("(--exe FILE: in that one)") for line in lines)


def test_explaining_leaves_out_what_is_nowhere(build: Builder) -> None:
    (build / "z").mkdir()
    build.library("y/libp.so")
    root = build.library("root.so", needs=("y/libp.so",), flags=(NEW, "-Wl,-rpath,:/y"))
    closure = predict(root, env={"LD_LIBRARY_PATH": str(build / "z")}, cwd=str(build / "z"))
    text = explain_text(closure, "libp")
    assert text.startswith("libp.so, asked for by root.so => NOT FOUND")
    assert "tried libp.so in the current directory (an empty element of the path)" in text
    assert "[DT_RUNPATH of root.so]" in text
    if closure.loader is not None and len(closure.loader.subdirectories) > 1:
        assert text.count("glibc-hwcaps/x86-64-v2/libp.so") == 0
        assert text.count("not there either: the capability subdirectories") == 1
    assert "was loaded before" in explain_text(closure, "libc.so.6")


def test_explaining_a_name(build: Builder) -> None:
    build.library("z/libp.so")
    build.library("y/libp.so")
    root = build.library("root.so", needs=("z/libp.so",))
    closure = predict(root, env={"LD_LIBRARY_PATH": f"{build / 'z'}:{build / 'y'}"})
    text = explain_text(closure, "libp.so")
    assert f"  would be next: {build / 'y/libp.so'}   [LD_LIBRARY_PATH]" in text.splitlines()
    assert "asked for by root.so" in text
    assert "nobody asks for it" in explain_text(closure, "libother.so")


def test_json_has_the_facts(build: Builder) -> None:
    closure = predict(build.library("root.so"), env={})
    found = json.loads(json.dumps(closure_json(closure)))
    assert found["loads"] is True
    assert found["objects"][0]["path"] == closure.library
    assert found["loader"]["version"] == list(closure.loader.version if closure.loader else ())
    images = Images("l.so", ((Image("ptx", 90, "a", (9, 0), "zstd", False),) * 2,), "sections", "")
    verdict = will_run(images, (9, 0), (13, 0), {"CUDA_MODULE_LOADING": "EAGER"})
    described = json.loads(json.dumps(images_json(images, verdict)))
    assert described["images"][0]["count"] == 2
    assert described["verdict"]["runs"] is True
    text = images_text(images, verdict, (90,))
    assert "STALLS" in text
    assert "2 x ptx compute_90a, PTX ISA 9.0, zstd" in text


def test_importing_is_cheap_and_needs_no_site() -> None:
    """The library travels into a child that runs python -I -S."""
    package = Path(__file__).resolve().parents[2]
    heavy = ("dataclasses", "re", "typing", "subprocess", "json", "pathlib", "enum", "inspect")
    code = (
        f"import sys; sys.path.insert(0, {str(package)!r}); import pytest_gpudiscovery.loader as l;"
        f"bad = [name for name in {heavy!r} if name in sys.modules]; assert not bad, bad;"
        "assert l.predict('libm.so.6', env={}).loads"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)


def test_memory_stays_small() -> None:
    package = Path(__file__).resolve().parents[2]
    code = (
        f"import sys; sys.path.insert(0, {str(package)!r}); import pytest_gpudiscovery.loader as l;"
        "assert l.predict('libstdc++.so.6', env={}).outcome in ('loads', 'error');"
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60, capture_output=True)
    assert int(done.stdout) < 20 << 10  # kilobytes


@dataclass(frozen=True)
class Pair:
    """A record for the test below."""

    left: int
    right: tuple[int, ...] = ()


def test_records_are_frozen_values() -> None:
    assert Pair(1, (2,)) == Pair(left=1, right=(2,))
    assert Pair(1) != Pair(2)
    assert hash(Pair(1)) == hash(Pair(1, ()))
    assert repr(Pair(1)) == "Pair(left=1, right=())"
    assert plain({"x": Pair(1, (2, 3))}) == {"x": {"left": 1, "right": [2, 3]}}
    with pytest.raises(AttributeError, match="frozen"):
        Pair(1).left = 2  # type: ignore[misc]
    with pytest.raises(TypeError, match="required"):
        Pair()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected"):
        Pair(1, (), 3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected"):
        Pair(1, left=1)  # type: ignore[misc]
