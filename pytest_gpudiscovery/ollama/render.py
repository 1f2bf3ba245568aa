"""A post-mortem for people: the answer first, then what follows, what does not, what is left and what to do."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDTH = 110
SERVERS_SHOWN = 20
SHARED = 3  # candidates; what speaks for more of them is said once
ATTEMPTS_SHOWN = 24
PASSES = {"first_pass": "first pass", "validation": "second pass", "refresh": "refresh", "unknown": "a child"}
OUTCOMES = {
    "timed_out": "timed out",
    "crashed": "ended by a signal",
    "http_error": "answered an error",
    "wrong_server": "another server answered",
    "spawn_failed": "could not be started",
    "failed": "failed",
    "canceled": "given up: the server was told to stop",
    "exited": "exited",
    "no_device": "no device",
    "devices": "found",
    "ended": "ended; how is not logged at this level",
    "open": "has not ended in this log",
}
TITLES = {
    "timed_out": "the timeout",
    "unseen_timeout": "a timeout that this log may not show",
    "no_device": "an answer without a device",
    "cut_off": "an answer without a device, in a log that lacks what came before",
    "filtered": "the second pass",
    "crashed": "the signal",
    "http_error": "the error",
    "wrong_server": "the foreign answer",
    "spawn_failed": "the failed start",
    "exited": "the exit",
    "c_failed": "the failure",
    "blocked_a": "the silence",
}


def text(found: Mapping[str, Any]) -> str:
    """Return the post-mortem FOUND (postmortem.explain) as text."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield found["summary"]
    servers = found["servers"]
    yield _row("log", _log(found["input"], len(servers)))
    counted = [server for server in servers if server["number"] in found["counted"]]
    others = [server for server in servers if server not in counted]
    for server in others[-SERVERS_SHOWN:]:
        yield _row(f"server {server['number']}", f"{_who(server)}{server['summary']}")
    if len(others) > SERVERS_SHOWN:
        yield _row("", f"and {len(others) - SERVERS_SHOWN} servers before them")
    for server in counted:
        yield ""
        yield from _server(server, named=len(servers) > 1)


def _log(given: Mapping[str, Any], servers: int) -> str:
    parts = [f"{given['name']}, {_size(given['bytes'])}, {_count(servers, 'server')}"]
    formats = [name for name in given["formats"] if name != "plain"]
    parts += [f"in {', '.join(formats)}"] if formats else []
    parts += [f"{_count(given['cut_lines'], 'line')} cut: longer than 64 KiB"] if given["cut_lines"] else []
    parts += (
        [f"{_count(given['servers_not_kept'], 'server')} in the middle not kept"] if given["servers_not_kept"] else []
    )
    parts += [given["stopped"]] if given["stopped"] else []
    return "; ".join(parts)


def _server(server: Mapping[str, Any], *, named: bool) -> Iterator[str]:
    if named:
        yield f"server {server['number']}: {_who(server)}{server['summary']}"
    yield _row("Ollama", _version(server))
    level = server["log_level"]
    yield _row("log level", f"{level['level'] or 'unknown'} ({level['known_from']})")
    for discovery in server["discoveries"]:
        yield from _discovery(discovery)
    yield from _bullets("It follows:", [_confident(entry) for entry in server["conclusions"]])
    for part in server["analyses"]:
        yield from _left(part)
    yield from _next(server["next"])
    for part in server["analyses"]:
        yield from _excluded(part)
    yield from _bullets("It does not follow, though it looks so:", [e["text"] for e in server["not_concluded"]])
    if server["analyses"]:
        level_name = server["hidden"][0]["level"] if server["hidden"] else ""
        yield from _bullets(f"The level {level_name} hides:", [entry["text"] for entry in server["hidden"]])
    for entry in server["advice"]:
        yield from _advice(entry)


def _who(server: Mapping[str, Any]) -> str:
    parts = [server["origin"] or "", f"pid {server['pid']}" if server["pid"] is not None else "", server["first"] or ""]
    shown = ", ".join(filter(None, parts))
    return f"{shown}: " if shown else ""


def _version(server: Mapping[str, Any]) -> str:
    versions = server["versions"]
    eras = ", ".join(entry["id"] for entry in server["eras"]) or "unknown"
    ranges = [entry["id"] for entry in server["sub_ranges"]]
    detail = f" ({', '.join(ranges)})" if 0 < len(ranges) <= 3 else ""
    sources = list(dict.fromkeys(entry["source"] for entry in versions["evidence"] if entry["source"]))
    by = f", by {', '.join(sources[:6])}" if sources else ""
    if versions["exact"]:
        return f"{versions['exact']} (it says so), era {eras}{detail}{by}"
    return f"{versions['releases']}, era {eras}{detail}{by}"


