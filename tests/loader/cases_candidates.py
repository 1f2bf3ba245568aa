"""What is made of a candidate file: passed over, fatal for the whole dlopen, or the end of the process."""

from __future__ import annotations

import os
import socket
import struct

from tests.loader.oracle import NEW, NOBODY, Builder, Case


def _two(b: Builder) -> Case:
    """A dependency in b/, and a directory a/ before it in LD_LIBRARY_PATH."""
    b.library("b/libd.so")
    (b / "a").mkdir(exist_ok=True)
    root = b.library("root.so", needs=("b/libd.so",))
    return Case(root, {"LD_LIBRARY_PATH": f"{b / 'a'}:{b / 'b'}"}, loads=True)


def _bad(b: Builder, content: bytes | None = None, loads: bool = False) -> Case:
    """As _two, with CONTENT as the first candidate."""
    case = _two(b)
    if content is not None:
        (b / "a/libd.so").write_bytes(content)
    return Case(case.library, case.env, loads=loads)


def _patched(b: Builder, offset: int, data: bytes, loads: bool) -> Case:
    case = _two(b)
    b.copy("b/libd.so", "a/libd.so")
    b.patch("a/libd.so", offset, data)
    return Case(case.library, case.env, loads=loads)


def wrong_class_skipped(b: Builder) -> Case:
    return _patched(b, 4, b"\1", loads=True)


def wrong_machine_skipped(b: Builder) -> Case:
    return _patched(b, 18, b"\xb7\0", loads=True)


def wrong_class_only(b: Builder) -> Case:
    b.library("a/libd.so")
    root = b.library("root.so", needs=("a/libd.so",))
    b.patch("a/libd.so", 4, b"\1")
    return Case(root, {"LD_LIBRARY_PATH": str(b / "a")}, loads=False)


def wrong_machine_only(b: Builder) -> Case:
    """ld.so says "No such file or directory" although the file is there."""
    b.library("a/libd.so")
    root = b.library("root.so", needs=("a/libd.so",))
    b.patch("a/libd.so", 18, b"\xb7\0")
    return Case(root, {"LD_LIBRARY_PATH": str(b / "a")}, loads=False)


def wrong_class_of_the_library_itself(b: Builder) -> Case:
    root = b.library("root.so")
    b.patch("root.so", 4, b"\1")
    return Case(root, loads=False)


def wrong_machine_of_the_library_itself(b: Builder) -> Case:
    root = b.library("root.so")
    b.patch("root.so", 18, b"\xb7\0")
    return Case(root, loads=False)


def big_endian_is_fatal(b: Builder) -> Case:
    return _patched(b, 5, b"\2", loads=False)


def ident_version_is_fatal(b: Builder) -> Case:
    return _patched(b, 6, b"\2", loads=False)


def os_abi_is_fatal(b: Builder) -> Case:
    return _patched(b, 7, b"\x09", loads=False)


def gnu_os_abi_is_fine(b: Builder) -> Case:
    return _patched(b, 7, b"\3", loads=True)


def abi_version_is_fatal(b: Builder) -> Case:
    return _patched(b, 8, b"\x63", loads=False)


def gnu_abi_version_three(b: Builder) -> Case:
    return _patched(b, 7, b"\3\3", loads=True)


def gnu_abi_version_four(b: Builder) -> Case:
    return _patched(b, 7, b"\3\4", loads=False)


def gnu_abi_version_five(b: Builder) -> Case:
    return _patched(b, 7, b"\3\5", loads=False)


def ident_padding_is_fatal(b: Builder) -> Case:
    return _patched(b, 12, b"\1", loads=False)


def header_version_is_fatal(b: Builder) -> Case:
    return _patched(b, 20, b"\2\0\0\0", loads=False)


def relocatable_object_is_fatal(b: Builder) -> Case:
    return _patched(b, 16, b"\1\0", loads=False)


def size_of_program_headers_is_fatal(b: Builder) -> Case:
    return _patched(b, 54, b"\x20\0", loads=False)


