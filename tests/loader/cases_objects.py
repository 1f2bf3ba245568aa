"""What the objects themselves say: versions, symbols, TLS, stack, ISA level, flags, relocations."""

from __future__ import annotations

import struct

from pytest_gpudiscovery.loader.elf import DT_HASH, Elf
from pytest_gpudiscovery.loader.files import Root
from pytest_gpudiscovery.loader.rules import NEWEST, rules_for
from pytest_gpudiscovery.loader.symbols import WORD2
from tests.loader.oracle import Builder, Case

V1 = "V1 { global: vf; local: *; };\n"
V2 = "V1 { global: vf; local: *; };\nV2 { global: vg; } V1;\n"
PROVIDER = "int vf(void) { return 1; } int vg(void) { return 2; }"
USER = "int vg(void); int f(void) { return vg(); }"
MISSING = "int nowhere(void); int f(void) { return nowhere(); }"
DT_NEEDED, DT_GNU_HASH, DT_DEBUG_SPARE = 1, 0x6FFFFEF5, 0x6FFFFDFE


def _with(b: Builder, directory: str, source: str = USER, provider: str = "new/libv.so.1") -> Case:
    root = b.library("root.so", source, needs=(provider,))
    return Case(root, {"LD_LIBRARY_PATH": str(b / directory)})


def undefined_function(b: Builder) -> Case:
    return Case(b.library("root.so", MISSING), loads=False)


def undefined_variable(b: Builder) -> Case:
    return Case(b.library("root.so", "extern int nowhere; int *f(void) { return &nowhere; }"), loads=False)


def undefined_in_data(b: Builder) -> Case:
    return Case(b.library("root.so", "extern int nowhere; int *p = &nowhere;"), loads=False)


def undefined_weak(b: Builder) -> Case:
    source = "__attribute__((weak)) int nowhere(void); int f(void) { return nowhere ? nowhere() : 0; }"
    return Case(b.library("root.so", source), loads=True)


def undefined_but_never_relocated(b: Builder) -> Case:
    """A symbol in .dynsym that no relocation names does not count."""
    return Case(b.library("root.so", "extern int nowhere;", flags=("-Wl,-u,nowhere",)), loads=True)


