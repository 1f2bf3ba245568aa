"""Reads a tar archive from a stream that nobody trusts: every header is checked, nothing is kept in memory.

ustar (POSIX.1-1988), GNU long names and pax path, linkpath and size (POSIX.1-2001, pax "Extended Header"). Whatever a
release never holds is refused by name, not skipped: devices, FIFOs, sparse files, paths or links that leave the
archive's own directory. tarfile would read a pax header of any size into memory and has filters only from 3.10.12 on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

BLOCK = 512
NAME_LIMIT = 1024  # characters of a path
DEPTH_LIMIT = 32  # components of a path
HEADERS_LIMIT = 1 << 16  # bytes of one extended header
TRAILER_LIMIT = 1 << 20  # bytes after the end mark that are read for the compressor's own checksum
CHUNK = 1 << 18

FILE, DIRECTORY, SYMLINK, HARDLINK = "file", "directory", "symlink", "hardlink"
KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"1": HARDLINK, b"2": SYMLINK, b"5": DIRECTORY}
REFUSED = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO", b"S": "a sparse file"}
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL = b"L", b"K", b"x", b"g"

Read = Callable[[int], bytes]  # at most that many bytes, b"" at the end


class ArchiveProblem(Exception):
    """Why the archive is not unpacked, as one line."""


class Member:
    """One entry: `name` and a hard link's `target` relative to the archive's root, a symlink's target as it stands."""

    __slots__ = ("kind", "mode", "name", "size", "target")

    def __init__(self, name: str, kind: str, size: int, mode: int, target: str) -> None:
        self.name, self.kind, self.size, self.mode, self.target = name, kind, size, mode, target


class TarStream:
    """The members of the archive that READ gives, in order; both methods raise ArchiveProblem and what READ raises."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._left = 0  # bytes of the current member's data that were not read
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        """Yield the members; the data of one that was not read is passed over."""
        while True:
            self._skip()
            header = self._exactly(BLOCK, "its end mark")
            if header == bytes(BLOCK):
                self._trailer()
                return
            yield self._member(header)

    def data(self) -> Iterator[bytes]:
        """Yield the data of the current member."""
        while self._left:
            chunk = self._read(min(CHUNK, self._left))
            if not chunk:
                raise ArchiveProblem("the archive is cut off in the middle of a file")
            self._left -= len(chunk)
            yield chunk

    def _skip(self) -> None:
        for _ in self.data():
            pass
        if self._padding:
            self._exactly(self._padding, "the end of a file")
            self._padding = 0

    def _exactly(self, size: int, before: str) -> bytes:
        parts, left = [], size
        while left:
            part = self._read(left)
            if not part:
                raise ArchiveProblem(f"the archive is cut off before {before}")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _trailer(self) -> None:
        left = TRAILER_LIMIT
        while left and (chunk := self._read(min(CHUNK, left))):
            left -= len(chunk)

    def _member(self, header: bytes) -> Member:
        long: dict[str, str] = {}
        kind = _checked(header)
        while kind in (LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL):
            text = self._extended(header)
            if kind in (PAX, PAX_GLOBAL):
                records = _pax(text)
                if kind == PAX_GLOBAL and records:
                    raise ArchiveProblem("a global header renames every file of the archive")
                long.update(records)
            else:
                long["path" if kind == LONG_NAME else "linkpath"] = _text(text.rstrip(b"\0"))
            header = self._exactly(BLOCK, "the file that a long name belongs to")
            kind = _checked(header)
        return self._plain(header, kind, long)

    def _extended(self, header: bytes) -> bytes:
        size = _number(header[124:136])
        if size > HEADERS_LIMIT:
            raise ArchiveProblem(f"an extended header of {size} bytes; at most {HEADERS_LIMIT} are read")
        return self._exactly(size + -size % BLOCK, "the end of an extended header")[:size]

    def _plain(self, header: bytes, kind: bytes, long: dict[str, str]) -> Member:
        name = long.get("path") or _name(header)
        if kind in REFUSED or kind not in KINDS:
            what = REFUSED.get(kind) or f"of the unknown type {kind!r}"
            raise ArchiveProblem(f"{shown(name)} is {what}: no release has one")
        what = KINDS[kind]
        size = _size(long["size"]) if "size" in long else _number(header[124:136])
        if what == FILE and name.endswith("/"):
            what = DIRECTORY  # as archivers before ustar wrote them
        target = long["linkpath"] if long.get("linkpath") else _text(_field(header[157:257]))
        name = safe_path(name)
        if what == SYMLINK:
            safe_link(name, target)
        elif what == HARDLINK:
            target = safe_path(target)
        if what == FILE:
            self._left, self._padding = size, -size % BLOCK
        elif size and what != HARDLINK:
            raise ArchiveProblem(f"{shown(name)} is a {what} with {size} bytes of data")
        return Member(name, what, size if what == FILE else 0, _number(header[100:108]) & 0o777, target)


def _name(header: bytes) -> str:
    prefix = _text(_field(header[345:500])) if header[257:263] == b"ustar\0" else ""
    name = _text(_field(header[:100]))
    return f"{prefix}/{name}" if prefix else name


def safe_path(path: str) -> str:
    """Return PATH without "." parts; raises ArchiveProblem for one that is absolute, climbs, or is no usable name."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/"):
        _refuse(path, "an absolute path")
    if ".." in parts:
        _refuse(path, "a path that leaves the archive's directory")
    if len(path) > NAME_LIMIT or len(parts) > DEPTH_LIMIT or any(len(part.encode()) > 255 for part in parts):
        _refuse(path, "too long a path")
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        _refuse(path, "a path with control characters")
    return "/".join(parts)


