"""Which mount holds a path, and with which options (proc(5), /proc/PID/mountinfo)."""

from __future__ import annotations

from pytest_gpudiscovery.probes.host import HostView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def mount_options(view: HostView, path: str) -> dict[str, Any] | None:
    """Return {"point", "type", "options", "root"} of the mount that holds PATH, None when mountinfo cannot be read."""
    try:
        return covering_mount(view.read("/proc/self/mountinfo").decode("utf-8", "surrogateescape"), path)
    except OSError:
        return None


def covering_mount(mountinfo: str, path: str) -> dict[str, Any] | None:
    """Return the mount of MOUNTINFO whose mount point is the longest that holds PATH; of equal ones the last is on top.

    `options` are the mount's own together with the superblock's; `root` is what of its file system is mounted there.
    """
    best: dict[str, Any] | None = None
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) < 10 or "-" not in fields[6:]:
            continue
        dash = fields.index("-", 6)
        point = _unescape(fields[4])
        below = point if point.endswith("/") else point + "/"
        if (path == point or path.startswith(below)) and (best is None or len(point) >= len(best["point"])):
            options = fields[5].split(",") + (fields[dash + 3].split(",") if len(fields) > dash + 3 else [])
            kind = fields[dash + 1] if len(fields) > dash + 1 else ""
            best = {"point": point, "type": kind, "options": sorted(set(options)), "root": _unescape(fields[3])}
    return best


def mounted_file(view: HostView, path: str) -> str | None:
    """Return which file of its file system is mounted on PATH alone, None where PATH is no such mount.

    Apptainer mounts the driver's libraries one by one under their sonames: what /.singularity.d/libs/libcuda.so.1
    really is, the mount tells (libcuda.so.580.159.04).
    """
    mount = mount_options(view, path)
    return str(mount["root"]) if mount is not None and mount["point"] == path else None


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
