"""The blocks of the docs are run: `# NAME` in a Python block makes it a file, a command in a console block is run.

What follows a command has to be in its output, in order; numbers of seconds and of MiB differ from host to host.
A command that cannot be run in this suite stands in NOT_RUN with the reason, one for this host's GPUs in SIMULATED.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pytest_gpudiscovery import simulate

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WHOLE = ("own-stage.md", "own-tests.md", "captured-failure.md")  # every block of these is run as it stands
# Run with a simulated host in the place of this one.
SIMULATED = {
    "pytest --gpu-discovery": "h100-ollama",
    "pytest --gpu-discovery --gpu-until enumeration": "h100",
    "gpu-discovery gate --gpu-until runtime --gpu-profile h100": "h100",
}
# Run as they stand; what follows them has to be in their output.
SHOWN = ("grep failure tests/ollama/corpus/captured.log", "gpu-discovery explain tests/ollama/corpus/captured.log")
CANDIDATE = "gpu-discovery gate --gpu-ollama-candidate ./ollama-linux-amd64.tgz"
PID = "gpu-discovery gate --gpu-as pid:$(docker inspect -f '{{.State.Pid}}' ollama) --gpu-until closure"
NOT_RUN = {
    "ci/demo.sh": "ci/test.sh runs it when the tests have passed",
    "ci/test.sh": "is what runs this",
    "pip install pytest-gpudiscovery": "needs a network and a release",
    "cd ci/templates/container": "where the next ones are run",
    "docker build -t ollama-gate --build-arg OLLAMA=ollama/ollama:0.16.3 .": "ci/container.sh; "
    "tests/service/test_recipe.py carries the recipe out",
    'docker run --rm --gpus all -v "$PWD/gpu-report:/report" ollama-gate': "likewise",
    'docker run --rm --gpus all -v "$PWD/gpu-report:/report" -e CUDA_VISIBLE_DEVICES=1 --memory 8g ollama-gate '
    "--gpu-until closure": "likewise",
}
# With this Python, and what is small: a few cases, the simulated libraries.
PEERS = "python ci/loader/peers.py --python /path/to/venv/bin/python"
BENCH = (
    "LD_LIBRARY_PATH=$LIB:$LIB/cuda_v12 python ci/bench/loader.py --python /path/to/venv/bin/python "
    "$LIB/cuda_v12/libggml-cuda.so"
)
PLUGINS = ("-p", "pytest_gpudiscovery.plugin", "-p", "pytest_timeout")


def pattern(line: str) -> str:
    """Return LINE as a regular expression that takes any duration and size."""
    text = re.escape(line.rstrip())
    text = re.sub(r"(\\ )+\d+\\\.\d+\\ s", r" +[\\d.]+ s", text)
    text = re.sub(r"\d+\\ MiB", r"\\d+ MiB", text)
    return text.replace(r"test_mine\.py:\ ", r"test_mine\.py(?::\d+)?: ")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of the fenced blocks of PAGE that name a language."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return each command of a console block, without its prompt and comment, and the lines that follow it."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith(("$ ", "# ")):
            found.append((re.sub(r"\s+#.*", "", line[2:]).strip(), []))
        else:
            found[-1][1].append(line)
    return found


def run(command: str, cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run COMMAND, one of pytest or gpu-discovery, in CWD with this Python and no plugin but those that are named."""
    program, *arguments = shlex.split(command.removeprefix("python -m "))
    argv = {"pytest": ["-m", "pytest", *PLUGINS], "gpu-discovery": ["-m", "pytest_gpudiscovery"]}[program]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "GPU_DISCOVERY_"))}
    plain = {"PYTEST_ADDOPTS": "-p no:randomly -p no:random_order", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, *argv, *arguments, *more],
        cwd=cwd,
        env={**kept, **plain, "PYTHONPATH": str(cwd)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def follows(wanted: list[str], done: subprocess.CompletedProcess[str]) -> None:
    """Assert that the lines WANTED are in the output of DONE, in order; "..." stands for lines that are left out."""
    left = done.stdout
    for line in (line for line in wanted if line != "..."):
        match = re.search(pattern(line), left)
        assert match is not None, f"{line!r} is not in what is left of:\n{done.stdout}{done.stderr}"
        left = left[match.end() :]


@pytest.mark.parametrize("name", WHOLE)
def test_every_block_does_what_the_page_says(name: str, tmp_path: Path) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")  # logs that a page names
    ran = 0
    for language, text in blocks(DOCS / name):
        if language == "python":
            path = tmp_path / text.split("\n", 1)[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            continue
        assert language == "console"
        for command, wanted in commands(text):
            done = run(command, tmp_path)
            ran += 1
            follows(wanted, done)
    assert ran


def test_every_command_is_run_or_said_not_to_be() -> None:
    found = {
        command
        for page in PAGES
        if page.name not in WHOLE
        for language, text in blocks(page)
        if language == "console"
        for command, _ in commands(text)
    }
    assert found == SIMULATED.keys() | NOT_RUN.keys() | {*SHOWN, CANDIDATE, PID, PEERS, BENCH}


def test_what_the_readme_shows_of_a_log_is_what_is_said() -> None:
    shown = [
        (command, wanted)
        for language, text in blocks(ROOT / "README.md")
        if language == "console"
        for command, wanted in commands(text)
        if command in SHOWN
    ]
    assert {command for command, _ in shown} == set(SHOWN)
    for command, wanted in shown:
        if command.startswith("grep"):
            done = subprocess.run(
                shlex.split(command), cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
            )
        else:
            done = run(command, ROOT)
        follows(wanted, done)


@pytest.mark.parametrize("command", SIMULATED)
def test_a_command_of_the_readme_is_a_green_run_on_a_simulated_host(command: str, tmp_path: Path) -> None:
    more = []
    if "enumeration" in command:  # with the readme's own tests: these are gated by the same run
        (example,) = (text for language, text in blocks(ROOT / "README.md") if language == "python")
        (tmp_path / "test_readme.py").write_text(example, encoding="utf-8")
        more = ["test_readme.py"]
    done = run(command, tmp_path, "--gpu-simulate", SIMULATED[command], *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SIMULATED READY" in done.stdout or "2 passed" in done.stdout


def test_the_command_before_an_upgrade(tmp_path: Path) -> None:
    made = simulate.prepare(simulate.parse("h100-ollama-c"), str(tmp_path / "made"))
    assert made.ollama is not None
    with tarfile.open(tmp_path / "ollama-linux-amd64.tgz", "w:gz") as archive:
        for part in ("bin", "lib"):
            archive.add(Path(made.ollama, part), part)
    done = run(CANDIDATE, tmp_path, "--gpu-simulate", "h100-ollama")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "safe to upgrade to 0.32.15" in done.stdout


def from_a_clone(command: str, **variables: str) -> str:
    """Return what COMMAND prints, run by a shell in the root of the clone with this Python and VARIABLES."""
    own = shlex.quote(sys.executable)
    line = command.replace("/path/to/venv/bin/python", own).replace(" python ", f" {own} ")
    line = re.sub(r"\Apython ", f"{own} ", line)
    env = {**os.environ, **variables}
    done = subprocess.run(
        ["sh", "-c", line], cwd=ROOT, env=env, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_comparison_with_peers(tmp_path: Path) -> None:
    small = ["wrong_class_skipped", "library_that_is_absent"]
    said = from_a_clone(PEERS + "".join(f" --case {name}" for name in small), TMPDIR=str(tmp_path))
    assert re.search(r"^all +2 +2 ", said, re.MULTILINE), said


def test_the_bench_of_the_loader(tmp_path: Path) -> None:
    made = simulate.prepare(simulate.parse("h100-ollama"), str(tmp_path / "made"))
    lib = f"{made.ollama}/lib/ollama"
    said = from_a_clone(BENCH.replace("$LIB/cuda_v12 python", f"$LIB/cuda_v12:{tmp_path}/made/lib python"), LIB=lib)
    assert "this: closure, beyond Python's start: least" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="the page shows it for root")
def test_the_command_for_a_container_of_the_host(tmp_path: Path) -> None:
    """As the page has it, with a shell; only docker is one that knows no other container."""
    service = subprocess.Popen(["sleep", "300"], env={"HOME": "/", "CUDA_VISIBLE_DEVICES": "-1"})
    try:
        for name, text in (
            ("docker", f'[ "$*" = "inspect -f {{{{.State.Pid}}}} ollama" ] && echo {service.pid}'),
            ("gpu-discovery", f'exec {sys.executable} -m pytest_gpudiscovery "$@"'),
        ):
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
            (tmp_path / name).chmod(0o755)
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-c", PID], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        service.kill()
        service.wait(10)
    assert done.returncode in (1, 20), done.stdout + done.stderr
    assert f"process {service.pid}" in done.stdout


def test_links_between_pages_lead_somewhere() -> None:
    for path in [*DOCS.rglob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
