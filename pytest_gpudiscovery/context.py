"""From the options to the context in which probes run: whose identity, which environment, which view of the host.

The order of identities is the contract's: what `--gpu-as` says, else the Ollama service that this host has, else the
caller; never silently somebody else. Nothing here touches a driver, a network or another process' memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_gpudiscovery import profiles, stages, unit_files
from pytest_gpudiscovery.engine import ANY_PROFILE, CANDIDATE_STAGE, PROFILE_STAGE
from pytest_gpudiscovery.install import given
from pytest_gpudiscovery.model import to_json
from pytest_gpudiscovery.options import Settings, UsageProblem
from pytest_gpudiscovery.service import adopt, environment, process, systemd
from pytest_gpudiscovery.service.who import CALLER, Who
from pytest_gpudiscovery.stages.spec import RunContext, lying_here
from pytest_gpudiscovery.supervise.types import Identity, Setup

# Python's, pytest's and coverage's own settings steer our interpreter, never the driver.
OURS = ("PYTHON", "PYTEST_", "GPU_DISCOVERY_", "COVERAGE", "VIRTUAL_ENV", "ALLURE_", "_PYTEST")
LIVE = {"kind": "live"}
FILE = "context.json"
TRACED_STAGE = "bootstrap"  # what --gpu-trace and --gpu-experiment are about


def build(settings: Settings, run_dir: str) -> RunContext:
    """Return the context that SETTINGS ask for, prepared in the private directory RUN_DIR.

    Raises UsageProblem, with one line, for a profile, service, Ollama or simulated host that cannot be used.
    """
    run_until = time.time() + settings.deadline if settings.deadline is not None else None
    profile = _profile(settings)
    env = child_environment(os.environ)
    view: Mapping[str, Any] = LIVE
    simulated, installed = None, None
    who = CALLER
    if settings.simulate is not None:
        if settings.as_service is not None:
            env |= dict(_asked(settings, simulated=True).env or {})
        env, view, simulated, installed = _simulate(settings.simulate, run_dir, env)
    elif settings.as_service is not None:
        who = _asked(settings)
    else:
        who = systemd.found_here(settings.scale) or who
    effective = adopt.capabilities()
    may_adopt = adopt.may_adopt(who)
    setup = adopt.setup_for(who if may_adopt else CALLER, os.geteuid(), effective)
    if may_adopt and who.root is not None:
        view = {"kind": "root", "path": who.root, "pid": who.pid}
        who, setup = adopt.at_its_root(who, setup)
    elif may_adopt:
        who = adopt.in_its_directory(who, setup)
    setup = dataclasses.replace(setup, limits={**setup.limits, **adopt.room_for_ourselves()})
    ollama = _given("--gpu-ollama", settings.ollama, run_dir, setup, settings.scale, view)
    candidate = _given("--gpu-ollama-candidate", settings.ollama_candidate, run_dir, setup, settings.scale, view)
    if simulated is not None and ollama is not None:
        view = {**view, "live": lying_here(ollama.path)}
    unpacked = [entry for entry in (ollama, candidate) if entry is not None and entry.note]
    setup = adopt.with_paths(setup, [entry.path for entry in unpacked])
    stranger = who.refused
    if not may_adopt:
        stranger = f"only root can probe as {who.identity_name}, the user of {who.source}"
    notes = (f"{stranger}: probing as the caller says nothing about the service",) if stranger else ()
    return RunContext(
        env=env if who.env is None or not may_adopt else dict(who.env),
        cwd=(who.cwd if may_adopt else None) or "/",
        setup=setup,
        view=view,
        profile=profile,
        simulated=simulated,
        ollama_path=ollama.path if ollama is not None else installed,
        candidate_path=candidate.path if candidate is not None else None,
        hints=(("service", who.binary),) if who.binary else (),
        allow_busy=settings.allow_busy,
        trace=settings.trace,
        experiment=settings.experiment,
        scale=settings.scale,
        deadlines=dict(settings.stage_timeout),
        run_dir=run_dir,
        target=settings.until or (CANDIDATE_STAGE if settings.ollama_candidate else ""),
        run_until=run_until,
        adopted=adopt.describe(who, setup, effective),
        host=host(settings.simulate),
        notes=(*notes, *who.notes, *(entry.note for entry in unpacked)),
        named=_named(settings),
        not_adopted=stranger,
        unspoken=adopt.unspoken(who) if may_adopt else {},
        unasked=adopt.unasked(who) if may_adopt else {},
        service=dict(who.sandbox) if may_adopt else {},
        caller_env=environment.shown(env) if who.env is not None and may_adopt else {},
    )


def _named(settings: Settings) -> tuple[str, ...]:
    """Return the options that a later gate needs to look at the same Ollama as the same service."""
    given_options = (("--gpu-ollama", settings.ollama), ("--gpu-as", settings.as_service))
    return tuple(f"{option}={value}" for option, value in given_options if value is not None)


def _profile(settings: Settings) -> Mapping[str, Any]:
    try:
        profile = profiles.load(settings.profile)
    except ValueError as error:
        raise UsageProblem(f"--gpu-profile={settings.profile}: {error}") from None
    if profile["profile"] != ANY_PROFILE and settings.until and _before(settings.until, PROFILE_STAGE):
        text = f"{PROFILE_STAGE} asserts it, and --gpu-until={settings.until} ends before that stage"
        raise UsageProblem(f"--gpu-profile={settings.profile}: {text}")
    if settings.ollama_candidate and settings.until and _before(settings.until, CANDIDATE_STAGE):
        text = f"{CANDIDATE_STAGE} compares it, and --gpu-until={settings.until} ends before that stage"
        raise UsageProblem(f"--gpu-ollama-candidate={settings.ollama_candidate}: {text}")
    if settings.until == CANDIDATE_STAGE and not settings.ollama_candidate:
        raise UsageProblem(f"--gpu-until={CANDIDATE_STAGE}: expected --gpu-ollama-candidate=PATH with it")
    for asked, option in ((settings.trace, "--gpu-trace"), (settings.experiment, "--gpu-experiment")):
        if asked and settings.until and _before(settings.until, TRACED_STAGE):
            text = f"{TRACED_STAGE} does it, and --gpu-until={settings.until} ends before that stage"
            raise UsageProblem(f"{option}: {text}")
    return profile


def _given(
    option: str, path: str | None, run_dir: str, setup: Setup, scale: float, view: Mapping[str, Any]
) -> given.Given | None:
    if path is None:
        return None
    if view["kind"] == "root":
        raise UsageProblem(f"{option}={path}: the service has another root directory, and its own Ollama in there")
    name = option.removeprefix("--gpu-")
    found = given.prepare(f"{option}={path}", path, run_dir, name=name, identity=setup.identity, scale=scale)
    if found.note and setup.mntns is not None:
        raise UsageProblem(f"{option}={path}: the service's mount namespace does not show it; unpack it where it can")
    return found


def host(simulated: str | None) -> dict[str, str]:
    """Return the verdict's `host` object: {name, kernel, glibc, arch} of the machine on which the probes run.

    A simulated host is named as such; its libraries run on this kernel and this glibc all the same.
    """
    machine = os.uname()
    try:
        glibc = os.confstr("CS_GNU_LIBC_VERSION") or "unknown"
    except (ValueError, OSError):
        glibc = "none"  # musl
    return {
        "name": machine.nodename if simulated is None else f"simulated {simulated}",
        "kernel": machine.release,
        "glibc": glibc.removeprefix("glibc "),
        "arch": machine.machine,
    }


def _before(name: str, other: str) -> bool:
    return name in stages.NAMES and stages.NAMES.index(name) < stages.NAMES.index(other)


def save(context: RunContext) -> None:
    """Keep CONTEXT in its run directory for the processes that take part; raises OSError."""
    path = Path(context.run_dir, FILE)
    path.touch(0o600)  # the service's whole environment is in it, and its group may pass through the directory
    path.write_text(json.dumps(to_json(context)), encoding="utf-8")


def load(run_dir: str) -> RunContext:
    """Return the context that `save` kept in RUN_DIR; raises OSError or ValueError."""
    data = json.loads(Path(run_dir, FILE).read_text(encoding="utf-8"))
    setup = data.pop("setup")
    identity = setup.pop("identity")
    if identity is not None:
        identity = Identity(**{**identity, "groups": tuple(identity["groups"])})
    limits = {name: tuple(pair) for name, pair in setup.pop("limits").items()}
    transient = tuple(setup.pop("transient"))
    data["setup"] = Setup(identity=identity, limits=limits, transient=transient, **setup)
    data |= {"notes": tuple(data["notes"]), "named": tuple(data["named"])}
    data |= {"hints": tuple((source, path) for source, path in data["hints"])}
    return RunContext(**data)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ENVIRON without the variables that only steer Python and pytest."""
    return {name: value for name, value in environ.items() if not name.startswith(OURS)}


