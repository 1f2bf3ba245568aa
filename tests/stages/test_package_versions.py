"""01 package per version: era B and C look in other places, and what a mix of two versions is called."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.model import CheckOutcome, Outcome
from pytest_gpudiscovery.outcome import Conclusion
from pytest_gpudiscovery.stages import directories
from pytest_gpudiscovery.stages.package import SPEC
from tests import fakes
from tests.install import goelf
from tests.stages import hosts
from tests.stages.test_package import LIBRARY, conclude, install

INFO = goelf.build_info("path\tgithub.com/ollama/ollama")


def binary(version: str) -> bytes:
    """Return a stripped binary of VERSION as a release has it."""
    return goelf.elf({".go.buildinfo": INFO, **goelf.strings([version])})


def release(prefix: Path, version: str, *, server: bool | None = None, base: bool = True) -> Path:
    """Make an install of VERSION with the files that such a release has; SERVER and BASE change that."""
    install(prefix, "cuda_v12", "cuda_v13")
    (prefix / "bin" / "ollama").write_bytes(binary(version))
    lib = prefix / "lib" / "ollama"
    if server if server is not None else version >= "0.30":
        shutil.copy("/bin/true", lib / "llama-server")
    if not base:
        (lib / "libggml-base.so.0").unlink()
        (lib / "libggml-base.so").unlink()
        shutil.copy(LIBRARY, lib / "libggml-base.so")
    return prefix


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Where an install goes."""
    return tmp_path / "usr"


def outcomes(said: Conclusion, row: str) -> set[CheckOutcome]:
    return {check.outcome for check in said.checks if check.prerequisite == row}


@pytest.mark.parametrize(
    ("version", "era"), [("0.12.3", "A"), ("0.12.5", "B"), ("0.16.3", "B"), ("0.24.0", "B"), ("0.32.15", "C")]
)
def test_a_release_passes_with_its_version_and_era(prefix: Path, version: str, era: str) -> None:
    said = conclude(release(prefix, version, base=version not in ("0.12.3", "0.12.5")))
    assert said.outcome is Outcome.PASSED, said.summary
    assert (said.facts["version"], said.facts["version_by"], said.facts["era"]) == (version, "data", era)
    assert f"ollama {version}: cuda_v12, cuda_v13" in said.summary
    assert all(item["kept"] for item in said.facts["gpu_dirs"])


@pytest.mark.parametrize(
    ("version", "keywords", "cause", "outcome"),
    [
        ("0.32.15", {"server": False}, "package.mix.no_server", "failed"),
        ("0.16.3", {"server": True}, "package.mix.version", "warned"),
        ("0.16.3", {"base": False}, "package.mix.version", "warned"),
        ("0.12.5", {"base": True}, "package.mix.version", "warned"),
    ],
)
def test_a_mix_of_two_versions_is_named(
    prefix: Path, version: str, keywords: dict[str, Any], cause: str, outcome: str
) -> None:
    said = conclude(release(prefix, version, **keywords))
    assert hosts.causes(said) == [cause]
    assert said.outcome.value == outcome
    assert version in said.summary


@pytest.mark.parametrize(
    ("version", "name", "wrong"),
    [
        ("0.16.3", "rocm", False),
        ("0.16.3", "rocm_v7_2", True),
        ("0.32.15", "rocm", True),
        ("0.32.15", "rocm_v7_2", False),
    ],
)
def test_a_directory_of_the_other_era_is_a_leftover(prefix: Path, version: str, name: str, wrong: bool) -> None:
    release(prefix, version)
    folder = prefix / "lib" / "ollama" / name
    folder.mkdir()
    shutil.copy(LIBRARY, folder / "libggml-hip.so")
    said = conclude(prefix)
    assert hosts.causes(said) == (["package.leftover.directory"] if wrong else [])


def move_lib(prefix: Path, place: str) -> Path:
    """Move lib/ollama of PREFIX to PLACE below it."""
    target = prefix / place
    target.parent.mkdir(parents=True, exist_ok=True)
    (prefix / "lib" / "ollama").rename(target)
    return target


@pytest.mark.parametrize(
    ("place", "b", "c"),
    [
        ("bin/build/lib/ollama", True, True),
        ("bin/lib/ollama", False, True),
        ("bin/dist/linux-amd64/lib/ollama", False, True),
        ("bin/dist/linux_amd64/lib/ollama", False, True),
        ("lib64/ollama", False, False),
    ],
)
def test_each_era_looks_in_its_own_places(tmp_path: Path, place: str, b: bool, c: bool) -> None:
    if "amd64" in place and os.uname().machine != "x86_64":
        place = place.replace("amd64", "arm64")
    for version, found in (("0.16.3", b), ("0.32.15", c)):
        prefix = release(tmp_path / version, version)
        target = move_lib(prefix, place)
        said = conclude(prefix)
        assert said.facts["lib_dir"] == (str(target) if found else None), (version, place)
        assert ("package.lib.missing" in hosts.causes(said)) is not found


