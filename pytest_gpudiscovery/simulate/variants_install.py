"""Healthy variants of an Ollama install: where distributions put it, and what else may lie in lib/ollama."""

from __future__ import annotations

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_ollama as o
from pytest_gpudiscovery.simulate.fault import OLLAMA, Fault, library
from pytest_gpudiscovery.simulate.ollama import DIRECTORIES, LIB, PREFIX, toolkit
from pytest_gpudiscovery.simulate.world import File, World

PREFIXES = {
    "distribution": ("usr", "/usr, as distributions have it"),
    "opt": ("usr/opt/ollama", "a prefix of its own below /opt"),
    "store": ("usr/nix/store/0i9abcdfghijklmnpqrsvwxyz0123456-ollama-0.16.3", "a store path, as with Nix"),
    "snap": ("usr/snap/ollama/105", "a snap's directory"),
}


def faults() -> list[Fault]:
    """Return the variants of this table."""
    found = [
        _variant(f"prefix.{name}", f"Ollama is installed in {text}", _moved(prefix))
        for name, (prefix, text) in PREFIXES.items()
    ]
    return [
        *found,
        _variant("linked_binary", "ollama on PATH is a link into the install", _linked),
        _variant("linked_library", "lib/ollama is a link to another disk", _linked_library),
        _variant("flat", "the backend lies in lib/ollama itself, its CUDA libraries on the loader's path", _flat),
        _variant("empty_directories", "empty directories are left in lib/ollama", _empty),
        _variant("neighbours", "directories for ROCm and Vulkan stand beside those for CUDA", _neighbours),
        _variant("documents", "a README and a licence lie in lib/ollama", _documents),
        _variant("no_links", "the CUDA libraries are plain files without the links of their full versions", _no_links),
    ]


def _variant(name: str, text: str, change: c.Change) -> Fault:
    return library(f"variant.install.{name}", f"{text} (healthy)", *o.with_ollama(change), needs=OLLAMA)


def _moved(prefix: str) -> c.Change:
    def change(world: World, _: str) -> None:
        for path in [path for path in world.files if path.startswith(f"{PREFIX}/")]:
            world.files[prefix + path[len(PREFIX) :]] = world.files.pop(path)
        world.ollama = prefix

    return change


def _linked(world: World, _: str) -> None:
    world.files["usr/bin/ollama"] = File("link", "../local/bin/ollama")
    world.ollama = "usr"


def _linked_library(world: World, _: str) -> None:
    for path in [path for path in world.files if path.startswith(f"{LIB}/")]:
        world.files["usr/data/lib/ollama" + path[len(LIB) :]] = world.files.pop(path)
    world.files[LIB] = File("link", "../../data/lib/ollama")


def _flat(world: World, _: str) -> None:
    backend = world.files[f"{LIB}/{DIRECTORIES['12']}/libggml-cuda.so"]
    for name in DIRECTORIES.values():
        for path in [path for path in world.files if path.startswith(f"{LIB}/{name}/")]:
            del world.files[path]
    world.files[f"{LIB}/libggml-cuda.so"] = backend
    toolkit(world, "foreign", "12")
    world.library_path.append("{dir}/foreign")


def _empty(world: World, _: str) -> None:
    for name in ("cuda_v11", "runners", "cuda_jetpack6"):
        world.files[f"{LIB}/{name}"] = File("dir")


def _neighbours(world: World, _: str) -> None:
    cpu = f"libggml-cpu.{world.layout}"
    rocm = "rocm" if world.layout == "b" else "rocm_v7_1"
    world.files[f"{LIB}/{rocm}/libggml-hip.so"] = File("built", cpu)
    world.files[f"{LIB}/vulkan/libggml-vulkan.so"] = File("built", cpu)


def _documents(world: World, _: str) -> None:
    for name in ("README", "LICENSE.txt", "cuda_v12/NOTICE"):
        world.files[f"{LIB}/{name}"] = File("bytes", data=b"Permission is hereby granted, free of charge\n", mode=0o644)


def _no_links(world: World, _: str) -> None:
    """Name each CUDA library by its soname alone, as `cp -L` and some packages do."""
    for major, name in DIRECTORIES.items():
        place = f"{LIB}/{name}"
        for library_name in ("libcudart", "libcublas", "libcublasLt"):
            start = f"{place}/{library_name}.so."
            for path in [path for path in world.files if path.startswith(start) and world.files[path].kind == "built"]:
                world.files[f"{start}{major}"] = world.files.pop(path)
