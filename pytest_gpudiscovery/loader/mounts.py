"""Which file system a path is on, from the text of mountinfo: nothing is opened, so a dead server cannot block it."""

from __future__ import annotations

MAY_BLOCK = ("nfs", "fuse", "autofs", "cifs", "smb", "9p", "ceph", "lustre", "afs", "gpfs", "beegfs", "virtiofs")


def may_block(kind: str) -> bool:
    """Return whether a file system of this type waits for a server or a user-space process."""
    return kind.startswith(MAY_BLOCK)


def parse_mountinfo(text: str) -> list[tuple[str, str, frozenset[str]]]:
    """Return (mount point, type, options) per line of /proc/PID/mountinfo, in mount order; malformed lines are
    left out.
    """
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")[0]
        if len(fields) >= 6 and kind:
            found.append((_unescape(fields[4]), kind, frozenset(fields[5].split(","))))
    return found


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


class Mounts:
    """The mount table, read once from `path` (mountinfo format); empty where it cannot be read."""

    def __init__(self, path: str = "/proc/self/mountinfo") -> None:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                self._table = parse_mountinfo(file.read(1 << 20))
        except OSError:
            self._table = []

    def of(self, path: str) -> tuple[str, frozenset[str]]:
        """Return (type, options) of the mount that PATH, an absolute path without links, is on; ("", empty) if
        unknown.
        """
        best = ("", "", frozenset[str]())
        for point, kind, options in self._table:
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[0]):  # of two mounts on one point the later one covers
                best = (point, kind, options)
        return best[1], best[2]
