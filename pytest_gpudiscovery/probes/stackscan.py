"""Estimates a native stack from outside, without stopping the task: so it also works in state D.

Stack pointer and program counter come from /proc/PID/syscall, the words above from /proc/PID/mem. A word that points
just behind a call instruction in an executable mapping is taken as a return address, and named from that library's
own .dynsym (a stripped driver library keeps it). It is an estimate: stale return addresses can appear.
"""

from __future__ import annotations

import os
import stat
import struct
from bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Region = tuple[int, int, bool, int, str]  # first address, end, executable, offset in the file, path

DEPTH = 65_536  # bytes of stack
FRAMES = 32
MAPS = 4 << 20  # bytes of /proc/PID/maps
PATH = 4096  # PATH_MAX
SECTIONS, SEGMENTS = 4096, 256  # of one ELF file; more is not an honest library
SYMBOLS = 16 << 20  # bytes of .dynsym and of .dynstr
GAP = 0x1000  # a symbol without a size reaches this far
SHT_DYNSYM, PT_LOAD, STT_FUNC, STT_GNU_IFUNC = 11, 1, 2, 10


def read_file(path: str, limit: int) -> bytes:
    """Return at most LIMIT bytes of a /proc file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while limit > 0 and (part := os.read(fd, min(limit, 65_536))):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def read_maps(pid: int) -> list[Region]:
    """Return the memory map of PID, by address. Raises OSError; blocks while the map is locked."""
    regions = []
    for line in read_file(f"/proc/{pid}/maps", MAPS).decode("utf-8", "surrogateescape").splitlines():
        fields = line.split(None, 5)
        if len(fields) >= 5 and "-" in fields[0]:
            low, _, high = fields[0].partition("-")
            path = fields[5].removesuffix(" (deleted)") if len(fields) == 6 else ""
            regions.append((int(low, 16), int(high, 16), "x" in fields[1], int(fields[2], 16), path))
    return regions


class Symbols:
    """The exported functions of one ELF file; none for a file that is missing, foreign, corrupt or hostile."""

    def __init__(self, path: str) -> None:
        self._values: list[int] = []
        self._entries: list[tuple[int, str]] = []  # size, name
        self._loads: list[tuple[int, int, int]] = []  # offset, virtual address, size in the file
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError):
            return
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                self._read(fd)
        except (OSError, ValueError, OverflowError, IndexError, struct.error):
            pass  # as far as it could be read
        finally:
            os.close(fd)

    def _read(self, fd: int) -> None:
        header = os.pread(fd, 64, 0)
        if header[:6] != b"\x7fELF\x02\x01":
            return
        phoff, shoff = struct.unpack_from("<QQ", header, 32)
        phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", header, 54)
        if phentsize == 56 and phnum <= SEGMENTS:
            for kind, _, offset, address, _, size in struct.iter_unpack("<IIQQQQ16x", os.pread(fd, 56 * phnum, phoff)):
                if kind == PT_LOAD:
                    self._loads.append((offset, address, size))
        if shentsize != 64 or not 0 < shnum <= SECTIONS:
            return
        sections = list(struct.iter_unpack("<IIQQQQIIQQ", os.pread(fd, 64 * shnum, shoff)))
        for section in sections:
            if section[1] == SHT_DYNSYM:
                names = sections[section[6]]
                self._take(
                    os.pread(fd, min(section[5], SYMBOLS) // 24 * 24, section[4]),
                    os.pread(fd, min(names[5], SYMBOLS), names[4]),
                )

    def _take(self, table: bytes, names: bytes) -> None:
        found: dict[int, tuple[int, str]] = {}
        for name, info, _, section, value, size in struct.iter_unpack("<IBBHQQ", table):
            if value and section and info & 15 in (STT_FUNC, STT_GNU_IFUNC) and name < len(names):
                text = names[name : names.find(b"\0", name, name + 256)]
                found[value] = (size, text.decode("latin-1"))
        self._values = sorted(found)
        self._entries = [found[value] for value in self._values]

    def name(self, offset: int, *, returns: bool) -> tuple[str, int]:
        """Return (function, virtual address) for OFFSET in the file; the function is "" where none is known.

        RETURNS says that it is a return address, which may lie just behind the function that made the call.
        """
        address = next((offset - at + base for at, base, size in self._loads if at <= offset < at + size), offset)
        inside = address - 1 if returns else address
        index = bisect_right(self._values, inside) - 1
        if index < 0:
            return "", address
        size, text = self._entries[index]
        return (text if inside - self._values[index] < (size or GAP) else ""), address


def after_call(code: bytes, machine: str) -> bool:
    """Whether CODE, the 7 bytes before an address, ends with a call instruction of MACHINE."""
    if machine == "aarch64":
        word = int.from_bytes(code[3:7], "little")
        return word & 0xFC000000 == 0x94000000 or word & 0xFFFFFC1F == 0xD63F0000  # BL, BLR
    return (
        code[2] == 0xE8  # call rel32
        or (code[5] == 0xFF and code[6] & 0x38 == 0x10)  # call *reg, *(reg)
        or (code[4] == 0xFF and code[5] & 0xF8 in (0x50, 0x90, 0x10))  # call *disp8(reg), with SIB
        or (code[1] == 0xFF and code[2] & 0x38 == 0x10)  # call *disp32(reg), *disp32(%rip)
        or (code[0] == 0xFF and code[1] & 0x38 == 0x10)  # call *disp32 with SIB
    )


class Scanner:
    """Scans the stacks of one process."""

    def __init__(self, pid: int, regions: list[Region]) -> None:
        self._machine = os.uname().machine
        self._regions, self._starts = regions, [region[0] for region in regions]
        self._symbols: dict[str, Symbols] = {}
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the memory."""
        os.close(self._memory)

    def frames(self, sp: int, pc: int) -> list[dict[str, Any]]:
        """Return the frames of a task with stack pointer SP and program counter PC, innermost first.

        A frame is {library, symbol or None, offset: its virtual address, estimate: False for the first}.
        """
        found = [frame] if (frame := self._frame(pc, returns=False)) else []
        stack = self._region(sp)
        if stack is None:
            return found
        data = self._read(sp, min(DEPTH, stack[1] - sp))
        for (word,) in struct.iter_unpack("<Q", data[: len(data) // 8 * 8]):
            region = self._region(word)
            if region is None or not region[2] or len(code := self._read(word - 7, 7)) < 7:
                continue
            if after_call(code, self._machine) and (frame := self._frame(word, returns=True)):
                found.append(frame)
                if len(found) == FRAMES:
                    break
        return found

    def text(self, address: int) -> str | None:
        """Return the string at ADDRESS, None when it cannot be read."""
        data = b""
        while len(data) < PATH and (part := self._read(address + len(data), 256 - (address + len(data)) % 256)):
            data += part
            if b"\0" in part:
                return data[: data.index(b"\0")].decode("utf-8", "backslashreplace")
        return None

    def _read(self, address: int, size: int) -> bytes:
        try:
            return os.pread(self._memory, size, address)
        except (OSError, OverflowError):
            return b""

    def _region(self, address: int) -> Region | None:
        index = bisect_right(self._starts, address) - 1
        return self._regions[index] if index >= 0 and address < self._regions[index][1] else None

    def _frame(self, address: int, *, returns: bool) -> dict[str, Any] | None:
        region = self._region(address)
        if region is None or not region[2]:
            return None
        path = region[4] or "[anonymous]"
        if path not in self._symbols:
            self._symbols[path] = Symbols(path)
        symbol, at = self._symbols[path].name(address - region[0] + region[3], returns=returns)
        return {"library": path, "symbol": symbol or None, "offset": at, "estimate": returns}
