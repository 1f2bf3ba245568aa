"""Stage 09 over a real install of small ELF files: healthy, and with one fault after another; real children."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.model import CheckOutcome, Kind, Outcome
from pytest_gpudiscovery.outcome import Conclusion
from pytest_gpudiscovery.probes import closure as probe
from pytest_gpudiscovery.stages import closure
from tests import fakes
from tests.loader.test_fatbin import container
from tests.stages import hosts
from tests.stages.closure_install import NODE, PTX_80, PTX_90, SASS_80, SASS_90, USES, Install, backend, build

V12 = "lib/ollama/cuda_v12"
Break = Callable[[Install], None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build(folder)
    return folder


@pytest.fixture
def install(built: Path, tmp_path: Path) -> Install:
    return Install(built, tmp_path)


@pytest.fixture
def single(install: Install) -> Install:
    """An install with cuda_v12 alone."""
    return install.only(12)


def causes(said: Conclusion) -> dict[str, str]:
    """Return the outcome of each cause in SAID."""
    return {check.finding.cause: check.outcome.value for check in said.checks if check.finding}


def test_a_healthy_install(install: Install) -> None:
    said = install.conclusion()
    assert said.outcome is Outcome.PASSED, said.summary
    assert causes(said) == {}
    assert said.summary == "cuda_v12: loads, native; cuda_v13: loads, jit; compute capability 9.0"
    assert {check.prerequisite for check in said.checks} == set(closure.ROWS)
    applicable = [check for check in said.checks if check.outcome is not CheckOutcome.NOT_APPLICABLE]
    assert {check.prerequisite for check in said.checks} - {check.prerequisite for check in applicable} == {"P71"}
    assert [(item["directory"], item["model"]) for item in said.facts["closures"]] == [
        ("cuda_v12", "child"),
        ("cuda_v12", "probe"),
        ("cuda_v13", "child"),
        ("cuda_v13", "probe"),
    ]
    assert {item["outcome"] for item in said.facts["closures"]} == {"loads"}
    names = [os.path.basename(item["path"]) for item in said.facts["fatbins"] if item["directory"] == "cuda_v12"]
    assert names == ["libggml-cuda.so", "libcublas.so.12", "libcublasLt.so.12"]


def test_the_environment_is_the_childs(single: Install) -> None:
    """Ollama's directories come first, whatever the service's LD_LIBRARY_PATH says."""
    shutil.copytree(single / V12, single / "stale")
    said = single.conclusion(env={"LD_LIBRARY_PATH": f"{single / 'stale'}:{single / 'driver'}"})
    assert causes(said) == {}
    (child,) = [item for item in said.facts["closures"] if item["model"] == "child"]
    assert not any("stale" in item["path"] for item in child["objects"])
    assert child["exe"] == str(single / "bin/ollama")


def remove(name: str) -> Break:
    return lambda install: (install / name).unlink()


def write(name: str, data: bytes) -> Break:
    def change(install: Install) -> None:
        (install / name).unlink()
        (install / name).write_bytes(data)

    return change


def cut(name: str) -> Break:
    return lambda install: os.truncate(install / name, 4096)


def patch(name: str, offset: int, data: bytes) -> Break:
    return lambda install: install.builder.patch(name, offset, data)


def fifo(name: str) -> Break:
    def change(install: Install) -> None:
        (install / name).unlink()
        os.mkfifo(install / name)

    return change


def library(name: str, source: str, script: str | None = None, flags: tuple[str, ...] = ()) -> Break:
    def change(install: Install) -> None:
        if script is None:
            install.builder.library(name, source, flags=flags)
        else:
            install.builder.versioned(name, script, source)

    return change


def images(*held: Any, archs: str = "700,800,900") -> Break:
    return lambda install: backend(install.builder, 12, held, archs)


def stub(install: Install) -> None:
    (install / "driver/stubs").mkdir()
    shutil.move(install / "driver/libcuda.so.1", install / "driver/stubs/libcuda.so.1")
    (install / "driver/libcuda.so.1").symlink_to("stubs/libcuda.so.1")


def other_node(install: Install) -> None:
    """The library of CUDA 13 under the name of 12."""
    (install / "node").write_text(NODE.format(13))
    source, flags = "int cudaGetDeviceCount(int *n) { return *n = 0; }", f"-Wl,--version-script={install / 'node'}"
    install.builder.library(f"{V12}/libcudart.so.12", source, flags=(flags,), soname="libcudart.so.13")


CUDART = f"{V12}/libcudart.so.12"
NO_FILE = "cannot open shared object file: No such file or directory"
FAULTS: dict[str, tuple[Break, str, str]] = {
    "no libggml-base": (
        remove("lib/ollama/libggml-base.so.0"),
        "closure.base.missing",
        f"libggml-base.so.0: {NO_FILE}",
    ),
    "no libcuda": (remove("driver/libcuda.so.1"), "closure.libcuda.missing", f"libcuda.so.1: {NO_FILE}"),
    "the stub": (stub, "closure.libcuda.stub", "libcuda.so.1 is the toolkit's stub"),
    "an old libcuda": (
        library("driver/libcuda.so.1", "int cuInit(void) { return 0; }"),
        "closure.libcuda.incomplete",
        "undefined symbol: cuMemCreate",
    ),
    "no libcudart": (remove(CUDART), "closure.toolkit.missing", f"libcudart.so.12: {NO_FILE}"),
    "no libcublasLt": (remove(f"{V12}/libcublasLt.so.12"), "closure.toolkit.missing", f"libcublasLt.so.12: {NO_FILE}"),
    "a 32-bit library": (patch(CUDART, 4, b"\1"), "closure.object.wrong_class", "wrong ELF class: ELFCLASS32"),
    "a git-lfs pointer": (
        write(CUDART, b"version https://git-lfs.github.com/spec/v1\n" + b"x" * 80),
        "closure.object.unusable",
        "invalid ELF header",
    ),
    "an empty library": (write(CUDART, b""), "closure.object.unusable", "file too short"),
    "a cut library": (cut(CUDART), "closure.object.truncated", "libcudart.so.12 is cut off"),
    "a FIFO": (fifo(CUDART), "closure.object.blocks", "loading blocks for ever"),
    "another version node": (other_node, "closure.version.missing", "version `libcudart.so.12' not found"),
    "an older libggml-base": (
        library("lib/ollama/libggml-base.so.0", "int older(void) { return 0; }"),
        "closure.symbol.missing",
        "undefined symbol: ggml_base",
    ),
    "a runtime without versions": (
        library(CUDART, "int cudaGetDeviceCount(int *n) { return *n = 0; }", flags=("-nostdlib",)),
        "closure.loader.aborts",
        "ld.so ends the child",
    ),
    "machine code of another GPU": (images(SASS_80), "closure.kernels.no_image", "no code for compute capability 9.0"),
    "no device code": (images(archs="900"), "closure.kernels.no_code", "holds no device code"),
    "PTX of an older GPU": (images(PTX_80, archs="800"), "closure.kernels.filtered", "has 80"),
}


@pytest.mark.parametrize(("change", "cause", "words"), FAULTS.values(), ids=list(FAULTS))
def test_a_fault_in_the_only_directory_blocks(single: Install, change: Break, cause: str, words: str) -> None:
    change(single)
    said = single.conclusion()
    assert causes(said).get(cause) == "failed", causes(said)
    assert said.outcome is Outcome.FAILED
    (check,) = [check for check in said.checks if check.finding and check.finding.cause == cause]
    assert check.finding is not None
    assert words in f"{check.finding.summary} {check.finding.detail}"
    assert check.subject == "dir:cuda_v12"
    assert "?" not in check.finding.summary
    assert {item.prerequisite for item in said.checks} == set(closure.ROWS), "every row has an answer"


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("no libcudart", "warned"),
        ("a FIFO", "warned"),
        ("PTX of an older GPU", "warned"),
        ("no libggml-base", "failed"),
        ("no libcuda", "failed"),
    ],
)
def test_a_fault_in_one_of_two_directories_is_a_warning(install: Install, name: str, outcome: str) -> None:
    """What both directories need is missing in both."""
    change, cause, _ = FAULTS[name]
    change(install)
    said = install.conclusion()
    assert causes(said)[cause] == outcome
    assert said.outcome.value == outcome


def test_a_directory_that_this_ollama_is_told_to_pass_over_does_not_count(install: Install) -> None:
    (install / CUDART).unlink()
    said = install.conclusion(env={"OLLAMA_LLM_LIBRARY": "cuda_v12"})
    assert said.outcome is Outcome.FAILED


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "a FIFO"])
def test_the_real_loader_says_the_same(single: Install, name: str) -> None:
    """The judgement is right about the file: a child of this machine's loader ends as was said."""
    FAULTS[name][0](single)
    path = ":".join(str(single / place) for place in ("lib/ollama", V12, "driver"))
    code = f"import ctypes, os; ctypes.CDLL({str(single / V12 / 'libggml-cuda.so')!r}, os.RTLD_NOW)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        env={"LD_LIBRARY_PATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = single.conclusion()
    (child,) = [item for item in said.facts["closures"] if item["model"] == "child"]
    assert (done.returncode == 0) is (child["outcome"] == "loads"), done.stderr
    if child["outcome"] == "error":
        assert child["message"].partition(": ")[2] in done.stderr


