"""Three sources, one precedence, and one line for every value that cannot be meant."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.options import (
    COMMAND_LINE,
    DEFAULT,
    ENVIRONMENT,
    INI,
    LATER,
    SECONDS_LIMIT,
    Settings,
    UsageProblem,
    settle,
)
from pytest_gpudiscovery.plugin import OPTIONS, Option
from tests.plugin.conftest import Runner

STAGES = ("package", "kernel", "driver", "runtime")
# Two values for each option that are different, good, and spelt as a user would.
GOOD: dict[str, tuple[str, str, str]] = {
    "gpu_until": ("driver", "kernel", "runtime"),
    "gpu_profile": ("h100", "h200", "any"),
    "gpu_ollama": ("/usr", "/bin", "/etc"),
    "gpu_ollama_candidate": ("/usr", "/bin", "/etc"),
    "gpu_as": ("systemd:ollama.service", "pid:1", "systemd:x"),
    "gpu_stage_timeout": ("driver=5", "driver=6", "kernel=2"),
    "gpu_report": ("a", "b", "c"),
    "gpu_bundle": ("/a.tar.gz", "/b.tgz", "/tmp/c.tar.gz"),
    "gpu_ollama_log": ("journal", "journal:ollama", "/etc/passwd"),
    "gpu_simulate": ("h100", "h200", "h100:fault"),
    "gpu_strict": ("1", "0", "1"),
    "gpu_deadline": ("1", "2.5", "3"),
    "gpu_wait": ("1", "2", "3"),
    "gpu_repeat": ("2", "3", "4"),
    "gpu_allow_busy": ("1", "0", "1"),
    "gpu_exit": ("nagios", "npd", "pytest"),
    "gpu_trace": ("1", "0", "1"),
    "gpu_experiment": ("preload", "preload", "preload"),
}


def ask(
    command_line: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    ini: dict[str, Any] | Callable[[str], Any] | None = None,
) -> Settings:
    """Settle in / with the ini file in /ini."""
    configured = ini if callable(ini) else (ini or {}).get
    return settle(command_line or {}, environment or {}, configured, stages=STAGES, invocation_dir="/", ini_dir="/ini")


def attempt(command_line: dict[str, Any], environment: dict[str, str] | None = None) -> tuple[Settings | None, str]:
    """Return the settings, or None with what was said against them."""
    try:
        return ask(command_line, environment), ""
    except UsageProblem as problem:
        return None, str(problem)


def parsed(option: Option, text: str) -> Any:
    """Return TEXT as pytest would parse it for OPTION, on the command line or from an ini file."""
    if option.metavar is None:
        return text == "1"
    return [text] if option.repeatable else text


def value_of(settings: Settings, option: Option) -> Any:
    return settings.as_service if option.name == "gpu_as" else getattr(settings, option.name.removeprefix("gpu_"))


def source_of(settings: Settings, option: Option) -> str:
    return settings.sources["as_service" if option.name == "gpu_as" else option.name.removeprefix("gpu_")]


USABLE = [option for option in OPTIONS if option.name not in LATER]


def test_every_option_is_known_to_these_tests() -> None:
    assert {option.name for option in USABLE} == set(GOOD)


@pytest.mark.parametrize("option", USABLE, ids=lambda option: option.name)
@settings(deadline=None)  # a loaded machine is no defect
@given(st.booleans(), st.booleans(), st.booleans())
def test_command_line_before_environment_before_ini(option: Option, line: bool, env: bool, ini: bool) -> None:
    first, second, third = GOOD[option.name]
    if option.command_line_only and (env or ini):
        return  # refused, see below
    if option.metavar is None:
        line = line and parsed(option, first) is True  # a switch cannot be given as "off" on the command line
    settings = ask(
        {option.name: parsed(option, first) if line else None},
        {option.variable: second} if env else {},
        {option.name: parsed(option, third)} if ini else {},
    )
    expected = (COMMAND_LINE, first) if line else (ENVIRONMENT, second) if env else (INI, third) if ini else None
    if expected is None:
        assert source_of(settings, option) == DEFAULT
        assert value_of(settings, option) == value_of(ask(), option)
        return
    source, text = expected
    alone = ask({option.name: parsed(option, text)}, ini=None)
    assert source_of(settings, option) == source
    if not (option.name == "gpu_report" and source == INI):  # relative to the ini file: its own test
        assert value_of(settings, option) == value_of(alone, option)


def test_paths_are_relative_to_where_they_were_written() -> None:
    assert ask({"gpu_report": "out"}).report == "/out"
    assert ask({}, {"GPU_DISCOVERY_REPORT": "out"}).report == "/out"
    assert ask(ini={"gpu_report": "out"}).report == "/ini/out"
    assert ask().report == "/gpu-discovery-report"


@pytest.mark.parametrize(
    ("environment", "ini"), [({"GPU_DISCOVERY_SIMULATE": "h100"}, {}), ({}, {"gpu_simulate": "h100"})]
)
@pytest.mark.parametrize("line", [None, "h100"])
def test_only_the_command_line_may_fake_a_host(
    environment: dict[str, str], ini: dict[str, str], line: str | None
) -> None:
    with pytest.raises(UsageProblem, match="only the command line"):
        ask({"gpu_simulate": line}, environment, ini)


BAD = [
    ("gpu_until", "drvier"),
    ("gpu_until", ""),
    ("gpu_profile", "missing.toml"),
    ("gpu_profile", " "),
    ("gpu_ollama", "/no/such/ollama"),
    ("gpu_ollama", "a\0b"),
    ("gpu_as", "ollama"),
    ("gpu_as", "pid:x"),
    ("gpu_as", "env:/no/such/file"),
    ("gpu_as", "systemd:"),
    ("gpu_report", "/dev/null"),
    ("gpu_deadline", "-1"),
    ("gpu_deadline", "1_0"),
    ("gpu_wait", "0"),
    ("gpu_repeat", "0"),
    ("gpu_repeat", "1.5"),
    ("gpu_repeat", "9" * 5000),
    ("gpu_repeat", "٣"),
    ("gpu_exit", "nagois"),
    *((name, value) for name in ("gpu_deadline", "gpu_wait") for value in ("nan", "inf", "-inf", "1e308", "x", "")),
]


@pytest.mark.parametrize(("name", "value"), BAD)
@pytest.mark.parametrize("source", ["line", "ini"])
def test_bad_values_are_one_line(name: str, value: str, source: str) -> None:
    if source == "ini" and not value:
        return  # an empty ini value is an absent one
    with pytest.raises(UsageProblem) as problem:
        ask({name: value} if source == "line" else {}, {}, {name: value} if source == "ini" else {})
    text = str(problem.value)
    assert name.replace("_", "-") in text or name in text
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.parametrize(
    "items",
    [
        ["foo=1"],
        ["driver"],
        ["driver="],
        ["=1"],
        ["driver=0"],
        ["driver=nan"],
        ["driver=-1"],
        ["driver=2x"],
        ["*=2"],
        ["*=x"],
        ["*=nanx"],
        ["*=-2x"],
        ["*=0x"],
        ["*=1e9x"],
        ["driver=5", "foo=1"],
    ],
)
def test_bad_stage_timeouts(items: list[str]) -> None:
    with pytest.raises(UsageProblem, match="gpu-stage-timeout"):
        ask({"gpu_stage_timeout": items})


def test_stage_timeouts_and_scale() -> None:
    settings = ask({"gpu_stage_timeout": ["driver=60", "*=2x", "kernel=1.5"]})
    assert settings.stage_timeout == {"driver": 60.0, "kernel": 1.5}
    assert settings.scale == 2.0
    assert ask({}, {"GPU_DISCOVERY_STAGE_TIMEOUT": "driver=60, *=0.5x"}) == ask(
        {}, {"GPU_DISCOVERY_STAGE_TIMEOUT": "driver=60 *=0.5x"}
    )


@settings(deadline=None)  # a loaded machine is no defect
@given(st.text(max_size=30))
def test_seconds_are_a_sane_number_or_refused(text: str) -> None:
    settings, said = attempt({"gpu_deadline": text})
    if settings is None:
        assert len(said.splitlines()) == 1
    else:
        assert settings.deadline is not None
        assert math.isfinite(settings.deadline)
        assert 0 < settings.deadline <= SECONDS_LIMIT


@settings(deadline=None)  # a loaded machine is no defect
@given(st.sampled_from(OPTIONS), st.text(max_size=40))
def test_no_value_whatever_is_a_traceback(option: Option, text: str) -> None:
    for command_line, environment in (({option.name: parsed(option, text)}, {}), ({}, {option.variable: text})):
        settings, said = attempt(command_line, environment)
        assert settings is not None or len(said.splitlines()) == 1


@pytest.mark.parametrize("name", sorted(LATER))
def test_options_of_later_versions_are_refused(name: str) -> None:
    option = next(option for option in OPTIONS if option.name == name)
    for source in ({name: parsed(option, "1")}, {}):
        with pytest.raises(UsageProblem, match="not part of this version"):
            ask(source, {} if source else {option.variable: "1"})


def test_unknown_variables_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageProblem, match=r"GPU_DISCOVERY_UNTILL: no such option .did you mean GPU_DISCOVERY_UNTIL"):
        ask({}, {"GPU_DISCOVERY_UNTILL": "driver"})


def test_an_ini_value_of_the_wrong_type_is_refused() -> None:
    def ini(name: str) -> Any:
        if name == "gpu_strict":
            raise ValueError("invalid truth value 'maybe'")

    with pytest.raises(UsageProblem, match="ini gpu_strict: invalid truth value"):
        ask(ini=ini)


def refuse(run: Runner, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Run, expect exit code 4 with one line and nothing run; return that line."""
    ended = run(*arguments, plugins=("pytest_timeout", "xdist.plugin"), env=env)
    assert ended.code == 4, ended.out + ended.err
    assert ended.ran == ()
    assert not ended.out.strip()
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1, ended.err
    return lines[0]