def _discovery(found: Mapping[str, Any]) -> Iterator[str]:
    took = found["duration_s"]
    began = found["started"] or "its beginning is not in the log"
    yield _row(
        "discovery" if found["kind"] == "bootstrap" else "refresh",
        began
        + (f" (line {found['line']})" if found["kind"] == "refresh" and found["line"] else "")
        + (f", took {took:.3f} s" if took is not None else ""),
    )
    for attempt in found["attempts"][:ATTEMPTS_SHOWN]:
        name = attempt["directory"] or "?"
        yield f"    {PASSES[attempt['pass']]:<12} {name:<14} {_seconds(attempt['duration_s'])}  {_ended(attempt)}"
    if len(found["attempts"]) > ATTEMPTS_SHOWN:
        yield f"    and {len(found['attempts']) - ATTEMPTS_SHOWN} more"
    for left in found["left_out"][:ATTEMPTS_SHOWN]:
        yield f"    left out     {left['what'] or left['text']}"
    if found["devices"]:
        shown = ", ".join(
            f"{device['library']} {device['name']}" if device["gpu"] else "CPU" for device in found["devices"][:8]
        )
        vram = f", total_vram {found['total_vram']}" if found["total_vram"] else ""
        yield f"    answer       {shown}{vram}"


def _ended(attempt: Mapping[str, Any]) -> str:
    shown = OUTCOMES.get(attempt["outcome"], attempt["outcome"])
    if attempt["outcome"] == "devices" and attempt["devices"]:
        return f"{_count(attempt['devices'], 'device')}"
    if attempt["exit_code"] is not None:
        shown += f" with {attempt['exit_code']}"
    return f"{shown}: {attempt['error']}" if attempt["error"] else shown


def _of(part: Mapping[str, Any]) -> str:
    where = f" in {' and '.join(part['directories'])}" if part["directories"] else ""
    return f"{TITLES.get(part['outcome'], part['outcome'])}{where}"


def _left(part: Mapping[str, Any]) -> Iterator[str]:
    if not part["candidates"]:
        return
    yield ""
    yield f"Left as the cause of {_of(part)}, likeliest first (%: by public threads; [stages of the gate]):"
    counted = Counter(reason for entry in part["candidates"] for reason in entry["speaks_for_it"])
    shared = {reason: "+" * (1 + place) for place, reason in enumerate(r for r, n in counted.items() if n > SHARED)}
    for entry in part["candidates"]:
        marks = " ".join(shared[reason] for reason in entry["speaks_for_it"] if reason in shared)
        stages = f"   [{', '.join(entry['stages'])}]" if entry["stages"] else ""
        share = f"{entry['confidence'] * 100:.0f}" if entry["confidence"] >= 0.01 else "<1"
        yield f"  {share:>4} %  {entry['id']:<5}{entry['title']}{stages}{f'  {marks}' if marks else ''}"
        for reason in entry["speaks_for_it"]:
            if reason not in shared:
                yield f"               speaks for it: {reason}"
    for reason, mark in shared.items():
        yield f"  {mark:>4}    speaks for those with this mark: {reason}"


def _excluded(part: Mapping[str, Any]) -> Iterator[str]:
    items = [f"{entry['title']}: {entry['because']}" for entry in part["excluded"]]
    yield from _bullets(f"Excluded by {_of(part)}:", items)
    items = [f"{entry['id']} {entry['title']}: {entry['because']}" for entry in part["excluded_causes"]]
    yield from _bullets("Excluded by what else this log shows:", items)


def _next(commands: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if commands:
        yield ""
        yield "Next:"
    for entry in commands:
        yield f"  {entry['command']}   ({entry['action']}; {entry['for']})"


def _advice(entry: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{entry['title']}:"
    for paragraph in entry["text"]:
        yield from textwrap.wrap(paragraph, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False)
    for command in entry["commands"]:
        yield f"  ({command['action']}) {command['why']}:"
        yield from (f"    {line}" for line in command["command"].splitlines())


def _bullets(title: str, items: Sequence[str]) -> Iterator[str]:
    if not items:
        return
    yield ""
    yield title
    for item in items:
        yield from textwrap.wrap(item, WIDTH, initial_indent="  * ", subsequent_indent="    ", break_long_words=False)


def _confident(entry: Mapping[str, Any]) -> str:
    return str(entry["text"]) + (" (inferred)" if entry["confidence"] == "inferred" else "")


def _row(name: str, value: str) -> str:
    return f"  {name:<10} {value}"


def _seconds(value: float | None) -> str:
    return f"{value:9.3f} s" if value is not None else f"{'':>11}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _size(number: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} bytes"
