"""Room in the static TLS block: what initial-exec variables of a dlopened library can use (elf/dl-tls.c,
dl-static-tls.h).
"""

from __future__ import annotations

from pytest_gpudiscovery.loader.elf import ThreadLocal

TCB_ALIGNMENT = 64
HISTORIC_SURPLUS = 1664
LIBC_INITIAL_EXEC = OTHER_INITIAL_EXEC = 144
NAMESPACES, MOST_NAMESPACES, OPTIONAL = 4, 16, 512
RSEQ_SIZE = RSEQ_ALIGNMENT = 32
LEGACY = HISTORIC_SURPLUS - ((NAMESPACES - 1) * LIBC_INITIAL_EXEC + NAMESPACES * OTHER_INITIAL_EXEC + OPTIONAL)


def round_up(value: int, alignment: int) -> int:
    """Return VALUE rounded up to a multiple of ALIGNMENT."""
    return -(-value // alignment) * alignment


def _tunable(tunables: dict[str, str], name: str, default: int) -> int:
    try:
        return max(0, int(tunables.get(name, ""), 0))
    except ValueError:
        return default


class StaticTls:
    """The block as it is after start-up with the TLS segments BLOCKS, in link map order."""

    def __init__(self, blocks: list[ThreadLocal], tunables: dict[str, str], has_tunables: bool, rseq: bool) -> None:
        namespaces, optional = NAMESPACES, OPTIONAL
        if has_tunables:
            namespaces = min(_tunable(tunables, "glibc.rtld.nns", NAMESPACES), MOST_NAMESPACES)
            optional = _tunable(tunables, "glibc.rtld.optional_static_tls", OPTIONAL)
        surplus = LEGACY + (namespaces - 1) * LIBC_INITIAL_EXEC + namespaces * OTHER_INITIAL_EXEC + optional
        self.optional = optional
        self.alignment = TCB_ALIGNMENT
        offset = 0
        for block in blocks:
            alignment = max(block.alignment, 1)
            self.alignment = max(self.alignment, alignment)
            first = -block.first_byte & (alignment - 1)
            offset = round_up(offset + block.size - first, alignment) + first
        if rseq:
            offset = round_up(offset, RSEQ_ALIGNMENT) + RSEQ_SIZE
        self.used = offset
        self.size = round_up(offset + surplus, self.alignment)  # without the thread control block itself

    def take(self, block: ThreadLocal, optional: bool = False) -> bool:
        """Place BLOCK, as _dl_try_allocate_static_tls does; False when it does not fit. `optional`: for TLS
        descriptors.
        """
        alignment = max(block.alignment, 1)
        free = self.size - self.used
        needed = block.size + block.first_byte
        if alignment > self.alignment or free < needed:
            return False
        use = free - (free - needed) // alignment * alignment - block.first_byte
        if optional:
            if use > self.optional:
                return False
            self.optional -= use
        self.used += use
        return True
