"""What stands beside Allure's results: environment, categories, and who ran it. Existing lines of others are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Verdict
from pytest_gpudiscovery.reports import wording
from pytest_gpudiscovery.reports.atomic import replace
from pytest_gpudiscovery.reports.html_first import gpu_kinds
from pytest_gpudiscovery.reports.html_story import NUMBERS
from pytest_gpudiscovery.reports.html_text import visible
from pytest_gpudiscovery.reports.html_values import clip, inline

READ_LIMIT = 1 << 20  # bytes of an existing file that is added to
# The end of a message says how the stage ended (reports/allure.py); [\s\S]* because Allure 2 (Java) matches the whole
# message and Allure 3 (JavaScript) searches in it.
_ENDS = r"[\s\S]*outcome   : {}[\s\S]*"
CATEGORIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Host not ready (the verdict)", "verdict (blocked|incomplete)", ("failed", "broken")),
    ("Hang: no answer before the deadline", "(timed out|unkillable)", ("failed",)),
    ("Crash inside a library", "crashed", ("failed",)),
    ("Wrong answer", "failed", ("failed",)),
    ("Not reached: a stage before it did not pass", "not reached", ("broken",)),
    ("Probe defect: the gate's own", "probe error", ("broken",)),
    ("No answer: not run or interrupted", "(not selected|interrupted)", ("broken",)),
    ("Passed with a warning", "(warned|verdict degraded)", ("passed",)),
)
# type, the variable that says so, then those that give the name and the address of the job; nothing else is read.
EXECUTORS = (
    (
        "github",
        "GITHUB_ACTIONS",
        "GITHUB_RUN_ID",
        "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}",
    ),
    ("gitlab", "GITLAB_CI", "CI_JOB_ID", "{CI_JOB_URL}"),
    ("jenkins", "JENKINS_URL", "BUILD_TAG", "{BUILD_URL}"),
)


def write(directory: str, verdict: Verdict, host: str, environ: Mapping[str, str]) -> None:
    """Write environment.properties, categories.json and executor.json to DIRECTORY; raises OSError."""
    path = os.path.join(directory, "environment.properties")
    replace(directory, "environment.properties", _environment(_read(path), verdict, host).encode())
    replace(directory, "categories.json", json.dumps(_categories(), indent=1).encode())
    replace(directory, "executor.json", json.dumps(_executor(verdict, host, environ), indent=1).encode())


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(READ_LIMIT)
    except FileNotFoundError:
        return ""


def _environment(before: str, verdict: Verdict, host: str) -> str:
    """Return BEFORE with the lines of HOST replaced: several hosts may share one directory."""
    ends = f".{_key(host)}"  # last, because Allure 3 shows the first 14 characters of a key
    kept = [line for line in before.splitlines() if line and not line.partition(" = ")[0].endswith(ends)]
    context = verdict.context if isinstance(verdict.context, dict) else {}
    values: dict[str, object] = {
        "verdict": ("SIMULATED " if verdict.simulated is not None else "") + verdict.verdict.value.upper(),
        "blocked_at": verdict.blockers[0].stage if verdict.blockers else None,
        "gpus": gpu_kinds(verdict),
        **{key: value for source in (verdict.versions, verdict.host) for key, value in source.items() if key != "name"},
        "probed_as": context.get("as"),
        "gpu-discovery": verdict.tool.get("version") if isinstance(verdict.tool, dict) else None,
    }
    lines = [f"{_key(str(key))}{ends} = {_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join([*kept, *lines]) + "\n"


def _key(text: str) -> str:
    """Return TEXT as (a part of) a key of a properties file."""
    return "".join(c if c.isalnum() or c in "_-." else "_" for c in visible(clip(text, 100)))


def _value(value: object) -> str:
    text = visible(inline(value, 300)).replace("\n", " ")
    return text.replace("\\", "\\\\")


def _categories() -> list[dict[str, Any]]:
    return [
        {"name": name, "messageRegex": _ENDS.format(words), "matchedStatuses": list(statuses)}
        for name, words, statuses in CATEGORIES
    ]


def _executor(verdict: Verdict, host: str, environ: Mapping[str, str]) -> dict[str, Any]:
    word = ("SIMULATED " if verdict.simulated is not None else "") + verdict.verdict.value.upper()
    found: dict[str, Any] = {"name": host, "type": "local", "reportName": clip(visible(f"{word} on {host}"), 200)}
    found["buildName"] = clip(visible(wording.last_line(verdict, NUMBERS, None)), 200)
    for kind, sign, name, address in EXECUTORS:
        if environ.get(sign):
            used = {part.split("}")[0] for part in address.split("{")[1:]}
            url = address.format(**{variable: environ.get(variable, "") for variable in used})
            found |= {"name": f"{kind} {environ.get(name, '')}".strip(), "type": kind}
            found |= {"buildUrl": clip(visible(url), 500)} if url.startswith("https://") else {}
            break
    return found
