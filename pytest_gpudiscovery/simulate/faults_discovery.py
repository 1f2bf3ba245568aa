"""Faults of Ollama's own discovery: its runner (0.12.4 to 0.24.0), llama-server and native probe (0.30.0), serve."""

from __future__ import annotations

import dataclasses

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_ollama as o
from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.fault import OLLAMA, Fault, answers, library
from pytest_gpudiscovery.simulate.ollama import LIB
from pytest_gpudiscovery.simulate.world import World

RUNNERS = "h100-ollama or h100x2-ollama"
SERVERS = "h100-ollama-c"


def faults() -> list[Fault]:
    """Return the faults of this table."""
    return [*_runner(), *_server(), *_serve()]


def _of(layout: str, hosts: str) -> c.Change:
    def change(world: World, _: str) -> None:
        o.installed(world)
        if world.layout != layout:
            raise SimulationError(f"this fault needs a simulated Ollama of the other era: {hosts}")

    return change


def _runner() -> list[Fault]:
    def fault(name: str, text: str, *changes: c.Change, value: str | None = None) -> Fault:
        return answers(
            f"runner.{name}", f"Ollama's runner {text}", _of("b", RUNNERS), *changes, value=value, needs=OLLAMA
        )

    return [
        fault("start.pause", "never gets as far as listening", c.act("ollama.runner", "hang pause")),
        fault("start.spin", "burns CPU before it listens", c.act("ollama.runner", "hang spin")),
        fault(
            "start.slow", "takes VALUE seconds to start (healthy)", c.act("ollama.runner", "sleep {value}"), value="1"
        ),
        fault("mute", "listens and never answers", c.act("ollama.info", "hang pause")),
        fault("slow", "answers after VALUE seconds", c.act("ollama.info", "sleep {value}"), value="16"),
        fault("status", "answers with HTTP status VALUE", c.conf(ollama__info__status="{value}"), value="500"),
        fault("garbage", "answers 200 with what is no JSON", c.conf(ollama__info__body="<html>welcome</html>")),
        fault("listen", "cannot bind its port: exit status 1", c.act("ollama.listen", "return 1")),
        fault("exit", "ends with status VALUE before it listens", c.act("ollama.runner", "_exit {value}"), value="3"),
        fault("abort", "aborts while it is asked: exit status 2", c.act("ollama.info", "abort")),
        fault("killed", "is killed by SIGKILL while it is asked", c.act("ollama.info", "signal 9")),
        fault("devices", "shows VALUE devices", c.conf(ollama__info__devices="{value}"), value="0"),
        fault("compute", "shows compute capability VALUE", c.conf(ollama__info__compute="{value}"), value="0.0"),
        fault("pci", "shows PCI id VALUE", c.conf(ollama__info__pci="{value}"), value="99fff950:99fff9"),
    ]


def _server() -> list[Fault]:
    def fault(name: str, text: str, *changes: c.Change, value: str | None = None) -> Fault:
        return answers(name, text, _of("c", SERVERS), *changes, value=value, needs=OLLAMA)

    return [
        library("server.missing", "lib/ollama has no llama-server", _of("c", SERVERS), _no_server, needs=OLLAMA),
        library(
            "server.not_executable",
            "llama-server has mode 0644 (root may execute no such file either)",
            _of("c", SERVERS),
            _server_mode,
            needs=OLLAMA,
        ),
        fault("server.start.pause", "llama-server prints nothing for ever", c.act("llama.start", "hang pause")),
        fault("server.info.pause", "llama-server hangs before system_info", c.act("llama.info", "hang pause")),
        fault(
            "server.info.exit",
            "llama-server ends before system_info, status VALUE",
            c.act("llama.info", "_exit {value}"),
            value="1",
        ),
        fault("server.list.pause", "llama-server --list-devices never ends", c.act("llama.list", "hang pause")),
        fault(
            "server.list.exit",
            "llama-server --list-devices ends with status VALUE",
            c.act("llama.list", "_exit {value}"),
            value="1",
        ),
        fault("server.list.abort", "llama-server --list-devices aborts", c.act("llama.list", "abort")),
        fault("server.list.none", "llama-server --list-devices lists no device", c.conf(llama__none="1")),
        fault("native.pause", "ollama gpu-discover never ends", c.act("ollama.probe", "hang pause")),
        fault(
            "native.exit",
            "ollama gpu-discover ends with status VALUE",
            c.act("ollama.probe", "_exit {value}"),
            value="1",
        ),
    ]


def _no_server(world: World, _: str) -> None:
    del world.files[f"{LIB}/llama-server"]


def _server_mode(world: World, _: str) -> None:
    path = f"{LIB}/llama-server"
    world.files[path] = dataclasses.replace(world.files[path], mode=0o644)


def _serve() -> list[Fault]:
    def fault(name: str, text: str, *changes: c.Change, value: str | None = None) -> Fault:
        return answers(f"serve.{name}", f"`ollama serve` {text}", *o.with_ollama(*changes), value=value, needs=OLLAMA)

    return [
        fault("cpu", "falls back to the CPU although its children answer", c.conf(ollama__serve__cpu="1")),
        fault("hang", "says nothing after it listens", c.act("ollama.serve", "hang pause")),
        fault("exit", "ends with status VALUE after it listens", c.act("ollama.serve", "_exit {value}"), value="1"),
        fault(
            "budget",
            "gives each child VALUE milliseconds in place of 30 s (healthy)",
            c.conf(ollama__budget="{value}"),
            value="5000",
        ),
    ]
