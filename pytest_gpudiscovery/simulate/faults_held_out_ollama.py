"""Faults of the held-out rows of the matrix, of the environment, the install and Ollama's children."""

from __future__ import annotations

import dataclasses
import posixpath

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_ollama as o
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.fault import (
    NO_REAL,
    OLLAMA,
    UNPRIVILEGED,
    Fault,
    answers,
    environment,
    library,
    preload,
)
from pytest_gpudiscovery.simulate.ollama import CUDART, DIRECTORIES, LIB
from pytest_gpudiscovery.simulate.world import File, World

SERVERS = "h100-ollama-c"


def faults() -> list[Fault]:
    """Return the faults of this table."""
    return [*_environment(), *_install(), *_runner(), *_server()]


# --- the environment -------------------------------------------------------------------------------------------------


def _environment() -> list[Fault]:
    return [
        environment(
            "env.cuda_device_order", "CUDA_DEVICE_ORDER=PCI_BUS_ID (healthy)", c.env(CUDA_DEVICE_ORDER="PCI_BUS_ID")
        ),
        environment(
            "env.mps_not_ready",
            "CUDA_MPS_PIPE_DIRECTORY is set and the MPS server is not ready: cuInit answers 807",
            c.env(CUDA_MPS_PIPE_DIRECTORY="{dir}/mps"),
            c.act("cuInit", "return 807"),
        ),
        environment(
            "env.library_path.relative",
            "LD_LIBRARY_PATH begins with a relative directory that is not there (healthy)",
            lambda world, _: world.library_path.insert(0, "opt/cuda/lib64"),
        ),
        environment(
            "env.ld_audit_missing",
            "LD_AUDIT names a library that is not there: ld.so says so and goes on",
            c.env(LD_AUDIT="{dir}/lib/libgone-audit.so"),
        ),
        environment(
            "env.jetson_jetpack",
            "JETSON_JETPACK=VALUE: Ollama passes over every directory but cuda_jetpackN, without a line",
            *o.with_ollama(c.env(JETSON_JETPACK="{value}")),
            value="6.1",
            needs=OLLAMA,
        ),
        environment(
            "env.ollama_library_path",
            "OLLAMA_LIBRARY_PATH is set by the user: Ollama overwrites it (healthy)",
            *o.with_ollama(c.env(OLLAMA_LIBRARY_PATH="/opt/ollama/lib")),
            needs=OLLAMA,
        ),
        environment(
            "env.ggml_cuda_init",
            "GGML_CUDA_INIT=1 also in the first pass: the GPU is of a compiled architecture (healthy)",
            *o.with_ollama(c.env(GGML_CUDA_INIT="1")),
            needs=OLLAMA,
        ),
        environment(
            "env.ggml_backend_path",
            "GGML_BACKEND_PATH is set by the user: Ollama from 0.30 on overwrites it (healthy)",
            *o.with_ollama(c.env(GGML_BACKEND_PATH="/opt/ggml/libggml-cuda.so")),
            needs=OLLAMA,
        ),
        preload(
            "loopback.no_address",
            "lo is up and has no 127.0.0.1: bind answers EADDRNOTAVAIL, connect ENETUNREACH",
            c.preload("netfault", "libnetfault.so"),
            c.act("bind", "return 99"),
            c.act("connect", "return 101"),
        ),
        preload(
            "loopback.localhost_public",
            "localhost is 203.0.113.7, which is no address of this host: Ollama takes a random port (healthy)",
            c.preload("netfault", "libnetfault.so"),
            c.conf(netfault__localhost="203.0.113.7"),
            lambda world, _: world.text("/etc/hosts", "203.0.113.7 localhost\n127.0.0.1 host\n"),
        ),
        environment("tmpdir.file", "TMPDIR is a regular file", _tmp_file),
    ]


def _tmp_file(world: World, _: str) -> None:
    world.files["tmp/file"] = File("bytes", mode=0o644)
    world.env["TMPDIR"] = "{dir}/tmp/file"


# --- the install -----------------------------------------------------------------------------------------------------


def _install() -> list[Fault]:
    def fault(name: str, text: str, *changes: c.Change, value: str | None = None, needs: tuple[str, ...] = ()) -> Fault:
        return library(name, text, *o.with_ollama(*changes), value=value, needs=(*OLLAMA, *needs))

    return [
        fault(
            "ollama.no_gpu_directories",
            "the package of a distribution without its CUDA part: no cuda_v12, no cuda_v13",
            _no_gpu_directories,
        ),
        fault(
            "ollama.directories_closed",
            "the GPU directories have mode 0700: unpacked with umask 077",
            _closed,
            needs=UNPRIVILEGED,
        ),
        fault(
            "ollama.stray_top_cuda",
            "a copy of cuda_v12's libggml-cuda.so lies in lib/ollama: each pass opens it first",
            _top_cuda,
        ),
        fault(
            "ollama.backup_directory",
            "cuda_v12.bak, a copy of cuda_v12, lies beside it: one more pass (healthy)",
            _backup,
        ),
        fault(
            "ggml_cuda.newer_glibc",
            "libggml-cuda was built on a newer distribution and wants GLIBC_2.99, in the GPU directory VALUE or in all",
            o.mangled("libggml-cuda", newer_glibc),
            value=o.ALL,
        ),
        fault(
            "ollama_cudart.link_hack",
            "libcudart.so.12 of cuda_v12 is a hand-made link to the libcudart of cuda_v13",
            _link_hack,
        ),
    ]


