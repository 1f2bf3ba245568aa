"""Symbols of one object: lookup by hash table, and the symbols that its relocations name.

Whole symbol tables are never read: a lookup costs a word of the Bloom filter, and for the few that pass it a bucket
and a chain (elf/dl-lookup.c: do_lookup_x, check_match).
"""

from __future__ import annotations

from struct import Struct, iter_unpack

from pytest_gpudiscovery.loader import elf as e
from pytest_gpudiscovery.loader.elf import Elf
from pytest_gpudiscovery.loader.problems import ABORT, SIGBUS, SIGSEGV, UNSUPPORTED, Refused
from pytest_gpudiscovery.loader.rules import Rules
from pytest_gpudiscovery.loader.versions import HIDDEN, INDEX, Version, Versions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SYMBOL = Struct("<IBBHQQ")
GNU_HEADER = Struct("<IIII")
WORD2 = Struct("<II")
WORD = Struct("<I")
LONG = Struct("<Q")
HALF = Struct("<H")
RELOCATION = 24  # bytes of an Elf64_Rela
BATCH = 2048  # relocations per read
RELOCATION_BYTES = 1 << 28
SYMBOLS_NAMED = 1 << 17
LINKS = 8  # of a hash chain per read
CHAIN = 1 << 16  # steps in one hash chain; an honest one has a handful
TABLE_KEPT = 1 << 18  # bytes of a symbol table that is read at once
BLOOM_KEPT = 1 << 20  # bytes of a Bloom filter that is read at once

STB_LOCAL, STB_GLOBAL, STB_WEAK, STB_GNU_UNIQUE = 0, 1, 2, 10
STT_TLS = 6
SHN_ABS = 0xFFF1
DEFINING_TYPES = frozenset((0, 1, 2, 5, 6, 10))  # NOTYPE, OBJECT, FUNC, COMMON, TLS, GNU_IFUNC
BINDING = frozenset((STB_GLOBAL, STB_WEAK, STB_GNU_UNIQUE))
R_COPY, R_JUMP_SLOT, R_TPOFF64, R_TLSDESC, R_IRELATIVE = 5, 7, 18, 36, 37
PLT_CLASS = frozenset((R_JUMP_SLOT, 16, 17, R_TPOFF64, R_TLSDESC))  # ELF_RTYPE_CLASS_PLT in x86_64/dl-machine.h
KNOWN_TYPES = frozenset((0, 1, 2, 5, 6, 7, 8, 10, 16, 17, 18, 32, 33, 36, 37, 38))


def gnu_hash(name: bytes) -> int:
    """Return the hash that DT_GNU_HASH uses."""
    value = 5381
    for byte in name:
        value = value * 33 + byte & 0xFFFFFFFF
    return value


def sysv_hash(name: bytes) -> int:
    """Return the hash that DT_HASH and version records use."""
    value = 0
    for byte in name:
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high & 0xFFFFFFFF
    return value


class Reference:
    """A symbol that a relocation names and the object does not define."""

    __slots__ = ("name", "plt", "version", "weak")

    def __init__(self, name: bytes, version: Version | None, weak: bool, plt: bool) -> None:
        self.name = name
        self.version = version
        self.weak = weak
        self.plt = plt


class Relocations:
    """What the relocations of one object ask for.

    `undefined` in relocation order; `static_tls` and `descriptors` are symbol indices of initial-exec and TLSDESC
    relocations; `ifuncs` counts IRELATIVE ones; `unknown` is a relocation type that ld.so refuses, or None.
    """

    def __init__(self) -> None:
        self.undefined: dict[int, Reference] = {}
        self.static_tls: dict[int, None] = {}
        self.descriptors: dict[int, None] = {}
        self.ifuncs = 0
        self.unknown: int | None = None


