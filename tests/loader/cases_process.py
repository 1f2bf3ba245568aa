"""The state of the process: what is loaded, under which names, in which scope, by which executable."""

from __future__ import annotations

import os
import shutil

from tests.loader.oracle import NEW, OLD, Builder, Case

PROVIDER = "int prov(void) { return 1; }"
USER = "int prov(void); int f(void) { return prov(); }"


def soname_loaded_under_another_file_name(b: Builder) -> Case:
    b.library("a/libq.so.1")
    first = b.copy("a/libq.so.1", "renamed.so")
    root = b.library("root.so", needs=("a/libq.so.1",), flags=(NEW, "-Wl,-rpath,$ORIGIN/a"))
    return Case(root, opened=((first, False),), loads=True)


def soname_differs_from_the_name_asked_for(b: Builder) -> Case:
    b.library("b/libs.so.12")
    root = b.library("root.so", needs=("b/libs.so.12",))
    b.library("z/libs.so.12", soname="libs.so.13")
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def one_file_under_two_names(b: Builder) -> Case:
    b.library("z/liba1.so", soname="")
    os.link(b / "z/liba1.so", b / "z/liba2.so")
    (b / "r.c").write_text("int r;")
    words = ("-Wl,--no-as-needed", "-Lz", "-l:liba1.so", "-l:liba2.so")
    b.cc("-shared", "-fPIC", "-o", "root.so", "r.c", *words)
    return Case(str(b / "root.so"), {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def one_file_through_a_link(b: Builder) -> Case:
    b.library("z/libl.so")
    os.symlink("libl.so", b / "z/other.so")
    root = b.library("root.so", needs=("z/libl.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, opened=((str(b / "z/other.so"), False),), loads=True)


def two_copies_of_one_soname(b: Builder) -> Case:
    """A full path is compared by path and file, not by DT_SONAME."""
    b.library("a/libq.so.1")
    second = b.copy("a/libq.so.1", "b/libq.so.1")
    return Case(second, opened=((str(b / "a/libq.so.1"), False),), loads=True)


def library_opened_twice(b: Builder) -> Case:
    root = b.library("root.so")
    return Case(root, opened=((root, False),), loads=True)


def scope_local_hides(b: Builder) -> Case:
    first = b.library("prov.so", PROVIDER)
    return Case(b.library("root.so", USER), opened=((first, False),), loads=False)


def scope_global_gives(b: Builder) -> Case:
    """What Ollama's native probe does with libggml-base.so."""
    first = b.library("prov.so", PROVIDER)
    return Case(b.library("root.so", USER), opened=((first, True),), loads=True)


def scope_global_gives_dependencies_too(b: Builder) -> Case:
    b.library("prov.so", PROVIDER)
    first = b.library("first.so", needs=("prov.so",), flags=(NEW, "-Wl,-rpath,$ORIGIN"))
    return Case(b.library("root.so", USER), opened=((first, True),), loads=True)


def scope_promoted_afterwards(b: Builder) -> Case:
    first = b.library("prov.so", PROVIDER)
    return Case(b.library("root.so", USER), opened=((first, False), (first, True)), loads=True)


def scope_local_but_needed(b: Builder) -> Case:
    first = b.library("prov.so", PROVIDER)
    root = b.library("root.so", USER, needs=("prov.so",))
    return Case(root, opened=((first, False),), loads=True)


def opened_before_and_failed(b: Builder) -> Case:
    """What a failed dlopen mapped is gone again."""
    b.library("z/prov.so", PROVIDER)
    broken = b.library("broken.so", "int nowhere(void); int g(void) { return nowhere(); }", needs=("z/prov.so",))
    root = b.library("root.so", needs=("z/prov.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, opened=((broken, True),), loads=True)


def preload_has_the_soname(b: Builder) -> Case:
    b.library("z/libp.so")
    fake = b.library("fake.so", soname="libp.so")
    root = b.library("root.so", needs=("z/libp.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z"), "LD_PRELOAD": fake}, loads=True)


def preload_gives_a_symbol(b: Builder) -> Case:
    first = b.library("prov.so", PROVIDER)
    return Case(b.library("root.so", USER), {"LD_PRELOAD": first}, loads=True)


def preload_of_two(b: Builder) -> Case:
    first, second = b.library("first.so", "int one;"), b.library("second.so", PROVIDER)
    return Case(b.library("root.so", USER), {"LD_PRELOAD": f"{first}:{second}"}, loads=True)


def preload_by_name(b: Builder) -> Case:
    b.library("z/libprov.so", PROVIDER)
    env = {"LD_LIBRARY_PATH": str(b / "z"), "LD_PRELOAD": "libprov.so"}
    return Case(b.library("root.so", USER), env, loads=True)


def preload_that_is_missing(b: Builder) -> Case:
    return Case(b.library("root.so"), {"LD_PRELOAD": "/nonexistent/libz.so"}, loads=True)


def preload_of_the_whole_system(b: Builder) -> Case:
    first = b.library("prov.so", PROVIDER)
    (b / "preload").write_text(f"# a comment\n{first}\n")
    (b / "etc").mkdir()
    mounts = f"cp -a /etc/. {b / 'etc'}/; cp {b / 'preload'} {b / 'etc'}/ld.so.preload; mount --bind {b / 'etc'} /etc"
    return Case(b.library("root.so", USER), mounts=mounts, loads=True)


def executable_with_rpath(b: Builder) -> Case:
    b.library("z/libe.so")
    root = b.library("root.so", needs=("z/libe.so",), flags=(NEW,))
    return Case(root, exe=b.executable("probe", OLD, f"-Wl,-rpath,{b / 'z'}"), loads=True)


def executable_with_runpath(b: Builder) -> Case:
    b.library("z/libe.so")
    root = b.library("root.so", needs=("z/libe.so",), flags=(NEW,))
    return Case(root, exe=b.executable("probe", NEW, f"-Wl,-rpath,{b / 'z'}"), loads=False)


def executable_with_rpath_but_library_with_runpath(b: Builder) -> Case:
    b.library("z/libe.so")
    root = b.library("root.so", needs=("z/libe.so",), flags=(NEW, "-Wl,-rpath,/nonexistent"))
    return Case(root, exe=b.executable("probe", OLD, f"-Wl,-rpath,{b / 'z'}"), loads=False)


def executable_with_runpath_for_its_own_dlopen(b: Builder) -> Case:
    b.library("z/libe.so")
    return Case("libe.so", exe=b.executable("probe", NEW, "-Wl,-rpath,$ORIGIN/z"), loads=True)


def executable_that_has_the_library(b: Builder) -> Case:
    """llama-server is linked with libggml-base.so: the backend's request finds it by name."""
    b.library("z/libbase.so", PROVIDER)
    b.library("y/libbase.so", PROVIDER)
    root = b.library("root.so", USER, needs=("y/libbase.so",))
    program = b.executable("probe", NEW, f"-Wl,-rpath,{b / 'z'}", "-Wl,--no-as-needed", str(b / "z/libbase.so"))
    return Case(root, {}, exe=program, loads=True)


def executable_exports_a_symbol(b: Builder) -> Case:
    source = b / "program.c"
    shutil.copy(os.path.join(os.path.dirname(__file__), "probe.c"), source)
    with open(source, "a") as file:
        file.write("\nint prov(void) { return 3; }\n")
    return Case(b.library("root.so", USER), exe=b.executable("probe", "-rdynamic", source=source), loads=True)


def executable_keeps_a_symbol(b: Builder) -> Case:
    source = b / "program.c"
    shutil.copy(os.path.join(os.path.dirname(__file__), "probe.c"), source)
    with open(source, "a") as file:
        file.write("\nint prov(void) { return 3; }\n")
    return Case(b.library("root.so", USER), exe=b.executable("probe", source=source), loads=False)


def executable_at_a_fixed_address(b: Builder) -> Case:
    return Case(b.library("root.so"), exe=b.executable("probe", "-no-pie"), loads=True)


def executable_linked_with_a_stub_of_the_driver(b: Builder) -> Case:
    b.library("stubs/libcuda.so.1", "int cuInit(unsigned f) { return 34; }")
    b.library("real/libcuda.so.1", "int cuInit(unsigned f) { return 0; } int cuMemMap(void) { return 0; }")
    source = "int cuInit(unsigned); int cuMemMap(void); int f(void) { return cuInit(0) + cuMemMap(); }"
    root = b.library("root.so", source, needs=("real/libcuda.so.1",))
    return Case(root, {"LD_LIBRARY_PATH": f"{b / 'stubs'}:{b / 'real'}"}, loads=False)


def working_directory_holds_the_library(b: Builder) -> Case:
    b.library("cwd/libw.so")
    return Case("./libw.so", cwd=str(b / "cwd"), loads=True)


def dependency_loop(b: Builder) -> Case:
    b.library("z/libm1.so")
    b.library("z/libm2.so", needs=("z/libm1.so",))
    b.library("z/libm1.so", needs=("z/libm2.so",))
    root = b.library("root.so", needs=("z/libm1.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def library_that_needs_itself(b: Builder) -> Case:
    b.library("y/libm1.so")
    b.library("z/libm1.so", needs=("y/libm1.so",))
    return Case(str(b / "z/libm1.so"), {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def long_chain(b: Builder) -> Case:
    b.library("z/libn0.so")
    for number in range(1, 30):
        b.library(f"z/libn{number}.so", needs=(f"z/libn{number - 1}.so",))
    return Case(str(b / "z/libn29.so"), {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)
