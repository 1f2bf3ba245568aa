"""Stage 10 over a real install of small ELF files: real dlopen in real children, healthy and with one fault each."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_gpudiscovery.model import CheckOutcome, Outcome
from pytest_gpudiscovery.outcome import Conclusion
from pytest_gpudiscovery.stages import load
from tests.stages.closure_install import Install, build

V12, V13 = "lib/ollama/cuda_v12", "lib/ollama/cuda_v13"
HANG_S = 1.0
HANG_BESIDE_S = 4.0  # where another child must have ended by then
CTOR = "__attribute__((constructor)) static void begin(void) {{ {0} }}\n"
HEAD = "#include <unistd.h>\n#include <stdlib.h>\n#include <signal.h>\n#include <sys/file.h>\n#include <fcntl.h>\n"
BLAS = "int cublasLtCreate(void) { return 0; }\n"


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
    return {check.finding.cause: check.outcome.value for check in said.checks if check.finding}


def constructor(install: Install, code: str, directory: str = V12) -> None:
    """Give libcublasLt, which the backend brings by way of libcublas, a constructor."""
    install.builder.library(f"{directory}/libcublasLt.so.12", HEAD + BLAS + CTOR.format(code))


def variant(install: Install, name: str, body: str = "return 3;", extra: str = "") -> None:
    source = (
        HEAD + extra + f"int ggml_backend_score(void) {{ {body} }}\nvoid *ggml_backend_init(void) {{ return 0; }}\n"
    )
    install.builder.library(f"lib/ollama/libggml-cpu-{name}.so", source)


def test_a_healthy_install(install: Install) -> None:
    said = install.loaded()
    assert said.outcome is Outcome.PASSED, said.summary
    assert causes(said) == {}
    assert {check.prerequisite for check in said.checks} == set(load.ROWS)
    for entry in said.facts["loads"]:
        assert entry["error"] is None
        assert entry["agrees"] is True
        names = {os.path.basename(path) for path in entry["files"]}
        assert {"libggml-cuda.so", "libggml-base.so.0", "libcuda.so.1"} <= names
        # ld.so's own trace of Ollama's program names the same files as the prediction
        assert entry["trace"]["libcublas.so." + entry["directory"][-2:]].endswith(
            "libcublas.so." + entry["directory"][-2:]
        )


def test_storage_is_estimated(single: Install) -> None:
    said = single.loaded()
    (row,) = [check for check in said.checks if check.prerequisite == "P28"]
    assert row.outcome is CheckOutcome.PASSED
    assert row.observed["bytes"] > 0


HANGS: list[tuple[str, Callable[[Install], object], str]] = [
    ("pause", lambda i: constructor(i, "for (;;) pause();"), "load.constructor.hang"),
    ("spin", lambda i: constructor(i, "for (volatile int n = 0;; n++) {}"), "load.constructor.hang"),
    (
        "blocks every signal",
        lambda i: constructor(i, "sigset_t all; sigfillset(&all); sigprocmask(SIG_BLOCK, &all, 0); for (;;) pause();"),
        "load.constructor.hang",
    ),
    (
        "IFUNC resolver",
        lambda i: i.builder.library(
            f"{V12}/libcublasLt.so.12",
            "#include <sys/syscall.h>\nlong syscall(long, ...);\n"
            "static int real(void) { return 0; }\n"
            "static void *choose(void) {\n"
            '  for (;;) { long r; __asm__ volatile("syscall" : "=a"(r) : "a"(34L) : "rcx", "r11", "memory"); }\n'
            "  return (void *)real;\n}\n"
            'int chosen(void) __attribute__((ifunc("choose")));\n'
            "int cublasLtCreate(void) { return chosen(); }\n",
        ),
        "load.relocation.hang",
    ),
]


@pytest.mark.parametrize(("fault", "cause"), [row[1:] for row in HANGS], ids=[row[0] for row in HANGS])
def test_a_hang_in_the_only_directory(single: Install, fault: Callable[[Install], object], cause: str) -> None:
    fault(single)
    said = single.loaded(HANG_S)
    assert said.outcome is Outcome.TIMED_OUT
    assert causes(said) == {cause: "failed"}
    (finding,) = [check.finding for check in said.checks if check.finding]
    assert "libcublasLt.so.12" in finding.summary
    assert finding.evidence["loader"]["path"].endswith("libcublasLt.so.12")


def test_a_fifo_in_the_place_of_a_library(single: Install) -> None:
    path = single / V12 / "libcublasLt.so.12"
    path.unlink()
    os.mkfifo(path)
    said = single.loaded(HANG_S)
    assert said.outcome is Outcome.TIMED_OUT
    assert causes(said) == {"load.file.hang": "failed"}


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A file whose lock this process holds, as a dead owner's shim cache is held."""
    path = tmp_path / "lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        path.chmod(0o666)
        yield path


