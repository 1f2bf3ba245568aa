"""An ELF file as ld.so reads it: header, program headers, dynamic section, property note. Nothing else is read.

Checks come in ld.so's order with ld.so's words (elf/dl-load.c: open_verify, then _dl_map_object_from_fd), because which
complaint comes first decides the message and whether the search goes on. Sizes in the file are never trusted: each
read is bounded, and hostile content ends in Skipped or Refused, never in another exception.
"""

from __future__ import annotations

import errno
import os
from struct import Struct

from pytest_gpudiscovery.loader import problems
from pytest_gpudiscovery.loader.files import File, Root
from pytest_gpudiscovery.loader.problems import ABORT, SIGBUS, SIGSEGV, UNSUPPORTED, Refused, Skipped
from pytest_gpudiscovery.loader.properties import isa_needed
from pytest_gpudiscovery.loader.record import dataclass
from pytest_gpudiscovery.loader.rules import Rules

PAGE = 4096
HEADER = Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = Struct("<IIQQQQQQ")
DYNAMIC = Struct("<qQ")
READ_AHEAD = 832  # bytes of the header buffer in dl-load.c; program headers inside need no second read
STRING_LIMIT = 1 << 16  # bytes of one name or path list
NAMES_LIMIT = 1 << 23  # bytes of all names that are read of one object: they may overlap in the file
DYNAMIC_LIMIT = 1 << 18  # bytes of a dynamic section: 16,384 entries
NOTES = 64  # note segments that are looked at

ET_EXEC, ET_DYN = 2, 3
EM_X86_64 = 62
MACHINES = {3: "i386", 8: "mips", 20: "powerpc", 21: "powerpc64", 22: "s390", 40: "arm", 62: "x86_64", 183: "aarch64"}
MACHINES.update({243: "riscv", 258: "loongarch"})
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_TLS = 1, 2, 3, 4, 7
PT_GNU_STACK, PT_GNU_PROPERTY = 0x6474E551, 0x6474E553
PF_X, PF_W = 1, 2

DT_NULL, DT_NEEDED, DT_PLTRELSZ, DT_HASH, DT_STRTAB, DT_SYMTAB = 0, 1, 2, 4, 5, 6
DT_RELA, DT_RELASZ, DT_RELAENT, DT_STRSZ, DT_INIT, DT_SONAME, DT_RPATH, DT_SYMBOLIC = 7, 8, 9, 10, 12, 14, 15, 16
DT_PLTREL, DT_TEXTREL, DT_JMPREL, DT_INIT_ARRAYSZ, DT_RUNPATH, DT_FLAGS = 20, 22, 23, 27, 29, 30
DT_RELRSZ, DT_RELR, DT_RELRENT = 35, 36, 37
DT_GNU_HASH, DT_VERSYM, DT_RELACOUNT, DT_FLAGS_1 = 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFF9, 0x6FFFFFFB
DT_VERDEF, DT_VERNEED = 0x6FFFFFFC, 0x6FFFFFFE
DT_AUXILIARY, DT_FILTER = 0x7FFFFFFD, 0x7FFFFFFF
DF_SYMBOLIC, DF_TEXTREL = 2, 4
DF_1_NOOPEN, DF_1_NODEFLIB, DF_1_PIE = 0x40, 0x800, 0x08000000


@dataclass(frozen=True)
class Segment:
    """A PT_LOAD: addresses and sizes in bytes, `flags` PF_*."""

    address: int
    offset: int
    file_size: int
    memory_size: int
    flags: int

    @property
    def start(self) -> int:
        return self.address & -PAGE

    @property
    def mapped_end(self) -> int:
        """Where the mapping of the file ends (a whole page)."""
        return (self.address + self.file_size + PAGE - 1) & -PAGE


@dataclass(frozen=True)
class ThreadLocal:
    """A PT_TLS: size and alignment in bytes, and the offset of its first byte within the alignment."""

    size: int
    alignment: int
    first_byte: int


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