def test_era_c_needs_neither_the_name_nor_a_working_directory(tmp_path: Path) -> None:
    for version, cause in (("0.16.3", "package.cwd.unreadable"), ("0.32.15", None)):
        prefix = release(tmp_path / version, version)
        context = hosts.context(None, ollama_path=str(prefix))
        results = hosts.probe_all(SPEC, context)
        answer = {**results["look"].answer, "cwd": None}
        said = hosts.judged(SPEC, context, {"look": fakes.result(answer=answer)})
        assert hosts.causes(said) == ([cause] if cause else [])
    lost = {"path": "/gone", "errno": "ENOENT"}
    for version, service, cause in (
        ("0.16.3", {"directory": lost, "process": {}}, "package.cwd.unreadable"),
        ("0.32.15", {"directory": lost, "process": {}}, None),
        ("0.32.15", {"directory": lost, "unit": "ollama.service"}, "package.cwd.unreadable"),
    ):
        said = conclude(tmp_path / version, service=service)
        assert hosts.causes(said) == ([cause] if cause else [])
    # Where lib/ollama is a link, the path that Ollama uses is the one before the link is resolved.
    for version, cause in (("0.16.3", "package.lib.other_name"), ("0.32.15", None)):
        prefix = release(tmp_path / "other" / version, version)
        target = move_lib(prefix, "bin/x")
        context = hosts.context(None, ollama_path=str(prefix))
        lib = {"path": str(target), "realpath": str(target), "fallback": False, "tried": []}
        answer = {**hosts.probe_all(SPEC, context)["look"].answer, "lib": lib}
        said = hosts.judged(SPEC, context, {"look": fakes.result(answer=answer)})
        assert ("package.lib.other_name" in hosts.causes(said)) is (cause is not None)


def test_libraries_that_lie_flat_in_lib_ollama_are_a_layout_of_their_own(prefix: Path) -> None:
    release(prefix, "0.16.3")
    lib = prefix / "lib" / "ollama"
    shutil.rmtree(lib / "cuda_v13")
    for path in (lib / "cuda_v12").iterdir():
        path.rename(lib / path.name)
    (lib / "cuda_v12").rmdir()
    said = conclude(prefix, env={"OLLAMA_LLM_LIBRARY": "cuda_v12"})
    assert said.outcome is Outcome.PASSED, said.summary
    (entry,) = said.facts["gpu_dirs"]
    assert (entry["name"], entry["path"], entry["kept"]) == ("ollama", str(lib), True)
    assert entry["cudart"] == str(lib / "libcudart.so.12")


def test_what_this_ollama_skips_is_not_kept(prefix: Path) -> None:
    said = conclude(release(prefix, "0.16.3"), env={"OLLAMA_LLM_LIBRARY": '"cuda_v13"'})
    assert {item["name"]: item["skipped"] for item in said.facts["gpu_dirs"]} == {
        "cuda_v12": "OLLAMA_LLM_LIBRARY=cuda_v13",
        "cuda_v13": "",
    }


@pytest.mark.parametrize(
    ("name", "env", "era", "version", "jetpack", "why"),
    [
        ("cuda_v12", {}, "B", "0.16.3", "", ""),
        ("cuda_v12", {"OLLAMA_LLM_LIBRARY": "cuda_v13"}, "B", None, "", "OLLAMA_LLM_LIBRARY=cuda_v13"),
        ("cuda_v12", {"OLLAMA_LLM_LIBRARY": "mlx_cuda_v13"}, "B", "0.24.0", "", ""),
        ("cuda_v12", {"OLLAMA_LLM_LIBRARY": "mlx_cuda_v13"}, "B", "0.16.3", "", "OLLAMA_LLM_LIBRARY=mlx_cuda_v13"),
        ("cuda_v12", {}, "B", None, "jetpack6", "this is jetpack6"),
        ("cuda_jetpack6", {}, "B", None, "jetpack6", ""),
        ("cuda_jetpack5", {}, "B", None, "", "this is no Jetson"),
        ("cuda_v13", {}, "C", None, "jetpack7", ""),  # not installed: it does not count
        ("vulkan", {}, "B", None, "", "OLLAMA_VULKAN is off"),
        ("vulkan", {"OLLAMA_VULKAN": "1"}, "B", None, "", ""),
        ("vulkan", {}, "C", None, "", ""),
        ("vulkan", {"OLLAMA_VULKAN": "false"}, "C", None, "", "OLLAMA_VULKAN is off"),
        ("", {"OLLAMA_LLM_LIBRARY": "x"}, "B", None, "jetpack6", ""),
    ],
)
def test_the_filters_by_name(
    name: str, env: dict[str, str], era: str, version: str | None, jetpack: str, why: str
) -> None:
    names = ["cuda_v12", "cuda_v13", "cuda_jetpack6", "cuda_jetpack5", "vulkan"]
    assert directories.skipped(name, env, era=era, version=version, jetpack=jetpack, names=names) == why