def program_headers_beyond_the_end_are_fatal(b: Builder) -> Case:
    return _patched(b, 32, struct.pack("<Q", 1 << 30), loads=False)


def no_program_headers_are_fatal(b: Builder) -> Case:
    return _patched(b, 56, b"\0\0", loads=False)


def text_file_is_fatal(b: Builder) -> Case:
    """What git-lfs leaves when the content was not fetched."""
    return _bad(b, b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789\nsize 374450984\n" * 2)


def short_text_file_is_fatal(b: Builder) -> Case:
    return _bad(b, b"INPUT(-lcudart)\n")


def empty_file_is_fatal(b: Builder) -> Case:
    return _bad(b, b"")


def header_alone_is_fatal(b: Builder) -> Case:
    case = _two(b)
    (b / "a/libd.so").write_bytes((b / "b/libd.so").read_bytes()[:64])
    return Case(case.library, case.env, loads=False)


def directory_is_fatal(b: Builder) -> Case:
    case = _bad(b)
    (b / "a/libd.so").mkdir()
    return case


def library_that_is_a_directory(b: Builder) -> Case:
    (b / "root.so").mkdir()
    return Case(str(b / "root.so"), loads=False)


def library_that_is_absent(b: Builder) -> Case:
    return Case(str(b / "nowhere.so"), loads=False)


def library_below_a_file(b: Builder) -> Case:
    b.library("file.so")
    return Case(str(b / "file.so/root.so"), loads=False)


def library_name_too_long(b: Builder) -> Case:
    return Case(str(b / ("x" * 300)), loads=False)


def library_found_by_name(b: Builder) -> Case:
    """dlopen of a name without a slash is searched for the caller: the executable."""
    b.library("z/libn.so")
    return Case("libn.so", {"LD_LIBRARY_PATH": str(b / "z")}, loads=True)


def library_with_a_token(b: Builder) -> Case:
    program = b.executable("bin/probe")
    b.library("bin/libn.so")
    return Case("$ORIGIN/libn.so", exe=program, loads=True)


def dangling_link_skipped(b: Builder) -> Case:
    case = _two(b)
    os.symlink("gone.so.12.9", b / "a/libd.so")
    return case


def link_loop_ends_the_list(b: Builder) -> Case:
    """ELOOP is neither ENOENT nor EACCES: the rest of LD_LIBRARY_PATH is not looked at."""
    case = _two(b)
    os.symlink("libd.so", b / "a/libd.so")
    return Case(case.library, case.env, loads=False)


def link_loop_does_not_end_the_search(b: Builder) -> Case:
    _two(b)
    os.symlink("libd.so", b / "a/libd.so")
    root = b.library("root.so", needs=("b/libd.so",), flags=(NEW, f"-Wl,-rpath,{b / 'b'}"))
    return Case(root, {"LD_LIBRARY_PATH": f"{b / 'a'}:{b / 'b'}"}, loads=True)


def file_in_place_of_a_directory(b: Builder) -> Case:
    case = _two(b)
    (b / "file").write_text("")
    return Case(case.library, {"LD_LIBRARY_PATH": f"{b / 'file'}:{b / 'b'}"}, loads=True)


def missing_directory(b: Builder) -> Case:
    case = _two(b)
    return Case(case.library, {"LD_LIBRARY_PATH": f"/nonexistent:{b / 'b'}"}, loads=True)


def socket_ends_the_list(b: Builder) -> Case:
    case = _two(b)
    here = os.getcwd()
    os.chdir(b / "a")  # a socket's address is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("libd.so")
    finally:
        os.chdir(here)
    return Case(case.library, case.env, loads=False)


def null_device_is_fatal(b: Builder) -> Case:
    case = _bad(b)
    os.symlink("/dev/null", b / "a/libd.so")
    return case


def zero_device_is_fatal(b: Builder) -> Case:
    case = _bad(b)
    os.symlink("/dev/zero", b / "a/libd.so")
    return case


def fifo_blocks(b: Builder) -> Case:
    case = _bad(b)
    os.mkfifo(b / "a/libd.so")
    return case


def unreadable_skipped(b: Builder) -> Case:
    case = _two(b)
    b.copy("b/libd.so", "a/libd.so")
    (b / "a/libd.so").chmod(0)
    return Case(case.library, case.env, uid=NOBODY, loads=True)


def unreadable_only(b: Builder) -> Case:
    case = _two(b)
    (b / "b/libd.so").chmod(0)
    return Case(case.library, case.env, uid=NOBODY, loads=False)


def unsearchable_directory_skipped(b: Builder) -> Case:
    case = _two(b)
    b.copy("b/libd.so", "a/libd.so")
    (b / "a").chmod(0o700)
    return Case(case.library, case.env, uid=NOBODY, loads=True)


def unreadable_library_itself(b: Builder) -> Case:
    root = b.library("root.so")
    (b / "root.so").chmod(0o000)
    return Case(root, uid=NOBODY, loads=False)


def debug_information_alone_is_fatal(b: Builder) -> Case:
    """objcopy --only-keep-debug: PT_DYNAMIC has no bytes in the file."""
    case = _two(b)
    b.copy("b/libd.so", "a/libd.so")
    b.segment("a/libd.so", 2, lambda fields: fields.__setitem__(5, 0))
    return Case(case.library, case.env, loads=False)


def no_dynamic_section_is_fatal(b: Builder) -> Case:
    case = _two(b)
    b.copy("b/libd.so", "a/libd.so")
    b.segment("a/libd.so", 2, lambda fields: fields.__setitem__(0, 0))
    return Case(case.library, case.env, loads=False)


def segment_not_aligned_is_fatal(b: Builder) -> Case:
    case = _two(b)
    b.copy("b/libd.so", "a/libd.so")
    b.segment("a/libd.so", 1, lambda fields: fields.__setitem__(3, fields[3] + 16))
    return Case(case.library, case.env, loads=False)


def segment_alignment_is_odd(b: Builder) -> Case:
    """Refused until glibc 2.34."""
    case = _two(b)
    b.copy("b/libd.so", "a/libd.so")
    b.segment("a/libd.so", 1, lambda fields: fields.__setitem__(7, 256))
    return Case(case.library, case.env)


def truncated_in_its_data(b: Builder) -> Case:
    """Headers are fine, pages that are relocated are missing: SIGBUS, the process dies."""
    source = "char big[4 << 20] = {1}; char *p = big; int r(void) { return *p; }"
    b.library("z/libbig.so", source)
    root = b.library("root.so", needs=("z/libbig.so",))
    os.truncate(b / "z/libbig.so", 1 << 20)
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, loads=False)