def _simulate(
    text: str, run_dir: str, env: Mapping[str, str]
) -> tuple[dict[str, str], Mapping[str, Any], Mapping[str, Any], str | None]:
    from pytest_gpudiscovery import simulate  # noqa: PLC0415  only a simulated run needs the compiler's half

    try:
        host = simulate.prepare(simulate.parse(text), os.path.join(run_dir, "simulated"))
    except simulate.SimulationError as error:
        raise UsageProblem(f"--gpu-simulate={text}: {error}") from None
    # Simulated libraries look for their settings in the directories above them, also where a stage copies them to.
    Path(run_dir, "sim.conf").symlink_to(Path(host.directory, "sim.conf"))
    return {**env, **host.env}, host.view, host.describe, host.ollama


def _asked(settings: Settings, *, simulated: bool = False) -> Who:
    text = settings.as_service or ""
    kind, _, name = text.partition(":")
    if kind == "env":
        try:
            return Who(None, f"environment file {name}", unit_files.read_env_file(name))
        except (OSError, ValueError) as error:
            raise UsageProblem(f"--gpu-as={text}: {error}") from None
    if simulated:
        raise UsageProblem(f"--gpu-as={text}: a simulated host has no such service; env:FILE works there")
    if kind == "pid":
        return process.asked_for(int(name), settings.scale)
    return systemd.asked_for(name, settings.scale)
