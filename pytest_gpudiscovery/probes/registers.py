"""Where a running task is: /proc/PID/syscall says only "running", so ptrace stops it for an instant."""

from __future__ import annotations

import ctypes
import os
import time

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_GETREGSET, PTRACE_DETACH = 0x4206, 0x4207, 0x4204, 17  # linux/ptrace.h
NT_PRSTATUS = 1
WALL = 0x40000000  # __WALL: a thread is not a child of its own
PLACES = {"x86_64": (19, 16), "aarch64": (31, 32)}  # stack pointer, program counter in struct user_regs_struct
STOP_S = 0.2  # a task that runs stops at once; one that went into state D meanwhile never does

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, tid, address, data) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def read(tid: int) -> tuple[int, int]:
    """Return (stack pointer, program counter) of TID. Raises OSError, TimeoutError when it does not stop."""
    places = PLACES.get(os.uname().machine)
    if places is None:
        raise OSError(0, "registers are not known on " + os.uname().machine)
    _ptrace(PTRACE_SEIZE, tid)
    _ptrace(PTRACE_INTERRUPT, tid)
    end = time.monotonic() + STOP_S
    while os.waitpid(tid, os.WNOHANG | WALL)[0] == 0:
        if time.monotonic() > end:
            raise TimeoutError(0, "it did not stop")  # our own end detaches it
        time.sleep(0.001)
    try:
        words = (ctypes.c_uint64 * 64)()
        vector = (ctypes.c_size_t * 2)(ctypes.addressof(words), ctypes.sizeof(words))
        _ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, ctypes.addressof(vector))
        return words[places[0]], words[places[1]]
    finally:
        _ptrace(PTRACE_DETACH, tid)
