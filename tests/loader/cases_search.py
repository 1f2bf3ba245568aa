"""Where a name is searched: paths, tokens, caches, subdirectories, the order of requests."""

from __future__ import annotations

import os

from tests.loader.oracle import NEW, OLD, Builder, Case


def rpath(value: str, tag: str = NEW) -> tuple[str, str]:
    """Linker flags for a DT_RUNPATH (NEW) or DT_RPATH (OLD)."""
    return (tag, f"-Wl,-rpath,{value}")


def runpath_not_inherited(b: Builder) -> Case:
    b.library("a/libc1.so")
    b.library("a/libb.so", needs=("a/libc1.so",), flags=(NEW,))
    return Case(b.library("root.so", needs=("a/libb.so",), flags=rpath("$ORIGIN/a")), loads=False)


def rpath_inherited(b: Builder) -> Case:
    b.library("a/libc1.so")
    b.library("a/libb.so", needs=("a/libc1.so",), flags=(NEW,))
    return Case(b.library("root.so", needs=("a/libb.so",), flags=rpath("$ORIGIN/a", OLD)), loads=True)


def rpath_inherited_over_two_generations(b: Builder) -> Case:
    b.library("a/libd1.so")
    b.library("a/libc1.so", needs=("a/libd1.so",))
    b.library("a/libb.so", needs=("a/libc1.so",))
    return Case(b.library("root.so", needs=("a/libb.so",), flags=rpath("$ORIGIN/a", OLD)), loads=True)


def rpath_of_the_nearest_ancestor_first(b: Builder) -> Case:
    b.library("a/libd1.so")
    b.library("z/libd1.so")
    b.library("a/libb.so", needs=("a/libd1.so",), flags=rpath("$ORIGIN/../z", OLD))
    return Case(b.library("root.so", needs=("a/libb.so",), flags=rpath("$ORIGIN/a", OLD)), loads=True)


def rpath_beats_library_path(b: Builder) -> Case:
    """As libcublas.so.12 (DT_RPATH $ORIGIN) finds libcublasLt.so.12."""
    b.library("a/libd.so")
    b.library("b/libd.so")
    root = b.library("root.so", needs=("a/libd.so",), flags=rpath("$ORIGIN/a", OLD))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "b")}, loads=True)


def library_path_beats_runpath(b: Builder) -> Case:
    """As libggml-cuda.so (DT_RUNPATH $ORIGIN) finds libcublas.so.12."""
    b.library("a/libd.so")
    b.library("b/libd.so")
    root = b.library("root.so", needs=("a/libd.so",), flags=rpath("$ORIGIN/a"))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "b")}, loads=True)


def runpath_cancels_parents_rpath(b: Builder) -> Case:
    b.library("a/libc1.so")
    b.library("a/libb.so", needs=("a/libc1.so",), flags=rpath("/nonexistent"))
    return Case(b.library("root.so", needs=("a/libb.so",), flags=rpath("$ORIGIN/a", OLD)), loads=False)


def library_path_order(b: Builder) -> Case:
    """A stale libcudart in lib/ollama shadows the one in lib/ollama/cuda_v12."""
    b.library("lib/libcudart.so.12")
    b.library("lib/cuda_v12/libcudart.so.12")
    root = b.library("lib/cuda_v12/root.so", needs=("lib/cuda_v12/libcudart.so.12",), flags=rpath("$ORIGIN"))
    return Case(root, {"LD_LIBRARY_PATH": f"{b / 'lib'}:{b / 'lib/cuda_v12'}"}, loads=True)


def library_path_semicolon(b: Builder) -> Case:
    b.library("z/libe.so")
    return Case(b.library("root.so", needs=("z/libe.so",)), {"LD_LIBRARY_PATH": f"/nope;{b / 'z'}"}, loads=True)


def runpath_semicolon_is_a_character(b: Builder) -> Case:
    b.library("z/libe.so")
    return Case(b.library("root.so", needs=("z/libe.so",), flags=rpath(f"/nope;{b / 'z'}")), loads=False)


def library_path_trailing_slashes(b: Builder) -> Case:
    b.library("z/libe.so")
    return Case(b.library("root.so", needs=("z/libe.so",)), {"LD_LIBRARY_PATH": f"{b / 'z'}///"}, loads=True)


def library_path_empty_is_no_path(b: Builder) -> Case:
    b.library("cwd/libe.so")
    root = b.library("root.so", needs=("cwd/libe.so",))
    return Case(root, {"LD_LIBRARY_PATH": ""}, cwd=str(b / "cwd"), loads=False)


def library_path_empty_element_is_cwd(b: Builder) -> Case:
    b.library("cwd/libe.so")
    b.library("z/libe.so")
    root = b.library("root.so", needs=("z/libe.so",))
    return Case(root, {"LD_LIBRARY_PATH": f":{b / 'z'}"}, cwd=str(b / "cwd"), loads=True)


