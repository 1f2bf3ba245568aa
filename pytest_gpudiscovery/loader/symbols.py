"""Symbols of one object: lookup by hash table, and the symbols that its relocations name.

Whole symbol tables are never read: a lookup costs a word of the Bloom filter, and for the few that pass it a bucket
and a chain (elf/dl-lookup.c: do_lookup_x, check_match).
"""

from __future__ import annotations

from struct import Struct

from pytest_gpudiscovery.loader import elf as e
from pytest_gpudiscovery.loader.elf import Elf
from pytest_gpudiscovery.loader.problems import ABORT, HANGS, SIGBUS, SIGSEGV, UNSUPPORTED, Refused
from pytest_gpudiscovery.loader.rules import Rules
from pytest_gpudiscovery.loader.versions import HIDDEN, INDEX, Version, Versions

SYMBOL = Struct("<IBBHQQ")
GNU_HEADER = Struct("<IIII")
WORD2 = Struct("<II")
WORD = Struct("<I")
LONG = Struct("<Q")
HALF = Struct("<H")
RELOCATION = 24  # bytes of an Elf64_Rela
BATCH = 1 << 13  # relocations per read
RELOCATION_BYTES = 1 << 28
SYMBOLS_NAMED = 1 << 17
LINKS = 1 << 19  # steps in the hash chains of one object; an honest lookup takes a handful
HASHES_KEPT = 1 << 15  # bytes of hash buckets and chains that are read at once
TABLE_KEPT = 1 << 18  # bytes of a symbol table that is read at once
BLOOM_KEPT = 1 << 20  # bytes of a Bloom filter that is read at once

STB_LOCAL, STB_GLOBAL, STB_WEAK, STB_GNU_UNIQUE = 0, 1, 2, 10
STT_TLS = 6
SHN_ABS = 0xFFF1
DEFINING_TYPES = frozenset((0, 1, 2, 5, 6, 10))  # NOTYPE, OBJECT, FUNC, COMMON, TLS, GNU_IFUNC
BINDING = frozenset((STB_GLOBAL, STB_WEAK, STB_GNU_UNIQUE))
TYPE = 0xFFFFFFFF  # the type in r_info; the symbol is above
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


def _visible(symbol: tuple[int, ...]) -> bool:
    return symbol[2] & 3 not in (1, 2) and symbol[1] >> 4 in BINDING  # STV_INTERNAL, STV_HIDDEN; STB_LOCAL


