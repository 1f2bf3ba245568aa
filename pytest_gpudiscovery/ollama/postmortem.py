"""The post-mortem of a log: was the GPU found, which Ollama was it, what happened, what can and cannot be the cause.

`explain` is the way in. Its answer is plain data (schema 1, `schema/explain-1.json`); rendering and exit codes are
functions of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_gpudiscovery import __version__
from pytest_gpudiscovery.model import to_json
from pytest_gpudiscovery.ollama import attempts as records
from pytest_gpudiscovery.ollama import conclusions, eras, explainer, facts, levels, routes, shape, summary, versions
from pytest_gpudiscovery.ollama.attempts import Attempt, Discovery
from pytest_gpudiscovery.ollama.explainer import Log
from pytest_gpudiscovery.ollama.logread import Read
from pytest_gpudiscovery.ollama.refreshes import FAILED_KEPT
from pytest_gpudiscovery.ollama.sessions import Server
from pytest_gpudiscovery.ollama.statements import advice

SCHEMA = 1
FOUND, NOT_FOUND, UNKNOWN = "gpu_found", "no_gpu", "cannot_tell"
NEXT_SHOWN = 6
USUAL_DIRECTORIES = 4  # cuda_v12, cuda_v13, vulkan, and one to spare
SPARE_S = 10.0  # for everything in a start that is not discovery
ABSENT_IS_LIKELY = 0.02  # candidates below this share of the weight give no next command
# Outcomes of an attempt that the causes of causes.json are for, by what the log says outright.
SPOKEN = (records.CRASHED, records.HTTP_ERROR, records.WRONG_SERVER, records.SPAWN_FAILED)


def explain(source: Read, name: str) -> dict[str, Any]:
    """Return the post-mortem of the log that SOURCE gives; NAME is what it is called."""
    return conclude(explainer.read(source), name)


def conclude(log: Log, name: str) -> dict[str, Any]:
    """Return the post-mortem of LOG."""
    servers = [_server(server, log) for server in log.servers]
    counted = _counted(log.servers)
    answers = [(servers[log.servers.index(server)], answer(server)) for server in counted]
    verdict = _verdict([found for _, found in answers])
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "tool": {"name": "pytest-gpudiscovery", "version": __version__},
        "input": {
            "name": name,
            "bytes": log.bytes_read,
            "formats": dict(log.carriers),
            "cut_lines": log.cut_lines,
            "stopped": log.stopped or None,
            "servers_not_kept": log.dropped,
        },
        "answer": verdict,
        "summary": _summary(verdict, answers, log),
        "counted": [shown["number"] for shown, _ in answers],
        "servers": servers,
    }
    plain: dict[str, Any] = to_json(found)  # tuples as lists: what is returned is what --json prints
    return plain


def answer(server: Server) -> str:
    """Return whether SERVER's own discovery found a GPU: FOUND, NOT_FOUND or UNKNOWN."""
    results = [entry.found_gpu for entry in server.builder.discoveries if entry.kind == "bootstrap"]
    if not results or (server.mixed and len(set(results)) > 1):
        return UNKNOWN
    return {True: FOUND, False: NOT_FOUND, None: UNKNOWN}[results[-1]]


def _counted(servers: Sequence[Server]) -> list[Server]:
    """Return the servers whose answer counts: of those that followed each other the last one that began a discovery."""
    chains: list[list[Server]] = []
    for server in servers:
        for chain in chains:
            before = chain[-1]
            after = server.first is None or before.last is None or server.first >= before.last
            if before.origin == server.origin and after and not (before.mixed and server.mixed):
                chain.append(server)
                break
        else:
            chains.append([server])
    counted = []
    for chain in chains:
        begun = [server for server in chain if any(d.kind == "bootstrap" for d in server.builder.discoveries)]
        counted += begun[-1:]
    return counted or list(servers[-1:])


