"""Symbol versions of one object: DT_VERNEED (what it wants) and DT_VERDEF (what it offers), as in elf/dl-version.c."""

from __future__ import annotations

from struct import Struct

from pytest_gpudiscovery.loader.elf import DT_VERDEF, DT_VERNEED, DT_VERSYM, Elf
from pytest_gpudiscovery.loader.problems import ERROR, SIGSEGV, UNSUPPORTED, Refused
from pytest_gpudiscovery.loader.record import dataclass

NEEDED_FILE = Struct("<HHIII")
NEEDED_VERSION = Struct("<IHHII")
DEFINITION = Struct("<HHHHIII")
DEFINITION_NAME = Struct("<I")
RECORDS = 1 << 15  # an index has 15 bits: no honest file has more
HIDDEN, INDEX = 0x8000, 0x7FFF
VER_FLG_WEAK = 2


@dataclass(frozen=True)
class Version:
    """One entry of the table that DT_VERSYM indexes; `file` is set for a version that is needed from another object."""

    name: bytes
    hash: int
    hidden: bool
    file: str | None


@dataclass(frozen=True)
class NeededVersion:
    """A version that must be defined by the object whose name is `file`."""

    file: str
    name: bytes
    hash: int
    weak: bool


class Versions:
    """The version tables of one object.

    `needed` in file order; `defined` is None for an object without DT_VERDEF; `table` maps an index to its Version;
    `symbols` is the file offset of DT_VERSYM, or -1 when ld.so ignores it because no index is in use. Raises Refused,
    OSError.
    """

    def __init__(self, elf: Elf) -> None:
        self.needed: list[NeededVersion] = []
        self.defined: set[tuple[int, bytes]] | None = None
        self.table: dict[int, Version] = {}
        self.symbols = -1
        self._budget = RECORDS
        if elf.strings < 0:
            return
        if DT_VERNEED in elf.dynamic:
            self._read_needed(elf, elf.locate(elf.dynamic[DT_VERNEED]))
        if DT_VERDEF in elf.dynamic:
            self._read_defined(elf, elf.locate(elf.dynamic[DT_VERDEF]))
        if self.table and max(self.table) > 0:
            if DT_VERSYM not in elf.dynamic:
                raise Refused("versions without DT_VERSYM", elf.name, SIGSEGV)
            self.symbols = elf.locate(elf.dynamic[DT_VERSYM])

    def _spend(self, elf: Elf) -> None:
        self._budget -= 1
        if self._budget < 0:
            raise Refused(f"more than {RECORDS} version records", elf.name, UNSUPPORTED)

    def _read_needed(self, elf: Elf, at: int) -> None:
        version, _, name, auxiliary, following = elf.fields(NEEDED_FILE, at)
        if version != 1:
            raise Refused(f"unsupported version {version} of Verneed record", elf.name, ERROR)
        while True:
            self._spend(elf)
            file = elf.string(name).decode("utf-8", "surrogateescape")
            entry = at + auxiliary
            while True:
                self._spend(elf)
                hash_, flags, other, text, after = elf.fields(NEEDED_VERSION, entry)
                found = elf.string(text)
                self.needed.append(NeededVersion(file, found, hash_, bool(flags & VER_FLG_WEAK)))
                self.table[other & INDEX] = Version(found, hash_, bool(other & HIDDEN), file)
                if not after:
                    break
                entry += after
            if not following:
                return
            at += following
            _, _, name, auxiliary, following = elf.fields(NEEDED_FILE, at)

    def _read_defined(self, elf: Elf, at: int) -> None:
        self.defined = set()
        while True:
            self._spend(elf)
            version, flags, index, _, hash_, auxiliary, following = elf.fields(DEFINITION, at)
            name = elf.string(elf.fields(DEFINITION_NAME, at + auxiliary)[0])
            if version == 1:
                self.defined.add((hash_, name))
            if flags & 1:  # VER_FLG_BASE: the object's own name, no version that a symbol has
                self.table.setdefault(index & INDEX, Version(b"", 0, False, None))
            else:
                self.table[index & INDEX] = Version(name, hash_, False, None)
            if not following:
                return
            at += following
