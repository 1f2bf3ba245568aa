"""How stages that only look start their probes: before anything native, in the real /dev, without preloaded objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.model import Check
from pytest_gpudiscovery.stages.spec import RunContext
from pytest_gpudiscovery.supervise.types import Probe

# An object that these name runs inside every program that is started: a look must not hang in what it looks for.
INJECTED = ("LD_PRELOAD", "LD_AUDIT")


def look(
    context: RunContext, module: str, request: Mapping[str, Any], deadline_s: float, *, as_caller: bool = False
) -> Probe:
    """Return probe MODULE over the host view, in the real /dev and with the caller's right to make nodes.

    Nothing that such a probe runs creates a node, and whether root could is one of the facts it reports. AS_CALLER
    keeps the caller's identity for facts that do not depend on who asks (the kernel log, the whole of /proc).
    """
    setup = dataclasses.replace(
        context.setup,
        private_dev=False,
        drop_mknod=False,
        no_new_privs=True,
        identity=None if as_caller else context.setup.identity,
        transient=() if as_caller else context.setup.transient,
    )
    env = {name: value for name, value in context.env.items() if name not in INJECTED}
    return Probe(module, {"view": dict(context.view), **request}, env, deadline_s, context.cwd, setup)


def in_order(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Return CHECKS with findings first, nearest to the root first (the catalogue's rank), then the others by row.

    The first failed check words the stage's line in every report.
    """
    known = catalogue.causes()
    return tuple(
        sorted(
            checks,
            key=lambda check: (
                check.finding is None,
                known[check.finding.cause].rank if check.finding else 0,
                check.prerequisite if check.finding is None else "",
            ),
        )
    )


def loader_env(context: RunContext) -> dict[str, str]:
    """Return those variables of the probes' environment that the loader and a shell's search read."""
    names = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT")
    return {name: context.env[name] for name in names if name in context.env}
