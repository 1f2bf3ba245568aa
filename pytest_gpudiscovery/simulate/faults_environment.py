"""Faults in the environment: variables, the temporary directory, loopback, name resolution."""

from __future__ import annotations

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate.fault import Fault, environment, preload
from pytest_gpudiscovery.simulate.world import File, World


def faults() -> list[Fault]:
    """Return the faults of this table."""
    down = (c.preload("netfault", "libnetfault.so"), c.act("bind", "return 99"), c.act("connect", "return 101"))
    slow = "resolving localhost takes VALUE seconds"
    return [
        environment(
            "env.cuda_visible_devices", "CUDA_VISIBLE_DEVICES=VALUE", c.env(CUDA_VISIBLE_DEVICES="{value}"), value="0"
        ),
        environment("env.cuda_visible_devices.empty", "CUDA_VISIBLE_DEVICES is empty", c.env(CUDA_VISIBLE_DEVICES="")),
        environment("env.cuda_visible_devices.index", "CUDA_VISIBLE_DEVICES=7", c.env(CUDA_VISIBLE_DEVICES="7")),
        environment(
            "env.cuda_visible_devices.uuid",
            "CUDA_VISIBLE_DEVICES is the UUID of no GPU here",
            c.env(CUDA_VISIBLE_DEVICES="GPU-00000000-0000-4000-8000-0000000000ff"),
        ),
        environment(
            "env.cuda_visible_devices.mig",
            "CUDA_VISIBLE_DEVICES is the UUID of no MIG instance here",
            c.env(CUDA_VISIBLE_DEVICES="MIG-00000000-0000-4000-8000-0000000000ff"),
        ),
        environment(
            "env.cuda_visible_devices.right",
            "CUDA_VISIBLE_DEVICES is the UUID of the first GPU (healthy)",
            c.first_uuid("CUDA_VISIBLE_DEVICES"),
        ),
        environment(
            "env.mps_pipe",
            "CUDA_MPS_PIPE_DIRECTORY names a directory that is not there (healthy)",
            c.env(CUDA_MPS_PIPE_DIRECTORY="{dir}/no-mps"),
        ),
        environment("env.module_loading_eager", "CUDA_MODULE_LOADING=EAGER", c.env(CUDA_MODULE_LOADING="EAGER")),
        environment("env.force_ptx_jit", "CUDA_FORCE_PTX_JIT=1", c.env(CUDA_FORCE_PTX_JIT="1")),
        environment("env.cache_disabled", "CUDA_CACHE_DISABLE=1", c.env(CUDA_CACHE_DISABLE="1")),
        environment("tmpdir.missing", "TMPDIR does not exist", c.env(TMPDIR="{dir}/no-such-directory")),
        environment("tmpdir.unwritable", "TMPDIR takes no file, not even root's", c.env(TMPDIR="/proc")),
        preload(
            "tmpdir.full",
            "TMPDIR is full",
            c.preload("netfault", "libnetfault.so"),
            c.act("write", "return 28"),
            c.env(TMPDIR="{dir}/tmp"),
            _tmp,
        ),
        preload("loopback.down", "lo is down: nothing binds or connects there", *down, _lo_down),
        preload(
            "loopback.localhost_missing",
            "localhost does not resolve",
            c.preload("netfault", "libnetfault.so"),
            c.act("getaddrinfo", "return -2"),
            _no_localhost,
        ),
        preload(
            "loopback.localhost_slow",
            slow,
            c.preload("netfault", "libnetfault.so"),
            c.act("getaddrinfo", "sleep {value}"),
            _no_localhost,
            value="5",
        ),
    ]


def _tmp(world: World, _: str) -> None:
    world.files["tmp"] = File("dir", mode=0o777)


def _lo_down(world: World, _: str) -> None:
    world.text("/sys/class/net/lo/flags", "0x8\n")
    world.text("/sys/class/net/lo/operstate", "down\n")


def _no_localhost(world: World, _: str) -> None:
    world.text("/etc/hosts", "127.0.0.1 host\n")
