"""Refuse what a container's usual seccomp profile refuses (EPERM), then become the program that follows."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LOAD_NUMBER, EQUALS, RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS of offset 0, BPF_JMP|JEQ|K, BPF_RET|K
REFUSED = {  # ptrace, perf_event_open, mount, umount2, unshare, setns, bpf, keyctl, add_key, kexec_load, userfaultfd
    "x86_64": (101, 298, 165, 166, 272, 308, 321, 250, 248, 246, 323),
    "aarch64": (117, 241, 40, 39, 97, 268, 280, 219, 217, 104, 282),
}


class Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def main() -> None:
    """Install the filter and run sys.argv[1:]."""
    numbers = REFUSED[platform.machine()]
    code = struct.pack("<HBBI", LOAD_NUMBER, 0, 0, 0)
    for index, number in enumerate(numbers):
        code += struct.pack("<HBBI", EQUALS, len(numbers) - index, 0, number)
    code += struct.pack("<HBBI", RETURN, 0, 0, ALLOW) + struct.pack("<HBBI", RETURN, 0, 0, ERRNO | errno.EPERM)
    program = Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        sys.exit(f"the filter cannot be installed: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
