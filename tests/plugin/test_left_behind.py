"""Nothing is left behind, also by a gate that is stopped in the middle; and a running Ollama does not notice.

What is compared, and how, is ci/hardware/left_behind.py's, which does the same with a real Ollama on a GPU host.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_gpudiscovery import scratch, simulate
from pytest_gpudiscovery.probes import private
from pytest_gpudiscovery.simulate import build
from tests.plugin.conftest import HERE

SCRIPT = HERE.parent.parent / "ci" / "hardware" / "left_behind.py"
CASES = {
    "to its end": "h100-ollama",
    "SIGKILL in stage 12": "h100-ollama:runner.mute",
    "SIGTERM in stage 13": "h100-ollama:serve.hang",
    "SIGKILL in stage 13": "h100-ollama:serve.hang",
}
CODES = {"SIGTERM": "exit 143", "SIGKILL": "exit -9", "to": "exit 0"}
HOME = re.compile(private.NAME + r"(\d+)-")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """ci/hardware/left_behind.py as a module."""
    spec = importlib.util.spec_from_file_location("left_behind", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["left_behind"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The row of each case, all of them beside one running server."""
    host = simulate.prepare(simulate.parse("h100-ollama"), str(tmp_path_factory.mktemp("host")))
    home = tmp_path_factory.mktemp("service") / "home"

    def one(name: str) -> Any:
        directory = tmp_path_factory.mktemp("run")
        roots = [directory / "tmp", directory / "home"]
        for root in roots:
            root.mkdir()
        kept = shutil.ignore_patterns("build-*", "pycache")  # others write to these meanwhile
        built = build.private_directory()  # what was compiled before need not be again; hard links cost nothing
        shutil.copytree(built, roots[0] / built.name, copy_function=os.link, ignore=kept)
        mark = f"LEFT_BEHIND={directory}"
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "GPU_DISCOVERY_"))}
        env |= {"LEFT_BEHIND": str(directory), "TMPDIR": str(roots[0]), "HOME": str(roots[1]), "PYTHONPATH": str(HERE)}
        env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        argv = [sys.executable, "-m", "pytest", "--gpu-discovery", "-p", "pytest_gpudiscovery.plugin", "-p", "narrowed"]
        argv += ["-p", "no:cacheprovider", f"--gpu-simulate={CASES[name]}", f"--gpu-report={directory}/report"]
        row = script.row(
            name, argv, env, directory, server, ([str(root) for root in roots], [str(roots[0] / built.name)], mark)
        )
        return {**row, "verdict": json.loads((directory / "report" / "verdict.json").read_text())["verdict"]}

    with (
        script.service(Path(host.ollama or "") / "bin/ollama", home, {**os.environ, **host.env}) as server,
        ThreadPoolExecutor(3) as pool,
    ):
        yield dict(zip(CASES, pool.map(one, CASES), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left_and_the_running_server_is_as_it_was(name: str, rows: dict[str, Any]) -> None:
    row = rows[name]
    assert row["right"], row
    assert row["ended"].startswith(CODES[name.split(maxsplit=1)[0]]), row
    assert row["verdict"] == ("ready" if name == "to its end" else "incomplete")


def test_what_is_left_is_seen(script: ModuleType, tmp_path: Path) -> None:
    mark = f"LEFT_BEHIND={tmp_path}"
    look: tuple[list[str], list[str], str] = ([str(tmp_path)], [], mark)
    (tmp_path / "kept").write_text("a")
    before = script.snapshot(*look)
    (tmp_path / "kept").write_text("other")
    (tmp_path / "new").mkdir()
    with subprocess.Popen(["sleep", "60"], env={"LEFT_BEHIND": str(tmp_path)}) as process:
        until = time.monotonic() + 10
        while len(lines := before.differs(script.snapshot(*look))) < 3 and time.monotonic() < until:
            time.sleep(0.01)  # between fork and exec it has our environment
        process.kill()
    assert [line.split(":")[0] for line in lines] == ["files", "files", "processes"]
    assert before.differs(before) == []


def test_no_private_home_of_a_dead_probe_stays(rows: dict[str, Any]) -> None:
    """They lie in /tmp, whatever TMPDIR says: other tests and gates of this machine may have some that are in use."""

    def left() -> list[str]:
        names = [name for place in private.PLACES if os.path.isdir(place) for name in os.listdir(place)]
        found = [(name, HOME.match(name)) for name in names]
        young = [(name, match[1]) for name, match in found if match]
        return [name for name, pid in young if name not in OLD and not os.path.exists(f"/proc/{pid}")]

    assert rows
    until = time.monotonic() + 10
    while left() and time.monotonic() < until:
        time.sleep(0.05)
    assert left() == []


OLD = {name for place in private.PLACES if os.path.isdir(place) for name in os.listdir(place)}


@pytest.mark.parametrize("how", ["killed", "in order"])
def test_the_run_directory_goes_with_the_gate(how: str, tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nfrom pytest_gpudiscovery.scratch import Scratch\ns = Scratch()\n"
        "os.mkdir(s.path + '/a')\nopen(s.path + '/a/b', 'w').close()\nprint(s.path, s._guard.pid, flush=True)\n"
        "sys.argv[1] == 'killed' and time.sleep(600)\ns.remove()\nprint(os.path.exists(s.path), flush=True)"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code, how], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path, guard = process.stdout.readline().split()
        assert Path(path).name.startswith(f"{scratch.NAME}{process.pid}-")
        if how == "killed":
            assert Path(path, "a", "b").exists()
            process.send_signal(signal.SIGKILL)
        else:
            assert process.stdout.readline() == "False\n"
    until = time.monotonic() + 10
    while (os.path.exists(path) or os.path.exists(f"/proc/{guard}")) and time.monotonic() < until:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []
    assert not os.path.exists(f"/proc/{guard}")
