"""What the simulation raises."""

from __future__ import annotations


class SimulationError(Exception):
    """A simulated host cannot be had: an unknown name, a bad value, no compiler. One line that says what to do."""
