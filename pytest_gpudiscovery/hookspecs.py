"""The extension point for other plugins."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pytest_gpudiscovery.stages.spec import StageSpec


def pytest_gpudiscovery_stages(config: pytest.Config) -> Sequence[StageSpec]:
    """Return further stages for the gate.

    Called once in every process that takes part in the run (pytest-xdist workers too), so it must give the same
    stages each time. A name or number that is taken is a usage error. A stage takes part when its number is at most
    that of the target stage; it is required when the target stands on it.
    """
    raise NotImplementedError  # a specification: pluggy never calls it
