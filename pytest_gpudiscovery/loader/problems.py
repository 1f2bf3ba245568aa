"""How a dlopen can end, and ld.so's own words for it.

Messages are those of glibc's elf/dl-load.c, dl-map-segments.h, dl-version.c, dl-lookup.c, dl-prop.h and dl-reloc.c;
dlerror() puts the name of the object in front of them ("libcuda.so.1: cannot open shared object file: No such file or
directory").
"""

from __future__ import annotations

import os

# Outcomes of a predicted dlopen.
LOADS = "loads"  # the loader has no objection; constructors are beyond its reach
ERROR = "error"  # dlopen returns NULL and dlerror() says why
ABORT = "abort"  # an assertion in ld.so ends the process with exit status 127
SIGBUS = "sigbus"  # a page beyond the end of the file is touched
SIGSEGV = "sigsegv"  # a table address that is not mapped is read
HANGS = "hangs"  # open() or read() of the file blocks, or a search in it never ends
NO_START = "no start"  # the program itself does not start: ld.so ends it with exit status 127
UNSUPPORTED = "unsupported"  # not glibc on x86-64: recognised, not predicted

NOT_FOUND = "cannot open shared object file"
WRONG_CLASS = "wrong ELF class: ELFCLASS32"
CANNOT_READ = "cannot read file data"
TOO_SHORT = "file too short"
INVALID_HEADER = "invalid ELF header"
NO_DYNAMIC = "object file has no dynamic section"
NO_SEGMENTS = "object file has no loadable segments"
NOT_ALIGNED = "ELF load command address/offset not page-aligned"
NOT_PROPERLY_ALIGNED = "ELF load command address/offset not properly aligned"
ALIGNMENT_NOT_ALIGNED = "ELF load command alignment not page-aligned"
IS_EXECUTABLE = "cannot dynamically load executable"
IS_PIE = "cannot dynamically load position-independent executable"
NO_OPEN = "shared object cannot be dlopen()ed"
CANNOT_MAP = "failed to map segment from shared object"
EXECUTABLE_STACK = "cannot enable executable stack as shared object requires"
STATIC_TLS = "cannot allocate memory in static TLS block"
ISA_LEVEL = "CPU ISA level is lower than required"
RELR = "DT_RELR without GLIBC_ABI_DT_RELR dependency"


class Skipped(Exception):
    """A candidate file that ld.so passes over; the search goes on.

    `errno` is what the failed open leaves behind; `other_class` is true for an ELF file of the other class.
    """

    def __init__(self, reason: str, errno: int, other_class: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.errno = errno
        self.other_class = other_class


class Refused(Exception):
    """What ends a dlopen: `kind` is an outcome above, `text` ld.so's words, `subject` the object it names."""

    def __init__(self, text: str, subject: str = "", kind: str = ERROR, errno: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.subject = subject
        self.kind = kind
        self.errno = errno

    @property
    def message(self) -> str:
        """The whole line, as dlerror() gives it."""
        text = f"{self.text}: {os.strerror(self.errno)}" if self.errno else self.text
        return f"{self.subject}: {text}" if self.subject else text


def version_not_found(version: str, requester: str) -> str:
    """Return ld.so's words for a version that a library lacks."""
    return f"version `{version}' not found (required by {requester})"


def undefined_symbol(symbol: str, version: str | None) -> str:
    """Return ld.so's words for a symbol that nobody in scope defines."""
    return f"undefined symbol: {symbol}, version {version}" if version else f"undefined symbol: {symbol}"
