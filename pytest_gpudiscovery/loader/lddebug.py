"""What ld.so's own account (LD_DEBUG=libs,files,reloc) says of where a process stopped.

The account goes to the child's stderr, whose last bytes the supervisor always has: a file would need a directory that
the probe's user may write to, on a disk that is not full. Lines are those of glibc's elf/dl-load.c, dl-reloc.c and
dl-init.c, the same since 2.17:

    `   1234:   file=libx.so [0];  needed by /a/liby.so`     a name or path that is not loaded yet is asked for
    `   1234:   find library=libx.so [0]; searching`        a name is looked for
    `   1234:     trying file=/a/libx.so`                    a candidate is opened
    `   1234:   file=libx.so [0];  generating link map`      it was taken and is being mapped
    `   1234:   relocation processing: /a/libx.so`           IFUNC resolvers run here, and its data pages are read
    `   1234:   calling init: /a/libx.so`                    a constructor runs; its end is not written
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ASKED = "libs,files,reloc"
OPENING, MAPPING, RELOCATING, CONSTRUCTOR = "opening", "mapping", "relocating", "constructor"
_LINE = re.compile(r"^\s*(?P<pid>\d+):\t(?P<text>.*)$", re.M)
_WHAT = (
    (CONSTRUCTOR, re.compile(r"calling init: (.+)$")),
    (RELOCATING, re.compile(r"relocation processing: (.+?)(?: \(lazy\))?$")),
    (OPENING, re.compile(r"\s*trying file=(.+)$")),
    (OPENING, re.compile(r"file=(.+?) \[-?\d+\];\s+(?:needed|dynamically loaded) by .*$")),
    (MAPPING, re.compile(r"file=(.+?) \[-?\d+\];\s+generating link map$")),
    (OPENING, re.compile(r"find library=(.+?) \[-?\d+\]; searching$")),
)


@dataclass(frozen=True)
class Stop:
    """The last thing that ld.so said it does: `doing` is opening, mapping, relocating or constructor."""

    doing: str
    path: str


def last_stop(text: str) -> Stop | None:
    """Return what ld.so said last in TEXT (stderr of a process, other output among it), None when it said nothing.

    A constructor may have ended without a line: the answer is where the loader was last, and the stack says more.
    """
    stop = None
    for line in _LINE.finditer(text):
        words = line["text"].rstrip()
        for doing, pattern in _WHAT:
            if (match := pattern.match(words)) is not None:
                stop = Stop(doing, match[1])
                break
    return stop


def without_account(text: str) -> str:
    """Return TEXT without ld.so's lines: what the libraries themselves printed."""
    lines = [line for line in text.splitlines() if not re.match(r"^\s*\d+:\t", line)]
    return "\n".join(line for line in lines if line.strip())
