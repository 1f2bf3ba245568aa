"""Faults in what a service hands to its children: variables, preloaded objects, cgroup limits, ports, paths."""

from __future__ import annotations

import base64
import struct

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_ollama as o
from pytest_gpudiscovery.simulate.fault import (
    NO_REAL,
    OLLAMA,
    UNPRIVILEGED,
    Fault,
    environment,
    host_view,
    preload,
)
from pytest_gpudiscovery.simulate.world import ROOT, File, World

MIB = 1 << 20
CGROUP = "/sys/fs/cgroup"
SYSTEM = "/usr/lib/x86_64-linux-gnu"


def faults() -> list[Fault]:
    """Return the faults of this table."""
    return [*_variables(), *_preloaded(), *_cgroup(), *_loopback(), *_paths()]


def _variables() -> list[Fault]:
    def ollama(name: str, value: str, variable: str) -> Fault:
        change = o.with_ollama(c.env(**{variable: "{value}"}))
        return environment(f"env.{name}", f"{variable}=VALUE", *change, value=value, needs=OLLAMA)

    return [
        ollama("ollama_llm_library", "cuda_v99", "OLLAMA_LLM_LIBRARY"),
        ollama("ollama_debug", "3", "OLLAMA_DEBUG"),
        environment(
            "env.nvidia_visible_devices",
            "NVIDIA_VISIBLE_DEVICES=VALUE, of a container",
            c.env(NVIDIA_VISIBLE_DEVICES="{value}"),
            value="none",
        ),
        environment(
            "env.mps_unreachable",
            "CUDA_MPS_PIPE_DIRECTORY is set and the daemon cannot be reached: cuInit answers 805",
            c.env(CUDA_MPS_PIPE_DIRECTORY="{dir}/no-mps"),
            c.act("cuInit", "return 805"),
        ),
        environment(
            "env.mps_hang",
            "CUDA_MPS_PIPE_DIRECTORY is set and cuInit waits for the daemon for ever",
            c.env(CUDA_MPS_PIPE_DIRECTORY="{dir}/no-mps"),
            c.act("cuInit", "hang poll"),
        ),
    ]


def _preloaded() -> list[Fault]:
    return [
        preload(
            "shim.ctor_crash",
            "the preloaded libvgpu.so crashes in its constructor",
            c.preload("vgpu", "libvgpu.so"),
            c.act("constructor.vgpu", "segv"),
        ),
        preload(
            "shim.flock",
            "the preloaded libvgpu.so waits in cuInit for a file lock that a dead process left",
            c.preload("vgpu", "libvgpu.so"),
            c.act("shim.cuInit", "hang flock"),
        ),
        preload(
            "shim.poll",
            "the preloaded libvgpu.so waits in cuInit for an answer of its transport",
            c.preload("vgpu", "libvgpu.so"),
            c.act("shim.cuInit", "hang poll"),
        ),
        preload(
            "shim.999",
            "the preloaded libvgpu.so answers 999 from cuInit; CUDA's runtime asks libcuda itself",
            c.preload("vgpu", "libvgpu.so"),
            c.act("shim.cuInit", "return 999"),
        ),
        *(
            preload(
                f"toolkit.shadow.{name}",
                f"a whole {library} of CUDA 12 from outside of Ollama is preloaded",
                *o.with_ollama(_shadow(library)),
                needs=OLLAMA,
            )
            for library, name in (("libcublas", "cublas"), ("libcudart", "cudart"))
        ),
        environment("shim.not_elf", "LD_PRELOAD names a text file", _text_preloaded),
    ]


def _text_preloaded(world: World, _: str) -> None:
    world.files["lib/libtext.so"] = File("bytes", data=b"this is no library\n")
    world.env["LD_PRELOAD"] = "{dir}/lib/libtext.so"


def _shadow(library: str) -> c.Change:
    def change(world: World, _: str) -> None:
        names = ("libcublasLt", "libcublas") if library == "libcublas" else (library,)  # libcublas needs libcublasLt
        for name in names:
            world.files[f"foreign/{name}.so.12"] = File("built", f"{name}.12")
        world.env["LD_PRELOAD"] = " ".join(f"{{dir}}/foreign/{name}.so.12" for name in names)

    return change


