"""Every library and program that csrc/ can become: its sources, its SONAME, what it is linked with.

The DT_NEEDED order is that of Ollama's own builds, as is the run path: none before 0.30, `$ORIGIN` from then on; the
toolkit's cuBLAS has DT_RPATH, which comes before LD_LIBRARY_PATH.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

RPATH, RUNPATH = "DT_RPATH", "DT_RUNPATH"
OLLAMA = (
    "ollama.c",
    "ollama_version.c",
    "ollama_runner.c",
    "ollama_ggml.c",
    "ollama_spawn.c",
    "ollama_bootstrap.c",
    "ollama_bootstrap_c.c",
    "ollama_probe.c",
    "ollama_serve.c",
    "golog.c",
)
MAJORS = ("12", "13")  # of CUDA
LAYOUTS = ("b", "c")  # of csrc/ggml.h


@dataclass(frozen=True)
class Library:
    """One library, or program, that csrc/ can become. `links` are names in LIBRARIES, in the order of DT_NEEDED."""

    sources: tuple[str, ...]
    defines: Mapping[str, str] = field(default_factory=dict)
    soname: str = ""
    version: str = ""  # of every symbol
    links: tuple[str, ...] = ()
    run_path: str = ""  # RPATH or RUNPATH: $ORIGIN is in it
    program: bool = False
    libc: bool = True


def _own(name: str, *sources: str, soname: str = "", **more: object) -> Library:
    """Return the library of SOURCES that calls itself NAME in sim.conf's actions."""
    defines = {"SIM_LIBRARY": f'"{name}"', **dict(more.pop("defines", {}))}  # type: ignore[call-overload]
    return Library((*sources, "sim.c"), defines, soname, **more)  # type: ignore[arg-type]


def _toolkit(major: str) -> dict[str, Library]:
    """Return the CUDA libraries of MAJOR, each also without version nodes, with those of CUDA 11, and bare (bare.c)."""
    cuda, found = {"SIM_CUDA": major, "SIM_RUNTIME": major}, {}
    for name, sources, links, path in (
        ("libcudart", ("cudart.c", "modules.c"), (), ""),
        ("libcublasLt", ("cublaslt.c",), (), RPATH),
        ("libcublas", ("cublas.c",), (f"libcublasLt.{major}",), RPATH),
    ):
        soname = f"{name}.so.{major}"
        for variant, version in (("", soname), (".unversioned", ""), (".other_node", f"{name}.so.11")):
            found[f"{name}.{major}{variant}"] = _own(
                name, *sources, soname=soname, version=version, links=links, run_path=path, defines=cuda
            )
        number = {"libcudart": "1", "libcublas": "3", "libcublasLt": "4"}[name]
        found[f"{name}.{major}.bare"] = Library(("bare.c",), {"SIM_BARE": number}, soname, libc=False)
    found[f"libcudart.{major}.shim"] = Library(("bare.c",), {"SIM_BARE": "2"}, f"libcudart.so.{major}", libc=False)
    plain = found[f"libcublasLt.{major}"]
    found[f"libcublasLt.{major}.ifunc"] = replace(plain, defines={**plain.defines, "SIM_IFUNC": "1"})
    return found


def _ggml(layout: str) -> dict[str, Library]:
    base, how = f"libggml-base.{layout}", {"SIM_LAYOUT": f"'{layout}'"}
    path = RUNPATH if layout == "c" else ""
    sources = ("ggml_base.c", "ggml_nvml.c") if layout == "b" else ("ggml_base.c",)
    found = {
        base: _own("libggml-base", *sources, soname="libggml-base.so.0", run_path=path, defines=how),
        f"{base}.plain": _own("libggml-base", *sources, soname="libggml-base.so", run_path=path, defines=how),
        f"libggml-cpu.{layout}": _own("libggml-cpu", "ggml_cpu.c", links=(base,), run_path=path, defines=how),
    }
    for major in MAJORS:
        found[f"libggml-cuda.{layout}.{major}"] = _own(
            "libggml-cuda",
            "ggml_cuda.c",
            "ggml_cuda_devices.c",
            links=(base, f"libcudart.{major}", f"libcublas.{major}", "libcuda"),
            run_path=path,
            defines={**how, "SIM_CUDA": major},
        )
    return found


def _ollama(layout: str, version: str) -> dict[str, Library]:
    defines = {"SIM_PROGRAM": "1", "SIM_VERSION": f'"{version}"'}
    return {f"ollama.{layout}": _own("ollama", *OLLAMA, program=True, defines=defines)}


LIBRARIES: dict[str, Library] = {
    "libcuda": _own("libcuda", "libcuda.c", "vmm.c", "library.c", soname="libcuda.so.1"),
    "libnvidia-ml": _own("libnvidia-ml", "nvml.c", soname="libnvidia-ml.so.1"),
    "libnvidia-ptxjitcompiler": _own(
        "libnvidia-ptxjitcompiler", "ptxjit.c", soname="libnvidia-ptxjitcompiler.so.1"
    ),
    **_toolkit("12"),
    **_toolkit("13"),
    "stub": Library(("stub.c",), soname="libcuda.so.1"),
    "vgpu": _own("vgpu", "vgpu.c", soname="libvgpu.so"),
    "netfault": _own("netfault", "netfault.c"),
    **_ggml("b"),
    **_ggml("c"),
    "libggml": _own("libggml", "ggml_reg.c", soname="libggml.so.0", links=("libggml-base.c",), run_path=RUNPATH),
    "libllama": _own(
        "libllama", "llama.c", soname="libllama.so.0", links=("libggml", "libggml-base.c"), run_path=RUNPATH
    ),
    "libmlx": _own("libmlx", "mlx.c", soname="libmlx.so", defines={"SIM_MLX": "0"}),
    # That a release's libmlxc finds its neighbour by itself is assumed, not seen.
    "libmlxc": _own(
        "libmlxc", "mlx.c", soname="libmlxc.so", links=("libmlx",), run_path=RUNPATH, defines={"SIM_MLX": "1"}
    ),
    **_ollama("b", "0.16.3"),
    **_ollama("c", "0.32.15"),
    "llama-server": _own(
        "llama-server",
        "llama_server.c",
        program=True,
        links=("libllama", "libggml", "libggml-base.c"),
        run_path=RUNPATH,
        defines={"SIM_PROGRAM": "1"},
    ),
}  # fmt: skip
