"""From three sources to one frozen Settings: command line, then environment, then ini file; each value is checked.

Pure: what pytest parsed, the environment and the ini values come in as mappings, so that the precedence can be tested
without pytest. Anything that is wrong is one UsageProblem with one line, before anything runs.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_gpudiscovery.plugin import OPTIONS, Option

COMMAND_LINE, ENVIRONMENT, INI, DEFAULT = "command line", "environment", "ini file", "default"
VARIABLE_PREFIX = "GPU_DISCOVERY_"
SECONDS_LIMIT = 7 * 24 * 3600.0  # a week; more is a typing error, and select() refuses huge timeouts
REPEAT_LIMIT = 1000
SCALE_LIMITS = (0.01, 1000.0)
EXIT_CONVENTIONS = ("pytest", "nagios", "npd")
# Named in the contract, without an engine behind them yet: refused, because an option that does nothing would lie.
LATER = frozenset({"gpu_baseline"})
EXPERIMENTS = ("preload",)
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class UsageProblem(Exception):
    """The caller asked for something that cannot be done; the text is one line. Exit code 4."""


@dataclass(frozen=True)
class Settings:
    """One field per option of the contract; times in seconds, paths absolute."""

    until: str | None = None
    profile: str = "any"  # a name, or the absolute path of a TOML file
    ollama: str | None = None
    ollama_candidate: str | None = None
    as_service: str | None = None  # --gpu-as: "systemd:UNIT", "pid:N" or "env:/absolute/FILE"
    stage_timeout: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds
    scale: float = 1.0  # from `*=2x`
    report: str = ""
    bundle: str | None = None  # an absolute path that ends in .tar.gz or .tgz
    baseline: str | None = None
    ollama_log: str | None = None  # an absolute path, "journal" or "journal:UNIT"
    simulate: str | None = None  # "HOST" or "HOST:FAULT"
    strict: bool = False
    deadline: float | None = None
    wait: float | None = None
    repeat: int = 1
    allow_busy: bool = False
    exit: str = "pytest"
    trace: bool = False
    experiment: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)  # field -> where its value came from


def settle(
    command_line: Mapping[str, Any],
    environment: Mapping[str, str],
    ini: Callable[[str], Any],
    *,
    stages: Sequence[str],
    invocation_dir: str,
    ini_dir: str,
) -> Settings:
    """Return the settings; raises UsageProblem with one line that names the source, the value and what is expected.

    COMMAND_LINE maps option names (gpu_until) to what pytest parsed, None where absent. INI is called with an option
    name and returns its value, None where absent; it may raise ValueError or TypeError for a value of the wrong type.
    STAGES are the names that may be used. Relative paths are relative to INVOCATION_DIR, those of the ini file to
    INI_DIR.
    """
    _refuse_unknown_variables(environment)
    values: dict[str, Any] = {"report": os.path.join(invocation_dir, "gpu-discovery-report")}
    sources: dict[str, str] = {}
    for option in OPTIONS:
        raw, source, said = _first(option, command_line, environment, ini)
        name = _field(option)
        sources[name] = source
        if source == DEFAULT:
            continue
        if option.name in LATER and raw is not False:
            raise UsageProblem(f"{said}: not part of this version")
        base = ini_dir if source == INI else invocation_dir
        values.update(_CHECKS[option.name](_Given(raw, said, base, stages)))
    return Settings(**values, sources=sources)


@dataclass(frozen=True)
class _Given:
    value: Any
    said: str  # how the user wrote it: "--gpu-until=foo", "GPU_DISCOVERY_UNTIL=foo", "ini gpu_until = foo"
    base: str
    stages: Sequence[str]

    def refuse(self, expected: str) -> UsageProblem:
        return UsageProblem(f"{self.said}: expected {expected}")


def _field(option: Option) -> str:
    return "as_service" if option.name == "gpu_as" else option.name[len("gpu_") :]


def _first(
    option: Option, command_line: Mapping[str, Any], environment: Mapping[str, str], ini: Callable[[str], Any]
) -> tuple[Any, str, str]:
    """Return the value of OPTION from the strongest source, that source, and how it was written."""
    given = command_line.get(option.name)
    written = environment.get(option.variable) or None  # an empty variable is an unset one
    try:
        configured = ini(option.name)
    except (ValueError, TypeError) as error:
        raise UsageProblem(f"ini {option.name}: {_one_line(error)}") from None
    if configured in ("", []):
        configured = None  # what pytest 8.0 gives for an absent one
    if option.command_line_only and (written is not None or configured is not None):
        where = option.variable if written is not None else f"ini {option.name}"
        raise UsageProblem(f"{where}: only the command line may ask for {option.flag}: nothing else may fake a host")
    if given is not None:
        text = option.flag if given is True else f"{option.flag}={_words(given)}"
        return given, COMMAND_LINE, text
    if written is not None:
        return _from_text(option, written), ENVIRONMENT, f"{option.variable}={_one_line(written)}"
    if configured is not None:
        return configured, INI, f"ini {option.name} = {_words(configured)}"
    return None, DEFAULT, ""


def _from_text(option: Option, text: str) -> Any:
    if option.repeatable:
        return text.replace(",", " ").split()
    if option.metavar is not None:
        return text
    lowered = text.strip().lower()
    if lowered not in (*TRUE, *FALSE):
        raise UsageProblem(f"{option.variable}={_one_line(text)}: expected 1 or 0")
    return lowered in TRUE


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    known = [option.variable for option in OPTIONS]
    for name in sorted(environment):
        if name.startswith(VARIABLE_PREFIX) and name not in known:
            raise UsageProblem(f"{_one_line(name)}: no such option{_suggest(name, known)}")


def _stage(given: _Given, name: str) -> str:
    if name not in given.stages:
        raise given.refuse(f"one of {', '.join(given.stages)}{_suggest(name, given.stages)}")
    return name


def _until(given: _Given) -> dict[str, Any]:
    return {"until": _stage(given, given.value)}


def _stage_timeout(given: _Given) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    scale = 1.0
    for item in given.value:
        name, equals, amount = item.strip().partition("=")
        if not equals:
            raise given.refuse("STAGE=SECONDS or *=FACTORx")
        if name == "*":
            factor = _number(amount[:-1]) if amount.endswith("x") else None
            if factor is None or not SCALE_LIMITS[0] <= factor <= SCALE_LIMITS[1]:
                raise given.refuse(
                    f"*=FACTORx with a factor of {SCALE_LIMITS[0]:g} to {SCALE_LIMITS[1]:g}, such as *=2x"
                )
            scale = factor
        else:
            seconds[_stage(given, name)] = _seconds(given, amount)
    return {"stage_timeout": seconds, "scale": scale}


def _seconds(given: _Given, text: str) -> float:
    number = _number(text)
    if number is None or not 0 < number <= SECONDS_LIMIT:
        raise given.refuse(f"seconds, more than 0 and at most {SECONDS_LIMIT:g}")
    return number


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and "_" not in str(text) else None


def _repeat(given: _Given) -> dict[str, Any]:
    text = str(given.value).strip()
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:5]) <= REPEAT_LIMIT and len(text) < 5):
        raise given.refuse(f"a whole number from 1 to {REPEAT_LIMIT}")
    return {"repeat": int(text)}


def _exit(given: _Given) -> dict[str, Any]:
    if given.value not in EXIT_CONVENTIONS:
        raise given.refuse(f"one of {', '.join(EXIT_CONVENTIONS)}{_suggest(given.value, EXIT_CONVENTIONS)}")
    return {"exit": given.value}


def _experiment(given: _Given) -> dict[str, Any]:
    if given.value not in EXPERIMENTS:
        raise given.refuse(f"one of {', '.join(EXPERIMENTS)}{_suggest(given.value, EXPERIMENTS)}")
    return {"experiment": given.value}


def _profile(given: _Given) -> dict[str, Any]:
    value = _text(given)
    if value.endswith(".toml") or "/" in value:
        path = _path(given, value)
        if not os.path.isfile(path):
            raise given.refuse("a profile name or an existing TOML file")
        return {"profile": path}
    return {"profile": value}  # profiles/ knows the names


def _existing(name: str) -> Callable[[_Given], dict[str, Any]]:
    def check(given: _Given) -> dict[str, Any]:
        path = _path(given, _text(given))
        if not os.path.exists(path):
            raise given.refuse("a path that exists and can be reached")
        return {name: path}

    return check


def _as_service(given: _Given) -> dict[str, Any]:
    value = _text(given)
    kind, colon, rest = value.partition(":")
    if not colon or not rest or kind not in ("systemd", "pid", "env"):
        raise given.refuse("systemd:UNIT, pid:N or env:FILE")
    if kind == "pid" and not (rest.isascii() and rest.isdigit()):
        raise given.refuse("pid:N with a number")
    if kind == "env":
        path = _path(given, rest)
        if not os.path.isfile(path):
            raise given.refuse("env:FILE with a file that exists and can be reached")
        value = f"env:{path}"
    return {"as_service": value}


def _ollama_log(given: _Given) -> dict[str, Any]:
    value = _text(given)
    path = _path(given, value)
    if os.path.exists(path):
        return {"ollama_log": path}
    if value == "journal" or (value.startswith("journal:") and len(value) > len("journal:")):
        return {"ollama_log": value}
    raise given.refuse("a file that exists and can be reached, journal or journal:UNIT")


def _report(given: _Given) -> dict[str, Any]:
    path = _path(given, _text(given))
    if os.path.lexists(path) and not os.path.isdir(path):
        raise given.refuse("a directory, or a name that is free for one")
    return {"report": path}


def _bundle(given: _Given) -> dict[str, Any]:
    path = _path(given, _text(given))
    if not path.endswith((".tar.gz", ".tgz")) or os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
        raise given.refuse("a file name that ends in .tar.gz, in a directory that exists")
    return {"bundle": path}


def _plain(name: str) -> Callable[[_Given], dict[str, Any]]:
    return lambda given: {name: given.value if isinstance(given.value, bool) else _text(given)}


def _time(name: str) -> Callable[[_Given], dict[str, Any]]:
    return lambda given: {name: _seconds(given, given.value)}


def _text(given: _Given) -> str:
    value = str(given.value)
    if not value.strip() or "\0" in value:
        raise given.refuse("a value")
    return value


def _path(given: _Given, value: str) -> str:
    if "\0" in value:
        raise given.refuse("a path")
    return os.path.normpath(os.path.join(given.base, os.path.expanduser(value)))


_CHECKS: Mapping[str, Callable[[_Given], dict[str, Any]]] = {
    "gpu_until": _until,
    "gpu_profile": _profile,
    "gpu_ollama": _existing("ollama"),
    "gpu_ollama_candidate": _existing("ollama_candidate"),
    "gpu_as": _as_service,
    "gpu_stage_timeout": _stage_timeout,
    "gpu_report": _report,
    "gpu_bundle": _bundle,
    "gpu_baseline": _existing("baseline"),
    "gpu_ollama_log": _ollama_log,
    "gpu_simulate": _plain("simulate"),
    "gpu_strict": _plain("strict"),
    "gpu_deadline": _time("deadline"),
    "gpu_wait": _time("wait"),
    "gpu_repeat": _repeat,
    "gpu_allow_busy": _plain("allow_busy"),
    "gpu_exit": _exit,
    "gpu_trace": _plain("trace"),
    "gpu_experiment": _experiment,
}


def _suggest(name: Any, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _words(value: Any) -> str:
    return _one_line(" ".join(map(str, value)) if isinstance(value, (list, tuple)) else value)


def _one_line(value: Any) -> str:
    text = " ".join(str(value).split()) or "''"
    return text if len(text) <= 200 else text[:199] + "…"