def library_path_relative(b: Builder) -> Case:
    b.library("cwd/sub/libe.so")
    root = b.library("root.so", needs=("cwd/sub/libe.so",))
    return Case(root, {"LD_LIBRARY_PATH": "sub"}, cwd=str(b / "cwd"), loads=True)


def origin_of_a_library_found_by_a_relative_path(b: Builder) -> Case:
    b.library("cwd/sub/deep/libf.so")
    b.library("cwd/sub/libe.so", needs=("cwd/sub/deep/libf.so",), flags=rpath("$ORIGIN/deep"))
    root = b.library("root.so", needs=("cwd/sub/libe.so",))
    return Case(root, {"LD_LIBRARY_PATH": "sub"}, cwd=str(b / "cwd"), loads=True)


def runpath_trailing_colon_is_cwd(b: Builder) -> Case:
    """The libggml-cuda.so that npm ships has DT_RUNPATH "$ORIGIN:"."""
    b.library("cwd/libe.so")
    return Case(b.library("root.so", needs=("cwd/libe.so",), flags=rpath("$ORIGIN:")), cwd=str(b / "cwd"), loads=True)


def needed_with_slash(b: Builder) -> Case:
    """A library without DT_SONAME linked by a relative path: DT_NEEDED "sub/libz1.so", relative to the working
    directory.
    """
    b.library("sub/libz1.so", soname="")
    b.library("x/libz1.so")
    b.copy("sub/libz1.so", "other/sub/libz1.so")
    (b / "r.c").write_text("int r;")
    b.cc("-shared", "-fPIC", "-o", "root.so", "r.c", "-Wl,--no-as-needed", "sub/libz1.so")
    return Case(str(b / "root.so"), {"LD_LIBRARY_PATH": str(b / "x")}, cwd=str(b / "other"), loads=True)


def needed_with_origin(b: Builder) -> Case:
    b.library("sub/libz1.so", soname="$ORIGIN/sub/libz1.so")
    return Case(b.library("root.so", needs=("sub/libz1.so",)), loads=True)


def token_lib(b: Builder) -> Case:
    for place in ("lib", "lib64", "lib/x86_64-linux-gnu"):
        b.library(f"{place}/libt.so")
    root = b.library("root.so", needs=("lib/libt.so",), flags=rpath("$ORIGIN/$LIB:$ORIGIN/lib64"))
    return Case(root, loads=True)


def token_platform_in_braces(b: Builder) -> Case:
    for place in ("x86_64", "haswell", "xeon_phi"):
        b.library(f"{place}/libt.so")
    return Case(b.library("root.so", needs=("x86_64/libt.so",), flags=rpath("${ORIGIN}/${PLATFORM}")), loads=True)


def token_with_more_letters_is_none(b: Builder) -> Case:
    b.library("$ORIGINAL/libt.so")
    b.copy("$ORIGINAL/libt.so", "AL/libt.so")
    return Case(b.library("root.so", needs=("$ORIGINAL/libt.so",), flags=rpath(f"{b.directory}/$ORIGINAL")), loads=True)


def token_with_open_brace_is_none(b: Builder) -> Case:
    b.library("${ORIGIN/libt.so")
    return Case(b.library("root.so", needs=("${ORIGIN/libt.so",), flags=rpath(f"{b.directory}/${{ORIGIN")), loads=True)


def token_twice(b: Builder) -> Case:
    b.library("a/libt.so")
    return Case(b.library("root.so", needs=("a/libt.so",), flags=rpath("$ORIGIN$ORIGIN:$ORIGIN/a")), loads=True)


def origin_keeps_symlinks(b: Builder) -> Case:
    b.library("real/libdep.so")
    b.library("link/libdep.so")
    b.library("real/root.so", needs=("real/libdep.so",), flags=rpath("$ORIGIN"))
    os.symlink("../real/root.so", b / "link/root.so")
    return Case(str(b / "link/root.so"), loads=True)


def origin_in_library_path_is_the_executables(b: Builder) -> Case:
    b.library("z/libe.so")
    root = b.library("root.so", needs=("z/libe.so",))
    return Case(root, {"LD_LIBRARY_PATH": "$ORIGIN"}, exe=b.executable("z/probe"), loads=True)


def origin_of_the_executable_resolves_symlinks(b: Builder) -> Case:
    b.library("z/libe.so")
    b.executable("z/probe")
    (b / "bin").mkdir()
    os.symlink("../z/probe", b / "bin/probe")
    root = b.library("root.so", needs=("z/libe.so",))
    return Case(root, {"LD_LIBRARY_PATH": "$ORIGIN"}, exe=str(b / "bin/probe"), loads=True)


