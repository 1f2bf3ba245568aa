"""Faults in what libggml-cuda does once it is loaded: ggml_backend_init, its structures, devices and memory."""

from __future__ import annotations

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_ollama as o
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.fault import OLLAMA, TWO_GPUS, Fault, answers, library
from pytest_gpudiscovery.simulate.world import World

WAYS = {
    "pause": ("hang pause", "never returns"),
    "spin": ("hang spin", "never returns, at full speed"),
    "futex": ("hang futex", "waits for its own lock"),
    "abort": ("abort", "calls abort()"),
    "segv": ("segv", "makes a bad memory access"),
    "exit0": ("exit 0", "calls exit(0)"),
}


def faults() -> list[Fault]:
    """Return the faults of this table."""
    found = []
    for place, function in (("init", "ggml_backend_init"), ("memory", "ggml_backend_dev_memory")):
        for kind, (actions, text) in WAYS.items():
            changes = o.with_ollama(c.act(function, actions))
            found.append(answers(f"backend.{place}.{kind}", f"{function} {text}", *changes, needs=OLLAMA))
    return [*found, *_registry(), *_devices()]


def _answer(name: str, text: str, *changes: c.Change, value: str | None = None, needs: tuple[str, ...] = ()) -> Fault:
    return answers(name, text, *o.with_ollama(*changes), value=value, needs=(*OLLAMA, *needs))


def _registry() -> list[Fault]:
    return [
        library(
            "backend.init.missing",
            "libggml-cuda exports no ggml_backend_init, in the GPU directory VALUE or in all",
            o.hidden("libggml-cuda", "ggml_backend_init"),
            value=o.ALL,
            needs=OLLAMA,
        ),
        _answer("backend.init.null", "ggml_backend_init returns NULL", c.act("ggml_backend_init", "return 0")),
        _answer(
            "backend.init.slow",
            "ggml_backend_init takes VALUE seconds, then succeeds",
            c.act("ggml_backend_init", "sleep {value}"),
            value="4",
        ),
        _answer(
            "backend.api_version",
            "libggml-cuda is of API version VALUE; ggml wants 2",
            c.conf(ggml__cuda__api_version="{value}"),
            value="1",
        ),
        _answer("backend.layout", "libggml-cuda has the structures of the other era, of the same API version", _layout),
    ]


def _devices() -> list[Fault]:
    return [
        _answer(
            "backend.devices.none", "the registry has no device although CUDA has one", c.conf(ggml__cuda__devices="0")
        ),
        _answer(
            "backend.devices.fewer",
            "the registry has one device less than CUDA",
            _one_less,
            needs=TWO_GPUS,
        ),
        _answer(
            "backend.devices.reversed",
            "the registry lists the devices in another order than CUDA",
            _two,
            c.conf(ggml__cuda__order="reverse"),
            needs=TWO_GPUS,
        ),
        _answer(
            "backend.description",
            "the device calls itself VALUE",
            c.conf(ggml__cuda__description="{value}"),
            value="NVIDIA A100-SXM4-80GB",
        ),
        _answer("backend.memory.zero", "the device's memory is 0 of 0", c.act("ggml_backend_dev_memory", "return 0")),
        _answer(
            "backend.memory.slow",
            "asking for the device's memory takes VALUE seconds",
            c.act("ggml_backend_dev_memory", "sleep {value}"),
            value="4",
        ),
        _answer(
            "backend.second_pass.none",
            "CUDA_VISIBLE_DEVICES=GPU-uuid hides every device, as with MIG or a shim: Ollama's second pass finds none",
            c.conf(cuda__matches_uuid="0"),
        ),
    ]


def _layout(world: World, _: str) -> None:
    world.conf["ggml.cuda.layout"] = "c" if world.layout == "b" else "b"


def _two(world: World, _: str) -> None:
    if world.gpus < 2:
        raise SimulationError("this fault needs two GPUs and an Ollama: --gpu-simulate h100x2-ollama:FAULT")


def _one_less(world: World, _: str) -> None:
    _two(world, "")
    world.conf["ggml.cuda.devices"] = str(world.gpus - 1)
