"""What pytest loads: the table of options, the switch, and nothing else of ours until `--gpu-discovery` is given.

The entry point of every pytest run on a machine where the package is installed, so it imports only pytest; a test
counts the modules (ci/check_inactive.py).
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pytest

if TYPE_CHECKING:
    from pytest_gpudiscovery.model import StageRecord, Verdict

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
    Option(
        "--gpu-stage-timeout", "STAGE=SECONDS", "deadline of a stage (repeatable); `*=2x` scales all", repeatable=True
    ),
    Option("--gpu-report", "DIR", "where verdict.json and evidence/ go; default: gpu-discovery-report/"),
    Option("--gpu-bundle", "FILE.tar.gz", "also pack the evidence, redacted: to send to somebody who helps"),
    Option("--gpu-baseline", "FILE", "reserved for a later version: an earlier verdict.json to compare with"),
    Option("--gpu-ollama-log", "FILE|journal[:UNIT]", "post-mortem: explain an Ollama log, no GPU needed"),
    Option(
        "--gpu-simulate",
        "HOST[:FAULT]",
        "a simulated driver stack instead of this host (gpu-discovery faults lists both)",
        command_line_only=True,
    ),
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
        _import_as_compiled(early_config)
        from pytest_gpudiscovery import collection

        collection.choose(early_config, args, parser)
        early_config.pluginmanager.register(_PostMortem(), "gpudiscovery-post-mortem")


class _PostMortem:
    """Takes the place of a session when a log is to be explained; a wrapper could not."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int | None:
        """Explain the log of --gpu-ollama-log, if it was given."""
        from pytest_gpudiscovery import start

        return start.post_mortem(config)


def _import_as_compiled(config: pytest.Config) -> None:
    """Keep pytest from rewriting the asserts of our modules: we have none, and parsing us takes 0.5 s each time.

    pytest does that to everything that a plugin's wheel installs, and keeps the result only where the user may write.
    """
    marked = getattr(getattr(config.pluginmanager, "rewrite_hook", None), "_must_rewrite", None)
    if isinstance(marked, set):
        marked.discard(__package__)


def _refuse_without_gate(config: pytest.Config) -> None:
    """Raise UsageError for a typed option of the gate without --gpu-discovery: green would mean that no gate ran.

    Those of addopts and PYTEST_ADDOPTS wait for the runs that do ask for it.
    """
    flags = {option.flag for option in OPTIONS}
    for word in config.invocation_params.args:
        if (flag := str(word).partition("=")[0]) in flags and not hasattr(config, "workerinput"):
            raise pytest.UsageError(f"{flag} without --gpu-discovery: no gate would run; expected both, or neither")


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """Put aside what the user's ini says about selection and workers; a wrapper, to be there before pytest-xdist.

    A usage error ends with pytest's exit code 4, or the one that --gpu-exit has for it.
    """
    if not config.getoption("gpu_discovery"):
        _refuse_without_gate(config)
        return (yield)
    from pytest_gpudiscovery import collection, places, start

    collection.apply(config)
    if config.stash[collection.CHOICE].ours:
        places.check(config)
    try:
        return (yield)
    except pytest.UsageError as error:
        code = start.usage_exit(config)
        if code is None:
            raise
        print(*(f"ERROR: {text}" for text in error.args), sep="\n", file=sys.stderr)
        return code


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and the gate when it was asked for."""
    for line in MARKERS:
        config.addinivalue_line("markers", line)
    listing = config.getoption("showfixtures") or config.getoption("show_fixtures_per_test")
    if config.getoption("gpu_discovery") and not listing:
        from pytest_gpudiscovery import hooks

        hooks.install(config)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip users' tests that need the gate when it was not asked for."""
    if not item.config.getoption("gpu_discovery"):
        for name in ("gpu", "gpu_ready", "gpu_stage"):
            if item.get_closest_marker(name) is not None:
                pytest.skip(f"{name} {INACTIVE}")


def _ask(request: pytest.FixtureRequest) -> Any:
    """Return what the gate gives for the fixture that REQUEST is for; skip without the gate."""
    name = str(request.fixturename)
    if not request.config.getoption("gpu_discovery"):
        pytest.skip(f"{name} {INACTIVE}")
    from pytest_gpudiscovery import fixtures

    return fixtures.VALUES[name](request)


@pytest.fixture(scope="session")
def gpu_verdict(request: pytest.FixtureRequest) -> Verdict:
    """The gate's verdict on this host, every stage that was asked for included."""
    return cast("Verdict", _ask(request))


@pytest.fixture
def gpu_stage_record(request: pytest.FixtureRequest) -> StageRecord:
    """The record of the stage that the test's gpu_stage(name) marker names."""
    return cast("StageRecord", _ask(request))


@pytest.fixture(scope="session")
def gpus(request: pytest.FixtureRequest) -> list[Mapping[str, Any]]:
    """Every GPU of this host: PCI address, and what sysfs, NVML and CUDA say about it side by side."""
    return cast("list[Mapping[str, Any]]", _ask(request))


@pytest.fixture(scope="session")
def h100(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    """The first H100 of this host."""
    return cast("Mapping[str, Any]", _ask(request))


@pytest.fixture(scope="session")
def ollama_install(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    """What stage `package` found out about this host's Ollama."""
    return cast("Mapping[str, Any]", _ask(request))


@pytest.fixture(scope="session")
def library_closure(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    """What stage `closure` found out about each GPU backend's libraries."""
    return cast("Mapping[str, Any]", _ask(request))
