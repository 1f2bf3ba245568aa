"""Changes to the Ollama that a simulated host has: files of lib/ollama and its GPU directories, and their device code.

`where` of a fault's value is `all`, or the name of one GPU directory (cuda_v12).
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Callable

from pytest_gpudiscovery.simulate.changes import Change
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.fatbin import Code
from pytest_gpudiscovery.simulate.ollama import BLAS, DIRECTORIES, LIB, linked, toolkit
from pytest_gpudiscovery.simulate.world import File, World

ALL = "all"
HOSTS = "h100-ollama, h100-ollama-c or h100x2-ollama"
OTHER = {"12": "13", "13": "12"}  # CUDA majors
# A symbol that libggml-cuda takes from libggml-base and that an older libggml-base lacks, by layout.
NEWER = {"b": "ggml_nvml_init", "c": "ggml_backend_reg_dev_get"}


def installed(world: World) -> None:
    """Raise SimulationError when WORLD has no Ollama."""
    if not world.ollama:
        raise SimulationError(f"this fault needs a simulated host with an Ollama: {HOSTS}")


def majors(world: World, where: str) -> list[str]:
    """Return the CUDA majors whose directories WHERE means; raises SimulationError."""
    installed(world)
    found = [major for major, name in DIRECTORIES.items() if where in (ALL, name) and _names(world, f"{LIB}/{name}/")]
    if not found:
        raise SimulationError(
            f"{where!r} is no GPU directory here: expected {ALL}, {' or '.join(DIRECTORIES.values())}"
        )
    return found


def _names(world: World, start: str) -> list[str]:
    return [path for path in world.files if path.startswith(start)]


def of(world: World, library: str, where: str) -> list[str]:
    """Return the files that LIBRARY (libggml-cuda, libcublas, libggml-base) is, without links."""
    if library == "libggml-base":
        installed(world)
        places = [LIB]
    else:
        places = [f"{LIB}/{DIRECTORIES[major]}" for major in majors(world, where)]
    return [
        path
        for place in places
        for path in _names(world, f"{place}/{library}.so")
        if posixpath.dirname(path) == place and world.files[path].kind != "link"
    ]


def removed(library: str) -> Change:
    """Remove LIBRARY, with the links to it."""

    def change(world: World, where: str) -> None:
        for path in of(world, library, where):
            start = f"{posixpath.dirname(path)}/{library}.so"
            for name in _names(world, start):
                del world.files[name]

    return change


def replaced(library: str, file: File) -> Change:
    """Put FILE in the place of LIBRARY."""
    return lambda world, where: world.files.update(dict.fromkeys(of(world, library, where), file))


def mangled(library: str, how: Callable[[bytes], bytes]) -> Change:
    """Change the bytes of LIBRARY after it was built."""
    return _each(library, lambda file: dataclasses.replace(file, mangle=how))


def hidden(library: str, symbol: str) -> Change:
    """Leave SYMBOL out of LIBRARY."""
    return _each(library, lambda file: dataclasses.replace(file, hidden=file.hidden | {symbol}))


def holds(code: Code) -> Change:
    """Give libggml-cuda CODE as its device code."""
    return _each("libggml-cuda", lambda file: dataclasses.replace(file, code=code))


def rebuilt(library: str, variant: str) -> Change:
    """Take the build VARIANT (a suffix in libraries.py) of LIBRARY."""
    bare = variant == "bare"  # bare.c has no room for device code
    return _each(
        library,
        lambda file: dataclasses.replace(file, source=f"{file.source}.{variant}", code=None if bare else file.code),
    )


def _each(library: str, how: Callable[[File], File]) -> Change:
    def change(world: World, where: str) -> None:
        for path in of(world, library, where):
            world.files[path] = how(world.files[path])

    return change


def without_symbol(data: bytes) -> bytes:
    """Return a libggml-cuda that asks for a symbol which no library has: the name is changed in its string table."""
    return data.replace(b"\0ggml_backend_reg_dev_get\0", b"\0ggml_backend_reg_dev_got\0", 1)


def older_base(world: World, _: str) -> None:
    """Have libggml-base lack the symbol that came last."""
    installed(world)
    hidden("libggml-base", NEWER[world.layout])(world, ALL)


def base_of_other_name(world: World, _: str) -> None:
    """Have libggml-base be one file with SONAME libggml-base.so, as up to Ollama 0.13.3."""
    removed("libggml-base")(world, ALL)
    world.files[f"{LIB}/libggml-base.so"] = File("built", f"libggml-base.{world.layout}.plain")


def other_major(library: str) -> Change:
    """Have each GPU directory ship LIBRARY of the other CUDA major."""

    def change(world: World, where: str) -> None:
        for major in majors(world, where):
            removed(library)(world, DIRECTORIES[major])
        for major in majors(world, where):
            place, other = f"{LIB}/{DIRECTORIES[major]}", OTHER[major]
            code = None if library == "libcudart" else BLAS[other]
            versions = (other, f"{other}.0.0")
            linked(world, place, f"{library}.so", f"{library}.{other}", versions, bare=False, code=code)

    return change


def only(world: World, where: str) -> None:
    """Leave one GPU directory of the release."""
    majors(world, where)
    for name in DIRECTORIES.values():
        for path in _names(world, f"{LIB}/{name}/") if where not in (ALL, name) else []:
            del world.files[path]


def stray(world: World, where: str) -> None:
    """Leave another copy of the CUDA libraries in lib/ollama, before the GPU directories."""
    for major in majors(world, where):
        toolkit(world, LIB, major)


def foreign(*, first: bool) -> Change:
    """Put the CUDA libraries of a toolkit into a directory of LD_LIBRARY_PATH; FIRST: where the release has none."""

    def change(world: World, where: str) -> None:
        for major in majors(world, where):
            toolkit(world, "foreign", major)
            for library in ("libcudart", "libcublas", "libcublasLt") if first else ():
                removed(library)(world, DIRECTORIES[major])
        world.library_path.insert(0, "{dir}/foreign")

    return change


def preloaded_runtime(world: World, where: str) -> None:
    """Preload a shim that stands before one function of libcudart and bears its name, without versions of any kind."""
    for major in majors(world, where):
        path = f"foreign/libcudart.so.{major}"
        world.files[path] = File("built", f"libcudart.{major}.shim")
        world.env["LD_PRELOAD"] = " ".join([*world.env.get("LD_PRELOAD", "").split(), f"{{dir}}/{path}"])


def stub_inside(world: World, _: str) -> None:
    """Have lib/ollama hold a link to the toolkit's stub of libcuda."""
    installed(world)
    world.files["stubs/libcuda.so"] = File("built", "stub")
    world.files[f"{LIB}/libcuda.so.1"] = File("link", "../../../../stubs/libcuda.so")