def _cgroup() -> list[Fault]:
    def limits(name: str, text: str, **files: str) -> Fault:
        def change(world: World, _: str) -> None:
            for file, value in files.items():
                world.text(f"{CGROUP}/{file.replace('__', '.')}", value + "\n")

        return host_view(f"cgroup.{name}", text, change)

    return [
        limits("memory", "the cgroup may use 128 MiB", memory__max=str(128 * MIB), memory__current=str(64 * MIB)),
        limits("memory_low", "the cgroup has 600 MiB left", memory__max=str(900 * MIB), memory__current=str(300 * MIB)),
        limits("pids", "the cgroup may start 5 more tasks", pids__max="40", pids__current="35"),
        limits("cpu", "the cgroup gets a tenth of a processor", cpu__max="10000 100000"),
        host_view("memory.low", "the host has 500 MiB left", _little_memory),
    ]


def _little_memory(world: World, _: str) -> None:
    lines = str(world.entries["/proc/meminfo"]["text"]).splitlines()
    said = ["MemAvailable:     512000 kB" if line.startswith("MemAvailable") else line for line in lines]
    world.text("/proc/meminfo", "\n".join(said) + "\n")


def _loopback() -> list[Fault]:
    def network(name: str, text: str, function: str, actions: str) -> Fault:
        changes = (c.preload("netfault", "libnetfault.so"), c.act(function, actions))
        return preload(f"loopback.{name}", text, *changes)

    return [
        network("bind_denied", "no port of 127.0.0.1 can be bound", "bind", "return 13"),
        network("dropped", "packets to 127.0.0.1 are dropped: connect times out", "connect", "return 110"),
        network("refused", "connections to 127.0.0.1 are refused", "connect", "return 111"),
        network("connect_hang", "connect to 127.0.0.1 never returns", "connect", "hang pause"),
        network("localhost_hang", "resolving localhost never ends", "getaddrinfo", "hang pause"),
        host_view("loopback.few_ports", "ip_local_port_range holds 100 ports", _few_ports),
        environment("tmpdir.denied", "TMPDIR belongs to root, mode 0700", _closed_tmp, needs=UNPRIVILEGED),
        environment(
            "tmpdir.path",
            "TMPDIR=VALUE, a path on a frozen or mute file system",
            c.env(TMPDIR="{value}"),
            value="",
            needs=("value", "root"),
        ),
    ]


def _few_ports(world: World, _: str) -> None:
    world.text("/proc/sys/net/ipv4/ip_local_port_range", "32768\t32867\n")


def _closed_tmp(world: World, _: str) -> None:
    world.files["tmp"] = File("dir", mode=0o700)
    world.env["TMPDIR"] = "{dir}/tmp"


def _paths() -> list[Fault]:
    absent = (NO_REAL + "libcuda.so.1",)
    return [
        host_view("libcuda.two", "LD_LIBRARY_PATH leads to another libcuda than ld.so's own directories", _two_libcuda),
        host_view(
            "libcuda.elsewhere", "libcuda lies in a directory where ld.so does not look", _elsewhere, needs=absent
        ),
        host_view("libcuda.compat", "LD_LIBRARY_PATH begins with the toolkit's compat libcuda, version VALUE", _compat,
                  value="595.45.04"),
    ]  # fmt: skip


def _elf() -> dict[str, object]:
    """Return a view's entry of a library for this processor: as much of it as is looked at."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 3, 62, 1) + bytes(40)
    return {"type": "file", "mode": 0o644, **ROOT, "size": len(head), "b64": base64.b64encode(head).decode()}


def _two_libcuda(world: World, _: str) -> None:
    world.entries[f"{SYSTEM}/libcuda.so.570.195.03"] = _elf()
    world.entries[f"{SYSTEM}/libcuda.so.1"] = {"type": "link", "target": "libcuda.so.570.195.03"}


def _elsewhere(world: World, _: str) -> None:
    c.remove("libcuda.")(world, "")
    world.entries["/usr/lib/wsl/lib/libcuda.so.1"] = _elf()


def _compat(world: World, value: str) -> None:
    world.files[f"foreign/compat/libcuda.so.{value}"] = File("built", "libcuda")
    world.files["foreign/compat/libcuda.so.1"] = File("link", f"libcuda.so.{value}")
    world.library_path.insert(0, "{dir}/foreign/compat")
