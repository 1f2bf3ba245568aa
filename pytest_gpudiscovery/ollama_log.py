"""`pytest --gpu-discovery --gpu-ollama-log LOG`: a post-mortem instead of the gate, on any machine, without a GPU.

It says nothing about this host: verdict.json is not touched, what was found is in ollama-log.json beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from pytest_gpudiscovery import explain_cli
from pytest_gpudiscovery.model import State
from pytest_gpudiscovery.ollama import postmortem, render
from pytest_gpudiscovery.options import COMMAND_LINE, Settings, UsageProblem
from pytest_gpudiscovery.reports import exitcodes
from pytest_gpudiscovery.reports.atomic import replace

OF_USE = ("ollama_log", "report", "exit")  # of the settings
STATES = {
    postmortem.FOUND: State.READY,
    postmortem.NOT_FOUND: State.BLOCKED,
    postmortem.UNKNOWN: State.INCOMPLETE,
}


def explain(settings: Settings, paths: Sequence[str], *, quiet: bool) -> int:
    """Print and write the post-mortem that SETTINGS ask for; return the exit code in their convention.

    PATHS are the test paths of the command line. Raises UsageProblem for what a post-mortem has no use for.
    """
    _refuse(settings, paths)
    found = explain_cli.ask(settings.ollama_log or "")
    if isinstance(found, int):
        return found if found == explain_cli.USAGE else _code(found, State.INCOMPLETE, settings)
    explain_cli.survive_any_text()
    if not quiet and settings.exit == "pytest":
        print(explain_cli.shown(render.text(found)))
        print(f"report: {_write(settings.report, found)}")
    else:
        _write(settings.report, found)
    code = _code(explain_cli.CODES[found["answer"]], STATES[found["answer"]], settings)
    print(explain_cli.shown(explain_cli.last_line(found, code)), flush=True)
    return code


def _refuse(settings: Settings, paths: Sequence[str]) -> None:
    other = [name for name, source in settings.sources.items() if source == COMMAND_LINE and name not in OF_USE]
    what = [f"--gpu-{'as' if name == 'as_service' else name.replace('_', '-')}" for name in other] + list(paths[:1])
    if what:
        raise UsageProblem(f"--gpu-ollama-log explains a log and probes nothing: not together with {what[0]}")


def _write(directory: str, found: object) -> str:
    path = os.path.join(directory, explain_cli.REPORT)
    try:
        os.makedirs(directory, exist_ok=True)
        replace(directory, explain_cli.REPORT, (json.dumps(found, indent=1) + "\n").encode("utf-8", "backslashreplace"))
    except OSError as error:
        return f"could not be written to {path} ({error.strerror or error})"
    return path


def _code(code: int, state: State, settings: Settings) -> int:
    if settings.exit not in exitcodes.CONVENTIONS:
        return code
    return exitcodes.TABLE[state][exitcodes.CONVENTIONS[settings.exit]]