def test_an_option_of_the_gate_without_the_gate_is_no_green(gate: Runner) -> None:
    (gate.directory / "test_own.py").write_text("def test_own():\n    pass\n", encoding="utf-8")
    plain = [word for word in gate.command() if word != "--gpu-discovery"]
    ended = gate(command=[*plain, "--gpu-until=driver"])
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.strip() == (
        "ERROR: --gpu-until without --gpu-discovery: no gate would run; expected both, or neither"
    )
    # Of addopts it waits for the runs that ask for the gate.
    (gate.directory / "pytest.ini").write_text("[pytest]\naddopts = --gpu-until driver\n", encoding="utf-8")
    assert gate(command=[*plain, "-n", "1", "-p", "xdist.plugin"]).code == 0


def test_usage_errors_through_pytest(gate: Runner) -> None:
    """One line on standard error, exit code 4, no probe started: for every source, and with workers."""
    (gate.directory / "bad.toml").write_text("count = [", encoding="utf-8")
    assert "--gpu-until=foo" in refuse(gate, "--gpu-until", "foo")
    assert "--gpu-deadline=nan" in refuse(gate, "-n", "2", "--gpu-deadline=nan")
    assert "bad.toml" in refuse(gate, "--gpu-profile=bad.toml")
    assert "only the command line" in refuse(gate, env={"PYTEST_ADDOPTS": "--gpu-simulate=h100"})
    (gate.directory / "pytest.ini").write_text("[pytest]\ngpu_strict = maybe\n", encoding="utf-8")
    assert "gpu_strict" in refuse(gate)
    (gate.directory / "pytest.ini").write_text("[pytest]\naddopts = --gpu-simulate h100\n", encoding="utf-8")
    assert "only the command line" in refuse(gate)
    (gate.directory / "pytest.ini").write_text("[pytest]\ngpu_simulate = h100\n", encoding="utf-8")
    assert "only the command line" in refuse(gate, "--gpu-simulate", "h100")


@pytest.mark.parametrize(
    "arguments",
    [("--dist", "each", "--tx", "2*popen"), ("--dist", "load", "--tx", "ssh=host"), ("gpu-discovery/test_99.py",)],
)
def test_what_cannot_be_distributed_or_found(gate: Runner, arguments: tuple[str, ...]) -> None:
    line = refuse(gate, *arguments)
    assert "srun" in line or "test_06_driver.py" in line


def test_settings_reach_the_run(gate: Runner, tmp_path: Path) -> None:
    """An ini file, the environment and the command line, each for one option, in a real run."""
    (gate.directory / "pytest.ini").write_text("[pytest]\ngpu_report = from-ini\n", encoding="utf-8")
    ended = gate("--gpu-until", "kernel", "-q", env={"GPU_DISCOVERY_STAGE_TIMEOUT": "kernel=7"})
    assert ended.code == 0
    report = (tmp_path / "from-ini" / "verdict.json").read_text(encoding="utf-8")
    assert '"until": "kernel"' in report
    assert '"deadline_s": 7.0' in report
