"""/etc/ld.so.cache: the binary format and glibc's own search in it (elf/dl-cache.c, sysdeps/generic/dl-cache.h).

The search is ld.so's, step by step: binary search over names with runs of digits compared as numbers, then the
entries of that name. Only what it visits is read. A hostile cache finds nothing or a wrong name, as it does for ld.so.
"""

from __future__ import annotations

from struct import Struct

from pytest_gpudiscovery.loader.files import File, Root
from pytest_gpudiscovery.loader.problems import Refused, Skipped
from pytest_gpudiscovery.loader.rules import Rules

OLD_MAGIC, OLD_HEADER, OLD_ENTRY = b"ld.so-1.7.0\0", 16, 12
MAGIC = b"glibc-ld.so.cache1.1"
HEADER = Struct("<II B 3x I 12x")  # entries, bytes of strings, flags, offset of the extension
ENTRY = Struct("<iIIIQ")  # flags, name, file name, unused, capabilities
COUNT = Struct("<I")
EXTENSION_MAGIC = 0xEAA42174
EXTENSION_SECTION = Struct("<IIII")  # tag, flags, offset, bytes
GLIBC_HWCAPS = 1  # tag of the section that names the subdirectories
LIBRARY_X86_64 = 0x0303  # FLAG_ELF_LIBC6 | FLAG_X8664_LIB64
HWCAP_EXTENSION = 1 << 62
HWCAP_PLATFORM, HWCAP_TLS = 0xFF << 48, 1 << 63
LITTLE_ENDIAN = 2
SECTIONS = 64
SUBDIRECTORIES = 256
ENTRIES_OF_A_NAME = 4096


def compare_names(first: bytes, second: bytes) -> int:
    """Return <0, 0 or >0 as _dl_cache_libcmp: digits compare as numbers, and sort after everything else."""
    at = to = 0
    while at < len(first):
        left = first[at]
        right = second[to] if to < len(second) else 0
        if 48 <= left <= 57:
            if not 48 <= right <= 57:
                return 1
            at, left = _number(first, at)
            to, right = _number(second, to)
        elif 48 <= right <= 57:
            return -1
        else:
            at, to = at + 1, to + 1
        if left != right:
            return left - right
    return -(second[to] if to < len(second) else 0)


def _number(text: bytes, at: int) -> tuple[int, int]:
    start = at
    while at < len(text) and 48 <= text[at] <= 57:
        at += 1
    return at, int(text[start : min(at, start + 1000)])