def undefined_in_a_dependency(b: Builder) -> Case:
    b.library("z/libu.so", MISSING)
    root = b.library("root.so", needs=("z/libu.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=False)


def undefined_in_two_dependencies(b: Builder) -> Case:
    """The one that is relocated first is the one that is reported."""
    for name in ("p", "q", "r"):
        b.library(f"z/lib{name}.so", f"int no_{name}(void); int f_{name}(void) {{ return no_{name}(); }}")
    b.library("z/libs.so", "int no_s(void); int f_s(void) { return no_s(); }", needs=("z/libr.so",))
    root = b.library("root.so", needs=("z/libp.so", "z/libs.so", "z/libq.so"))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=False)


def symbol_of_a_deeper_dependency(b: Builder) -> Case:
    b.library("z/libw.so", "int deep(void) { return 1; }")
    b.library("z/libu.so", needs=("z/libw.so",))
    root = b.library("root.so", "int deep(void); int f(void) { return deep(); }", needs=("z/libu.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def symbol_that_is_hidden_in_the_provider(b: Builder) -> Case:
    b.library("z/libw.so", '__attribute__((visibility("hidden"))) int inner(void) { return 1; }')
    root = b.library("root.so", "int inner(void); int f(void) { return inner(); }", needs=("z/libw.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=False)


def symbol_found_by_sysv_hash(b: Builder) -> Case:
    b.library("z/libw.so", PROVIDER, flags=("-Wl,--hash-style=sysv",))
    root = b.library("root.so", USER, needs=("z/libw.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def symbol_missing_with_sysv_hash(b: Builder) -> Case:
    b.library("z/libw.so", "int vf(void) { return 1; }", flags=("-Wl,--hash-style=sysv",))
    root = b.library("root.so", USER, needs=("z/libw.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=False)


def sysv_hash_chain_that_loops(b: Builder) -> Case:
    """Every bucket begins with symbol 1, which follows itself: a name that is not symbol 1 is searched for ever."""
    path = b.library("z/libw.so", "int only(void) { return 1; }", flags=("-Wl,--hash-style=sysv",))
    elf = Elf(Root(), path).load(rules_for(NEWEST))
    at = elf.locate(elf.dynamic[DT_HASH])
    buckets, _ = elf.fields(WORD2, at)
    elf.close()
    b.patch("z/libw.so", at + 8, struct.pack("<I", 1) * buckets)
    b.patch("z/libw.so", at + 8 + 4 * buckets + 4, struct.pack("<I", 1))
    source = "__attribute__((weak)) int nowhere(void); int f(void) { return nowhere ? nowhere() : 0; }"
    root = b.library("root.so", source, needs=("z/libw.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=False)


def symbol_in_a_provider_without_hash_table(b: Builder) -> Case:
    b.library("z/libw.so", PROVIDER, flags=("-Wl,--hash-style=gnu",))
    root = b.library("root.so", USER, needs=("z/libw.so",))
    b.dynamic("z/libw.so", DT_GNU_HASH, DT_DEBUG_SPARE)
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=False)


def symbols_in_many_buckets(b: Builder) -> Case:
    names = [f"function_number_{n}" for n in range(400)]
    b.library("z/libw.so", "".join(f"int {name}(void) {{ return 1; }}\n" for name in names))
    calls = " + ".join(f"{name}()" for name in names)
    source = "".join(f"int {name}(void);\n" for name in names) + f"int f(void) {{ return {calls}; }}"
    root = b.library("root.so", source, needs=("z/libw.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def symbolic_takes_its_own(b: Builder) -> Case:
    return Case(b.library("root.so", PROVIDER + "int (*p)(void) = vf;", flags=("-Wl,-Bsymbolic",)), loads=True)


def protected_definition(b: Builder) -> Case:
    b.library("z/libw.so", '__attribute__((visibility("protected"))) int vg(void) { return 1; }')
    root = b.library("root.so", USER, needs=("z/libw.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def version_found(b: Builder) -> Case:
    b.versioned("new/libv.so.1", V2, PROVIDER)
    return _with(b, "new")


def version_not_found(b: Builder) -> Case:
    b.versioned("new/libv.so.1", V2, PROVIDER)
    b.versioned("old/libv.so.1", V1, PROVIDER)
    return _with(b, "old")


def version_found_without_the_symbol(b: Builder) -> Case:
    b.versioned("new/libv.so.1", V2, PROVIDER)
    b.versioned("old/libv.so.1", "V1 { global: vf; local: *; };\nV2 { global: vh; } V1;\n", PROVIDER + "int vh;")
    return _with(b, "old")


def version_weakly_needed(b: Builder) -> Case:
    b.versioned("new/libv.so.1", V2, PROVIDER)
    b.versioned("old/libv.so.1", V1, PROVIDER)
    return _with(b, "old", "__attribute__((weak)) int vg(void); int f(void) { return vg ? vg() : 0; }")


def version_that_is_hidden(b: Builder) -> Case:
    """A reference without version does not find name@VERSION twice, only a default name@@VERSION."""
    b.library("plain/libv.so.1", PROVIDER)
    script = '__asm__(".symver v1, vg@V1"); __asm__(".symver v2, vg@@V2");'
    source = script + " int v1(void) { return 1; } int v2(void) { return 2; }"
    b.versioned("new/libv.so.1", "V1 { local: *; };\nV2 { } V1;\n", source)
    return _with(b, "new", provider="plain/libv.so.1")


def version_of_old_interface_only(b: Builder) -> Case:
    b.library("plain/libv.so.1", PROVIDER)
    source = '__asm__(".symver v1, vg@V1"); int v1(void) { return 1; }'
    b.versioned("new/libv.so.1", "V0 { local: *; };\nV1 { } V0;\n", source)
    return _with(b, "new", provider="plain/libv.so.1")


def glibc_too_old(b: Builder) -> Case:
    """Built on a newer distribution: version `GLIBC_2.99' not found."""
    script = "GLIBC_2.2.5 { global: malloc; };\nGLIBC_2.99 { global: newfn; } GLIBC_2.2.5;\n"
    (b / "v.map").write_text(script)
    source = "int newfn(void) { return 1; } void *malloc(unsigned long n) { return 0; }"
    b.library("new/libc.so.6", source, flags=("-nostdlib", f"-Wl,--version-script={b / 'v.map'}"))
    (b / "r.c").write_text("int newfn(void); int f(void) { return newfn(); }")
    b.cc("-shared", "-fPIC", "-nostdlib", "-o", "root.so", "r.c", "-Wl,--no-as-needed", "new/libc.so.6")
    return Case(str(b / "root.so"), loads=False)


def provider_without_definitions(b: Builder) -> Case:
    """DT_VERSYM but no DT_VERDEF: accepted without a word."""
    b.versioned("new/libv.so.1", V2, PROVIDER)
    b.library("plain/libv.so.1", "#include <stdlib.h>\nint vg(void) { return (long)malloc(3) != 0; }")
    return _with(b, "plain")


def provider_without_version_tables(b: Builder) -> Case:
    """The process dies until glibc 2.40."""
    b.versioned("new/libv.so.1", V2, PROVIDER)
    b.library("plain/libv.so.1", "int vg(void) { return 2; }", flags=("-nostdlib",))
    return _with(b, "plain")


def version_of_a_file_that_is_not_needed(b: Builder) -> Case:
    """DT_NEEDED dropped, DT_VERNEED kept: an assertion."""
    b.versioned("z/libv.so.1", V2, PROVIDER)
    case = _with(b, "z", provider="z/libv.so.1")
    b.dynamic("root.so", DT_NEEDED, DT_DEBUG_SPARE, 0)
    return Case(case.library, case.env, loads=False)


def executable_stack(b: Builder) -> Case:
    return Case(b.library("root.so", flags=("-Wl,-z,execstack",)))


def executable_stack_in_a_dependency(b: Builder) -> Case:
    b.library("z/libx.so", flags=("-Wl,-z,execstack",))
    return Case(b.library("root.so", needs=("z/libx.so",)), {"LD_LIBRARY_PATH": str(b / "z")})


def executable_stack_by_default(b: Builder) -> Case:
    root = b.library("root.so")
    b.segment("root.so", 0x6474E551, lambda fields: fields.__setitem__(0, 0))
    return Case(root)


def executable_stack_wanted_by_the_program_too(b: Builder) -> Case:
    root = b.library("root.so", flags=("-Wl,-z,execstack",))
    return Case(root, exe=b.executable("probe", "-Wl,-z,execstack"))


def position_independent_executable(b: Builder) -> Case:
    (b / "m.c").write_text("int main(void) { return 0; }")
    b.cc("-pie", "-fPIE", "-o", "root.so", "m.c")
    return Case(str(b / "root.so"), loads=False)


def fixed_position_executable(b: Builder) -> Case:
    (b / "m.c").write_text("int main(void) { return 0; }")
    b.cc("-no-pie", "-o", "root.so", "m.c")
    return Case(str(b / "root.so"), loads=False)


def not_for_dlopen(b: Builder) -> Case:
    return Case(b.library("root.so", flags=("-Wl,-z,nodlopen",)), loads=False)


def dependency_not_for_dlopen(b: Builder) -> Case:
    b.library("z/libx.so", flags=("-Wl,-z,nodlopen",))
    root = b.library("root.so", needs=("z/libx.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=False)


def large_dynamic_tls(b: Builder) -> Case:
    return Case(b.library("root.so", "__thread char t[131072]; char *f(void) { return t; }"), loads=True)


def _static_tls(b: Builder, size: int) -> Case:
    source = f'__thread char t[{size}] __attribute__((tls_model("initial-exec"))); char *f(void) {{ return t; }}'
    return Case(b.library("root.so", source))


def static_tls_that_fits(b: Builder) -> Case:
    return _static_tls(b, 512)


def static_tls_that_does_not_fit(b: Builder) -> Case:
    return _static_tls(b, 65536)


def static_tls_near_the_limit_1568(b: Builder) -> Case:
    return _static_tls(b, 1568)


def static_tls_near_the_limit_1632(b: Builder) -> Case:
    return _static_tls(b, 1632)


def static_tls_near_the_limit_1664(b: Builder) -> Case:
    return _static_tls(b, 1664)


def static_tls_near_the_limit_1696(b: Builder) -> Case:
    return _static_tls(b, 1696)


def static_tls_near_the_limit_1760(b: Builder) -> Case:
    return _static_tls(b, 1760)


def static_tls_enlarged_by_tunable(b: Builder) -> Case:
    case = _static_tls(b, 4096)
    return Case(case.library, {"GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=8192"})


def static_tls_used_up_by_others(b: Builder) -> Case:
    names = []
    for number in range(4):
        variable = f'__thread char t{number}[640] __attribute__((tls_model("initial-exec")));'
        names.append(b.library(f"z/lib{number}.so", f"{variable} char *f{number}(void) {{ return t{number}; }}"))
    opened = tuple((name, False) for name in names[:-1])
    return Case(names[-1], opened=opened, loads=False)


def isa_level_too_high(b: Builder) -> Case:
    root = b.library("root.so", flags=("-Wl,-z,x86-64-v4",))
    at = (b / "root.so").read_bytes().find(struct.pack("<II", 0xC0008002, 4))
    b.patch("root.so", at + 8, struct.pack("<I", 0x1F))
    return Case(root)


def isa_level_v2(b: Builder) -> Case:
    return Case(b.library("root.so", flags=("-Wl,-z,x86-64-v2",)))


def isa_level_v4(b: Builder) -> Case:
    return Case(b.library("root.so", flags=("-Wl,-z,x86-64-v4",)))


def relative_relocations_packed(b: Builder) -> Case:
    source = "static int a, b; int *t[64] = {&a, &b, &a, &b};"
    return Case(b.library("root.so", source, flags=("-Wl,-z,pack-relative-relocs",)))


def relative_relocations_packed_without_the_version(b: Builder) -> Case:
    source = "#include <stdlib.h>\nstatic int a, b; int *t[64] = {&a, &b}; void *f(void) { return malloc(3); }"
    root = b.library("root.so", source, flags=("-Wl,-z,pack-relative-relocs",))
    data = (b / "root.so").read_bytes()
    b.patch("root.so", data.find(b"GLIBC_ABI_DT_RELR"), b"GLIBC_2.2.5\0")
    at = data.find(struct.pack("<I", 0xFD0E42))
    b.patch("root.so", at, struct.pack("<I", 0x09691A75))
    return Case(root)


def unknown_relocation(b: Builder) -> Case:
    root = b.library("root.so", "extern int stdout; int *p = &stdout;", flags=("-Wl,-z,norelro",))
    data = (b / "root.so").read_bytes()
    found = [
        at for at in range(0, len(data) - 24, 8) if data[at + 8 : at + 12] == b"\1\0\0\0" and 0 < data[at + 12] < 40
    ]
    entry = next(at for at in found if data[at + 13 : at + 24] == bytes(11))
    b.patch("root.so", entry + 8, b"\x63")
    return Case(root, loads=False)


def relocation_entry_size(b: Builder) -> Case:
    root = b.library("root.so")
    b.dynamic("root.so", 9, 9, 16)
    return Case(root, loads=False)


def auxiliary_filter(b: Builder) -> Case:
    b.library("z/libaux.so", "int af(void) { return 2; }")
    root = b.library("root.so", "int af(void) { return 1; }", flags=("-Wl,-f,libaux.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def auxiliary_filter_missing(b: Builder) -> Case:
    return Case(b.library("root.so", "int af(void) { return 1; }", flags=("-Wl,-f,libaux.so",)), loads=True)


def standard_filter_missing(b: Builder) -> Case:
    return Case(b.library("root.so", "int af(void) { return 1; }", flags=("-Wl,-F,libaux.so",)), loads=False)


def text_relocations(b: Builder) -> Case:
    code = '__asm__(".text\\n.globl g\\ng: .quad stdout\\n");'
    return Case(b.library("root.so", code, flags=("-Wl,-z,notext",)), loads=True)
