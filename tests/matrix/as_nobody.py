"""The gate's command with probes of uid 65534: a simulated host has no service whose user they could take.

python as_nobody.py gate --gpu-simulate ...     (root only)
"""

from __future__ import annotations

import dataclasses
import os

from pytest_gpudiscovery import cli, context
from pytest_gpudiscovery.options import Settings
from pytest_gpudiscovery.stages.spec import RunContext
from pytest_gpudiscovery.supervise.types import Identity

NOBODY = Identity(65534, 65534, (65534,), "nobody")
build = context.build


def dropped(settings: Settings, run_dir: str) -> RunContext:
    """Return the context of SETTINGS for probes of uid 65534, who must reach the simulated libraries in RUN_DIR."""
    found = build(settings, run_dir)
    os.chmod(run_dir, 0o755)
    return dataclasses.replace(found, setup=dataclasses.replace(found.setup, identity=NOBODY))


if __name__ == "__main__":
    context.build = dropped
    raise SystemExit(cli.main())
