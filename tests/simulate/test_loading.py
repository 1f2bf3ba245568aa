"""Opening libraries of a simulated Ollama: constructors, resolvers and scores block or end the process as they say."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_gpudiscovery.simulate.assemble import SimulatedHost
from tests.simulate.conftest import Make, child_env, install, run
from tests.simulate.test_hangs import settles
from tests.supervise import rigs

BACKEND = "cuda_v12/libggml-cuda.so"
# way to hang -> the state that /proc shows
STATES = {"pause": "S", "spin": "R", "dlopen": "S", "flock": "S", "signals": "S"}
ENDS = {"exit0": 0, "exit127": 127, "abort": -signal.SIGABRT, "segv": -signal.SIGSEGV}
LATER = "library.ggml_backend_init()"


@contextmanager
def opening(host: SimulatedHost, library: str, *, then: str = "", **env: str) -> Iterator[subprocess.Popen[str]]:
    """Open LIBRARY of lib/ollama in a child, as Ollama does, and yield the child once it is on its way."""
    code = (
        f"import ctypes\nprint('in', flush=True)\nlibrary = ctypes.CDLL({f'{install(host)}/{library}'!r}, 2)\n{then}\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code + "print('out', flush=True)"],
        env={**child_env(host, "cuda_v12"), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "in\n"
        yield child
    finally:
        child.kill()
        child.wait(10)
        assert child.stdout is not None
        child.stdout.close()


def opens(host: SimulatedHost, library: str) -> int:
    """Return how a child ends that opens LIBRARY: its exit code, negative for a signal."""
    code = f"import ctypes\nctypes.CDLL({f'{install(host)}/{library}'!r}, 2)\nsay('out')"
    done = run(host, code, env=child_env(host, "cuda_v12"))
    assert done.returncode != 0 or done.stdout in ("", '"out"\n')
    return done.returncode if done.stdout == "" else 100


@pytest.mark.parametrize("kind", sorted(STATES))
def test_a_constructor_that_hangs(make: Make, kind: str) -> None:
    with opening(make(f"h100-ollama:ctor.ggml_cuda.{kind}"), BACKEND) as child:
        assert settles(child.pid, STATES[kind])
        assert "libggml-cuda.so" in Path(f"/proc/{child.pid}/maps").read_text()
        if kind == "dlopen":
            assert len(list(Path(f"/proc/{child.pid}/task").iterdir())) == 2
        if kind == "flock":
            number = Path(f"/proc/{child.pid}/syscall").read_text().split()[0]
            assert number == "73", "flock"


@pytest.mark.parametrize("kind", sorted(ENDS))
@pytest.mark.parametrize("place", ["ggml_base", "ggml_cuda", "cublas", "cublaslt", "ollama_cudart"])
def test_a_constructor_that_ends_the_process(make: Make, place: str, kind: str) -> None:
    assert opens(make(f"h100-ollama:ctor.{place}.{kind}"), BACKEND) == ENDS[kind]


def test_a_constructor_of_one_directory(make: Make) -> None:
    host = make("h100-ollama:ctor.cublas.abort=cuda_v13")
    assert opens(host, BACKEND) == 100
    assert opens(host, "cuda_v13/libcublas.so.13") == -signal.SIGABRT


def test_one_cpu_variant(make: Make) -> None:
    host = make("h100-ollama-c:ctor.ggml_cpu.exit127,score.ggml_cpu.segv=haswell")
    assert opens(host, "libggml-cpu-icelake.so") == 127
    assert opens(host, "libggml-cpu-haswell.so") == 100
    score = "import ctypes\nsay(ctypes.CDLL({!r}, 2).ggml_backend_score())"
    found = {}
    for name in ("haswell", "skylakex", "zen4"):
        done = run(host, score.format(f"{install(host)}/libggml-cpu-{name}.so"), env=child_env(host, "cuda_v12"))
        found[name] = done.stdout.strip() or done.returncode
    assert found == {"haswell": -signal.SIGSEGV, "skylakex": "192", "zen4": "0"}


def test_mlx_is_found_by_its_bare_name(make: Make) -> None:
    code = "import ctypes\nctypes.CDLL('libmlxc.so')\nsay('out')"
    plain, broken = make("h100-ollama"), make("h100-ollama:ctor.mlx.abort")
    assert "cannot open shared object file" in run(plain, code, env=child_env(plain, "cuda_v12")).stderr
    assert run(broken, code, env=child_env(broken, "cuda_v12")).returncode == -signal.SIGABRT
    assert opens(broken, BACKEND) == 100


def test_a_resolver_that_hangs_in_relocation(make: Make) -> None:
    host = make("h100-ollama:ifunc.cublaslt.hang=cuda_v12")
    with opening(host, BACKEND) as child:
        assert settles(child.pid, "S")
        assert Path(f"/proc/{child.pid}/syscall").read_text().split()[0] == "35", "nanosleep"
    assert opens(host, "cuda_v13/libcublas.so.13") == 100


@pytest.mark.parametrize("short", ["ggml_base", "ggml_cuda", "cublaslt"])
def test_a_fifo_in_the_place_of_a_library(make: Make, short: str) -> None:
    with opening(make(f"h100-ollama:{short}.fifo"), BACKEND) as child:
        assert settles(child.pid, "S")
        assert Path(f"/proc/{child.pid}/syscall").read_text().split()[0] in ("2", "257"), "open or openat"


@pytest.mark.parametrize("place", ["init", "memory"])
def test_ggml_that_hangs(make: Make, place: str) -> None:
    host = make(f"h100-ollama:backend.{place}.pause")
    memory = """
from ctypes import byref, c_size_t, c_void_p
library.ggml_backend_init.restype = library.ggml_backend_reg_dev_get.restype = c_void_p
device = library.ggml_backend_reg_dev_get(c_void_p(library.ggml_backend_init()), c_size_t(0))
library.ggml_backend_dev_memory(c_void_p(device), byref(c_size_t()), byref(c_size_t()))
"""
    with opening(host, BACKEND, then=LATER if place == "init" else memory) as child:
        assert settles(child.pid, "S")
        assert Path(f"/proc/{child.pid}/syscall").read_text().split()[0] == "34", "pause"


@pytest.mark.parametrize(
    ("fault", "directory", "hangs"),
    [
        ("code.eager.module_loading", "cuda_v13", True),
        ("code.eager.force_ptx_jit", "cuda_v13", True),
        ("env.module_loading_eager", "cuda_v12", False),
        ("env.force_ptx_jit", "cuda_v12", True),
        ("ollama.only=cuda_v13", "cuda_v13", False),
        ("code.compute_120_only,env.module_loading_eager", "cuda_v12", False),
    ],
)
def test_eager_loading_compiles_what_is_only_ptx(make: Make, fault: str, directory: str, hangs: bool) -> None:
    host = make(f"h100-ollama:{fault}")
    with opening(host, f"{directory}/libggml-cuda.so", then=LATER, LD_LIBRARY_PATH=path(host, directory)) as child:
        if hangs:
            assert settles(child.pid, "R")
            assert "ptxjitcompiler" in Path(f"/proc/{child.pid}/maps").read_text()
            assert child.poll() is None
        else:
            assert rigs.wait_for(lambda: child.poll() is not None, 20)
            assert child.returncode == 0


def path(host: SimulatedHost, directory: str) -> str:
    """Return the LD_LIBRARY_PATH of Ollama's child for DIRECTORY."""
    return child_env(host, directory)["LD_LIBRARY_PATH"]