def stray_backend(world: World, where: str) -> None:
    """Leave a libggml-blas.so beside libggml-cuda.so: it sorts first."""
    for major in majors(world, where):
        world.files[f"{LIB}/{DIRECTORIES[major]}/libggml-blas.so"] = File("built", f"libggml-cpu.{world.layout}")


def constructor(library: str, actions: str) -> Change:
    """Have the constructor of LIBRARY carry out ACTIONS, in every directory or in one."""

    def change(world: World, where: str) -> None:
        for path in of(world, library, where):
            folder, name = path.split("/")[-2:]
            world.conf[f"at.constructor.{folder}/{name}"] = actions

    return change


def mlx_on_path(world: World, _: str) -> None:
    """Have LD_LIBRARY_PATH name the directory of the MLX libraries, else Ollama 0.16.3 does not find them.

    v0.16.3:x/imagegen/mlx/mlx_dynamic.c opens libmlxc.so by its bare name before main, in every process of ollama.
    """
    place = f"{LIB}/mlx_cuda_v13"
    if not _names(world, place):
        raise SimulationError("this fault needs a simulated release with MLX: h100-ollama or h100x2-ollama")
    world.library_path.append(f"{{dir}}/{place}")


def with_ollama(*changes: Change) -> tuple[Change, ...]:
    """Return CHANGES behind the demand for a host with an Ollama."""
    return (lambda world, _: installed(world), *changes)