class Cache:
    """An opened cache; one that is absent or malformed has no entries.

    `subdirectories` are the active glibc-hwcaps names, best first; `legacy_mask` the capability bits that old entries
    may ask for (dl_hwcap & mask). `why` says why there are no entries, or is "".
    """

    def __init__(
        self, root: Root, path: str, rules: Rules, subdirectories: tuple[str, ...] = (), legacy_mask: int = 0
    ) -> None:
        self.path = path
        self.entries = 0
        self.why = ""
        self._rules = rules
        self._active = [name.encode() for name in subdirectories]
        self._legacy_mask = legacy_mask
        self._priorities: list[int] | None = None
        self._base = self._strings_end = self._extension = 0
        try:
            self._file = File(root, path)
            self.why = self._open()
        except Skipped as skipped:
            self.why = skipped.reason
        except Refused as refused:
            self.why = refused.text
        except OSError as problem:
            self.why = str(problem.strerror)
        if self.why:
            self.entries = 0

    def _open(self) -> str:
        file = self._file
        if file.read(0, len(OLD_MAGIC)) == OLD_MAGIC:
            count = file.unpack(COUNT, len(OLD_MAGIC))
            if count is None:
                return "ends inside its header"
            self._base = OLD_HEADER + OLD_ENTRY * count[0] + 7 & -8
        if file.read(self._base, len(MAGIC)) != MAGIC:
            return "not a glibc cache of the format that x86-64 uses"
        header = file.unpack(HEADER, self._base + len(MAGIC))
        if header is None:
            return "ends inside its header"
        self.entries, _, flags, self._extension = header
        if self._rules.glibc_hwcaps and flags & 3 not in (0, LITTLE_ENDIAN):
            return "written for the other byte order"
        if self.entries > (file.size - self._base - 48) // ENTRY.size:
            return "ends inside its entries"
        self._strings_end = file.size - self._base
        return ""

    def close(self) -> None:
        """Close the file."""
        if not self.why:
            self._file.close()

    def _string(self, offset: int) -> bytes | None:
        """The string at OFFSET, or None where ld.so finds the offset bogus."""
        return self._file.string(self._base + offset) if offset < self._strings_end else None

    def _entry(self, index: int) -> tuple[int, ...]:
        return self._file.unpack(ENTRY, self._base + 48 + ENTRY.size * index) or (0, 1 << 32, 1 << 32, 0, 0)

    def lookup(self, name: str) -> str | None:
        """Return the one file that ld.so would open for NAME, or None."""
        try:
            found = self._search(name.encode("utf-8", "surrogateescape"))
        except OSError:
            return None
        return None if found is None else found.decode("utf-8", "surrogateescape")

    def _search(self, name: bytes) -> bytes | None:
        left, right = 0, self.entries - 1
        while left <= right:
            middle = (left + right) // 2
            key = self._string(self._entry(middle)[1])
            if key is None:
                return None
            order = compare_names(name, key)
            if order == 0:
                return self._best(name, middle, right)
            if order < 0:  # the table is sorted in descending order
                left = middle + 1
            else:
                right = middle - 1
        return None

    def _best(self, name: bytes, middle: int, right: int) -> bytes | None:
        known = middle
        while middle > max(0, known - ENTRIES_OF_A_NAME):
            key = self._string(self._entry(middle - 1)[1])
            if key is None or compare_names(name, key) != 0:
                break
            middle -= 1
        best: bytes | None = None
        best_priority = 0
        for index in range(middle, min(right, known + ENTRIES_OF_A_NAME) + 1):
            flags, key_at, value_at, _, wanted = self._entry(index)
            if index > known:
                key = self._string(key_at)
                if key is None or compare_names(name, key) != 0:
                    break
            if flags != LIBRARY_X86_64 or value_at >= self._strings_end:
                continue
            extended = self._rules.glibc_hwcaps and wanted >> 32 & ~(0x3FF) == HWCAP_EXTENSION >> 32
            if not extended:
                if best is not None:
                    break
                if not self._plain(wanted):
                    continue
                return self._string(value_at)
            priority = self._priority(wanted & 0xFFFFFFFF)
            if priority and (best is None or priority < best_priority):
                best, best_priority = self._string(value_at), priority
        return best

    def _plain(self, wanted: int) -> bool:
        """Whether an entry without a glibc-hwcaps subdirectory counts: legacy capabilities until 2.36."""
        if not self._rules.legacy_hwcaps:
            return wanted == 0
        return not wanted & ~(self._legacy_mask | HWCAP_PLATFORM | HWCAP_TLS)

    def _priority(self, index: int) -> int:
        """The rank of the extension's subdirectory INDEX, 1 is best, 0 unusable."""
        if self._priorities is None:
            self._priorities = self._read_priorities()
        return self._priorities[index] if index < len(self._priorities) else 0

    def _read_priorities(self) -> list[int]:
        file, base = self._file, self._base
        head = file.unpack(Struct("<II"), base + self._extension) if self._extension else None
        if head is None or head[0] != EXTENSION_MAGIC:
            return []
        for number in range(min(head[1], SECTIONS)):
            section = file.unpack(EXTENSION_SECTION, base + self._extension + 8 + EXTENSION_SECTION.size * number)
            if section is None:
                break
            tag, _, at, size = section
            if tag == GLIBC_HWCAPS:
                names = (
                    self._string(offset[0])
                    for item in range(min(size // 4, SUBDIRECTORIES))
                    if (offset := file.unpack(COUNT, base + at + 4 * item)) is not None
                )
                return [self._active.index(name) + 1 if name in self._active else 0 for name in names]
        return []
