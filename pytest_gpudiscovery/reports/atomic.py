"""Writing a report file so that a reader sees the old one or the new one, in a directory that may be anybody's."""

from __future__ import annotations

import contextlib
import os


def replace(
    directory: str, name: str, data: bytes, *, dir_fd: int | None = None, sync: bool = False, mode: int = 0o644
) -> None:
    """Replace DIRECTORY/NAME by DATA, with MODE; raises OSError and then leaves the file that was there.

    DIR_FD, an open descriptor of DIRECTORY, keeps a link that is put in its place meanwhile from being followed.
    SYNC waits until the data is on the disk; what is derived from verdict.json does without.
    """
    temporary, final = f".{name}.{os.getpid()}", name
    if dir_fd is None:
        temporary, final = os.path.join(directory, temporary), os.path.join(directory, name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, mode, dir_fd=dir_fd)
    except FileExistsError:  # left by a process of this number that was killed, or put there
        os.unlink(temporary, dir_fd=dir_fd)
        fd = os.open(temporary, flags, mode, dir_fd=dir_fd)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, final, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to say
            os.unlink(temporary, dir_fd=dir_fd)
        raise