# --- device code, driver and environment -----------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["CUDA_MODULE_LOADING=EAGER", "CUDA_FORCE_PTX_JIT=1"])
def test_eager_loading_without_machine_code_is_predicted(install: Install, variable: str) -> None:
    name, _, value = variable.partition("=")
    said = install.only(13).conclusion(env={name: value})
    assert causes(said)["closure.jit.eager_hang"] == "failed"
    (finding,) = [check.finding for check in said.checks if check.finding]
    assert finding.summary == f"{variable} compiles 1 modules at start: over 30 s"
    assert said.outcome is Outcome.FAILED


def test_eager_loading_with_machine_code_is_no_fault(install: Install) -> None:
    assert causes(install.only(12).conclusion(env={"CUDA_MODULE_LOADING": "EAGER"})) == {}


def test_eager_loading_in_one_of_two_directories_is_a_warning(install: Install) -> None:
    said = install.conclusion(env={"CUDA_MODULE_LOADING": "EAGER"})
    assert causes(said) == {"closure.jit.eager_hang": "warned"}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("580.159.04", {}),
        ("595.10", {}),  # between two branches counts as the older one
        ("570.10", {"closure.kernels.ptx_too_new": "failed"}),
        ("", {}),
    ],
)
def test_ptx_needs_a_driver_that_knows_it(install: Install, module: str, expected: dict[str, str]) -> None:
    said = install.only(13).conclusion(module=module)
    assert causes(said) == expected
    if not module:
        assert [c.prerequisite for c in said.checks if c.outcome is CheckOutcome.UNKNOWN] == ["P57"]


