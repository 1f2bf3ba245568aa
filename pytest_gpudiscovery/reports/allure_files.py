"""What stands beside Allure's results: environment, categories, and who ran it, of all hosts in the directory."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from pytest_gpudiscovery.model import Verdict
from pytest_gpudiscovery.reports import allure_hosts
from pytest_gpudiscovery.reports.atomic import replace
from pytest_gpudiscovery.reports.html_text import visible
from pytest_gpudiscovery.reports.html_values import clip, inline

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


def write(directory: str, verdict: Verdict, host: str, files: Iterable[str], environ: Mapping[str, str]) -> None:
    """Write environment.properties, categories.json and executor.json to DIRECTORY; raises OSError.

    FILES are the results and attachments of HOST that were just written. Those of an earlier run of the same host are
    removed: its passed stages would stand as green results beside a verdict that is blocked now.
    """
    others, hosts = allure_hosts.read(directory)
    before = hosts.get(host)
    hosts[host] = allure_hosts.host_from(verdict, host, files)
    replace(directory, allure_hosts.NAME, allure_hosts.text_of(others, hosts.values()).encode())
    replace(directory, "categories.json", json.dumps(_categories(), indent=1).encode())
    executor = _executor(verdict, allure_hosts.worst_first(hosts.values()), environ)
    replace(directory, "executor.json", json.dumps(executor, indent=1).encode())
    for name in set(before.files if before is not None else ()) - set(hosts[host].files):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, name))


def _categories() -> list[dict[str, Any]]:
    return [
        {"name": name, "messageRegex": _ENDS.format(words), "matchedStatuses": list(statuses)}
        for name, words, statuses in CATEGORIES
    ]


def _executor(verdict: Verdict, ranked: list[allure_hosts.Host], environ: Mapping[str, str]) -> dict[str, Any]:
    said = allure_hosts.sentence(ranked)
    version = verdict.tool.get("version", "") if isinstance(verdict.tool, dict) else ""
    found: dict[str, Any] = {"name": clip(f"gpu-discovery {inline(version, 60)}".strip(), 200), "type": "local"}
    found["reportName"] = found["buildName"] = clip(visible(said), 200)  # Allure 2 calls a build without name unknown
    for kind, sign, name, address in EXECUTORS:
        if environ.get(sign):
            used = {part.split("}")[0] for part in address.split("{")[1:]}
            url = address.format(**{variable: environ.get(variable, "") for variable in used})
            found |= {"name": f"{kind} {environ.get(name, '')}".strip(), "type": kind}
            found |= {"buildUrl": clip(visible(url), 500)} if url.startswith("https://") else {}
            break
    return found
