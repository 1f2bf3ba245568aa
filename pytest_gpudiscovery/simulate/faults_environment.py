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
        *_lists(),
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


def _lists() -> list[Fault]:
    """Return values that CUDA reads otherwise than they look, or not at all; measured: stages/visible.py."""
    name = "CUDA_VISIBLE_DEVICES"
    return [
        environment("env.cuda_visible_devices_twice", f"{name} names the first GPU twice", _list("0,0")),
        environment(
            "env.cuda_visible_devices.spelled_twice",
            f"{name} names the first GPU twice, by its UUID and the beginning of that",
            _list("GPU-{digits:.8},GPU-{digits}"),
        ),
        environment("env.cuda_visible_devices.trailing", f"{name}=0x1, which is read as 0", _list("0x1")),
        environment(
            "env.cuda_visible_devices.lower_prefix",
            f"{name} is the UUID with gpu- in lower case",
            _list("gpu-{digits}"),
        ),
        environment(
            "env.cuda_visible_devices.blank_uuid", f"{name} is the UUID behind a blank", _list(" GPU-{digits}")
        ),
        environment("env.cuda_visible_devices.too_long", f"{name} is 0 and 3000 commas", _list("0" + 3000 * ",")),
        environment(
            "env.cuda_device_order_wrong",
            "CUDA_DEVICE_ORDER=VALUE, none of its two words",
            c.env(CUDA_DEVICE_ORDER="{value}"),
            value="pci_bus_id",
        ),
    ]


def _list(text: str) -> c.Change:
    """Set CUDA_VISIBLE_DEVICES; `{digits}` is the UUID of the first GPU without GPU-."""
    return lambda world, _: world.env.update({"CUDA_VISIBLE_DEVICES": text.format(digits=world.conf["gpu.0.uuid"][4:])})


def _tmp(world: World, _: str) -> None:
    world.files["tmp"] = File("dir", mode=0o777)


def _lo_down(world: World, _: str) -> None:
    world.text("/sys/class/net/lo/flags", "0x8\n")
    world.text("/sys/class/net/lo/operstate", "down\n")


def _no_localhost(world: World, _: str) -> None:
    world.text("/etc/hosts", "127.0.0.1 host\n")
