"""Faults of an Ollama install as a whole: the binary, where its libraries lie, leftovers, mounts (P01 to P09)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_ollama as o
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.fault import OLLAMA, UNPRIVILEGED, Fault, host_view, library
from pytest_gpudiscovery.simulate.ollama import DIRECTORIES, LIB, PREFIX
from pytest_gpudiscovery.simulate.world import File, World

BINARY = f"{PREFIX}/bin/ollama"
POINTER = b"version https://git-lfs.github.com/spec/v1\n"


def faults() -> list[Fault]:
    """Return the faults of this table."""

    def fault(name: str, text: str, *changes: c.Change, needs: tuple[str, ...] = ()) -> Fault:
        return library(f"install.{name}", text, *o.with_ollama(*changes), needs=(*OLLAMA, *needs))

    return [
        fault("binary.missing", "bin/ollama is not there, its libraries are", _no_binary),
        fault("binary.not_executable", "bin/ollama has mode 0644", _binary(mode=0o644)),
        fault("binary.closed", "bin/ollama has mode 0700, of root", _binary(mode=0o700), needs=UNPRIVILEGED),
        fault("binary.truncated", "bin/ollama is cut off in the middle", _binary(mangle=c.truncated)),
        fault("binary.empty", "bin/ollama is an empty file", _binary_is(File("bytes"))),
        fault("binary.other_machine", "bin/ollama is for another processor", _binary(mangle=c.other_machine)),
        fault("binary.lfs_pointer", "bin/ollama is a git-lfs pointer", _binary_is(File("bytes", data=POINTER))),
        fault("lib.missing", "lib/ollama is not there", _without(lambda _: True)),
        fault("lib.no_gpu_dir", "lib/ollama has no GPU directory at all", _without(lambda path: path.count("/") > 4)),
        fault("lib.rocm_only", "lib/ollama has the GPU directory of another vendor only", _rocm_only),
        fault("lib.renamed", "the libraries lie in lib/ollama.old: an upgrade that stopped half way", _renamed),
        fault("leftover.base", "libggml-base.so is the file of an Ollama up to 0.13.3, beside the new one", _old_base),
        fault("leftover.rocm", "a directory rocm_v5 of an older release was left behind", _old_rocm),
        fault("leftover.server", "lib/ollama has a llama-server of 0.30.0 or later", _later_server),
        fault("variant.truncated", "a CPU variant that fits this processor is cut off", _variant(c.truncated)),
        fault("variant.other_machine", "a CPU variant is for another processor", _variant(c.other_machine)),
        fault("mlx.empty", "LD_LIBRARY_PATH leads to a libmlxc.so that is an empty file", o.mlx_on_path, _empty_mlx),
        fault("stray.link", "lib/ollama has a link to a library outside", _stray_link),
        host_view(
            "install.noexec",
            "the file system of the install is mounted noexec",
            *o.with_ollama(_noexec),
            needs=OLLAMA,
        ),
    ]


def _binary(**fields: object) -> c.Change:
    def change(world: World, _: str) -> None:
        world.files[BINARY] = dataclasses.replace(world.files[BINARY], **fields)  # type: ignore[arg-type]

    return change


def _binary_is(file: File) -> c.Change:
    return lambda world, _: world.files.update({BINARY: file})


def _variant(how: Callable[[bytes], bytes]) -> c.Change:
    path = f"{LIB}/libggml-cpu-haswell.so"
    return lambda world, _: world.files.update({path: dataclasses.replace(world.files[path], mangle=how)})


def _empty_mlx(world: World, _: str) -> None:
    world.files[f"{LIB}/mlx_cuda_v13/libmlxc.so"] = File("bytes")


def _no_binary(world: World, _: str) -> None:
    del world.files[BINARY]


def _without(wanted: Callable[[str], bool]) -> c.Change:
    def change(world: World, _: str) -> None:
        for path in [path for path in world.files if path.startswith(f"{LIB}/") and wanted(path)]:
            del world.files[path]

    return change


def _rocm_only(world: World, _: str) -> None:
    backend = world.files[f"{LIB}/{DIRECTORIES['12']}/libggml-cuda.so"]
    _without(lambda path: path.count("/") > 4)(world, "")
    world.files[f"{LIB}/rocm/libggml-hip.so"] = dataclasses.replace(backend, code=None)


def _renamed(world: World, _: str) -> None:
    for path in [path for path in world.files if path.startswith(f"{LIB}/")]:
        world.files[path.replace(LIB, f"{LIB}.old", 1)] = world.files.pop(path)


def _old_base(world: World, _: str) -> None:
    world.files[f"{LIB}/libggml-base.so"] = File("built", f"libggml-base.{world.layout}.plain")


def _old_rocm(world: World, _: str) -> None:
    backend = world.files[f"{LIB}/{DIRECTORIES['12']}/libggml-cuda.so"]
    world.files[f"{LIB}/rocm_v5/libggml-hip.so"] = dataclasses.replace(backend, code=None)


def _later_server(world: World, _: str) -> None:
    if world.layout != "b":
        raise SimulationError("this fault needs a simulated Ollama before 0.30.0: h100-ollama or h100x2-ollama")
    world.files[f"{LIB}/llama-server"] = File("built", "llama-server")


def _stray_link(world: World, _: str) -> None:
    world.files["foreign/libextra.so"] = File("built", "libggml-cpu." + world.layout)
    world.files[f"{LIB}/libextra.so"] = File("link", "../../../../foreign/libextra.so")


def _noexec(world: World, _: str) -> None:
    for path in ("/proc/self/mountinfo", "/proc/self/mounts"):
        text = str(world.entries[path]["text"])
        world.text(
            path, text.replace(" / / rw,", " / / rw,noexec,").replace("none / ext4 rw,", "none / ext4 rw,noexec,")
        )
