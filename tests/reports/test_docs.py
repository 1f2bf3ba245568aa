"""The blocks of the docs are run: `# NAME` in a Python block makes it a file, `$ COMMAND` in a console block is run.

What follows a command has to be in its output, in order; numbers of seconds and of MiB differ from host to host.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def pattern(line: str) -> str:
    """Return LINE as a regular expression that takes any duration and size."""
    text = re.escape(line.rstrip())
    text = re.sub(r"(\\ )+\d+\\\.\d+\\ s", r" +[\\d.]+ s", text)
    text = re.sub(r"\d+\\ MiB", r"\\d+ MiB", text)
    return text.replace(r"test_mine\.py:\ ", r"test_mine\.py(?::\d+)?: ")


@pytest.mark.parametrize("name", ["own-stage.md", "own-tests.md"])
def test_every_block_does_what_the_page_says(name: str, tmp_path: Path) -> None:
    commands = 0
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "GPU_DISCOVERY_"))}
    environment = {**kept, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": "-p no:randomly -p no:random_order"}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for language, text in BLOCK.findall((DOCS / name).read_text(encoding="utf-8")):
        if language == "python":
            path = tmp_path / text.split("\n", 1)[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            continue
        assert language == "console"
        first, *wanted = text.splitlines()
        program, *arguments = shlex.split(first.removeprefix("$ "))
        assert program == "pytest"
        plugins = ["-p", "pytest_gpudiscovery.plugin", "-p", "pytest_timeout"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *plugins, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        commands += 1
        left = done.stdout
        for line in wanted:
            match = re.search(pattern(line), left)
            assert match is not None, f"{line!r} is not in what is left of:\n{done.stdout}{done.stderr}"
            left = left[match.end() :]
    assert commands


def test_links_between_pages_lead_somewhere() -> None:
    for path in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
