"""The recorded logs of corpus/recorded.tar.xz, at the level they were recorded at and as lower ones would show them."""

from __future__ import annotations

import functools
import json
import re
import tarfile
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.ollama.logline import parse
from pytest_gpudiscovery.ollama.messages import CHILD, identify
from tests.ollama import reading

CORPUS = Path(__file__).parent / "corpus"
ARCHIVE = CORPUS / "recorded.tar.xz"
LEVELS = {"INFO": ("INFO", "WARN", "ERROR"), "DEBUG": ("DEBUG", "INFO", "WARN", "ERROR"), "TRACE": ()}
# OLLAMA_DEBUG of the recording, and what can be seen of it.
RECORDED = {"unset": ("INFO",), "1": ("INFO", "DEBUG"), "2": ("INFO", "DEBUG", "TRACE")}


def _unpack() -> dict[str, bytes]:
    with tarfile.open(ARCHIVE) as archive:
        files = ((member.name, archive.extractfile(member)) for member in archive)
        return {name: file.read() for name, file in files if file is not None}


FILES = _unpack()
SIDECARS: dict[str, dict[str, Any]] = {
    name.removesuffix(".json"): json.loads(data) for name, data in sorted(FILES.items()) if name.endswith(".json")
}


def levels(name: str) -> tuple[str, ...]:
    """Return the levels that log NAME can be shown at, the one it was recorded at last."""
    return RECORDED[SIDECARS[name]["level"]]


def at(name: str, level: str) -> bytes:
    """Return log NAME as a server at LEVEL would have written it: slog drops lines, and nothing else changes."""
    data = FILES[f"{name}.log"]
    if level == levels(name)[-1]:
        return data
    kept = []
    for line in data.splitlines(keepends=True):
        found = re.match(rb"time=\S+ level=(\w+)", line)
        message = identify(parse(line).message)
        child = re.search(rb"source=(?:ggml|gguf)\.go", line) or (message is not None and message.role == CHILD)
        if found is not None and found[1].decode() in LEVELS[level] and not child:
            kept.append(re.sub(rb"OLLAMA_DEBUG:\S+", b"OLLAMA_DEBUG:" + level.encode(), line))
    return b"".join(kept)


@functools.cache
def explained(name: str, level: str) -> dict[str, Any]:
    """Return the post-mortem of log NAME at LEVEL."""
    return reading.explain(at(name, level))


def candidates(found: dict[str, Any]) -> list[str]:
    """Return the ids of all causes that are left, in their order."""
    return [entry["id"] for server in found["servers"] for part in server["analyses"] for entry in part["candidates"]]
