"""A FUSE file system that has every file and never answers one kind of request: fuse_server.py MOUNTPOINT POLICY.

POLICY is "lookup" (every path below the mount point blocks) or "write" (dirty pages never reach the disk). Prints
"ready". Ends when its standard input closes, which aborts the connection and frees whoever waits.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import sys

HEADER = struct.Struct("<IIQQIIII")  # struct fuse_in_header: length, opcode, unique, node, uid, gid, pid
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, RELEASE, FLUSH, INIT = 1, 2, 3, 4, 14, 15, 16, 18, 25, 26
OPENDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET, ENOSYS = 27, 29, 36, 42, 38
SIZE = 4096


def attributes(node: int) -> bytes:
    """Return a struct fuse_attr: node 1 is the directory, the others are files."""
    mode = 0o40755 if node == 1 else 0o100644
    return struct.pack("<QQQQQQIIIIIIIIII", node, SIZE, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, SIZE, 0)


def serve(fd: int, policy: str) -> None:
    """Answer requests until standard input closes."""
    nodes: dict[bytes, int] = {}
    while fd in select.select([fd, 0], [], [])[0]:
        try:
            request = os.read(fd, 1 << 18)
        except OSError:
            return  # unmounted
        _, opcode, unique, node, *_ = HEADER.unpack_from(request)
        body, error = b"", 0
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT) or (opcode == LOOKUP and policy == "lookup"):
            continue
        if opcode == WRITE and policy == "write":
            continue
        if opcode == INIT:
            body = struct.pack("<IIIIHHIIHHI7I", 7, 31, 131072, 0, 12, 10, 131072, 1, 32, 0, 0, *[0] * 7)
        elif opcode == LOOKUP:
            found = nodes.setdefault(request[HEADER.size :], len(nodes) + 2)
            body = struct.pack("<QQQQII", found, 0, 60, 60, 0, 0) + attributes(found)
        elif opcode in (GETATTR, SETATTR):
            body = struct.pack("<QII", 60, 0, 0) + attributes(node)
        elif opcode in (OPEN, OPENDIR):
            body = struct.pack("<QII", 1, 0, 0)
        elif opcode == READ:
            body = bytes(SIZE)
        elif opcode not in (RELEASE, RELEASEDIR, FLUSH):
            error = -ENOSYS
        try:
            os.write(fd, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
        except OSError:
            continue  # whoever asked is gone


def main() -> None:
    """Mount and serve."""
    mountpoint, policy = sys.argv[1:]
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hang", mountpoint.encode(), b"fuse", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    print("ready", flush=True)
    serve(fd, policy)


if __name__ == "__main__":
    main()
