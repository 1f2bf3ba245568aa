"""Which layer is to blame where one shows a GPU and another does not (`data/layers.json`, each pair with its reason).

From the bus up: sysfs, NVML, CUDA's driver API, libcudart, ggml, and what Ollama keeps. A cause of the catalogue that
is such a contradiction names its pair (`views`); a stage that knows better which layer saw the GPU says so with the
fact `sees`. The reason stands at the end of the finding's detail.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "layers.json"
NAMES = {
    "sysfs": "sysfs",
    "nvml": "NVML",
    "cuda": "CUDA",
    "runtime": "libcudart",
    "ggml": "ggml",
    "ollama": "Ollama",
}


@dataclass(frozen=True)
class Contradiction:
    """One layer shows a GPU, another does not: which part of the stack is to blame, and why."""

    sees: str
    misses: str
    blame: str
    why: str
    source: str

    @property
    def text(self) -> str:
        """The sentences for a finding's detail."""
        return (
            f"{NAMES[self.sees]} sees it and {NAMES[self.misses]} does not. To blame: {self.blame}, because {self.why}"
        )


def between(sees: str, misses: str) -> Contradiction | None:
    """Return what it means that layer SEES shows a GPU and MISSES does not; None where the table has no such pair."""
    return table().get((sees, misses))


@functools.cache
def table() -> dict[tuple[str, str], Contradiction]:
    """Return every pair of the table."""
    return {
        (pair["sees"], pair["not"]): Contradiction(
            pair["sees"], pair["not"], pair["blame"], pair["why"], pair["source"]
        )
        for pair in _data()["pairs"]
    }


def layers() -> tuple[str, ...]:
    """Return the layers, each standing on those before it."""
    return tuple(_data()["layers"])


@functools.cache
def _data() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return loaded