def test_a_lock_that_somebody_holds(single: Install, held: Path) -> None:
    constructor(single, f'flock(open("{held}", O_RDWR), LOCK_EX);')
    said = single.loaded(HANG_S)
    assert causes(said) == {"load.constructor.hang": "failed"}
    (finding,) = [check.finding for check in said.checks if check.finding]
    assert "flock" in finding.evidence["blocked_in"]


ENDS: list[tuple[str, str, str, str]] = [
    ("exit 0 without an answer", "_exit(0);", "load.exits", "exit status 0 without an answer"),
    ("exit 3", "exit(3);", "load.exits", "exit status 3"),
    ("exit 127", "_exit(127);", "load.exits", "exit status 127"),
    ("abort", "abort();", "load.crash", "SIGABRT"),
    ("segmentation fault", "raise(SIGSEGV);", "load.crash", "SIGSEGV"),
    ("illegal instruction", "__builtin_trap();", "load.crash", "SIGILL"),
    ("bus error", "raise(SIGBUS);", "load.sigbus", "SIGBUS"),
]


@pytest.mark.parametrize(("code", "cause", "words"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
def test_a_constructor_that_ends_the_process(single: Install, code: str, cause: str, words: str) -> None:
    constructor(single, code)
    said = single.loaded()
    assert said.outcome is Outcome.CRASHED
    assert causes(said) == {cause: "failed"}
    (finding,) = [check.finding for check in said.checks if check.finding]
    assert words in finding.summary
    assert "libcublasLt.so.12" in finding.summary + finding.detail


def test_ld_so_that_ends_the_process(single: Install) -> None:
    """A copy without version definitions that itself needs nothing: ld.so's assertion, before glibc 2.41."""
    path = single / V12 / "libcudart.so.12"
    path.unlink()
    single.builder.library(
        f"{V12}/libcudart.so.12", "int cudaGetDeviceCount(int *n) { return *n = 0; }", flags=("-nostdlib",)
    )
    said = single.loaded()
    found = causes(said)
    assert set(found) in ({"load.loader_aborts"}, {"load.refused"}, set())
    # Whatever this loader does, the prediction made in the same process says the same.
    assert "load.differs" not in found


def test_a_refused_library_carries_the_loaders_words(single: Install) -> None:
    (single / V12 / "libcublas.so.12").unlink()
    said = single.loaded()
    assert said.outcome is Outcome.FAILED
    assert causes(said) == {"load.refused": "failed"}
    assert "libcublas.so.12: cannot open shared object file" in said.summary


def test_a_hang_in_one_of_two_directories_is_a_warning(install: Install) -> None:
    constructor(install, "for (;;) pause();")
    said = install.loaded(HANG_BESIDE_S)
    assert said.outcome is Outcome.WARNED
    assert causes(said) == {"load.constructor.hang": "warned"}
    errors = {entry["directory"]: (entry["error"], entry["seconds"] is not None) for entry in said.facts["loads"]}
    assert errors == {"cuda_v12": (None, False), "cuda_v13": (None, True)}


def test_the_trace_sees_another_file_in_ollamas_program(single: Install) -> None:
    """A file that appears after stage 09 looked: the trace of Ollama's own program says so."""
    given = single.context(deadlines={"load": 20.0})
    prior = single.prior(given)
    from pytest_gpudiscovery.stages import closure
    from tests import fakes
    from tests.stages import hosts

    said = hosts.conclusion(closure.SPEC, given, prior)
    prior["closure"] = fakes.record("closure", said.outcome, facts=said.facts)
    shutil.copy(single / V12 / "libcublas.so.12", single / "lib/ollama/libcublas.so.12")
    after = hosts.conclusion(load.SPEC, given, prior)
    assert causes(after) == {"load.child_differs": "warned"}


def test_cpu_variants_are_opened_and_scored(single: Install) -> None:
    variant(single, "haswell", "return 64;")
    variant(single, "x64", "return 1;")
    said = single.loaded()
    (row,) = [check for check in said.checks if check.prerequisite == "P23"]
    assert row.outcome is CheckOutcome.PASSED
    assert row.observed == {"libggml-cpu-haswell.so": 64, "libggml-cpu-x64.so": 1}
    assert "2 CPU variants" in said.summary


@pytest.mark.parametrize(
    ("body", "extra", "outcome", "words"),
    [
        ("for (;;) pause();", "", Outcome.TIMED_OUT, "ggml_backend_score of libggml-cpu-b.so did not return"),
        ("return 1;", CTOR.format("for (;;) pause();"), Outcome.TIMED_OUT, "dlopen libggml-cpu-b.so did not return"),
        ("__builtin_trap();", "", Outcome.CRASHED, "SIGILL"),
        ("_exit(0);", "", Outcome.CRASHED, "exit status 0 without"),
    ],
)
def test_a_cpu_variant_takes_every_directory_with_it(
    single: Install, body: str, extra: str, outcome: Outcome, words: str
) -> None:
    variant(single, "a")
    variant(single, "b", body, extra)
    variant(single, "c")
    said = single.loaded(HANG_BESIDE_S)
    assert said.outcome is outcome
    assert causes(said) == {"load.cpu.ends": "failed"}
    assert words in said.summary
    # a further child went on behind it, and the directory was still loaded
    assert said.facts["loads"][0]["error"] is None


def test_a_cpu_variant_that_cannot_be_loaded_is_passed_over(single: Install) -> None:
    variant(single, "a")
    (single / "lib/ollama/libggml-cpu-b.so").write_text("version https://git-lfs.github.com/spec/v1\n")
    said = single.loaded()
    assert said.outcome is Outcome.WARNED
    assert causes(said) == {"load.cpu.refused": "warned"}


def test_what_ggml_would_not_open_is_left_alone(single: Install) -> None:
    """Neither a FIFO, nor a leftover under another name, nor the library without a variant beside variants."""
    variant(single, "a")
    os.mkfifo(single / "lib/ollama/libggml-cpu-b.so")
    (single / "lib/ollama/libggml-cpu-c.so").symlink_to("libggml-cpu-c.so")
    single.builder.library("lib/ollama/libggml-cpu-d.so.bak", HEAD + CTOR.format("_exit(3);"))
    single.builder.library("lib/ollama/libggml-cpu.so", HEAD + CTOR.format("_exit(4);"))
    said = single.loaded(HANG_S * 5)
    assert said.outcome is Outcome.PASSED, said.summary
    (row,) = [check for check in said.checks if check.prerequisite == "P23"]
    assert row.observed == {"libggml-cpu-a.so": 3}


def test_some_hundred_variants_fit_into_a_journal(single: Install) -> None:
    variant(single, "a")
    built, name = (
        single / "lib/ollama/libggml-cpu-a.so",
        "a-variant-with-a-name-that-is-much-longer-than-any-other-" * 3,
    )
    for number in range(300):
        os.link(built, built.with_name(f"libggml-cpu-{name}{number}.so"))
    said = single.loaded()
    assert said.outcome is Outcome.PASSED, said.summary
    assert "301 CPU variants" in said.summary


def test_a_needed_name_that_is_no_utf8_costs_its_directory_and_not_the_other(install: Install) -> None:
    path = install / V12 / "libggml-cuda.so"
    raw = path.read_bytes()
    assert raw.count(b"libcublas.so.12\0") > 0
    path.write_bytes(raw.replace(b"libcublas.so.12\0", b"lib\xff\nblas.so.12\0"))
    said = install.loaded()
    assert said.outcome is Outcome.WARNED, said.summary
    assert causes(said) == {"load.refused": "warned"}
    assert said.summary.isprintable()
    assert "blas.so.12: cannot open shared object file" in said.summary


def test_what_ends_the_child_in_a_directory_that_ollama_skips_is_no_blocker(install: Install) -> None:
    constructor(install, "_exit(3);")
    (install / "lib/ollama/cuda_v13/libcublas.so.13").unlink()
    said = install.loaded(env={"OLLAMA_LLM_LIBRARY": "cuda_v13"})
    assert said.outcome is Outcome.FAILED
    assert causes(said) == {"load.exits": "warned", "load.refused": "failed"}
    assert "libcublas.so.13" in said.summary


def test_mlx_that_hangs_is_named_and_blocks_nothing_here(single: Install) -> None:
    single.builder.library("lib/ollama/mlx_cuda_v13/libmlxc.so", HEAD + CTOR.format("for (;;) pause();"))
    said = single.loaded(HANG_BESIDE_S)
    assert said.outcome is Outcome.WARNED
    assert causes(said) == {"load.mlx.ends": "warned"}


def test_no_directory_has_a_backend(install: Install) -> None:
    for directory in (V12, V13):
        shutil.rmtree(install / directory)
    said = install.loaded()
    assert said.outcome is Outcome.NOT_APPLICABLE
