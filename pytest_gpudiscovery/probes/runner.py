"""One discovery child of Ollama 0.12.4 to 0.24.0: `ollama runner --ollama-engine --port N`, asked as by the server.

Follows v0.16.3:llm/server.go:321-439 (port, argv, start), ml/device.go:622-670 (a GET /info every 10 ms) and
discover/runner.go:431-470 (kill). What the server throws away is kept: the child's output, its exit, and where it was
when the time was up.
"""

from __future__ import annotations

import _socket
import os
import select
import time

from pytest_gpudiscovery.probes import stuck
from pytest_gpudiscovery.probes.facts import errno_name
from pytest_gpudiscovery.probes.infoclient import Ask
from pytest_gpudiscovery.probes.spawned import Spawned, said

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pytest_gpudiscovery.probes.guardian import Guardian
    from pytest_gpudiscovery.probes.journal import Journal

TICK_S = 0.01  # v0.16.3:ml/device.go:625
SAMPLE_AT = 0.8  # of the time: the first of two looks at what it does
STRANGER_S = 1.0  # that whoever holds a dead child's port is given; Ollama waits until its 30 s are over
BODY = 65_536  # characters of an answer that are kept as text
FIRST_FREE, LAST_FREE = 49152, 65535  # v0.16.3:llm/server.go:342


def run(
    binary: str,
    env: Mapping[str, str],
    limit_s: float,
    journal: Journal,
    guardian: Guardian,
    *,
    prefix: str = "",
    before: tuple[str, ...] = (),
    on_line: Callable[[float, str], None] | None = None,
    on_tick: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Start the child of BINARY in ENV, ask it for LIMIT_S seconds, end it; what was seen, as JSON.

    BEFORE stands before its argv (a tracer). ON_TICK is called with its pid and the seconds since the begin about every
    10 ms.
    """
    began = time.monotonic()
    answer: dict[str, Any] = {"limit_s": limit_s}
    with journal.step(f"{prefix}resolve localhost") as step:
        port, answer["port_error"] = free_port()
        step.result = answer["port_error"] or port
    answer["port"] = port
    argv = [*before, binary, "runner", "--ollama-engine", "--port", str(port)]
    ended = None
    with journal.step(f"{prefix}start {' '.join(argv)}") as step:
        child = Spawned(argv, env, on_line=on_line)
        step.result = child.problem or child.pid
    try:
        if child.pid:
            guardian.group(child.pid)
            with journal.step(f"{prefix}GET /info") as step:
                answer |= _ask(child, port, began + limit_s, on_tick)
                answer["seconds"] = round(time.monotonic() - began, 6)
                step.result = answer["reason"] or answer["status"]
            ended = child.status  # its own end, before ours
            if answer["reason"] == "timeout":
                with journal.step(f"{prefix}look at PID {child.pid}"):
                    age_s = time.monotonic() - child.began
                    answer["stuck"] = {"first": answer.pop("first", None), **stuck.look(child.pid, port, age_s)}
                if not before:  # a tracer is no Go program
                    with journal.step(f"{prefix}ask PID {child.pid} for its goroutines"):
                        answer["goroutines"] = stuck.goroutines(child)
    finally:
        answer["dead"] = child.kill()
        if child.pid and answer["dead"]:
            guardian.gone(child.pid)
    return {**answer, **said(child), "exit": ended, "pid": child.pid or None}


def free_port() -> tuple[int, str | None]:
    """Return the port that Ollama would give its child, and why "localhost" could not be asked for one."""
    try:
        found = _socket.getaddrinfo("localhost", 0, 0, _socket.SOCK_STREAM)
        family, address = min((item[0], item[4]) for item in found)  # AF_INET comes before AF_INET6, as in Go
        listener = _socket.socket(family, _socket.SOCK_STREAM)
        try:
            listener.bind(address)
            listener.listen(1)
            return int(listener.getsockname()[1]), None
        finally:
            listener.close()
    except (OSError, ValueError) as error:
        why = errno_name(error) if isinstance(error, OSError) and error.errno else str(error)
        span = LAST_FREE - FIRST_FREE
        return FIRST_FREE + int.from_bytes(os.urandom(4), "little") % span, why


def _ask(child: Spawned, port: int, until: float, on_tick: Callable[[int, float], None] | None) -> dict[str, Any]:
    """Ask until there is an answer, the child is dead or UNTIL comes.

    {"reason": None | "exited" | "timeout" | "stranger", "status", "body", "devices", "error", "attempts", "connected"
    (seconds until the first connection, None), "garbage": answers with status 200 that were no JSON list}
    """
    begun, sample_at = time.monotonic(), 0.0
    sample_at = begun + SAMPLE_AT * (until - begun)
    seen: dict[str, Any] = {"reason": None, "status": None, "body": None, "devices": None, "error": None}
    seen |= {"attempts": 0, "connected": None, "garbage": 0}
    ask: Ask | None = None
    next_at = begun + TICK_S
    dead_since: float | None = None
    while True:
        now = time.monotonic()
        if now >= until:
            seen["reason"] = "timeout"
            break
        if now >= sample_at and "first" not in seen:
            seen["first"] = stuck.sample(child.pid)
        if ask is None and now >= next_at:
            ask, next_at = Ask(port), now + TICK_S
            seen["attempts"] += 1
        _wait(child, ask, min(until, sample_at if sample_at > now else until, now + TICK_S))
        child.take()
        if on_tick is not None:
            on_tick(child.pid, time.monotonic() - begun)
        if child.ended() and dead_since is None:
            dead_since = time.monotonic()
        if ask is not None:
            ask.step()
            if ask.connected and seen["connected"] is None:
                seen["connected"] = round(time.monotonic() - begun, 6)
            if ask.ended:
                seen["error"] = ask.error
                if ask.error is None and _answered(ask, seen):
                    break
                ask = None
        if dead_since is not None:
            if ask is None:
                seen["reason"] = "exited"
                break
            if time.monotonic() > dead_since + STRANGER_S:
                seen["reason"] = "stranger"  # somebody else holds its port, and is silent
                break
    if ask is not None:
        ask.close()
    if seen["reason"] != "timeout":
        seen.pop("first", None)
    child.take()
    return seen


def _wait(child: Spawned, ask: Ask | None, until: float) -> None:
    readers = child.fds
    writers = []
    if ask is not None and not ask.ended:
        readers.append(ask.fd)
        if not ask.connected:
            writers.append(ask.fd)
    left = max(0.0, until - time.monotonic())
    if readers:
        select.select(readers, writers, [], left)
    else:
        time.sleep(left)


def _answered(ask: Ask, seen: dict[str, Any]) -> bool:
    """Take the answer of ASK into SEEN; whether Ollama would stop asking."""
    import json  # noqa: PLC0415 - once there is something to read

    seen["status"] = ask.status
    seen["body"] = ask.body[:BODY].decode("utf-8", "backslashreplace")
    if ask.status != 200:
        return True  # 404 and any other error end it at once
    try:
        devices = json.loads(ask.body)
    except (ValueError, RecursionError):
        devices = ""
    if devices is not None and not isinstance(devices, list):
        seen["garbage"] += 1  # Ollama asks again, until its time is over
        return False
    seen["devices"] = devices or []
    return True