@pytest.mark.parametrize(
    ("env", "machine", "tegra", "jetpack"),
    [
        ({"JETSON_JETPACK": "6"}, "x86_64", None, ""),
        ({"JETSON_JETPACK": "6.2"}, "aarch64", None, "jetpack6"),
        ({}, "aarch64", "# R36 (release), REVISION: 4.3, GCID: 1", "jetpack6"),
        ({}, "aarch64", "# R35 (release), REVISION: 4.3", "jetpack5"),
        ({}, "aarch64", "# R38 (release), REVISION: 2.0", ""),
        ({}, "aarch64", "rubbish", ""),
        ({}, "aarch64", None, ""),
        ({}, "x86_64", "# R36 (release)", ""),
    ],
)
def test_which_jetpack_decides(env: dict[str, str], machine: str, tegra: str | None, jetpack: str) -> None:
    assert directories.jetpack(env, machine, tegra) == jetpack


def test_a_library_that_a_security_module_denies_is_named() -> None:
    elf = base64.b64encode(LIBRARY.read_bytes()[:4096]).decode()
    library = {"type": "file", "mode": 0o644, "size": LIBRARY.stat().st_size, "b64": elf}
    entries: hosts.Entries = {
        "/proc/self/mountinfo": hosts.file("22 1 0:21 / / rw - overlay overlay rw\n"),
        "/opt/bin/ollama": {**library, "mode": 0o755},
        "/opt/lib/ollama/cuda_v12/libggml-cuda.so": {**library, "map": "EACCES"},
    }
    context = hosts.context(entries, ollama_path="/opt")
    said = hosts.judged(SPEC, context, hosts.in_process(SPEC, context))
    assert hosts.causes(said, "failed") == ["package.library.exec_denied"]
    entries["/opt/lib/ollama/cuda_v13/libggml-cuda.so"] = library
    context = hosts.context(entries, ollama_path="/opt")
    said = hosts.judged(SPEC, context, hosts.in_process(SPEC, context))
    assert (said.outcome, hosts.causes(said)) == (Outcome.WARNED, ["package.library.exec_denied"])


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_binary_that_does_not_tell_is_asked(prefix: Path, tmp_path: Path) -> None:
    install(prefix, "cuda_v12")
    (tmp_path / "x.c").write_text('#include <stdio.h>\nint main() { puts("ollama version is 0.13.5"); }\n')
    subprocess.run(["cc", "-o", prefix / "bin" / "ollama", tmp_path / "x.c"], check=True)
    said = conclude(prefix)
    assert (said.facts["version"], said.facts["version_by"], said.facts["era"]) == ("0.13.5", "asked", "B")


def test_a_binary_that_hangs_when_asked_has_no_version_and_no_other_harm(prefix: Path) -> None:
    context = hosts.context(None, ollama_path=str(release(prefix, "0.0.0")))
    results = hosts.probe_all(SPEC, context)
    assert set(results) == {"look"}  # 0.0.0 is what it is: a build without a number is not asked
    results["version"] = fakes.hang("run a copy with --version")
    said = hosts.judged(SPEC, context, results)
    assert said.outcome is Outcome.PASSED
    assert (said.facts["version"], said.facts["era"]) == ("0.0.0", "B")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (Path("/bin/true").read_bytes()[:-2000], "cut off"),
        (b"<html>Not Found</html>", "not an ELF file"),
        (b"#!/bin/sh\nexec /usr/bin/llama-server\n", ""),
    ],
    ids=["truncated", "page", "script"],
)
def test_a_llama_server_that_is_no_program_is_named(prefix: Path, data: bytes, problem: str) -> None:
    release(prefix, "0.32.15")
    (prefix / "lib" / "ollama" / "llama-server").write_bytes(data)
    said = conclude(prefix)
    assert hosts.causes(said, "failed") == (["package.server.unusable"] if problem else [])
    assert problem in said.summary
