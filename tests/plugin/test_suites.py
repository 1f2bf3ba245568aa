"""The packaged suites say of each stage what its row in the table says: every prerequisite, once, in the right file."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pytest_gpudiscovery import collection, stages

FILES = sorted(collection.FOLDER.glob("test_*.py"))
STAGES = stages.table()


def calls(tree: ast.AST, method: str) -> list[ast.Call]:
    """Return the calls of METHOD in TREE."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method
    ]


def texts(call: ast.Call) -> list[str]:
    return [
        argument.value
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]


def test_there_is_one_file_per_stage() -> None:
    assert [path.stem for path in FILES] == [f"test_{spec.number:02d}_{name}" for name, spec in STAGES.items()]
    assert not (collection.FOLDER / "conftest.py").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_prerequisite_is_asserted_once(path: object) -> None:
    source = collection.FOLDER.joinpath(str(path)).read_text(encoding="utf-8")
    tree = ast.parse(source)
    (marker,) = [text for call in calls(tree, "gpu_stage") for text in texts(call)]
    asserted = Counter(text for call in calls(tree, "meets") for text in texts(call))
    assert set(asserted) == set(STAGES[marker].rows)
    assert max(asserted.values()) == 1
    assert len(calls(tree, "passes")) == 1, "one item for the stage as a whole"
    assert str(path).endswith(f"_{marker}.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_item_says_what_it_proves(path: object) -> None:
    tree = ast.parse(collection.FOLDER.joinpath(str(path)).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert ast.get_docstring(tree)
    assert all(ast.get_docstring(function) and function.name.startswith("test_") for function in functions)


def test_a_run_stops_after_the_stage_that_was_asked_for(tmp_path: Path) -> None:
    """Nothing after the target is collected, so nothing after it can touch the driver."""
    argv = [sys.executable, "-m", "pytest", "--gpu-discovery", "--gpu-simulate", "h100", "--gpu-until", "service"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads((tmp_path / "gpu-discovery-report" / "verdict.json").read_text())
    ran = [stage["name"] for stage in verdict["stages"] if stage["outcome"] != "not_selected"]
    assert ran == ["package", "service"]


def test_a_target_without_an_answer_is_incomplete_and_says_why(tmp_path: Path) -> None:
    """A host without any libcudart cannot be told to be ready up to the runtime."""
    argv = [sys.executable, "-m", "pytest", "--gpu-discovery", "--gpu-simulate", "h100:cudart.missing", "-q"]
    done = subprocess.run(
        [*argv, "--gpu-until", "runtime"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 20, done.stdout + done.stderr
    assert "INCOMPLETE at 08 runtime: not applicable, no Ollama and no libcudart" in done.stdout