def _no_gpu_directories(world: World, _: str) -> None:
    for path in [path for path in world.files if posixpath.dirname(path).rpartition("/")[2] in DIRECTORIES.values()]:
        del world.files[path]


def _closed(world: World, _: str) -> None:
    for name in DIRECTORIES.values():
        world.files[f"{LIB}/{name}"] = File("dir", mode=0o700)  # the last entry: its files are there by then


def _top_cuda(world: World, _: str) -> None:
    world.files[f"{LIB}/libggml-cuda.so"] = world.files[f"{LIB}/cuda_v12/libggml-cuda.so"]


def _backup(world: World, _: str) -> None:
    for path in [path for path in world.files if path.startswith(f"{LIB}/cuda_v12/")]:
        world.files[path.replace("/cuda_v12/", "/cuda_v12.bak/")] = world.files[path]


def _link_hack(world: World, _: str) -> None:
    world.files[f"{LIB}/cuda_v12/libcudart.so.12"] = File("link", f"../cuda_v13/libcudart.so.{CUDART['13']}")
    del world.files[f"{LIB}/cuda_v12/libcudart.so.{CUDART['12']}"]


def newer_glibc(data: bytes) -> bytes:
    """Return a library that wants GLIBC_2.99 in place of GLIBC_2.2.5: the name, and its hash in DT_VERNEED."""
    old, new = b"GLIBC_2.2.5", b"GLIBC_2.99"
    data = data.replace(old + b"\0", new.ljust(len(old), b"\0") + b"\0")
    return data.replace(elf_hash(old).to_bytes(4, "little"), elf_hash(new).to_bytes(4, "little"))


def elf_hash(name: bytes) -> int:
    """Return the hash of NAME as ELF's symbol versions have it."""
    found = 0
    for byte in name:
        found = (found << 4) + byte
        high = found & 0xF0000000
        found = (found ^ (high >> 24)) & ~high & 0xFFFFFFFF
    return found


# --- Ollama's children -----------------------------------------------------------------------------------------------


def _of(layout: str, hosts: str) -> c.Change:
    def change(world: World, _: str) -> None:
        o.installed(world)
        if world.layout != layout:
            raise SimulationError(f"this fault needs a simulated Ollama of the other era: {hosts}")

    return change


def _runner() -> list[Fault]:
    def fault(name: str, text: str, *changes: c.Change) -> Fault:
        whole = (_of("b", "h100-ollama or h100x2-ollama"), *changes)
        return answers(f"runner.{name}", f"Ollama's runner {text}", *whole, needs=OLLAMA)

    return [
        fault("null", "answers 200 with null: a list that is not there", c.conf(ollama__info__body="null")),
        fault("zero_memory", "answers with a GPU that has 0 bytes of memory", _zero_memory),
        fault(
            "elsewhere_hang",
            "listens on 127.0.0.2: every question to 127.0.0.1 is refused until the time is up",
            c.conf(ollama__listen__address="127.0.0.2"),
        ),
        fault("sigsys", "is ended by SIGSYS while it is asked (seccomp)", c.act("ollama.info", "signal 31")),
    ]


def _zero_memory(world: World, _: str) -> None:
    world.conf["ollama.info.body"] = (
        f'[{{"id":"{world.conf["gpu.0.uuid"]}","backend":"CUDA","name":"CUDA0",'
        f'"description":"{world.conf["gpu.0.name"]}","pci_id":"{world.pci(0)}","total_memory":0,"free_memory":0,'
        '"ComputeMajor":9,"ComputeMinor":0,"driver_major":13,"LibraryPath":[]}]'
    )


def _server() -> list[Fault]:
    def fault(name: str, text: str, *changes: c.Change, value: str | None = None) -> Fault:
        return answers(name, text, _of("c", SERVERS), *changes, value=value, needs=OLLAMA)

    return [
        library(
            "server.libllama_missing",
            "libllama.so.0 is not there: ld.so ends llama-server with status 127",
            _of("c", SERVERS),
            _no_libllama,
            needs=(*OLLAMA, NO_REAL + "libllama.so.0"),
        ),
        library(
            "server.script",
            "llama-server is a wrapper script whose interpreter is not there",
            _of("c", SERVERS),
            _script,
            needs=OLLAMA,
        ),
        fault(
            "server.list.killed",
            "llama-server --list-devices is killed by SIGKILL, as for want of memory",
            c.act("llama.list", "signal 9"),
        ),
        fault(
            "server.list.slow",
            "llama-server --list-devices takes VALUE seconds: each refresh is over its 3 s",
            c.act("llama.list", "sleep {value}"),
            value="5",
        ),
        fault("native.killed", "ollama gpu-discover is killed by SIGKILL", c.act("ollama.probe", "signal 9")),
    ]


def _no_libllama(world: World, _: str) -> None:
    for path in [path for path in world.files if path.startswith(f"{LIB}/libllama.so")]:
        del world.files[path]


def _script(world: World, _: str) -> None:
    path = f"{LIB}/llama-server"
    text = b'#!/opt/wrapper/bin/bash\nexec "$0.real" "$@"\n'
    world.files[f"{path}.real"] = world.files[path]
    world.files[path] = dataclasses.replace(File("bytes", data=text), mode=0o755)