def _verdict(answers: Sequence[str]) -> str:
    if NOT_FOUND in answers:
        return NOT_FOUND
    return FOUND if answers and all(found == FOUND for found in answers) else UNKNOWN


def _summary(verdict: str, answers: Sequence[tuple[dict[str, Any], str]], log: Log) -> str:
    if not log.servers:
        return "no line of an Ollama server is in it" if log.bytes_read else "it is empty"
    shown = next((server for server, found in answers if found == verdict), answers[-1][0] if answers else None)
    return str(shown["summary"]) if shown is not None else "no discovery is in it"


def _server(server: Server, log: Log) -> dict[str, Any]:
    level, known_from = levels.of(server)
    found_eras = eras.eras_in(server.releases)
    starts = [entry for entry in server.builder.discoveries if entry.kind == "bootstrap"]
    refreshes = [entry for entry in server.builder.discoveries if entry.kind == "refresh"]
    failed = [entry for entry in refreshes if entry.failed_refresh]
    counted = server.builder.all_refreshes
    analyses = [part for entry in (*starts, *failed[:1]) for part in _analyses(server, entry, log.servers)]
    hung = any(part["outcome"] in (records.TIMED_OUT, "blocked_a") for part in analyses)
    trouble = hung or answer(server) != FOUND or bool(failed)
    era = found_eras[0].id if len(found_eras) == 1 else None
    directories = len({a.path for entry in starts for a in entry.attempts if a.path})
    if level not in ("DEBUG", "TRACE"):  # INFO names only those that failed
        directories = max(directories, USUAL_DIRECTORIES)
    bound = 30.0 * directories + 30.0 + SPARE_S
    stated = conclusions.of_server(server, log.last_time)
    return {
        "number": server.number,
        "origin": server.origin or None,
        "pid": server.pid,
        "first": shape.time_of(server.first, server.offset_s),
        "last": shape.time_of(server.last, server.offset_s),
        "mixed": server.mixed,
        "answer": answer(server),
        "summary": summary.of(server, starts),
        "versions": {
            "exact": server.exact,
            "releases": versions.words(server.releases),
            "spans": [list(span) for span in versions.spans(server.releases)],
            "evidence": [
                {"source": source or None, "message": message, "releases": versions.words(found)}
                for (source, message), found in server.evidence.items()
                if found != versions.every()
            ],
            "unlisted": [{"source": source, "message": message} for source, message in server.unlisted],
            "contradicted": server.contradicted,
        },
        "eras": [{"id": entry.id, "mechanism": entry.mechanism, "source": entry.source} for entry in found_eras],
        "sub_ranges": [
            {"id": entry.id, "changed": entry.changed, "source": entry.source}
            for entry in eras.sub_ranges_in(server.releases)
        ],
        "log_level": {"level": level, "known_from": known_from},
        "settings": server.settings,
        "discoveries": [
            shape.discovery(entry, server.offset_s, child_output=level == levels.TRACE)
            for entry in (*starts, *failed[:FAILED_KEPT])
        ],
        "refreshes": {
            "seen": counted.seen,
            "failed": counted.failed,
            "slow": counted.slow,
            "fastest_s": counted.fastest_s,
            "slowest_s": counted.slowest_s,
            "slowest_at": shape.time_of(counted.slowest_at, server.offset_s),
            "slowest_line": counted.slowest_line,
        },
        "conclusions": [vars(entry) for entry in stated if entry.group == "so"],
        "not_concluded": [vars(entry) for entry in stated if entry.group == "not"],
        "analyses": analyses,
        "hidden": [
            {"level": level or "INFO", "text": entry["text"], "source": entry["source"]}
            for entry in eras.hidden(era or "B", level if level in ("INFO", "DEBUG", "TRACE") else "INFO")
        ],
        "advice": advice(era, bound_s=bound, directories=str(directories)) if trouble else [],
        "next": _next(analyses) if trouble else [],
    }