def _note(found: Relocations, named: dict[int, bool], infos: dict[int, None]) -> None:
    """Add to FOUND and NAMED (symbol: does a PLT relocation name it?) what the r_info fields INFOS say."""
    kinds = {info & TYPE for info in infos}
    if kinds - KNOWN_TYPES and found.unknown is None:
        found.unknown = next(info & TYPE for info in infos if info & TYPE not in KNOWN_TYPES)
    for kind, noted in ((R_TPOFF64, found.static_tls), (R_TLSDESC, found.descriptors)):
        if kind in kinds:
            noted.update(dict.fromkeys([info >> 32 for info in infos if info & TYPE == kind]))
    for symbol in dict.fromkeys([info >> 32 for info in infos]):
        named.setdefault(symbol, False)
    if kinds & PLT_CLASS:
        # The stricter class wins: a symbol that any PLT relocation names must be defined somewhere else.
        named.update([(info >> 32, True) for info in infos if info & TYPE in PLT_CLASS])
    named.pop(0, None)  # no symbol


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
        self.bloom_at = self.hashes_at = 0
        if e.DT_GNU_HASH in tables:
            self._gnu(elf.locate(tables[e.DT_GNU_HASH]))
        elif e.DT_HASH in tables:
            at = elf.locate(tables[e.DT_HASH])
            self.buckets, _ = elf.fields(WORD2, at)
            self.hashes_at = at + WORD2.size
            self.kind = "sysv" if self.buckets else ""
        if self.kind and self.symbols < 0:
            raise Refused("a hash table without DT_SYMTAB", elf.name, SIGSEGV)
        self._links = LINKS
        kept = elf.file.read(self.hashes_at, HASHES_KEPT) if self.kind else b""
        self._hashes = memoryview(kept[: len(kept) & -4]).cast("I")

    def _gnu(self, at: int) -> None:
        self.buckets, self.first, words, self.shift = self.elf.fields(GNU_HEADER, at)
        if not words or words & (words - 1):
            raise Refused("Inconsistency detected by ld.so: _dl_setup_hash: assertion failed", self.elf.name, ABORT)
        self.mask = words - 1
        self.bloom_at = at + GNU_HEADER.size
        self.hashes_at = self.bloom_at + 8 * words
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
            symbol = self.elf.fields(SYMBOL, self.symbols + SYMBOL.size * index)
            verdict = self._match(index, symbol, name, version, plt, rules, names)
            if verdict > 0:
                return index if _visible(symbol) else -1
            if verdict < 0:
                fallbacks += 1
                if fallbacks == 1:
                    fallback = index if _visible(symbol) else -1
        return fallback if fallbacks == 1 else -1

    def _gnu_chain(self, hash_: int) -> list[int]:
        """Return the indices with this hash, whose lowest bit a chain does not keep."""
        words, first = self._hashes, self.buckets - self.first
        index = self._hash_word(hash_ % self.buckets)
        found: list[int] = []
        if not index:
            return found
        for at in range(index, index + self._links):
            place = first + at  # in words behind the first bucket
            value = words[place] if 0 <= place < len(words) else self._hash_word(place)
            if (value ^ hash_) >> 1 == 0:
                found.append(at)
            if value & 1:
                self._links -= at - index
                return found
        raise Refused("its hash chains are too long", self.elf.name, UNSUPPORTED)

    def _sysv_chain(self, name: bytes) -> list[int]:
        index = self._hash_word(sysv_hash(name) % self.buckets)
        found: list[int] = []
        while index:
            if len(found) > self.elf.file.size // WORD.size:
                raise Refused("a hash chain in it does not end: ld.so searches for ever", self.elf.name, HANGS)
            found.append(index)
            index = self._hash_word(self.buckets + index)
        self._links -= len(found)
        if self._links < 0:
            raise Refused("its hash chains are too long", self.elf.name, UNSUPPORTED)
        return found

    def _hash_word(self, place: int) -> int:
        """Return the word at PLACE of buckets and chains, which lie behind each other in both kinds of table."""
        if 0 <= place < len(self._hashes):
            return self._hashes[place]
        return self.elf.fields(WORD, self.hashes_at + 4 * place)[0]

    def _match(
        self,
        index: int,
        symbol: tuple[int, ...],
        name: bytes,
        version: Version | None,
        plt: bool,
        rules: Rules,
        names: set[str],
    ) -> int:
        """check_match: 1 is the definition, -1 a fallback if it stays the only one, 0 no match."""
        elf = self.elf
        text, info, _, section, value, _ = symbol
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
        if named:
            self._references(found, named)
        return found

    def _references(self, found: Relocations, named: dict[int, bool]) -> None:
        """Fill in those of the NAMED symbols that the object does not define, in order."""
        elf, highest = self.elf, max(named)
        table = self._table(self.symbols, SYMBOL.size, highest)
        if table:  # most are defined here: their section, two bytes, is not 0
            low, high = table[6 :: SYMBOL.size], table[7 :: SYMBOL.size]
            wanted = [index for index in named if not low[index] and not high[index]]
        else:
            wanted = list(named)
        versions = self._table(self.versions.symbols, HALF.size, highest) if self.versions.symbols >= 0 else b""
        for index in wanted:
            at = SYMBOL.size * index
            text, info, other, section, _, _ = (
                SYMBOL.unpack_from(table, at) if table else elf.fields(SYMBOL, self.symbols + at)
            )
            if section == 0 and info >> 4 != STB_LOCAL and other & 3 not in (1, 2):
                version = self._version(index, versions)
                found.undefined[index] = Reference(elf.string(text), version, info >> 4 == STB_WEAK, named[index])

    def _table(self, at: int, size: int, highest: int) -> bytes:
        """Return the entries up to HIGHEST of the table at AT; empty where they are too many to be read at once."""
        length = size * (highest + 1)
        data = self.elf.file.read(at, length) if length <= TABLE_KEPT else b""
        return data if len(data) == length else b""

    def _version(self, index: int, versions: bytes) -> Version | None:
        if self.versions.symbols < 0:
            return None
        at = HALF.size * index
        (raw,) = HALF.unpack_from(versions, at) if versions else self.elf.fields(HALF, self.versions.symbols + at)
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
        seen: dict[int, None] = {}
        while at < end:
            data = elf.file.read(at, min(BATCH * RELOCATION, end - at))
            if not data or len(data) % RELOCATION:
                raise Refused("the file ends inside the relocations", elf.name, SIGBUS)
            at += len(data)
            infos = memoryview(data).cast("Q")[1::3].tolist()
            found.ifuncs += infos.count(R_IRELATIVE)
            seen.update(dict.fromkeys(infos))
            if len(seen) > 2 * SYMBOLS_NAMED:
                raise Refused(f"relocations name more than {SYMBOLS_NAMED} symbols", elf.name, UNSUPPORTED)
        _note(found, named, seen)
        if len(named) > SYMBOLS_NAMED:
            raise Refused(f"relocations name more than {SYMBOLS_NAMED} symbols", elf.name, UNSUPPORTED)