def safe_link(name: str, target: str) -> None:
    """Raise ArchiveProblem unless TARGET, read from where link NAME lies, stays below the archive's directory."""
    if not target or target.startswith("/"):
        _refuse(name, f"a link to {shown(target) or 'nothing'}, outside of the archive")
    if len(target) > NAME_LIMIT or any(ord(character) < 32 for character in target):
        _refuse(name, "a link whose target is no usable path")
    depth = name.count("/")
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            _refuse(name, f"a link to {shown(target)}, outside of the archive")


def shown(path: str) -> str:
    """Return PATH fit for one line of text."""
    text = path.encode("unicode_escape").decode("ascii")
    return text if len(text) <= 80 else text[:79] + "…"


def _refuse(path: str, what: str) -> NoReturn:
    raise ArchiveProblem(f"{shown(path)} is {what}")


def _checked(header: bytes) -> bytes:
    """Return the type of HEADER after its checksum was compared (unsigned, or signed as some old archivers did)."""
    rest = header[:148] + b" " * 8 + header[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in rest)
    if _number(header[148:156]) not in (sum(rest), signed):
        raise ArchiveProblem("no tar archive, or a broken one: a header has the wrong checksum")
    return header[156:157]


def _field(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _text(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ArchiveProblem(f"a name that is no UTF-8: {raw[:40]!r}") from None
    if "\0" in text:
        raise ArchiveProblem("a name with a NUL in it")
    return text


def _number(raw: bytes) -> int:
    """Return the octal number of a header field, or the big-endian one that GNU writes for large files."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
        if raw[0] != 0x80 or value >= 1 << 62:
            raise ArchiveProblem("a header holds a negative or an impossible size")
        return value
    digits = raw.strip(b"\0 ")
    if not digits:
        return 0
    if not all(byte in b"01234567" for byte in digits):
        raise ArchiveProblem("no tar archive, or a broken one: a number of a header is not octal")
    return int(digits, 8)


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ArchiveProblem(f"a header holds an impossible size: {shown(text)}")
    return int(text)


def _pax(raw: bytes) -> dict[str, str]:
    """Return path, linkpath and size of the pax records "LENGTH KEY=VALUE\\n" in RAW."""
    found: dict[str, str] = {}
    at = 0
    while at < len(raw):
        blank = raw.find(b" ", at, at + 8)
        digits = raw[at:blank] if blank > 0 else b""
        length = int(digits) if digits.isdigit() else 0
        record = raw[blank + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if length <= len(digits) + 2 or at + length > len(raw) or record[-1:] != b"\n" or not equals:
            raise ArchiveProblem("an extended header cannot be read")
        if key.startswith(b"GNU.sparse."):
            raise ArchiveProblem("a sparse file: no release has one")
        if key in (b"path", b"linkpath", b"size"):
            found[key.decode()] = _text(value)
        at += length
    return found