def test_an_unknown_gpu_is_unknown(single: Install) -> None:
    said = single.conclusion(device=None)
    assert causes(said) == {}
    left_open = {check.prerequisite: check.kind for check in said.checks if check.outcome is CheckOutcome.UNKNOWN}
    assert left_open == {"P57": Kind.BLOCKING, "P117": Kind.OBSERVABILITY}


def test_the_profile_stands_in_for_a_gpu_that_is_not_known(single: Install) -> None:
    said = single.conclusion(device="ffff", profile={"cc": ["8.0"]})
    assert causes(said) == {"closure.kernels.no_image": "failed"}
    assert said.facts["wanted"]["cc_source"] == "the profile"


def test_ptx_needs_the_drivers_compiler(install: Install) -> None:
    (install / "driver/libnvidia-ptxjitcompiler.so.1").unlink()
    assert causes(install.conclusion()) == {"closure.jit.compiler_missing": "warned"}
    assert causes(install.only(13).conclusion()) == {"closure.jit.compiler_missing": "failed"}


def test_a_cache_that_cannot_be_written_is_a_warning(install: Install) -> None:
    said = install.only(13).conclusion(env={"CUDA_CACHE_DISABLE": "1"})
    assert causes(said) == {"closure.jit.cache": "warned"}
    said = install.conclusion(env={"HOME": "/proc/1/nothing"})
    assert causes(said) == {"closure.jit.cache": "warned"}


def test_some_modules_without_code(single: Install) -> None:
    """Two containers, one of them with nothing for this GPU."""
    (single / "images").write_bytes(container((SASS_90,)) + container((SASS_80,)))
    needs = ("lib/ollama/libggml-base.so.0", CUDART, f"{V12}/libcublas.so.12", "driver/libcuda.so.1")
    single.builder.library(f"{V12}/libggml-cuda.so", USES % ("900", single / "images"), needs, soname="")
    assert causes(single.conclusion()) == {"closure.kernels.partial": "warned"}


# --- what comes from elsewhere ---------------------------------------------------------------------------------------


def by_rpath(install: Install) -> None:
    """Give the backend a DT_RPATH that leads out of Ollama's directories."""
    images(SASS_90)(install)
    place = install / V12
    source = "int ggml_base(void); int cudaGetDeviceCount(int *); int f(void) { int n; return cudaGetDeviceCount(&n); }"
    run_path = ("-Wl,--disable-new-dtags", f"-Wl,-rpath,{install / 'foreign'}")
    needs = ("lib/ollama/libggml-base.so.0", CUDART, f"{V12}/libcublas.so.12", "driver/libcuda.so.1")
    asm = f'__asm__(".section .nv_fatbin,\\"a\\"\\n.balign 8\\n.incbin \\"{install / "images"}\\"\\n.previous\\n");'
    install.builder.library(f"{place}/libggml-cuda.so", source + asm, needs, run_path, soname="")


def test_a_complete_foreign_runtime_is_named(single: Install) -> None:
    by_rpath(single)
    single.builder.copy(CUDART, "foreign/libcudart.so.12")
    said = single.conclusion()
    assert causes(said) == {"closure.foreign.library": "warned"}
    (finding,) = [check.finding for check in said.checks if check.finding]
    assert "DT_RPATH" in finding.detail


