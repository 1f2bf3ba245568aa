"""A /dev of the child's own: what driver user space creates there, no other process ever sees.

As root, libcuda and NVML create missing device nodes themselves, which heals (and hides) the fault that the gate is
to find. In a mount namespace of its own the child sees a tmpfs copy of /dev instead.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

CLONE_NEWNS = 0x20000  # linux/sched.h
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 1 << 12, 1 << 14, 1 << 18  # linux/mount.h
MNT_DETACH = 2
ENTRIES = 20_000  # of one /dev; a DGX has about 1,000
DEPTH = 16
FILE_BYTES = 1 << 12  # of a regular file, which has no business in /dev
ACL = "system.posix_acl_access"  # systemd-logind gives the seat's user access to nodes by ACL

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [text and os.fsencode(text) for text in (source, target, kind, data)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _check(result, f"mount {source} on {target}")


def enter() -> None:
    """Put this process into its own mount namespace, over a copy of /dev. Raises OSError; then /dev is the host's."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    _mount("none", "/", None, MS_REC | MS_PRIVATE)  # nothing that is mounted from here on reaches the host
    old = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # after unshare: binds need our namespace
    # A /dev that is mounted nodev makes every node useless: the copy must be as useless as the original.
    flags = MS_NOSUID | (MS_NODEV if os.fstatvfs(old).f_flag & os.ST_NODEV else 0)
    mask = os.umask(0)
    try:
        _mount("gpu-discovery", "/dev", "tmpfs", flags, f"mode=0755,size=4m,nr_inodes={2 * ENTRIES}")
        try:
            new = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _copy(old, new, "/dev", [0], DEPTH)
            finally:
                os.close(new)
        except OSError:
            _libc.umount2(b"/dev", MNT_DETACH)
            raise
    finally:
        os.umask(mask)
        os.close(old)


def _copy(old: int, new: int, path: str, count: list[int], depth: int) -> None:
    """Copy the entries of directory OLD to directory NEW, which is at PATH."""
    device = os.fstat(old).st_dev
    with os.scandir(old) as entries:
        for entry in entries:
            count[0] += 1
            if count[0] > ENTRIES or depth == 0:
                raise OSError(errno.E2BIG, f"{path}: /dev is larger than {ENTRIES} entries, or deeper than {DEPTH}")
            name, seen = entry.name, entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(seen.st_mode):
                os.symlink(os.readlink(name, dir_fd=old), name, dir_fd=new)
            elif seen.st_dev != device:
                _bind(old, new, name, f"{path}/{name}", seen)  # shm, pts, or one node that a container runtime put here
            elif stat.S_ISDIR(seen.st_mode):
                _directory(old, new, name, f"{path}/{name}", seen, count, depth - 1)
            elif stat.S_ISCHR(seen.st_mode) or stat.S_ISBLK(seen.st_mode):
                _node(old, new, name, f"{path}/{name}", seen)
            elif stat.S_ISREG(seen.st_mode):
                _file(old, new, name, seen)
            else:
                _bind(old, new, name, f"{path}/{name}", seen)  # a socket or FIFO, such as /dev/log: the same one


def _directory(old: int, new: int, name: str, path: str, seen: os.stat_result, count: list[int], depth: int) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    os.mkdir(name, 0o700, dir_fd=new)
    inner_old = os.open(name, flags, dir_fd=old)
    try:
        inner_new = os.open(name, flags, dir_fd=new)
        try:
            _copy(inner_old, inner_new, path, count, depth)
            os.fchown(inner_new, seen.st_uid, seen.st_gid)
            os.fchmod(inner_new, stat.S_IMODE(seen.st_mode))
        finally:
            os.close(inner_new)
    finally:
        os.close(inner_old)


def _node(old: int, new: int, name: str, path: str, seen: os.stat_result) -> None:
    try:
        os.mknod(name, seen.st_mode, seen.st_rdev, dir_fd=new)
    except PermissionError:
        _bind(old, new, name, path, seen)  # no CAP_MKNOD in the initial user namespace
        return
    os.chown(name, seen.st_uid, seen.st_gid, dir_fd=new, follow_symlinks=False)
    try:
        os.setxattr(path, ACL, os.getxattr(f"/proc/self/fd/{old}/{name}", ACL))
    except OSError:
        os.chmod(name, stat.S_IMODE(seen.st_mode), dir_fd=new)  # no ACL; the umask is 0, but chown clears bits


def _file(old: int, new: int, name: str, seen: os.stat_result) -> None:
    """Copy a regular file: a bind mount could not be unlinked, and the driver replaces one that stands for a node."""
    source = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=old)
    try:
        target = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=new)
        try:
            os.write(target, os.read(source, FILE_BYTES))
            os.fchown(target, seen.st_uid, seen.st_gid)
            os.fchmod(target, stat.S_IMODE(seen.st_mode))
        finally:
            os.close(target)
    finally:
        os.close(source)


def _bind(old: int, new: int, name: str, path: str, seen: os.stat_result) -> None:
    if stat.S_ISDIR(seen.st_mode):
        os.mkdir(name, 0o700, dir_fd=new)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=new))
    _mount(f"/proc/self/fd/{old}/{name}", path, None, MS_BIND | MS_REC)
