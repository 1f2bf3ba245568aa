"""Device programs of cgroup v2: their instructions asked of the kernel (bpf(2)), and what they answer.

Programs of type BPF_PROG_TYPE_CGROUP_DEVICE as systemd and runc write them are straight comparisons of the three words
of struct bpf_cgroup_dev_ctx. The interpreter knows what such programs use of the kernel's instruction set; anything
else (a helper call, a map) raises.
"""

from __future__ import annotations

import ctypes
import os
import struct

SYSCALL = {"x86_64": 321, "aarch64": 280, "ppc64le": 361}  # bpf(2)
PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, PROG_QUERY = 13, 15, 16  # enum bpf_cmd
ATTACH_DEVICE, QUERY_EFFECTIVE = 6, 1  # BPF_CGROUP_DEVICE, BPF_F_QUERY_EFFECTIVE
CHAR, READ_WRITE = 2, 2 | 4  # BPF_DEVCG_DEV_CHAR; BPF_DEVCG_ACC_READ | BPF_DEVCG_ACC_WRITE
PROGRAMS_LIMIT, INSTRUCTIONS_LIMIT, STEPS_LIMIT = 64, 65536, 100_000
MASK64, MASK32 = (1 << 64) - 1, (1 << 32) - 1
LDX, ALU, JMP, JMP32, ALU64 = 1, 4, 5, 6, 7  # instruction classes
EXIT, CONSTANT64 = 0x95, 0x18
WIDTH = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}  # bytes of a load
CONTEXT = 1 << 40  # where struct bpf_cgroup_dev_ctx lies in our address space

_libc = ctypes.CDLL(None, use_errno=True)


class UnknownInstruction(Exception):
    """The program does something that this interpreter does not know."""


def device_programs(directory: str) -> list[bytes]:
    """Return the verified instructions of every device program in effect for cgroup DIRECTORY; raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [_instructions(program) for program in _query(fd)]
    finally:
        os.close(fd)


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    machine = os.uname().machine
    if machine not in SYSCALL:
        raise OSError(38, os.strerror(38))
    result = int(_libc.syscall(SYSCALL[machine], command, attributes, len(attributes)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _query(directory: int) -> list[int]:
    """Return the ids of the device programs in effect for the cgroup of descriptor DIRECTORY; raises OSError."""
    ids = (ctypes.c_uint32 * PROGRAMS_LIMIT)()
    raw = struct.pack("<IIIIQI", directory, ATTACH_DEVICE, QUERY_EFFECTIVE, 0, ctypes.addressof(ids), PROGRAMS_LIMIT)
    attributes = ctypes.create_string_buffer(raw, len(raw))
    _bpf(PROG_QUERY, attributes)
    (count,) = struct.unpack_from("<I", attributes.raw, 24)
    return list(ids)[:count]


def _instructions(program: int) -> bytes:
    """Return the verified instructions of program id PROGRAM; raises OSError."""
    raw = struct.pack("<III", program, 0, 0)
    fd = _bpf(PROG_GET_FD_BY_ID, ctypes.create_string_buffer(raw, len(raw)))
    try:
        info = ctypes.create_string_buffer(80)  # struct bpf_prog_info as far as it is needed
        _info(fd, info)
        (size,) = struct.unpack_from("<I", info.raw, 20)  # xlated_prog_len
        if not 0 < size <= 8 * INSTRUCTIONS_LIMIT:
            raise OSError(7, os.strerror(7))
        code = ctypes.create_string_buffer(size)
        info = ctypes.create_string_buffer(80)
        struct.pack_into("<I", info, 20, size)
        struct.pack_into("<Q", info, 32, ctypes.addressof(code))  # xlated_prog_insns
        _info(fd, info)
        if struct.unpack_from("<Q", info.raw, 32)[0] == 0:  # kernel.kptr_restrict, or lockdown
            raise PermissionError(1, os.strerror(1))
        return code.raw
    finally:
        os.close(fd)


def _info(fd: int, info: ctypes.Array[ctypes.c_char]) -> None:
    raw = struct.pack("<IIQ", fd, len(info), ctypes.addressof(info))
    _bpf(OBJ_GET_INFO_BY_FD, ctypes.create_string_buffer(raw, len(raw)))


def run(program: bytes, major: int, minor: int, access: int = READ_WRITE) -> int:
    """Return what PROGRAM answers to opening character device MAJOR:MINOR; raises UnknownInstruction."""
    context = struct.pack("<III", access << 16 | CHAR, major, minor)
    registers = [0] * 11
    registers[1] = CONTEXT
    at = 0
    for _ in range(STEPS_LIMIT):
        if not 0 <= at < len(program) // 8:
            raise UnknownInstruction("it jumps out of itself")
        code, pair, offset, immediate = struct.unpack_from("<BBhi", program, 8 * at)
        at += 1
        target, source, kind = pair & 15, pair >> 4, code & 7
        if code == EXIT:
            return registers[0] & MASK32
        if target > 10 or source > 10:
            raise UnknownInstruction(f"instruction {code:#04x}")
        if kind in (ALU, ALU64):
            value = registers[source] if code & 8 else immediate
            registers[target] = _compute(code & 0xF0, registers[target], value, wide=kind == ALU64)
        elif kind in (JMP, JMP32):
            value = registers[source] if code & 8 else immediate
            if _jumps(code & 0xF0, registers[target], value, wide=kind == JMP):
                at += offset
        elif kind == LDX and code & 0xE0 == 0x60:
            registers[target] = _load(context, registers[source] + offset, WIDTH[code & 0x18])
        elif code == CONSTANT64 and source == 0 and at < len(program) // 8:  # two instructions long
            (high,) = struct.unpack_from("<i", program, 8 * at + 4)
            registers[target] = (immediate & MASK32) | (high & MASK32) << 32
            at += 1
        else:
            raise UnknownInstruction(f"instruction {code:#04x}")
    raise UnknownInstruction("it does not end")


def _load(context: bytes, address: int, width: int) -> int:
    at = address - CONTEXT
    if not 0 <= at <= len(context) - width:
        raise UnknownInstruction("it reads outside of its context")
    return int.from_bytes(context[at : at + width], "little")


def _compute(operation: int, left: int, right: int, *, wide: bool) -> int:
    mask, bits = (MASK64, 64) if wide else (MASK32, 32)
    left, right = left & mask, right & mask
    shift = right & (bits - 1)
    signed = left - (1 << bits) if left >> (bits - 1) else left
    results = {
        0x00: left + right,
        0x10: left - right,
        0x20: left * right,
        0x40: left | right,
        0x50: left & right,
        0x60: left << shift,
        0x70: left >> shift,
        0x80: -left,
        0xA0: left ^ right,
        0xB0: right,
        0xC0: signed >> shift,
    }
    if operation not in results:
        raise UnknownInstruction(f"arithmetic {operation:#04x}")
    return results[operation] & mask


def _jumps(operation: int, left: int, right: int, *, wide: bool) -> bool:
    mask, bits = (MASK64, 64) if wide else (MASK32, 32)
    left, right = left & mask, right & mask
    half = 1 << (bits - 1)
    one, two = (left ^ half) - half, (right ^ half) - half  # as signed numbers
    results = {
        0x00: True,
        0x10: left == right,
        0x20: left > right,
        0x30: left >= right,
        0x40: bool(left & right),
        0x50: left != right,
        0x60: one > two,
        0x70: one >= two,
        0xA0: left < right,
        0xB0: left <= right,
        0xC0: one < two,
        0xD0: one <= two,
    }
    if operation not in results:
        raise UnknownInstruction(f"jump {operation:#04x}")
    return results[operation]