def hwcaps_subdirectory(b: Builder) -> Case:
    b.library("z/libh.so")
    for level in ("v2", "v3", "v4"):
        b.library(f"z/glibc-hwcaps/x86-64-{level}/libh.so")
    return Case(b.library("root.so", needs=("z/libh.so",)), {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def hwcaps_masked_by_tunable(b: Builder) -> Case:
    b.library("z/libh.so")
    b.library("z/glibc-hwcaps/x86-64-v3/libh.so")
    env = {"LD_LIBRARY_PATH": str(b / "z"), "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2_Usable,-AVX2"}
    return Case(b.library("root.so", needs=("z/libh.so",)), env, loads=True)


def hwcaps_in_a_later_directory(b: Builder) -> Case:
    b.library("y/libh.so")
    b.library("z/glibc-hwcaps/x86-64-v2/libh.so")
    env = {"LD_LIBRARY_PATH": f"{b / 'y'}:{b / 'z'}"}
    return Case(b.library("root.so", needs=("y/libh.so",)), env, loads=True)


def legacy_tls_directory(b: Builder) -> Case:
    """glibc until 2.36."""
    b.library("z/libh.so")
    b.library("z/tls/libh.so")
    b.library("z/x86_64/libh.so")
    return Case(b.library("root.so", needs=("z/libh.so",)), {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def legacy_platform_directory(b: Builder) -> Case:
    b.library("z/libh.so")
    b.library("z/x86_64/x86_64/libh.so")
    b.library("z/x86_64/libh.so")
    return Case(b.library("root.so", needs=("z/libh.so",)), {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def no_default_libraries(b: Builder) -> Case:
    source = "int zlibVersion(void); int f(void) { return zlibVersion(); }"
    root = b.library("root.so", source, flags=("-Wl,-z,nodefaultlib", "-l:libz.so.1", "-nostdlib"))
    return Case(root, loads=False)


def _cached(b: Builder, cache: bool) -> Case:
    b.library("conf/libk.so")
    (b / "ld.so.conf").write_text(f"{b / 'conf'}\ninclude /etc/ld.so.conf.d/*.conf\n")
    root = b.library("root.so", needs=("conf/libk.so",))
    if not cache:
        return Case(root, mounts=f"mount --bind {b / 'ld.so.conf'} /etc/ld.so.conf", loads=False)
    b.ldconfig("ld.so.conf", "cache")
    return Case(root, mounts=f"mount --bind {b / 'cache'} /etc/ld.so.cache", loads=True)


def configured_directory_without_ldconfig(b: Builder) -> Case:
    return _cached(b, cache=False)


def cache_alone(b: Builder) -> Case:
    return _cached(b, cache=True)


def cache_entry_of_the_other_class(b: Builder) -> Case:
    case = _cached(b, cache=True)
    b.patch("conf/libk.so", 4, b"\1")
    return Case(case.library, mounts=case.mounts, loads=False)


def cache_entry_whose_file_is_gone(b: Builder) -> Case:
    case = _cached(b, cache=True)
    (b / "conf/libk.so").unlink()
    return Case(case.library, mounts=case.mounts, loads=False)


def cache_with_hwcaps(b: Builder) -> Case:
    for level in ("v2", "v3", "v4"):
        b.library(f"conf/glibc-hwcaps/x86-64-{level}/libk.so")
    return _cached(b, cache=True)


def cache_with_numbers_in_names(b: Builder) -> Case:
    for number in (1, 2, 9, 10, 11, 12, 100):
        b.library(f"conf/libk.so.{number}")
    b.library("conf/libk10.so.2")
    case = _cached(b, cache=True)
    root = b.library("root2.so", needs=("conf/libk.so.10", "conf/libk.so.9", "conf/libk10.so.2", "conf/libk.so.100"))
    return Case(root, mounts=case.mounts, loads=True)


def cache_that_is_no_cache(b: Builder) -> Case:
    (b / "cache").write_text("glibc-ld.so.cache1.1 of another kind\n")
    b.library("conf/libk.so")
    root = b.library("root.so", needs=("conf/libk.so",))
    return Case(root, mounts=f"mount --bind {b / 'cache'} /etc/ld.so.cache", loads=False)


def breadth_before_depth(b: Builder) -> Case:
    """The second dependency's own search decides nothing: the first requester of a name does."""
    b.library("a/libx.so")
    b.library("b/libx.so")
    b.library("libp.so", needs=("a/libx.so",), flags=rpath(f"{b / 'a'}"))
    b.library("libq.so", needs=("libp.so",), flags=rpath(str(b.directory)))
    flags = rpath(f"{b.directory}:{b / 'b'}")
    return Case(b.library("root.so", needs=("libq.so", "b/libx.so"), flags=flags), loads=True)