def test_an_incomplete_foreign_runtime_blocks(single: Install) -> None:
    by_rpath(single)
    library("foreign/libcudart.so.12", "int cudaFree(void) { return 0; }", NODE.format(12))(single)
    said = single.conclusion()
    assert causes(said) == {"closure.shim.incomplete": "failed", "closure.foreign.library": "warned"}
    assert said.checks[0].prerequisite == "P73"


def test_an_incomplete_foreign_cublas_blocks(single: Install) -> None:
    by_rpath(single)
    library("foreign/libcublas.so.12", "int nothing(void) { return 0; }", "other { global: *; };\n")(single)
    source = "int cublasCreate(void *); int f(void) { return cublasCreate(0); }"
    run_path = ("-Wl,--disable-new-dtags", f"-Wl,-rpath,{single / 'foreign'}")
    single.builder.library(f"{V12}/libggml-cuda.so", source, (f"{V12}/libcublas.so.12",), run_path, soname="")
    said = single.conclusion()
    assert causes(said)["closure.shim.cublas"] == "failed"
    assert causes(said)["closure.foreign.cublas"] == "warned"


def test_files_of_another_cuda_release(single: Install) -> None:
    (single / V12).rename(single / "lib/ollama/cuda_v13")
    assert causes(single.conclusion()) == {"closure.toolkit.other_major": "failed"}


# --- llama-server ----------------------------------------------------------------------------------------------------


def with_server(install: Install) -> Install:
    shutil.copy(install / "bin/ollama", install / "lib/ollama/llama-server")
    return install


def test_llama_server_gets_the_path_of_the_backend(single: Install) -> None:
    said = with_server(single).conclusion()
    assert causes(said) == {}
    assert [(c.prerequisite, c.observed) for c in said.checks if c.prerequisite == "P71"] == [
        ("P71", str(single / V12 / "libggml-cuda.so"))
    ]
    assert [item["model"] for item in said.facts["closures"]] == ["child", "native", "probe"]
    assert said.facts["closures"][0]["exe"] == str(single / "lib/ollama/llama-server")


@pytest.mark.parametrize("name", ["libggml-blas.so", "libggml-cuda-old.so"])
def test_a_name_that_sorts_first_wins(single: Install, name: str) -> None:
    single.builder.copy(f"{V12}/libggml-cuda.so", f"{V12}/{name}")
    said = with_server(single).conclusion()
    assert causes(said) == {"closure.backend_path.other": "failed"}


def test_base_and_cpu_are_no_gpu_backend(single: Install) -> None:
    for name in ("libggml-base.so", "libggml-cpu-x64.so"):
        single.builder.copy("lib/ollama/libggml-base.so.0", f"{V12}/{name}")
    assert probe.gpu_backend(str(single / V12)) == str(single / V12 / "libggml-cuda.so")
    assert probe.gpu_backend(str(single / "nowhere")) is None


# --- what gives no answer --------------------------------------------------------------------------------------------


def test_without_ollama_the_stage_does_not_apply() -> None:
    for binary in (None, "/x/ollama"):
        facts = {"binary": binary, "gpu_dirs": [{"name": "rocm", "path": "/x/rocm", "backend": None}]}
        prior = {"package": fakes.record("package", Outcome.PASSED, facts=facts)}
        said = hosts.conclusion(closure.SPEC, fakes.context(), prior)
        assert said.outcome is Outcome.NOT_APPLICABLE
        assert {check.outcome for check in said.checks} == {CheckOutcome.NOT_APPLICABLE}
        assert all("there is no libggml-cuda.so" in check.reason for check in said.checks)


def test_a_binary_that_cannot_be_predicted_is_unknown(single: Install) -> None:
    """An Ollama of another machine: nothing may be said of its loader."""
    header = bytearray((single / "bin/ollama").read_bytes())
    struct.pack_into("<H", header, 18, 183)
    (single / "bin/ollama").write_bytes(header)
    said = single.conclusion()
    assert causes(said) == {}
    assert "P24" in {check.prerequisite for check in said.checks if check.outcome is CheckOutcome.UNKNOWN}


def test_a_look_that_does_not_end_is_a_hang(single: Install) -> None:
    said = single.conclusion(deadlines={"closure": 0.01, "package": 20.0})
    assert causes(said) == {"closure.read_hang": "failed"}
    assert said.outcome is Outcome.TIMED_OUT
    assert {check.outcome for check in said.checks[1:]} == {CheckOutcome.UNKNOWN}


def test_ptx_of_the_right_gpu_is_enough(single: Install) -> None:
    images(PTX_90, archs="900")(single)
    assert causes(single.conclusion()) == {}
