"""Giving up one capability for good."""

from __future__ import annotations

import ctypes
import os

CAP_MKNOD = 27  # linux/capability.h
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24
_libc = ctypes.CDLL(None, use_errno=True)


def drop(capability: int) -> str | None:
    """Drop CAPABILITY from every set of this process.

    Returns what has to be said: the bounding set still has it, so that only PR_SET_NO_NEW_PRIVS keeps an exec by root
    from getting it back; None when it is gone from there too. Raises OSError when this process would keep it.
    """
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for capabilities 32 to 63
    bounding = _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    word, bit = divmod(capability, 32)
    if _libc.capget(header, data) == 0:
        for index in range(3):
            data[3 * word + index] &= ~(1 << bit) & 0xFFFFFFFF
        if _libc.capset(header, data) == 0:
            return None if bounding == 0 else "it stays in the bounding set; no_new_privs keeps it from coming back"
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))
