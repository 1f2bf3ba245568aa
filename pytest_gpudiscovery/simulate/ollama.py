"""The Ollama that a simulated host can have: the files of a release, of layout b (0.16.3) or c (0.32.15).

Layouts: Ollama v0.16.3 CMakeLists.txt and Dockerfile; v0.32.15 llama/server/CMakeLists.txt ("Install layout under
lib/ollama/") and Dockerfile. Architectures: their CMakePresets.json. Full versions of the CUDA libraries are those of
the toolkits 12.8 and 13.0.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_gpudiscovery.simulate.fatbin import Code, preset
from pytest_gpudiscovery.simulate.world import File, World

PREFIX = "usr/local"
LIB = f"{PREFIX}/lib/ollama"
DIRECTORIES = {"12": "cuda_v12", "13": "cuda_v13"}
CUBLAS = {"12": "12.8.4.1", "13": "13.1.0.3"}
CUDART = {"12": "12.8.90", "13": "13.0.96"}
VIRTUAL_13 = (
    "75-virtual;80-virtual;86-virtual;87-virtual;89-virtual;90-virtual;90a-virtual;100-virtual;103-virtual;"
    "110-virtual;120-virtual;121-virtual"
)
PTX_ISA = {"12": (8, 7), "13": (9, 0)}
BLAS = {
    "12": Code(("sm_80", "sm_90", "sm_90a", "sm_100", "sm_120", "compute_120"), (8, 7), "lz4", 2),
    "13": Code(("sm_80", "sm_90", "sm_90a", "sm_100", "sm_120", "compute_120"), (9, 0), "zstd", 2),
}


@dataclass(frozen=True)
class Release:
    """What differs between the two layouts. `variants`: CPU variant -> its score on the simulated processor."""

    layout: str
    code: dict[str, Code]
    base: str  # the full version in the name of libggml-base
    variants: dict[str, int]


# Scores: ggml-cpu/arch/x86/cpu-feats.cpp, a bit for each feature, for a processor with AVX512 but without AVX_VNNI.
OLDER = {"x64": 1, "sse42": 5, "sandybridge": 21, "haswell": 64, "skylakex": 192}
RELEASE_B = Release(  # 0.16.3
    "b",
    {
        "12": preset("50;52;60;61;70;75;80;86;89;90;90a;120", PTX_ISA["12"], "lz4"),
        "13": preset(VIRTUAL_13, PTX_ISA["13"], "zstd"),
    },
    "0.0.0",
    {**OLDER, "icelake": 1472, "alderlake": 0},
)
RELEASE_C = Release(  # 0.32.15
    "c",
    {
        "12": preset("50-virtual;52-virtual;60;61;70;75;80;86;89;90;90a;100;120", PTX_ISA["12"], "zstd"),
        "13": preset(VIRTUAL_13, PTX_ISA["13"], "zstd"),
    },
    "0.25.3",
    {
        **OLDER,
        "ivybridge": 23,
        "piledriver": 24,
        "cannonlake": 448,
        "cascadelake": 1216,
        "icelake": 1472,
        "cooperlake": 0,
        "zen4": 0,
        "alderlake": 0,
        "sapphirerapids": 0,
    },
)


def add(world: World, release: Release) -> World:
    """Put RELEASE below PREFIX of WORLD."""
    for path in [path for path in world.files if path.startswith("lib/libcudart.")]:
        del world.files[path]  # a host for Ollama has no toolkit; what is found is what the release ships
    world.ollama = PREFIX
    world.layout = release.layout
    world.files[f"{PREFIX}/bin/ollama"] = File("built", f"ollama.{release.layout}")
    linked(world, LIB, "libggml-base.so", f"libggml-base.{release.layout}", ("0", release.base))
    for name, score in release.variants.items():
        world.files[f"{LIB}/libggml-cpu-{name}.so"] = File("built", f"libggml-cpu.{release.layout}")
        world.conf[f"ggml.score.{name}"] = str(score)
    for major, directory in DIRECTORIES.items():
        place = f"{LIB}/{directory}"
        cuda = File("built", f"libggml-cuda.{release.layout}.{major}", code=release.code[major])
        world.files[f"{place}/libggml-cuda.so"] = cuda
        toolkit(world, place, major)
    return world


def toolkit(world: World, place: str, major: str) -> None:
    """Put the CUDA libraries of MAJOR, which a release ships, into directory PLACE."""
    linked(world, place, "libcudart.so", f"libcudart.{major}", (major, CUDART[major]), bare=False)
    for name in ("libcublas", "libcublasLt"):
        linked(world, place, f"{name}.so", f"{name}.{major}", (major, CUBLAS[major]), bare=False, code=BLAS[major])


def linked(
    world: World,
    place: str,
    name: str,
    source: str,
    versions: tuple[str, str],
    *,
    bare: bool = True,
    code: Code | None = None,
) -> None:
    """Put built library SOURCE into PLACE under its full version, with the links that lead to it."""
    short, full = versions
    world.files[f"{place}/{name}.{full}"] = File("built", source, code=code)
    world.files[f"{place}/{name}.{short}"] = File("link", f"{name}.{full}")
    if bare:
        world.files[f"{place}/{name}"] = File("link", f"{name}.{short}")


def release_b(world: World) -> World:
    """Add Ollama 0.16.3 to WORLD: a runner that opens libggml-cuda.so itself, MLX beside it."""
    add(world, RELEASE_B)
    for name in ("libmlx", "libmlxc"):
        world.files[f"{LIB}/mlx_cuda_v13/{name}.so"] = File("built", name)
    return world


def release_c(world: World) -> World:
    """Add Ollama 0.32.15 to WORLD: llama-server with its libraries."""
    add(world, RELEASE_C)
    world.conf["llama.version"] = "10488"
    linked(world, LIB, "libggml.so", "libggml", ("0", RELEASE_C.base))
    linked(world, LIB, "libllama.so", "libllama", ("0", "0.0.10488"))
    world.files[f"{LIB}/llama-server"] = File("built", "llama-server")
    return world
