"""Which of Ollama's three ways to find GPUs a version uses, from its number and from the files beside it.

A (to 0.12.3): the server itself. B (0.12.4 to 0.24.0): a runner child asked over HTTP. C (from 0.30.0): llama-server.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


BORDERS = (((0, 12, 4), "A"), ((0, 30, 0), "B"))  # the first version that is no longer of that era
SERVER = "llama-server"  # v0.30.0:llm/llama_server.go; no earlier release has it
VERSIONED_BASE = "libggml-base.so.0"  # v0.13.4 gave libggml-base its version
FIRST_VERSIONED = (0, 13, 4)


def numbers(version: str | None) -> tuple[int, int, int] | None:
    """Return (0, 16, 3) of "0.16.3" or "v0.16.3-rc1"; None for anything else, and for 0.0.0: a build without one."""
    parts = (version or "").removeprefix("v").partition("-")[0].partition("+")[0].split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        return None
    found = (int(parts[0]), int(parts[1]), int(parts[2]))
    return found if found != (0, 0, 0) else None


def era(version: str | None) -> str | None:
    """Return "A", "B" or "C"; None for a version that says nothing."""
    found = numbers(version)
    if found is None:
        return None
    return next((name for border, name in BORDERS if found < border), "C")


def of_files(top: Iterable[str]) -> str | None:
    """Return the era that the names in lib/ollama belong to: "C", "B" (or A, which they do not tell apart), or None."""
    names = set(top)
    if SERVER in names:
        return "C"
    return "B" if any(name.startswith(("libggml-base.so", "libggml-cpu")) for name in names) else None