class Symbols:
    """Symbol, version and hash tables of a loaded Elf. Raises Refused, OSError."""

    def __init__(self, elf: Elf) -> None:
        self.elf = elf
        self.versions = Versions(elf)
        tables = elf.dynamic
        self.symbols = elf.locate(tables[e.DT_SYMTAB]) if e.DT_SYMTAB in tables else -1
        self.kind = ""
        self.bloom = memoryview(b"").cast("Q")
        self.mask = self.shift = self.buckets = self.first = 0
        self.bloom_at = self.bucket_at = self.chain_at = 0
        if e.DT_GNU_HASH in tables:
            self._gnu(elf.locate(tables[e.DT_GNU_HASH]))
        elif e.DT_HASH in tables:
            at = elf.locate(tables[e.DT_HASH])
            self.buckets, _ = elf.fields(WORD2, at)
            self.bucket_at, self.chain_at = at + 8, at + 8 + 4 * self.buckets
            self.kind = "sysv" if self.buckets else ""
        if self.kind and self.symbols < 0:
            raise Refused("a hash table without DT_SYMTAB", elf.name, SIGSEGV)

    def _gnu(self, at: int) -> None:
        self.buckets, self.first, words, self.shift = self.elf.fields(GNU_HEADER, at)
        if not words or words & (words - 1):
            raise Refused("Inconsistency detected by ld.so: _dl_setup_hash: assertion failed", self.elf.name, ABORT)
        self.mask = words - 1
        self.bloom_at = at + GNU_HEADER.size
        self.bucket_at = self.bloom_at + 8 * words
        self.chain_at = self.bucket_at + 4 * self.buckets
        if 8 * words <= BLOOM_KEPT:
            data = self.elf.file.read(self.bloom_at, 8 * words)
            if len(data) == 8 * words:
                self.bloom = memoryview(data).cast("Q")
        self.kind = "gnu" if self.buckets else ""

    # -- lookup

    def may_have(self, hash_: int) -> bool:
        """Return what the Bloom filter says of a name with this gnu_hash; True where there is none."""
        if self.kind != "gnu":
            return bool(self.kind)
        slot = hash_ >> 6 & self.mask
        if self.bloom:
            word = self.bloom[slot]
        else:
            (word,) = self.elf.fields(LONG, self.bloom_at + 8 * slot)
        return bool(word >> (hash_ & 63) & word >> (hash_ >> self.shift & 63) & 1)

    def lookup(self, name: bytes, version: Version | None, hash_: int, plt: bool, rules: Rules, names: set[str]) -> int:
        """Return the index of the definition that ld.so takes from this object, or -1.

        `hash_` is gnu_hash(name); `names` are the object's names (for the assertion of check_match). Raises Refused.
        """
        if self.kind == "gnu":
            if not self.may_have(hash_):
                return -1
            chain = self._gnu_chain(hash_)
        elif self.kind == "sysv":
            chain = self._sysv_chain(name)
        else:
            return -1
        fallback, fallbacks = -1, 0
        for index in chain:
            verdict = self._match(index, name, version, plt, rules, names)
            if verdict > 0:
                return index if self._visible(index) else -1
            if verdict < 0:
                fallbacks += 1
                if fallbacks == 1:
                    fallback = index
        return fallback if fallbacks == 1 and self._visible(fallback) else -1

    def _gnu_chain(self, hash_: int) -> list[int]:
        elf = self.elf
        (index,) = elf.fields(WORD, self.bucket_at + 4 * (hash_ % self.buckets))
        found: list[int] = []
        if not index:
            return found
        for start in range(index, index + CHAIN, LINKS):
            words = elf.file.read(self.chain_at + 4 * (start - self.first), 4 * LINKS)
            for number in range(len(words) // 4):
                (value,) = WORD.unpack_from(words, 4 * number)
                if (value ^ hash_) >> 1 == 0:
                    found.append(start + number)
                if value & 1:
                    return found
            if len(words) < 4 * LINKS:
                raise Refused("the file ends inside a hash chain", elf.name, SIGBUS)
        return found

    def _sysv_chain(self, name: bytes) -> list[int]:
        elf = self.elf
        (index,) = elf.fields(WORD, self.bucket_at + 4 * (sysv_hash(name) % self.buckets))
        found: list[int] = []
        while index:
            if len(found) == CHAIN:
                raise Refused("a hash chain does not end", elf.name, UNSUPPORTED)
            found.append(index)
            (index,) = elf.fields(WORD, self.chain_at + 4 * index)
        return found

    def _match(self, index: int, name: bytes, version: Version | None, plt: bool, rules: Rules, names: set[str]) -> int:
        """check_match: 1 is the definition, -1 a fallback if it stays the only one, 0 no match."""
        elf = self.elf
        text, info, _, section, value, _ = elf.fields(SYMBOL, self.symbols + SYMBOL.size * index)
        kind = info & 15
        if (value == 0 and section != SHN_ABS and kind != STT_TLS) or (plt and section == 0):
            return 0
        if kind not in DEFINING_TYPES or elf.file.read(elf.strings + text, len(name) + 1) != name + b"\0":
            return 0
        versions = self.versions
        if versions.symbols < 0:
            if version is not None and rules.unversioned_aborts and version.file in names:
                raise Refused("Inconsistency detected by ld.so: check_match: assertion failed", elf.name, ABORT)
            return 1
        (raw,) = elf.fields(HALF, versions.symbols + 2 * index)
        own = versions.table.get(raw & INDEX)
        if version is None:
            if raw & INDEX >= 3:
                return 0 if raw & HIDDEN else -1
            return 1
        if own is not None and own.hash == version.hash and own.name == version.name:
            return 1
        if version.hidden or raw & HIDDEN or (own is not None and own.hash):
            return 0
        return -1 if rules.unversioned_is_fallback else 1

    def _visible(self, index: int) -> bool:
        _, info, other, _, _, _ = self.elf.fields(SYMBOL, self.symbols + SYMBOL.size * index)
        return other & 3 not in (1, 2) and info >> 4 in BINDING  # STV_INTERNAL, STV_HIDDEN; STB_LOCAL

    # -- relocations

    def relocations(self) -> Relocations:
        """Read the relocations after the relative ones, and those of the PLT; raises Refused, OSError."""
        found = Relocations()
        tables = self.elf.dynamic
        named: dict[int, bool] = {}
        skip = RELOCATION * tables.get(e.DT_RELACOUNT, 0)
        for start, size, skipped in ((e.DT_RELA, e.DT_RELASZ, skip), (e.DT_JMPREL, e.DT_PLTRELSZ, 0)):
            length = tables.get(size, 0)
            if tables.get(start) and length > skipped:
                self._scan(found, named, tables[start] + skipped, length - skipped)
        if named and self.symbols < 0:
            raise Refused("relocations without DT_SYMTAB", self.elf.name, SIGSEGV)
        read = self._reader(max(named, default=0))
        for index, plt in named.items():
            text, info, other, section, _, _ = read(index)
            if section == 0 and info >> 4 != STB_LOCAL and other & 3 not in (1, 2):
                reference = Reference(self.elf.string(text), self._version(index), info >> 4 == STB_WEAK, plt)
                found.undefined[index] = reference
        return found

    def _reader(self, highest: int) -> Callable[[int], tuple[int, ...]]:
        """Return what reads one symbol: from the whole table at once where it is small."""
        size = SYMBOL.size * (highest + 1)
        data = self.elf.file.read(self.symbols, size) if size <= TABLE_KEPT else b""
        if len(data) == size:
            return lambda index: SYMBOL.unpack_from(data, SYMBOL.size * index)
        return lambda index: self.elf.fields(SYMBOL, self.symbols + SYMBOL.size * index)

    def _version(self, index: int) -> Version | None:
        if self.versions.symbols < 0:
            return None
        (raw,) = self.elf.fields(HALF, self.versions.symbols + 2 * index)
        found = self.versions.table.get(raw & INDEX)
        return found if found is not None and found.hash else None

    def _scan(self, found: Relocations, named: dict[int, bool], address: int, length: int) -> None:
        elf = self.elf
        at = elf.locate(address)
        if length > RELOCATION_BYTES:
            raise Refused(f"{length} bytes of relocations", elf.name, UNSUPPORTED)
        end = at + length - length % RELOCATION
        if end > elf.file.size:
            raise Refused("the file ends inside the relocations", elf.name, SIGBUS)
        seen: set[int] = set()
        while at < end:
            data = elf.file.read(at, min(BATCH * RELOCATION, end - at))
            if not data:
                raise Refused("the file ends inside the relocations", elf.name, SIGBUS)
            at += len(data)
            infos = [info for (info,) in iter_unpack("<8xQ8x", data[: len(data) - len(data) % RELOCATION])]
            found.ifuncs += infos.count(R_IRELATIVE)
            for info in dict.fromkeys(infos):
                if info in seen:
                    continue
                seen.add(info)
                self._note(found, named, info >> 32, info & 0xFFFFFFFF)
            if len(named) > SYMBOLS_NAMED or len(seen) > 2 * SYMBOLS_NAMED:
                raise Refused(f"relocations name more than {SYMBOLS_NAMED} symbols", elf.name, UNSUPPORTED)

    @staticmethod
    def _note(found: Relocations, named: dict[int, bool], symbol: int, kind: int) -> None:
        if kind not in KNOWN_TYPES and found.unknown is None:
            found.unknown = kind
        if kind == R_TPOFF64:
            found.static_tls[symbol] = None
        elif kind == R_TLSDESC:
            found.descriptors[symbol] = None
        if symbol:
            # The stricter class wins: a symbol that any PLT relocation names must be defined somewhere else.
            named[symbol] = named.get(symbol, False) or kind in PLT_CLASS
