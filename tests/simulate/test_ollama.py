"""The Ollama of a simulated host: its files, its links, its device code, and how the gate comes to know of it."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery import context
from pytest_gpudiscovery.loader import fatbin as reader
from pytest_gpudiscovery.loader import predict, read_architectures
from pytest_gpudiscovery.loader.linkmap import ProcessModel
from pytest_gpudiscovery.options import Settings
from pytest_gpudiscovery.probes.host import open_view
from pytest_gpudiscovery.probes.layout import find_lib, gpu_directories
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.fatbin import ARCHITECTURES, LABEL, Code, container, fill, preset
from pytest_gpudiscovery.simulate.machines import HOSTS
from pytest_gpudiscovery.simulate.ollama import BLAS, RELEASE_B, RELEASE_C
from tests.simulate.conftest import Make, child_env, install, run

WITH = ("h100-ollama", "h100-ollama-c", "h100x2-ollama", "h100x8-ollama")
NEEDED = ["libggml-base.so.0", "libcudart.so.12", "libcublas.so.12", "libcuda.so.1"]


def test_only_hosts_that_say_so_have_one() -> None:
    assert {name for name, host in HOSTS.items() if host.make().ollama} == set(WITH)


@pytest.mark.parametrize("text", WITH[:3])
def test_the_view_shows_what_lies_there(make: Make, text: str) -> None:
    host = make(text)
    view = open_view(host.view)
    assert host.ollama is not None
    lib = find_lib(view, f"{host.ollama}/bin/ollama", "/", None)
    assert (lib["path"], lib["fallback"]) == (install(host), False)
    assert gpu_directories(view, lib["path"]) == ["cuda_v12", "cuda_v13"]
    for place, _, files in os.walk(host.ollama):
        assert sorted(view.listdir(place)) == sorted(os.listdir(place))
        for name in files:
            found = os.stat(f"{place}/{name}")
            seen = view.stat(f"{place}/{name}")
            assert (seen["size"], seen["mode"]) == (found.st_size, stat.S_IMODE(found.st_mode))
    assert view.access(f"{host.ollama}/bin/ollama", os.X_OK)


@pytest.mark.parametrize(("text", "version"), [("h100-ollama", "0.16.3"), ("h100-ollama-c", "0.32.15")])
def test_the_programs_say_their_version(make: Make, text: str, version: str) -> None:
    host = make(text)
    assert version_of(f"{host.ollama}/bin/ollama") == f"ollama version is {version}\n"
    server = Path(install(host), "llama-server")
    assert server.exists() == (version == "0.32.15")
    if server.exists():  # it finds its own libraries, by DT_RUNPATH
        assert version_of(str(server)).splitlines()[0] == "version: 10488"


def version_of(program: str) -> str:
    """Return what PROGRAM --version prints; Ollama wants a HOME, and nothing else."""
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=60, env={"HOME": "/"}, cwd="/", check=True
    )
    return done.stdout + done.stderr


def test_the_gate_is_told_unless_the_user_gave_another(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    built = context.build(Settings(simulate="h100-ollama"), str(tmp_path / "one"))
    assert built.ollama_path == str(tmp_path / "one/simulated/usr/local")
    assert Path(built.ollama_path, "bin/ollama").is_file()
    (tmp_path / "two").mkdir()
    other = context.build(Settings(simulate="h100-ollama", ollama=built.ollama_path), str(tmp_path / "two"))
    assert other.ollama_path == built.ollama_path
    (tmp_path / "three").mkdir()
    assert context.build(Settings(simulate="h100"), str(tmp_path / "three")).ollama_path is None


@pytest.mark.parametrize("text", ["h100-ollama", "h100-ollama-c"])
@pytest.mark.parametrize("directory", ["cuda_v12", "cuda_v13"])
def test_the_closure_is_that_of_a_release(make: Make, text: str, directory: str) -> None:
    host = make(text)
    lib, env = install(host), child_env(host, directory)
    exe = f"{lib}/llama-server" if text.endswith("-c") else f"{host.ollama}/bin/ollama"
    found = predict(f"{lib}/{directory}/libggml-cuda.so", env=env, cwd="/", process=ProcessModel(exe=exe))
    major = directory[-2:]
    own = [item.name for item in found.dependencies if item.requester.endswith("libggml-cuda.so")]
    assert found.outcome == "loads"
    assert own[:4] == [name.replace("12", major) for name in NEEDED]
    rules = {item.name: item.rule for item in found.dependencies}
    assert rules[f"libcublasLt.so.{major}"].startswith("DT_RPATH")  # of libcublas, before LD_LIBRARY_PATH
    assert rules[f"libcublas.so.{major}"].startswith("LD_LIBRARY_PATH")
    real = next(item.real_path for item in found.objects if "libcudart" in item.path)
    assert os.path.basename(real) == {"12": "libcudart.so.12.8.90", "13": "libcudart.so.13.0.96"}[major]


@pytest.mark.parametrize(("text", "release"), [("h100-ollama", RELEASE_B), ("h100-ollama-c", RELEASE_C)])
def test_device_code_as_the_release_is_built(make: Make, text: str, release: object) -> None:
    lib = install(make(text))
    assert isinstance(release, type(RELEASE_B))
    for major, code in release.code.items():
        path = f"{lib}/cuda_v{major}/libggml-cuda.so"
        found = reader.read_images(path)
        assert (found.problem, found.found_by, len(found.containers)) == ("", "sections", code.modules)
        assert sorted(found.targets) == sorted(set(code.targets))
        assert found.compressions == ((code.compression,) if code.compression else ())
        listed = [int(number) // 10 for number in code.architectures.split(",")]
        assert list(read_architectures(path)) == listed
        for name in ("libcublas", "libcublasLt"):
            blas = reader.read_images(f"{lib}/cuda_v{major}/{name}.so.{major}")
            assert (len(blas.containers), sorted(blas.targets)) == (2, sorted(BLAS[major].targets))


def test_presets_mean_what_cmake_makes_of_them() -> None:
    found = preset("50-virtual;90;90a", (8, 7), "lz4")
    assert found.targets == ("compute_50", "sm_90", "compute_90", "sm_90a", "compute_90a")
    assert found.architectures == "500,900"
    assert "sm_90" in RELEASE_B.code["12"].targets  # cuda_v12 runs natively on an H100
    assert not any(target.startswith("sm_") for target in RELEASE_B.code["13"].targets)  # cuda_v13 is PTX only


TARGETS = st.lists(
    st.sampled_from(["sm_80", "sm_90", "sm_90a", "sm_120f", "compute_75", "compute_90a", "compute_100f"]), max_size=6
)


@given(targets=TARGETS, compression=st.sampled_from(["", "lz4", "zstd"]), modules=st.integers(0, 5))
def test_the_loader_reads_back_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, targets: list[str], compression: str, modules: int
) -> None:
    code = Code(tuple(targets), (9, 0), compression, modules, "750,900")
    room = 4096
    body = LABEL + struct.pack("<Q", room) + bytes(room) + ARCHITECTURES + bytes(300)
    data = fill(body, code)
    assert len(data) == len(body)
    assert data[24:].startswith(container(code) * modules)
    assert b"\x00750,900\x00" in data
    assert (LABEL in data, ARCHITECTURES in data) == (False, False)


def test_a_library_without_room_is_refused() -> None:
    with pytest.raises(SimulationError, match="do not fit into 0"):
        fill(b"\x7fELF", Code(("sm_90",), (9, 0)))
    with pytest.raises(SimulationError, match="do not fit into 16"):
        fill(LABEL + struct.pack("<Q", 16) + bytes(16), Code(("sm_90",), (9, 0)))


def test_the_registry_loads_what_llama_server_would(make: Make) -> None:
    code = """
