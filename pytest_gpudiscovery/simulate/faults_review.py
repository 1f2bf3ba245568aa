"""Faults that a review found the gate to misname: what lies, or leads, where nobody expects it."""

from __future__ import annotations

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_ollama as o
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.fault import NO_REAL, OLLAMA, Fault, environment, library
from pytest_gpudiscovery.simulate.ollama import LIB, PREFIX
from pytest_gpudiscovery.simulate.world import File, World

OLD = "libcuda.so.535.183.01"
PAGE = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head></html>\n"


def faults() -> list[Fault]:
    """Return the faults of this table."""
    return [
        library(
            "libcuda.unlinked",
            "libcuda.so.1 is missing, the file of full version is there: ldconfig did not run",
            _without_links,
            needs=(f"{NO_REAL}libcuda.so.1",),
        ),
        library("libcuda.directory", "libcuda.so.1 is a directory", c.replace("libcuda", File("dir"))),
        library(
            "ollama.stray_libcuda",
            "a libcuda of another driver lies in lib/ollama",
            *o.with_ollama(_copied_libcuda),
            needs=OLLAMA,
        ),
        library("ollama.stray_libm", "lib/ollama has an empty libm.so.6", *o.with_ollama(_empty_libm), needs=OLLAMA),
        library("install.lib.dangling", "lib/ollama is a link to nowhere", *o.with_ollama(_lib_dangling), needs=OLLAMA),
        library(
            "ggml_cuda.dangling",
            "libggml-cuda is a link to nowhere, in the GPU directory VALUE or in all",
            *o.with_ollama(o.replaced("libggml-cuda", File("link", "/mnt/gone/libggml-cuda.so"))),
            value="all",
            needs=OLLAMA,
        ),
        library("server.html", "llama-server is a page of HTML", *o.with_ollama(_html_server), needs=OLLAMA),
        environment(
            "env.nvidia_driver_capabilities",
            "NVIDIA_DRIVER_CAPABILITIES=VALUE, of a container",
            c.env(NVIDIA_DRIVER_CAPABILITIES="{value}"),
            value="utility",
        ),
        environment("env.home_unset", "HOME is empty, as after `env -i`", c.env(HOME=""), needs=OLLAMA),
        environment(
            "env.cuda_disable_ptx_jit",
            "CUDA_DISABLE_PTX_JIT=VALUE: the driver compiles no PTX",
            c.env(CUDA_DISABLE_PTX_JIT="{value}"),
            value="1",
        ),
    ]


def _without_links(world: World, _: str) -> None:
    for name in ("libcuda.so.1", "libcuda.so"):
        del world.files[f"lib/{name}"]


def _copied_libcuda(world: World, _: str) -> None:
    world.files[f"{LIB}/{OLD}"] = File("built", "libcuda")
    world.files[f"{LIB}/libcuda.so.1"] = File("link", OLD)


def _empty_libm(world: World, _: str) -> None:
    world.files[f"{LIB}/libm.so.6"] = File("bytes")


def _lib_dangling(world: World, _: str) -> None:
    for path in [path for path in world.files if path.startswith(f"{LIB}/")]:
        del world.files[path]
    world.files[LIB] = File("link", f"/mnt/gone/{PREFIX}")


def _html_server(world: World, _: str) -> None:
    if world.layout != "c":
        raise SimulationError("this fault needs a simulated Ollama from 0.30.0 on: h100-ollama-c")
    world.files[f"{LIB}/llama-server"] = File("bytes", data=PAGE)
