"""Reads a log in memory as the command reads a file."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jsonschema

import pytest_gpudiscovery
from pytest_gpudiscovery.ollama import explainer, postmortem
from pytest_gpudiscovery.ollama.explainer import Log
from tests.ollama import writer

SCHEMA = Path(pytest_gpudiscovery.__file__).parent / "schema" / "explain-1.json"
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def bytes_of(log: writer.Log | str | bytes) -> bytes:
    if isinstance(log, writer.Log):
        return log.data()
    return log.encode() if isinstance(log, str) else log


def read(log: writer.Log | str | bytes) -> Log:
    """Return the servers of LOG."""
    return explainer.read(io.BytesIO(bytes_of(log)).read)


def explain(log: writer.Log | str | bytes) -> dict[str, Any]:
    """Return the post-mortem of LOG."""
    return postmortem.explain(io.BytesIO(bytes_of(log)).read, "test.log")


def only(log: writer.Log | str | bytes) -> dict[str, Any]:
    """Return the one server of LOG's post-mortem."""
    found = explain(log)
    assert len(found["servers"]) == 1, found["summary"]
    server: dict[str, Any] = found["servers"][0]
    return server


def ids(server: dict[str, Any]) -> list[str]:
    """Return the ids of what follows and what does not."""
    return [entry["id"] for entry in (*server["conclusions"], *server["not_concluded"])]