def truncated_after_its_segments(b: Builder) -> Case:
    """Only section headers are cut off: nobody misses them."""
    root = b.library("root.so")
    data = (b / "root.so").read_bytes()
    start, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    end = max(f[2] + f[5] for f in struct.iter_unpack("<IIQQQQQQ", data[start : start + 56 * count]) if f[0] == 1)
    os.truncate(root, end)
    return Case(root, loads=True)


def noexec_mount(b: Builder) -> Case:
    b.library("z/libd.so")
    root = b.library("root.so", needs=("z/libd.so",))
    (b / "m").mkdir()
    mounts = f"mount -t tmpfs -o noexec none {b / 'm'}; cp {b / 'z/libd.so'} {b / 'm'}/"
    return Case(root, {"LD_LIBRARY_PATH": str(b / "m")}, mounts=mounts, loads=False)


def address_space_too_small(b: Builder) -> Case:
    b.library("z/libbss.so", "char big[3UL << 30]; char *f(void) { return big; }", flags=("-mcmodel=large",))
    root = b.library("root.so", needs=("z/libbss.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, address_space=2_000_000 << 10, loads=False)


def address_space_large_enough(b: Builder) -> Case:
    b.library("z/libbss.so", "char big[1UL << 30]; char *f(void) { return big; }", flags=("-mcmodel=large",))
    root = b.library("root.so", needs=("z/libbss.so",))
    return Case(root, {"LD_LIBRARY_PATH": str(b / "z")}, address_space=2_000_000 << 10, loads=True)
