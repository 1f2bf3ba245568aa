"""From the options to the context in which probes run: whose identity, which environment, which view of the host.

The order of identities is the contract's: what `--gpu-as` says, else the Ollama service that this host has, else the
caller; never silently somebody else. Nothing here touches a driver, a network or another process' memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_gpudiscovery import profiles, stages, unit_files
from pytest_gpudiscovery.engine import ANY_PROFILE, CANDIDATE_STAGE, PROFILE_STAGE
from pytest_gpudiscovery.model import to_json
from pytest_gpudiscovery.options import Settings, UsageProblem
from pytest_gpudiscovery.stages.spec import RunContext
from pytest_gpudiscovery.supervise.types import Identity, Setup
from pytest_gpudiscovery.unit_files import Who

CAP_SYS_ADMIN, CAP_MKNOD = 21, 27
DESCRIPTORS = 256  # what pytest, its workers and a supervised child need with room to spare
# Python's, pytest's and coverage's own settings steer our interpreter, never the driver.
OURS = ("PYTHON", "PYTEST_", "GPU_DISCOVERY_", "COVERAGE", "VIRTUAL_ENV", "ALLURE_", "_PYTEST")
LIVE = {"kind": "live"}
FILE = "context.json"


def build(settings: Settings, run_dir: str) -> RunContext:
    """Return the context that SETTINGS ask for, prepared in the private directory RUN_DIR.

    Raises UsageProblem, with one line, for a profile, environment file or simulated host that cannot be used.
    """
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
    env = child_environment(os.environ)
    view: Mapping[str, Any] = LIVE
    simulated, ollama = None, settings.ollama
    who = Who(None, "caller")
    if settings.simulate is not None:
        if settings.as_service is not None:
            env |= dict(_asked(settings.as_service).env or {})
        env, view, simulated, installed = _simulate(settings.simulate, run_dir, env)
        ollama = ollama or installed
    elif settings.as_service is not None:
        who = _asked(settings.as_service)
    else:
        who = unit_files.service() or who
    effective = capabilities()
    setup = dataclasses.replace(setup_for(who, os.geteuid(), effective), limits=room_for_ourselves())
    adopted = describe(who, setup, effective)
    may_adopt = who.identity is None or setup.identity is not None or who.identity.uid == os.geteuid()
    stranger = who.refused
    if not may_adopt:
        stranger = f"only root can probe as {who.identity_name}, the user of {who.source}"
    return RunContext(
        env=env if who.env is None or not may_adopt else dict(who.env),
        cwd=(who.cwd if may_adopt else None) or "/",
        setup=setup,
        view=view,
        profile=profile,
        simulated=simulated,
        ollama_path=ollama,
        candidate_path=settings.ollama_candidate,
        allow_busy=settings.allow_busy,
        scale=settings.scale,
        deadlines=dict(settings.stage_timeout),
        run_dir=run_dir,
        target=settings.until or (CANDIDATE_STAGE if settings.ollama_candidate else ""),
        run_until=time.time() + settings.deadline if settings.deadline is not None else None,
        adopted=adopted,
        host=host(settings.simulate),
        notes=(f"{stranger}: probing as the caller says nothing about the service",) if stranger else (),
        not_adopted=stranger,
    )


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
    Path(context.run_dir, FILE).write_text(json.dumps(to_json(context)), encoding="utf-8")


def load(run_dir: str) -> RunContext:
    """Return the context that `save` kept in RUN_DIR; raises OSError or ValueError."""
    data = json.loads(Path(run_dir, FILE).read_text(encoding="utf-8"))
    setup = data.pop("setup")
    identity = setup.pop("identity")
    if identity is not None:
        identity = Identity(**{**identity, "groups": tuple(identity["groups"])})
    limits = {name: tuple(pair) for name, pair in setup.pop("limits").items()}
    data |= {"notes": tuple(data["notes"]), "hints": tuple((source, path) for source, path in data["hints"])}
    return RunContext(**{**data, "setup": Setup(identity=identity, limits=limits, **setup)})


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


def _asked(text: str) -> Who:
    kind, _, name = text.partition(":")
    if kind != "env":
        raise UsageProblem(f"--gpu-as={text}: not part of this version; env:FILE is")
    try:
        return Who(None, f"environment file {name}", unit_files.read_env_file(name))
    except (OSError, ValueError) as error:
        raise UsageProblem(f"--gpu-as={text}: {error}") from None


def capabilities() -> int:
    """Return the effective capability set of this process as a bit mask; 0 where /proc cannot be read."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    except (OSError, ValueError):
        return 0


def room_for_ourselves() -> dict[str, tuple[int, int]]:
    """Raise this process' own soft limit on descriptors where it is too low to work, as far as the hard one allows.

    Returns the limits that probes must get back, because a low limit is one of the faults that the gate is to find.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < DESCRIPTORS and (hard == resource.RLIM_INFINITY or hard > soft):
        raised = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        return {"RLIMIT_NOFILE": (soft, hard)}
    return {}


def setup_for(who: Who, euid: int, effective: int) -> Setup:
    """Return how probes are set up for WHO when the caller has EUID and the capability mask EFFECTIVE.

    Root's driver user space creates missing device nodes (measured), so root's probes get a private copy of /dev; a
    root that may not mount gives up CAP_MKNOD instead. Somebody else's could only be healed by a setuid
    nvidia-modprobe: inside a private /dev that may happen, outside of it PR_SET_NO_NEW_PRIVS keeps it from happening.
    """
    root = euid == 0
    may_mount = root and bool(effective >> CAP_SYS_ADMIN & 1) and bool(effective >> CAP_MKNOD & 1)
    return Setup(
        identity=who.identity if root and who.identity is not None and who.identity.uid != 0 else None,
        private_dev=may_mount,
        no_new_privs=True,
        drop_mknod=root and not may_mount,
    )


def describe(who: Who, setup: Setup, effective: int) -> dict[str, Any]:
    """Return the verdict's `context` object: who probes, what was adopted and what could not be."""
    identity = setup.identity
    not_adopted = [dict(item) for item in who.not_adopted]
    if who.identity is not None and identity is None and who.identity.uid != os.geteuid():
        not_adopted.append({"what": f"user {who.identity.name}", "why": "only root can probe as another user"})
    return {
        "as": who.source,
        "uid": identity.uid if identity else os.geteuid(),
        "gid": identity.gid if identity else os.getegid(),
        "groups": list(identity.groups) if identity else sorted(os.getgroups()),
        "capabilities": f"{effective:016x}",
        "private_dev": setup.private_dev,
        "adopted": ["user", "groups"] if identity else [],
        "not_adopted": not_adopted,
    }