def _analyses(server: Server, discovery: Discovery, servers: Sequence[Server]) -> list[dict[str, Any]]:
    """Return, for each thing that went wrong in DISCOVERY, what is excluded and which causes are left."""
    found = [
        _analysis(attempt.outcome, facts.of(server, discovery, attempt, servers), attempt)
        for attempt in discovery.attempts
        if attempt.outcome in (records.TIMED_OUT, *SPOKEN)
    ]
    whole = facts.of(server, discovery, None, servers)
    if any(attempt.outcome == records.FAILED for attempt in discovery.attempts):
        found.append(_analysis("c_failed", whole, None))
    unseen = discovery.found_gpu is False and conclusions.may_hide_a_timeout(server, discovery)
    if any(left.why == "filtered.init" for left in discovery.left_out) and not discovery.found_gpu:
        found.append(_analysis("filtered", whole, None))
    elif discovery.found_gpu is False and not found:
        found += _no_device(server, discovery, servers, whole)
    era_a = any(event.startswith("start.a") for event in discovery.events)
    if era_a and not discovery.complete and discovery.found_gpu is None:
        found.append(_analysis("blocked_a", whole, None))
    if unseen:
        for part in found:
            part["excluded"] = []  # all of it is about what timed out, or did not
        # Long enough for one is what speaks for one; that nobody knows how long is not.
        found.insert(len(found) if discovery.duration_s is None else 0, _analysis(routes.UNSEEN, whole, None))
    return _merged(found)


def _no_device(
    server: Server, discovery: Discovery, servers: Sequence[Server], whole: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return why no child gave a device: per directory where every directory is named, else for all together."""
    first = [entry for entry in discovery.attempts if entry.kind != eras.VALIDATION]
    if len(first) < 2 or any(entry.vendor in (None, "none") for entry in first) or discovery.initial_count != 0:
        cut = not discovery.begun_in_log or conclusions.is_excerpt(server, discovery)
        return [_analysis(routes.CUT if cut and whole["era"] != eras.A else records.NO_DEVICE, whole, None)]
    return [_analysis(records.NO_DEVICE, facts.of(server, discovery, entry, servers), entry) for entry in first]


def _analysis(outcome: str, known: dict[str, Any], attempt: Attempt | None) -> dict[str, Any]:
    left, out = routes.candidates(outcome, known)
    excluded = routes.excluded_by(outcome, known)
    return {
        "outcome": outcome,
        "directories": [attempt.directory] if attempt is not None and attempt.path is not None else [],
        "pass": attempt.kind if attempt is not None else None,
        "facts": {name: value for name, value in known.items() if value is not None},
        "excluded": [vars(entry) for entry in excluded],
        "excluded_causes": [vars(entry) for entry in out],
        "candidates": [vars(entry) for entry in left],
    }


def _merged(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return FOUND with those that say the same of several directories put together."""
    merged: list[dict[str, Any]] = []
    for part in found:
        twin = next((other for other in merged if _same(other, part)), None)
        if twin is None:
            merged.append(part)
        else:
            twin["directories"] = list(dict.fromkeys((*twin["directories"], *part["directories"])))
            twin["facts"] = {name: value for name, value in twin["facts"].items() if part["facts"].get(name) == value}
    return merged


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def key(part: dict[str, Any]) -> Any:
        return part["outcome"], part["pass"], [(entry["id"], entry["confidence"]) for entry in part["candidates"]]

    return bool(key(one) == key(other))


def _next(analyses: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the next commands, those of the likeliest causes first, each once."""
    found: dict[str, dict[str, Any]] = {}
    for part in analyses:
        for entry in part["candidates"]:
            if entry["confidence"] >= ABSENT_IS_LIKELY and entry["next"] not in found and len(found) < NEXT_SHOWN:
                found[entry["next"]] = {"command": entry["next"], "action": entry["action"], "for": entry["id"]}
    gate = {"command": "gpu-discovery gate", "action": "safe", "for": "all of them, on the host itself"}
    return [gate, *found.values()]
