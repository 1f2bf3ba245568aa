"""The commands of `gpu-discovery`; cli.py has made the process hermetic before this module is imported."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import stat
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest

from pytest_gpudiscovery import loader_cli, simulate, stages
from pytest_gpudiscovery.options import UsageProblem
from pytest_gpudiscovery.plugin import OPTIONS
from pytest_gpudiscovery.scratch import Scratch

USAGE = 4
EXPLAIN = "explain what an Ollama log says about GPU discovery"
BUNDLE = "pack a report directory, redacted: to send to somebody who helps"
# Plugins that the gate uses when they are installed, and the option that asks for each; None: always.
PLUGINS = (
    ("pytest_timeout", None),
    ("allure_pytest.plugin", "alluredir"),
    ("pytest_html.plugin", "html"),
    ("pytest_metadata.plugin", "html"),  # pytest-html depends on it
)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and leaves the exit code to the caller."""

    def error(self, message: str) -> NoReturn:
        raise UsageProblem(message)


def run(argv: Sequence[str], *, directory: bool = True) -> int:
    """Run the command with ARGV; return the exit code of the contract. DIRECTORY: whether there is a current one."""
    try:
        return _run(list(argv), directory)
    except BrokenPipeError:
        # The reader (head, less) has what it wants; what is left in the buffer must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UsageProblem as problem:
        print(f"ERROR: {problem}", file=sys.stderr)
        return USAGE


def _run(argv: list[str], directory: bool) -> int:
    parser = _Parser(
        prog="gpu-discovery", description="Ollama's GPU discovery: every prerequisite, in order", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", parser_class=_Parser, metavar="COMMAND")
    gate = commands.add_parser("gate", help="run the gate on this host", allow_abbrev=False)
    for option in OPTIONS:
        shape: dict[str, Any] = {"action": "store_true"} if option.metavar is None else {"metavar": option.metavar}
        if option.repeatable:
            shape["action"] = "append"
        gate.add_argument(option.flag, help=option.help.replace("%", "%%"), **shape)
    gate.add_argument("-q", "--quiet", action="count", default=0, help="only the verdict")
    gate.add_argument("-v", "--verbose", action="count", default=0, help="every step of every stage")
    gate.add_argument("--junitxml", metavar="FILE", help="also write JUnit XML")
    gate.add_argument("--alluredir", metavar="DIR", help="also write Allure results (allure-pytest)")
    gate.add_argument("--html", metavar="FILE", help="also write an HTML report (pytest-html)")
    gate.add_argument("--color", choices=("yes", "no", "auto"), help="colours")
    commands.add_parser("stages", help="list the stages", allow_abbrev=False)
    commands.add_parser("faults", help="list the hosts and faults of --gpu-simulate", allow_abbrev=False)
    for name, text in loader_cli.COMMANDS.items():
        commands.add_parser(name, help=text, allow_abbrev=False)  # cli.py runs them
    commands.add_parser("explain", help=EXPLAIN, allow_abbrev=False)  # likewise
    commands.add_parser("bundle", help=BUNDLE, allow_abbrev=False)  # likewise
    given = parser.parse_args(argv)
    if given.command == "stages":
        return _stages()
    if given.command == "faults":
        return _faults()
    if given.command == "gate":
        return _gate(given, directory)
    raise UsageProblem(f"expected a command: {', '.join(commands.choices)}; see gpu-discovery --help")


def _gate(given: argparse.Namespace, directory: bool) -> int:
    report = given.gpu_report or os.environ.get("GPU_DISCOVERY_REPORT") or "gpu-discovery-report"
    if not directory and not os.path.isabs(report):
        raise UsageProblem(f"the current directory is gone, so {report} has no place: expected --gpu-report=/DIR")
    _check_report(report)
    rootdir = Scratch()
    try:
        return int(pytest.main(_pytest_arguments(given, rootdir.path)))
    finally:
        rootdir.remove()


def _pytest_arguments(given: argparse.Namespace, rootdir: str) -> list[str]:
    arguments = ["--gpu-discovery", "-c", os.devnull, "--rootdir", rootdir, "-p", "no:cacheprovider", "--assert=plain"]
    # Nothing here prints but our reporter; capturing and logging open /dev/null, which a broken /dev may not have.
    arguments += ["--capture=no", "-p", "no:logging", "-p", "pytest_gpudiscovery.plugin"]
    # Collects the garbage five times at the end, a twentieth of a healthy run; nothing here runs that could raise so.
    arguments += ["-p", "no:unraisableexception"]
    for module, needed_by in PLUGINS:
        package = module.partition(".")[0]
        if needed_by is not None and getattr(given, needed_by) is None:
            continue
        if importlib.util.find_spec(package) is not None:
            arguments += ["-p", module]
        elif needed_by is not None:
            raise UsageProblem(f"--{needed_by} needs {package.replace('_', '-')}, which is not installed")
    for option in OPTIONS:
        value = getattr(given, option.name)
        if value is True:
            arguments.append(option.flag)
        elif value is not None and value is not False:
            arguments += [f"{option.flag}={item}" for item in (value if isinstance(value, list) else [value])]
    for name in ("junitxml", "alluredir", "html", "color"):
        if getattr(given, name) is not None:
            arguments.append(f"--{name}={getattr(given, name)}")
    return arguments + ["-q"] * given.quiet + ["-v"] * given.verbose


def _check_report(directory: str) -> None:
    """Refuse, as root, a report directory that somebody else could make point elsewhere."""
    if os.geteuid() != 0:
        return
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(directory)
        trusted = {0, int(os.environ["SUDO_UID"])} if os.environ.get("SUDO_UID", "").isdigit() else {0}
        if (link := stat.S_ISLNK(found.st_mode)) or found.st_uid not in trusted:
            why = "is a link" if link else f"belongs to uid {found.st_uid}"
            raise UsageProblem(f"{directory} {why}: root writes no reports there; expected --gpu-report=DIR of its own")


def _stages() -> int:
    print(f"{'stage':<16}{'after':<28}{'deadline':>9}  what it asserts")
    for spec in stages.table().values():
        after = ", ".join(spec.after) or "-"
        limit = f"{spec.deadline_s:g} s"
        rows = f" ({', '.join(spec.rows)})" if spec.rows else ""
        print(f"{spec.number:02d} {spec.name:<13}{after:<28}{limit:>9}  {spec.title}{rows}")
    return 0


def _faults() -> int:
    known, hosts = simulate.faults(), simulate.hosts()
    width = max(len(name) for name in (*hosts, *(fault["name"] for fault in known)))
    print("--gpu-simulate HOST[:FAULT[=VALUE][,FAULT...]]\n\nhosts:")
    for name, text in hosts.items():
        print(f"{name:<{width}}  {text}")
    print("\nfaults:")
    for fault in known:
        needs = f" (needs {fault['needs']})" if fault.get("needs") else ""
        print(f"{fault['name']:<{width}}  {fault['text']}{needs}")
    return 0
