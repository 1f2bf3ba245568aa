"""What pytest loads: the table of options, the switch, and nothing else of ours until `--gpu-discovery` is given.

The entry point of every pytest run on a machine where the package is installed, so it imports only pytest; a test
counts the modules (ci/check_inactive.py).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import pytest

INACTIVE = "needs --gpu-discovery"


class Option(NamedTuple):
    """One row of the contract's table of options."""

    flag: str
    metavar: str | None  # None: a switch without a value
    help: str
    repeatable: bool = False
    command_line_only: bool = False

    @property
    def name(self) -> str:
        """The ini name, which is also where pytest keeps the value: gpu_until."""
        return self.flag[2:].replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable: GPU_DISCOVERY_UNTIL."""
        return "GPU_DISCOVERY_" + self.name[len("gpu_") :].upper()


OPTIONS = (
    Option("--gpu-until", "STAGE", "stop after STAGE (a runner without Ollama: --gpu-until enumeration)"),
    Option("--gpu-profile", "NAME|FILE.toml", "what this host must be: any, h100, h100-pcie, h100-sxm, h100-nvl, h200"),
    Option("--gpu-ollama", "PATH", "ollama binary, install prefix or release archive; default: found on this host"),
    Option("--gpu-ollama-candidate", "PATH", "upgrade gate: the version about to be installed (same forms)"),
    Option("--gpu-as", "systemd:UNIT|pid:N|env:FILE", "probe as that service would"),
    Option("--gpu-stage-timeout", "STAGE=SECONDS", "deadline of one stage; `*=2x` scales all", repeatable=True),
    Option("--gpu-report", "DIR", "where verdict.json and evidence/ go; default: gpu-discovery-report/"),
    Option("--gpu-baseline", "FILE", "an earlier verdict.json: what changed is a finding"),
    Option("--gpu-ollama-log", "FILE|journal[:UNIT]", "post-mortem: explain an Ollama log, no GPU needed"),
    Option("--gpu-simulate", "HOST[:FAULT]", "a simulated driver stack instead of this host", command_line_only=True),
    Option("--gpu-strict", None, "a degraded verdict exits 1"),
    Option("--gpu-deadline", "SECONDS", "one limit for the whole run"),
    Option("--gpu-wait", "SECONDS", "repeat until ready or the time is up (boot, fabric manager)"),
    Option("--gpu-repeat", "N", "N runs, the worst verdict counts, differences are said"),
    Option("--gpu-allow-busy", None, "also run checks that create a context on a GPU that another process uses"),
    Option("--gpu-exit", "pytest|nagios|npd", "exit code convention"),
    Option("--gpu-trace", None, "timeline of the libraries and driver nodes that the discovery child touches"),
    Option("--gpu-experiment", "preload", "force-load the backend and report what changes"),
)

MARKERS = (
    "gpu_stage(name): this test asserts over the record of discovery stage NAME",
    "gpu(count=1, name=None, cc=None, memory=None): needs COUNT GPUs of that name, compute capability, memory in GiB",
    "gpu_ready(until=None): needs every stage up to UNTIL to have passed",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register every option with its ini name; values are checked only when the gate runs."""
    group = parser.getgroup("gpu-discovery", "Ollama's GPU discovery: one gate, every prerequisite in order")
    group.addoption(
        "--gpu-discovery", action="store_true", default=False, help="run the gate on this host; required by all below"
    )
    for option in OPTIONS:
        keywords: dict[str, Any] = {"dest": option.name, "default": None, "help": option.help}
        if option.metavar is None:
            group.addoption(option.flag, action="store_const", const=True, **keywords)
        else:
            action = "append" if option.repeatable else "store"
            group.addoption(option.flag, action=action, metavar=option.metavar, **keywords)
        kind: Any = "linelist" if option.repeatable else "bool" if option.metavar is None else "string"
        says = "refused: command line only" if option.command_line_only else f"see {option.flag}"
        parser.addini(option.name, says, type=kind, default=None)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare our hook by a bare class, so that the typed one is imported only by plugins that implement it."""
    pluginmanager.add_hookspecs(_HookSpecs)


class _HookSpecs:
    def pytest_gpudiscovery_stages(self, config: pytest.Config) -> None:
        """See pytest_gpudiscovery.hookspecs."""


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str], parser: pytest.Parser) -> None:
    """Add the packaged suites to the arguments, before pytest looks for conftest files in the current directory."""
    if early_config.known_args_namespace.gpu_discovery:
        from pytest_gpudiscovery import collection

        collection.choose(early_config, args, parser)


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """Put aside what the user's ini says about selection and workers; a wrapper, to be there before pytest-xdist."""
    if config.getoption("gpu_discovery"):
        from pytest_gpudiscovery import collection

        collection.apply(config)
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and either the gate or the fixtures that say how to switch it on."""
    for line in MARKERS:
        config.addinivalue_line("markers", line)
    if config.getoption("gpu_discovery"):
        from pytest_gpudiscovery import hooks

        hooks.install(config)
    else:
        config.pluginmanager.register(_Inactive(), "gpudiscovery-inactive")


class _Inactive:
    """Without `--gpu-discovery`: users' own tests are skipped, with the reason."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        for name in ("gpu", "gpu_ready", "gpu_stage"):
            if item.get_closest_marker(name) is not None:
                pytest.skip(f"{name} {INACTIVE}")

    @pytest.fixture(scope="session")
    def gpu_verdict(self) -> None:
        """The gate's verdict on this host."""
        pytest.skip(f"gpu_verdict {INACTIVE}")

    @pytest.fixture
    def gpu_stage_record(self) -> None:
        """The record of the stage that the test's gpu_stage marker names."""
        pytest.skip(f"gpu_stage_record {INACTIVE}")

    @pytest.fixture(scope="session")
    def gpus(self) -> None:
        """Every GPU, as sysfs, NVML and CUDA see it."""
        pytest.skip(f"gpus {INACTIVE}")

    @pytest.fixture(scope="session")
    def h100(self) -> None:
        """The first H100."""
        pytest.skip(f"h100 {INACTIVE}")

    @pytest.fixture(scope="session")
    def ollama_install(self) -> None:
        """The Ollama install of this host."""
        pytest.skip(f"ollama_install {INACTIVE}")

    @pytest.fixture(scope="session")
    def library_closure(self) -> None:
        """What dlopen of each GPU backend would load."""
        pytest.skip(f"library_closure {INACTIVE}")
