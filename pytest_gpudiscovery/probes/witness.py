"""Probe of the second witnesses: what pynvml and cuda-python say, in one child, one after the other.

They are other people's code for the same question: where they disagree with the gate's own calls, one of the two
reads a structure wrongly, or a shim answers them differently. That one cannot be imported, or lacks a function, is a
fact. One child for both: a second interpreter with site-packages costs more than what it would isolate.
"""

from __future__ import annotations

from pytest_gpudiscovery.probes import witness_cuda, witness_pynvml
from pytest_gpudiscovery.probes.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs every probe 10 ms
    from typing import Any


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return {"pynvml": ..., "cuda_python": ...}; what the first said outlives a crash or hang in the second.

    REQUEST may hold `skip`: names of witnesses that are not asked.
    """
    answer = {}
    for name, ask in (("pynvml", witness_pynvml.ask), ("cuda_python", witness_cuda.ask)):
        if name in request.get("skip", ()):
            continue
        answer[name] = ask(journal)
        journal.observe(name, answer[name])
    return answer
