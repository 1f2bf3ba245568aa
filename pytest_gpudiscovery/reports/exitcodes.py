"""Exit codes for those who call the gate: pytest's, Nagios' and node-problem-detector's, in one table.

Nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (Monitoring Plugins guidelines). node-problem-detector's custom plugin
monitor: 0 OK, 1 NonOK, 2 Unknown. A simulated host says nothing about this one: UNKNOWN in both.
"""

from __future__ import annotations

from pytest_gpudiscovery.model import State, Verdict

ENDED_BY_SIGNAL = 128  # and above: a shell's way to say which signal; never translated

# state: (nagios, npd); a strict run reads degraded as the next worse state
TABLE = {
    State.READY: (0, 0),
    State.DEGRADED: (1, 0),
    State.BLOCKED: (2, 1),
    State.INCOMPLETE: (3, 2),
}
CONVENTIONS = {"nagios": 0, "npd": 1}
UNKNOWN = TABLE[State.INCOMPLETE]
USAGE = 4
PYTEST_STANDS = (2, 3, 4, 6)  # interrupted, internal error, usage, too many warnings: no verdict was reached


def usage(convention: str) -> int:
    """Return the exit code, in CONVENTION, of a run that was refused before it had any verdict."""
    return UNKNOWN[CONVENTIONS[convention]] if convention in CONVENTIONS else USAGE


def translate(code: int, verdict: Verdict, convention: str, *, strict: bool) -> int:
    """Return CODE, the contract's exit code for VERDICT, in CONVENTION (pytest, nagios or npd)."""
    if convention == "pytest" or code >= ENDED_BY_SIGNAL:
        return code
    column = CONVENTIONS[convention]
    if verdict.simulated or code in PYTEST_STANDS:
        return UNKNOWN[column]
    if verdict.verdict is State.DEGRADED and strict:
        return TABLE[State.BLOCKED][column]
    if code == 1 and verdict.verdict is not State.BLOCKED:
        return TABLE[State.BLOCKED][column]  # a user's own test failed
    return TABLE[verdict.verdict][column]