base = ctypes.CDLL({lib!r} + "/libggml-base.so", mode=ctypes.RTLD_GLOBAL)
ggml = ctypes.CDLL({lib!r} + "/libggml.so", mode=ctypes.RTLD_GLOBAL)
base.ggml_backend_reg_name.restype, ggml.ggml_backend_reg_get.restype = ctypes.c_char_p, ctypes.c_void_p
ggml.ggml_backend_load_all_from_path({lib!r}.encode())
count = ggml.ggml_backend_reg_count()
names = [base.ggml_backend_reg_name(ctypes.c_void_p(ggml.ggml_backend_reg_get(index))) for index in range(count)]
say([name.decode() for name in names] + [ggml.ggml_backend_dev_count()])
"""
    said = {}
    for fault in ("", ":ollama.stray_blas", ":backend.api_version", ":score.ggml_cpu.none", ":cublas.missing"):
        host = make(f"h100-ollama-c{fault}")
        lib = install(host)
        library = "libggml-blas.so" if fault == ":ollama.stray_blas" else "libggml-cuda.so"
        env = {**child_env(host, "cuda_v12"), "GGML_BACKEND_PATH": f"{lib}/cuda_v12/{library}"}
        said[fault] = run(host, code.format(lib=lib), env=env)
    assert said[""].stdout == '["CPU", "CUDA", 2]\n'
    assert "load_backend: loaded CPU backend from " in said[""].stderr
    assert "libggml-cpu-icelake.so" in said[""].stderr  # the best score
    assert "CUDA" not in said[":ollama.stray_blas"].stdout
    assert "incompatible API version (backend: 1, current: 2)" in said[":backend.api_version"].stderr
    assert said[":backend.api_version"].stdout == '["CPU", 1]\n'
    assert said[":score.ggml_cpu.none"].stdout == '["CUDA", 1]\n'
    wanted = "load_backend: failed to load {}: libcublas.so.12: cannot open shared object file"
    assert wanted.format(f"{lib}/cuda_v12/libggml-cuda.so") in said[":cublas.missing"].stderr
