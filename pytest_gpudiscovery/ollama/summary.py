"""One line on what became of a server's discovery: the answer, and what stood in the way."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gpudiscovery.ollama import attempts as records
from pytest_gpudiscovery.ollama import conclusions, eras
from pytest_gpudiscovery.ollama.attempts import Discovery
from pytest_gpudiscovery.ollama.sessions import Server

ERROR_SHOWN = 80  # characters of an error
_PASSES = {eras.FIRST_PASS: "the first pass", eras.VALIDATION: "the second pass", eras.REFRESH: "the refresh"}
_WHYS = {
    records.CRASHED: "the child was killed by a signal",
    records.HTTP_ERROR: "the child answered an error",
    records.WRONG_SERVER: "something else answered on the child's port",
    records.SPAWN_FAILED: "the child could not be started",
    records.EXITED: "the child exited by itself",
    records.FAILED: "the child failed",
}


def of(server: Server, starts: Sequence[Discovery]) -> str:
    """Return what became of SERVER's discovery in one line."""
    if not starts:
        died = any(word.id in ("go_died", "threads", "address_space") for word in server.builder.words)
        return f"cannot tell: {'it died before' if died else 'the log does not have'} the start of its discovery"
    last = starts[-1]
    hung = [a for a in last.attempts if a.outcome == records.TIMED_OUT]
    timed = ""
    if hung:
        names = " and ".join(dict.fromkeys(a.directory or "a child" for a in hung))
        passes = " and ".join(dict.fromkeys(_PASSES.get(a.kind, "an unknown pass") for a in hung))
        timed = f"{names} timed out in {passes}"
    if last.found_gpu:
        count = sum(device.is_gpu for device in last.devices)
        return f"GPU found: {count} x {next(d for d in last.devices if d.is_gpu).name}" + (
            f"; {timed}" if timed else ""
        )
    if last.found_gpu is False:
        why = timed or _why(server, last)
        return f"no GPU: {why}"
    after = f", after {timed}" if timed else ""
    if last.canceled:
        return f"cannot tell: the server was told to stop before its discovery had ended{after}"
    if server.mixed:
        return "cannot tell: two servers are mixed and nothing tells them apart"
    return f"cannot tell: the log ends before discovery has{after}"


def _why(server: Server, discovery: Discovery) -> str:
    told = next((a for a in discovery.attempts if a.outcome in _WHYS), None)
    if told is not None:
        error = " ".join(told.error.split())
        said = f": {error if len(error) <= ERROR_SHOWN else error[: ERROR_SHOWN - 1] + '…'}" if error else ""
        return f"{_WHYS[told.outcome]}{said}"
    if any(left.why == "filtered.init" for left in discovery.left_out):
        return "the second pass left every device out"
    took = discovery.duration_s
    ended = f"discovery ended{f' after {took:.3f} s' if took is not None else ''} without a device"
    if conclusions.may_hide_a_timeout(server, discovery):
        return f"{ended}, and this log does not say whether a child timed out"
    return f"{ended}, and nothing timed out"