class Elf:
    """One opened file. After `__init__` the header is verified (a candidate); after `load` it is what ld.so maps.

    Raises Skipped or Refused (problems.py), nothing else.
    """

    def __init__(self, root: Root, name: str) -> None:
        self.name = name
        self.file = File(root, name)
        try:
            self._verify()
        except OSError as problem:
            self.close()
            raise Refused(problems.CANNOT_READ, name, errno=problem.errno or errno.EIO) from None
        except BaseException:
            self.close()
            raise
        self.loaded = False
        self.segments: list[Segment] = []
        self.dynamic: dict[int, int] = {}
        self.has_dynamic = False
        self.needed: list[tuple[int, str]] = []  # (DT_NEEDED | DT_AUXILIARY | DT_FILTER, name), in order
        self.soname: str | None = None
        self.rpath: str | None = None
        self.runpath: str | None = None
        self.interpreter: str | None = None
        self.tls: ThreadLocal | None = None
        self.executable_stack = True  # what x86-64 assumes when PT_GNU_STACK is absent
        self.isa_needed = 0
        self.flags = 0
        self.flags_1 = 0
        self.alignment = 0
        self.strings = -1  # file offset of the dynamic string table
        self._names_left = NAMES_LIMIT

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    # -- the header: is this candidate passed over, refused, or taken?

    def _verify(self) -> None:
        data = self.file.read(0, READ_AHEAD)
        if len(data) < HEADER.size:
            raise Refused(problems.TOO_SHORT, self.name)
        (ident, self.type, self.machine, version, self.entry, program_offset, *_, entry_size, count, _, _, _) = (
            HEADER.unpack_from(data)
        )
        self._verify_ident(ident)
        if version != 1:
            raise Refused("ELF file version does not match current one", self.name)
        if self.machine != EM_X86_64:
            machine = MACHINES.get(self.machine, str(self.machine))
            raise Skipped(f"built for another machine: {machine}", errno.ENOENT)
        if self.type not in (ET_DYN, ET_EXEC):
            raise Refused("only ET_DYN and ET_EXEC can be loaded", self.name)
        if entry_size != PROGRAM_HEADER.size:
            raise Refused("ELF file's phentsize not the expected size", self.name)
        size = count * PROGRAM_HEADER.size
        self.program_headers = self.file.read(program_offset, size)
        if len(self.program_headers) != size:
            raise Refused(problems.CANNOT_READ, self.name)

    def _verify_ident(self, ident: bytes) -> None:
        if ident[:4] != b"\x7fELF":
            raise Refused(problems.INVALID_HEADER, self.name)
        elf_class, data, version, abi, abi_version = ident[4:9]
        if elf_class != 2:
            raise Skipped(problems.WRONG_CLASS, errno.ENOENT, other_class=True)
        if data != 1:
            raise Refused("ELF file data encoding not little-endian", self.name)
        if version != 1:
            raise Refused("ELF file version ident does not match current one", self.name)
        if abi not in (0, 3):
            raise Refused("ELF file OS ABI invalid", self.name)
        if abi_version and not (abi == 3 and abi_version < 4):  # LIBC_ABI_MAX on x86-64: UNIQUE, IFUNC, ABSOLUTE
            raise Refused("ELF file ABI version invalid", self.name)
        if ident[9:] != bytes(7):
            raise Refused("nonzero padding in e_ident", self.name)

    # -- mapping: program headers, then the dynamic section

    def load(self, rules: Rules, *, executable: bool = False, interpreter: bool = False) -> Elf:
        """Read what ld.so reads while mapping a new object; raises Refused.

        `executable` and `interpreter` are mapped by the kernel, which does not make ld.so's checks.
        """
        if self.loaded:
            return self
        self.loaded = True
        try:
            self._load(rules, by_kernel=executable or interpreter)
        except OSError as problem:
            # ld.so reads through a mapping: an I/O error there is a signal.
            text = f"reading fails: {os.strerror(problem.errno or errno.EIO)}"
            raise Refused(text, self.name, SIGBUS) from None
        return self

    def _load(self, rules: Rules, by_kernel: bool) -> None:
        dynamic: tuple[int, int] | None = None
        empty_dynamic = False
        notes: list[tuple[int, int]] = []
        for kind, flags, offset, address, _, file_size, memory_size, align in PROGRAM_HEADER.iter_unpack(
            self.program_headers
        ):
            if kind == PT_LOAD:
                if rules.checks_alignment and align & (PAGE - 1) and not by_kernel:
                    raise Refused(problems.ALIGNMENT_NOT_ALIGNED, self.name)
                if (address - offset) & (PAGE - 1) and not by_kernel:
                    text = problems.NOT_PROPERLY_ALIGNED if rules.checks_alignment else problems.NOT_ALIGNED
                    raise Refused(text, self.name)
                self.segments.append(Segment(address, offset, file_size, memory_size, flags))
                if align & (align - 1) == 0:
                    self.alignment = max(self.alignment, align)
            elif kind == PT_DYNAMIC:
                # No bytes in the file: debug information alone (objcopy --only-keep-debug).
                if file_size == 0:
                    empty_dynamic = True
                else:
                    dynamic = (address, memory_size)
            elif kind == PT_INTERP:
                self.interpreter = _text(self.file.read(offset, min(file_size, PAGE)).partition(b"\0")[0])
            elif kind == PT_TLS and memory_size:
                self.tls = ThreadLocal(memory_size, align, address & (align - 1) if align else 0)
            elif kind == PT_GNU_STACK:
                self.executable_stack = bool(flags & PF_X)
            elif kind in (PT_GNU_PROPERTY, PT_NOTE) and align == 8:
                notes.append((address, min(memory_size, 1 << 16)))
        if not by_kernel:
            self._check_loadable(dynamic is None or empty_dynamic)
        if dynamic is not None and self.segments:
            self._read_dynamic(*dynamic)
        if not by_kernel:
            self._check_flags(rules)
        for start, length in reversed(notes[-NOTES:]):
            try:
                level = isa_needed(self.file.read(self.locate(start), length))
            except Refused:
                continue  # not in a segment: ld.so would not find it there either
            if level is not None:
                self.isa_needed = level
                break

    def _check_loadable(self, no_dynamic: bool) -> None:
        if not self.segments:
            raise Refused(problems.NO_SEGMENTS, self.name)
        if self.type != ET_DYN:
            raise Refused(problems.IS_EXECUTABLE, self.name)
        if no_dynamic:
            raise Refused(problems.NO_DYNAMIC, self.name)
        if self.span <= 0 or self.span >> 47:
            raise Refused(problems.CANNOT_MAP, self.name)

    def _check_flags(self, rules: Rules) -> None:
        if self.flags_1 & DF_1_PIE and rules.refuses_pie:
            raise Refused(problems.IS_PIE, self.name)
        for size, expected, table in (
            (DT_PLTREL, DT_RELA, DT_PLTREL),
            (DT_RELAENT, 24, DT_RELA),
            (DT_RELRENT, 8, DT_RELR),
        ):
            checked = table in self.dynamic and (table != DT_RELR or rules.relr)
            if checked and self.dynamic.get(size) != expected:
                text = "Inconsistency detected by ld.so: elf_get_dynamic_info: assertion failed"
                raise Refused(text, self.name, ABORT)

    def _read_dynamic(self, address: int, size: int) -> None:
        data = self.file.read(self.locate(address), min(size, DYNAMIC_LIMIT))
        strings: list[tuple[int, int]] = []
        for tag, value in DYNAMIC.iter_unpack(data[: len(data) - len(data) % 16]):
            if tag == DT_NULL:
                break
            if tag in (DT_NEEDED, DT_AUXILIARY, DT_FILTER):
                strings.append((tag, value))
            else:
                self.dynamic[tag] = value
        else:
            if size > DYNAMIC_LIMIT:
                raise Refused(f"a dynamic section of more than {DYNAMIC_LIMIT} bytes", self.name, UNSUPPORTED)
        self.has_dynamic = True
        found = self.dynamic
        if DT_STRTAB in found:
            self.strings = self.locate(found[DT_STRTAB])
        elif strings or found.keys() & {DT_SONAME, DT_RPATH, DT_RUNPATH}:
            raise Refused("names without DT_STRTAB", self.name, SIGSEGV)
        self.needed = [(tag, _text(self.string(value))) for tag, value in strings]
        if DT_SONAME in found:
            self.soname = _text(self.string(found[DT_SONAME]))
        if DT_RUNPATH in found:  # DT_RPATH is then ignored
            self.runpath = _text(self.string(found[DT_RUNPATH]))
        elif DT_RPATH in found:
            self.rpath = _text(self.string(found[DT_RPATH]))
        self.flags, self.flags_1 = found.get(DT_FLAGS, 0), found.get(DT_FLAGS_1, 0)

    # -- addresses

    @property
    def span(self) -> int:
        """Bytes of address space from the first to the last PT_LOAD."""
        last = self.segments[-1]
        return last.address + last.memory_size - self.segments[0].start

    @property
    def symbolic(self) -> bool:
        """The object's own definitions come first (DT_SYMBOLIC)."""
        return DT_SYMBOLIC in self.dynamic or bool(self.flags & DF_SYMBOLIC)

    def locate(self, address: int) -> int:
        """Return the file offset that is mapped at ADDRESS; raises Refused (SIGSEGV, SIGBUS) where nothing is."""
        for segment in reversed(self.segments):  # a later mapping covers an earlier one
            if segment.start <= address < segment.mapped_end:
                offset = address - segment.address + segment.offset
                if offset >= (self.file.size + PAGE - 1 & -PAGE):
                    raise Refused("the file ends before a table that ld.so reads", self.name, SIGBUS)
                return offset
        raise Refused(f"a table at address {address:#x} is outside every segment", self.name, SIGSEGV)

    def string(self, offset: int) -> bytes:
        """Return the string at OFFSET of the dynamic string table; raises Refused, OSError."""
        found = self.file.string(self.strings + offset, STRING_LIMIT)
        if found is None:
            raise Refused("a name lies outside the file", self.name, SIGBUS)
        self._names_left -= len(found)
        if self._names_left < 0:
            raise Refused(f"names of more than {NAMES_LIMIT} bytes", self.name, UNSUPPORTED)
        return found

    def fields(self, form: Struct, offset: int) -> tuple[int, ...]:
        """Return the fields of FORM at file OFFSET; raises Refused where the file ends before, OSError."""
        found = self.file.unpack(form, offset)
        if found is None:
            raise Refused("the file ends inside a table that ld.so reads", self.name, SIGBUS)
        return found
