"""Says what a given path is (binary, prefix, release archive), and unpacks an archive into a private directory.

Nothing of the archive is followed while it is unpacked: files and directories come first, links last, and every name
was checked before it is used. One bad entry refuses the whole archive: a release has none.
"""

from __future__ import annotations

import os
import stat

from pytest_gpudiscovery.probes import compressed, tarstream
from pytest_gpudiscovery.probes.journal import Journal
from pytest_gpudiscovery.probes.tarstream import ArchiveProblem, Member, TarStream, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MEMBERS_LIMIT = 50_000  # of one archive; a release with ROCm has about 2,000
BYTES_LIMIT = 24 << 30  # of one archive, unpacked; v0.32 has about 4 GB
RESERVE = 256 << 20  # bytes of the file system that are left to others
MAGICS = (
    (b"\x7fELF", "binary"),
    (b"#!", "script"),
    (compressed.GZIP, "gzip"),
    (compressed.ZSTD, "zstd"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"BZh", "a bzip2 archive"),
)
TAR_MAGIC_AT = 257


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return {"kind": "binary" | "script" | "prefix" | "archive" | "other", ...} of REQUEST["path"].

    An archive is unpacked into directory REQUEST["into"], which must exist, and adds {"files", "links", "bytes", "by"}.
    "refused" is one line that says why the path cannot be used.
    """
    path = request["path"]
    with journal.step(f"look at {path}"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            return _without_reading(path, error)
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            return {"kind": "prefix"}
        kind = _kind(fd) if stat.S_ISREG(status.st_mode) else "no regular file"
    if kind in ("binary", "script"):
        return {"kind": kind}
    if kind not in ("gzip", "zstd", "tar"):
        return {"kind": "other", "refused": kind}
    try:
        with journal.step(f"unpack {path}"):
            return {"kind": "archive", **_unpack(fd, kind, status.st_size, request["into"], journal)}
    except ArchiveProblem as problem:
        return {"kind": "archive", "refused": str(problem)}
    except OSError as error:
        return {"kind": "archive", "refused": f"cannot be unpacked: {error.strerror or error}"}


def _without_reading(path: str, error: OSError) -> dict[str, Any]:
    # A binary of mode 0111 can be executed and not read.
    if isinstance(error, PermissionError) and os.path.isfile(path) and os.access(path, os.X_OK):
        return {"kind": "binary"}
    return {"kind": "other", "refused": f"cannot be read: {error.strerror}"}


def _kind(fd: int) -> str:
    head = os.pread(fd, tarstream.BLOCK, 0)
    if not head:
        return "an empty file"
    if head[TAR_MAGIC_AT : TAR_MAGIC_AT + 5] == b"ustar":
        return "tar"
    return next((kind for magic, kind in MAGICS if head.startswith(magic)), "no ELF file, script or archive")


def _unpack(fd: int, kind: str, size: int, into: str, journal: Journal) -> dict[str, Any]:
    free = _free(into)
    if free < size + RESERVE:
        raise ArchiveProblem(_too_little(into, size + RESERVE, free))
    by = kind
    if kind == "gzip":
        read = compressed.gzip(fd)
    elif kind == "zstd":
        read, by = compressed.zstd(fd, os.environ.get("PATH", ""))
    else:

        def read(size: int) -> bytes:
            return os.read(fd, size)

    journal.observe("by", by)
    return {"by": by, **Unpacker(into).unpack(TarStream(read))}


def _free(directory: str) -> int:
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize


def _too_little(directory: str, needed: int, free: int) -> str:
    place = os.path.dirname(os.path.dirname(directory))
    return (
        f"too little space: {needed / (1 << 20):.0f} MB are needed below {place}, {free / (1 << 20):.0f} MB are free; "
        "set TMPDIR to a larger file system"
    )


class Unpacker:
    """Writes the members of one archive below directory INTO; raises ArchiveProblem and OSError."""

    def __init__(self, into: str) -> None:
        self._into = into
        self._kinds: dict[str, str] = {}  # path -> what it became
        self._links: list[Member] = []
        self._bytes = 0

    def unpack(self, archive: TarStream) -> dict[str, int]:
        """Write everything; return {"files", "links", "bytes"}."""
        for count, member in enumerate(archive):
            if count >= MEMBERS_LIMIT:
                raise ArchiveProblem(f"more than {MEMBERS_LIMIT} entries")
            if member.name:
                self._member(member, archive)
            elif member.kind != tarstream.DIRECTORY:
                raise ArchiveProblem(f"a {member.kind} without a name")
        for member in self._links:
            self._link(member)
        files = sum(kind == tarstream.FILE for kind in self._kinds.values())
        return {"files": files, "links": len(self._links), "bytes": self._bytes}

    def _member(self, member: Member, archive: TarStream) -> None:
        if member.kind == tarstream.DIRECTORY:
            self._directory(member.name)
            return
        self._directory(member.name.rpartition("/")[0])
        if member.name in self._kinds:
            raise ArchiveProblem(f"{shown(member.name)} is there twice")
        self._kinds[member.name] = member.kind
        if member.kind == tarstream.FILE:
            self._file(member, archive)
        else:
            self._links.append(member)

    def _directory(self, path: str) -> None:
        done = ""
        for part in path.split("/") if path else ():
            done = f"{done}/{part}" if done else part
            known = self._kinds.get(done)
            if known is None:
                os.mkdir(f"{self._into}/{done}")
                os.chmod(f"{self._into}/{done}", 0o755)  # noqa: S103 - probes may run as somebody else, whatever the umask is
                self._kinds[done] = tarstream.DIRECTORY
            elif known != tarstream.DIRECTORY:
                raise ArchiveProblem(f"{shown(done)} is a {known} and a directory")

    def _file(self, member: Member, archive: TarStream) -> None:
        self._bytes += member.size
        if self._bytes > BYTES_LIMIT:
            raise ArchiveProblem(f"more than {BYTES_LIMIT >> 30} GB unpacked, with {shown(member.name)}")
        free = _free(self._into)
        if free < member.size + RESERVE:
            raise ArchiveProblem(_too_little(self._into, member.size + RESERVE, free))
        # No setuid, no write access for others, readable for the user that probes run as.
        mode = 0o755 if member.mode & 0o111 else 0o644
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(f"{self._into}/{member.name}", flags, mode)
        try:
            for chunk in archive.data():
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
            os.fchmod(fd, mode)
        finally:
            os.close(fd)

    def _link(self, member: Member) -> None:
        here = f"{self._into}/{member.name}"
        if member.kind == tarstream.SYMLINK:
            if os.path.normpath(os.path.join(os.path.dirname(member.name), member.target)).startswith(".."):
                raise ArchiveProblem(f"{shown(member.name)} is a link out of the archive")
            self._no_link_on_the_way(member)
            os.symlink(member.target, here)
        elif self._kinds.get(member.target) == tarstream.FILE:
            os.link(f"{self._into}/{member.target}", here, follow_symlinks=False)
        else:
            raise ArchiveProblem(f"{shown(member.name)} is a hard link to {shown(member.target)}, no file of it")

    def _no_link_on_the_way(self, member: Member) -> None:
        """Refuse a target that leads through another link of the archive: "..", taken there, means somewhere else."""
        done = [part for part in member.name.split("/")[:-1] if part]
        parts = [part for part in member.target.split("/") if part not in ("", ".")]
        for index, part in enumerate(parts):
            if part == "..":
                done.pop()
                continue
            done.append(part)
            if self._kinds.get("/".join(done)) == tarstream.SYMLINK and index < len(parts) - 1:
                raise ArchiveProblem(f"{shown(member.name)} is a link that leads through another link")
