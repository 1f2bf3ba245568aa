"""What follows from one server's part of a log, and what does not: picks the sentences of statements.json.

Pure: from the records of attempts.py and sessions.py to statements, with nothing in between that is not in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytest_gpudiscovery.diagnosis import errors
from pytest_gpudiscovery.ollama import attempts as records
from pytest_gpudiscovery.ollama import eras, facts, levels, shape, versions, words
from pytest_gpudiscovery.ollama.attempts import Attempt, Discovery
from pytest_gpudiscovery.ollama.sessions import Server
from pytest_gpudiscovery.ollama.statements import Statement, say

OVERDUE_S = 130.0  # four directories of 30 s and some: longer is no discovery of era B or C any more
SLOW = 0.5  # of a budget
# How late a timeout is when a request was pending, or at most when nothing listened; 30 and 2 ms were recorded.
REFUSED_MS = 8.0
BLOCKED_S = 60.0  # era A without a result for this long: cuInit takes seconds at most


# Words that are conclusions by themselves.
TOLD = frozenset(
    {"init_failed", "cuda_error", "assertion", "go_died", "threads", "address_space", "bus_error", "listen_error",
     "preload", "ld_so", "oom", "shim", "backend_refused", "a_cuinit_err"}
)  # fmt: skip
TOLD_SHOWN = 5


def may_hide_a_timeout(server: Server, discovery: Discovery) -> bool:
    """Whether a child of DISCOVERY may have timed out although no line says so; not in era A, which has none."""
    return discovery.may_hide_a_timeout and any(era.id != "A" for era in eras.eras_in(server.releases))


def is_excerpt(server: Server, discovery: Discovery) -> bool:
    """Whether lines of DISCOVERY are missing: its releases announce every child at INFO, and none was announced."""
    # The very releases of the table: a build that nobody knows may announce its children otherwise.
    if not eras.announces_children(server.releases) or server.unlisted:
        return False
    requested = facts.of(server, discovery, None)["library_requested"]  # one that is not there: no child is started
    return not requested and not any(attempt.announced for attempt in discovery.attempts)


def of_server(server: Server, end: float | None) -> list[Statement]:
    """Return every statement on SERVER. END is the last time stamp of the whole log."""
    found = list(_identity(server))
    starts = [entry for entry in server.builder.discoveries if entry.kind == "bootstrap"]
    for discovery in starts:
        found += _discovery(server, discovery, end)
    if not starts:
        found.append(say("no_discovery"))
        told = [word for word in server.builder.words if word.id in TOLD]
        found += [say("said", text=word.text.strip(), meaning=words.meaning(word.id)) for word in told[:TOLD_SHOWN]]
    found += _refreshes(server)
    unique = dict.fromkeys(found)
    return sorted(unique, key=lambda statement: statement.group != "so")


def _identity(server: Server) -> Iterator[Statement]:
    if server.mixed:
        yield say("mixed")
    elif server.apart:
        yield say("apart")
    for source, message in server.unlisted[:3]:
        yield say("unlisted", source=source, message=_text(message), newest=versions.releases()[-1])
    if server.contradicted:
        yield say("contradicted")


def _discovery(server: Server, discovery: Discovery, end: float | None) -> Iterator[Statement]:
    hung = [entry for entry in discovery.attempts if entry.outcome == records.TIMED_OUT]
    for attempt in hung:
        yield from timed_out(server, discovery, attempt)
    for attempt in discovery.attempts:
        yield from _slow(server, attempt)
    yield from _told(discovery)
    yield from _result(server, discovery, hung)
    if not discovery.complete:
        yield from _unfinished(server, discovery, end)
    yield from _not(server, discovery, hung)


def timed_out(server: Server, discovery: Discovery, attempt: Attempt) -> Iterator[Statement]:
    """Yield what follows from ATTEMPT having timed out."""
    era_c = all(era.id == "C" for era in eras.eras_in(server.releases))
    kind = attempt.kind if attempt.kind != records.UNKNOWN else eras.FIRST_PASS
    budget = eras.budget_s(kind, server.releases, directory=attempt.directory, windows=attempt.windows)
    name = attempt.directory or "the child"
    yield say("timeout.meaning_c" if era_c else "timeout.meaning", directory=name, budget_s=budget)
    same = [a for a in discovery.attempts if a.outcome == records.TIMED_OUT and a.kind == attempt.kind]
    if attempt.kind == eras.VALIDATION:
        count = max(len(same), len(discovery.verified))
        yield say("timeout.validation", budget_s=budget, count=count)
    elif attempt.kind == eras.REFRESH:
        yield say("timeout.refresh", budget_s=budget)
    elif attempt.kind == eras.FIRST_PASS:
        yield say("timeout.first_pass", budget_s=budget, total_s=budget * len(same))
    else:
        yield say("timeout.pass_unknown")
    yield from _times(server, discovery, attempt, budget, kind)
    if attempt.mark is not None and facts.of(server, discovery, attempt)["mark"] is not None:
        yield say("timeout.mark", mark=attempt.mark.replace("_", " "), meaning=words.blocked_at(attempt.mark))
    if attempt.process:
        lines = attempt.lines_captured
        captured = (
            ""
            if lines is None
            else f"; it had printed {lines} lines" + (": it hung before its first" if lines == 0 else "")
        )
        yield say("timeout.process", process=attempt.process, captured=captured)


def _times(server: Server, discovery: Discovery, attempt: Attempt, budget: float, kind: str) -> Iterator[Statement]:
    whole = attempt.duration_s
    if whole is not None and not attempt.announced and attempt.took_s is None and budget <= whole < budget + 1.0:
        yield say("timeout.slack", slack_s=whole - budget, whole_s=whole, budget_s=budget)
    over = facts.of(server, discovery, attempt)["overrun_ms"]
    if over is not None and over >= facts.EXACT_MS:
        unless = "" if attempt.announced else ", unless something slow came before it"
        yield say("timeout.pending", over_ms=over, budget_s=budget, unless=unless)
    elif over is not None and over <= REFUSED_MS and attempt.announced:
        yield say("timeout.refused", over_ms=over, budget_s=budget)
    last = [entry for entry in discovery.attempts if entry.kind == attempt.kind][-1] is attempt
    if kind == eras.FIRST_PASS and last and discovery.ended is not None and attempt.ended is not None:
        hung = sorted({a.directory for a in discovery.attempts if a.outcome == records.TIMED_OUT and a.directory})
        after = max(0.0, discovery.ended - attempt.ended)
        if discovery.found_gpu is False and hung:
            yield say("timeout.after", after_s=after, directories=" and ".join(hung))
        else:
            yield say("timeout.alone", after_s=after)


def _slow(server: Server, attempt: Attempt) -> Iterator[Statement]:
    if attempt.outcome == records.TIMED_OUT or attempt.duration_s is None or attempt.took_s is None:
        return
    kind = attempt.kind if attempt.kind != records.UNKNOWN else eras.FIRST_PASS
    budget = eras.budget_s(kind, server.releases, directory=attempt.directory, windows=attempt.windows)
    if attempt.duration_s >= SLOW * budget:
        yield say("slow", directory=attempt.directory or "a child", seconds=attempt.duration_s, budget_s=budget)


def _told(discovery: Discovery) -> Iterator[Statement]:
    """What children and the server's other lines say outright."""
    for word in discovery.words():
        if word.id in ("init_failed", "cuda_error"):
            code = errors.runtime_code(word.values[0])
            if code is not None:
                known = errors.runtime(code)
                yield say("cuda_error", text=word.values[0].strip(), label=known.label, discovery=known.discovery)
                continue
        if word.id == "load_failed":
            yield say("load_error", file=word.values[0].rpartition("/")[2], text=word.values[1])
        elif word.id in TOLD:
            yield say("said", text=word.text.strip(), meaning=words.meaning(word.id))
    for attempt in discovery.attempts:
        if attempt.exit_code is not None:
            meaning = words.exit_code(attempt.exit_code)
            yield say("exit_code", directory=attempt.directory or "a child", code=attempt.exit_code, meaning=meaning)
        if attempt.error and attempt.outcome != records.TIMED_OUT:
            yield say("failure.other", directory=attempt.directory or "a child", error=attempt.error)
        if attempt.detail:
            yield say("failure.detail", directory=attempt.directory or "a child", detail=attempt.detail)
    for name, value in discovery.overrides.items():
        yield say("override", name=name, value=value)
    for left in discovery.left_out:
        if left.why == "skip.requested":
            yield say("skipped", what=left.what)
        elif left.why in ("c.driver_old", "c.arch"):
            yield say(left.why, text=_message_of(left.text))
    for device in discovery.devices:
        if device.sane is False:
            yield say("device.insane", device=device.name, compute=device.compute, pci_id=device.pci_id)
    for event, text in discovery.texts.items():
        if event.startswith("a.") and event not in (
            "a.searching",
            "a.searching_for",
            "a.globs",
            "a.libraries",
            "a.none",
        ):
            yield say("a.text", text=text)
        elif event == "c.missing":
            yield say("c.missing")
        elif event == "c.native_failed":
            yield say("c.native")


def _result(server: Server, discovery: Discovery, hung: list[Attempt]) -> Iterator[Statement]:
    if discovery.found_gpu:
        gpus = [device for device in discovery.devices if device.is_gpu]
        shown = ", ".join(f"{gpu.library} {gpu.name} ({gpu.directories or gpu.total})" for gpu in gpus[:8])
        yield say("found", count=len(gpus), noun="GPU was" if len(gpus) == 1 else "GPUs were", devices=shown)
        late = sum(entry.duration_s or 0.0 for entry in hung if entry.kind != eras.VALIDATION)
        if late >= 1.0:
            yield say("found.late", late_s=late)
    elif discovery.canceled:
        given_up = next(entry for entry in discovery.attempts if entry.outcome == records.CANCELED)
        yield say("canceled", after_s=given_up.duration_s or 0.0)
    elif discovery.complete and may_hide_a_timeout(server, discovery):
        took = discovery.duration_s
        why = "the log does not say how long it took" if took is None else f"it took {took:.3f} s"
        yield say("unseen", why=why)
    elif discovery.complete and not hung and discovery.duration_s is not None:
        yield say("fast", duration_s=discovery.duration_s)
    lost = [left for left in discovery.left_out if left.why == "filtered.init"]
    if lost:
        initial = discovery.initial_count if discovery.initial_count is not None else len(discovery.verified)
        yield say("filtered", count=len(lost), initial=initial, what="; ".join(left.what for left in lost[:4]))


def _unfinished(server: Server, discovery: Discovery, end: float | None) -> Iterator[Statement]:
    last = max(filter(None, (server.last, end)), default=None)
    passed = None if last is None or discovery.started is None else max(0.0, last - discovery.started)
    era_a = any(event.startswith("start.a") for event in discovery.events)
    if era_a:
        yield say("a.blocked", seconds=passed) if passed is not None and passed >= BLOCKED_S else say("a.silent")
    elif discovery.begun_in_log and passed is not None:
        late = passed >= OVERDUE_S
        yield say("bc.overdue", seconds=passed) if late else say("bc.cut", seconds=passed, budget_s=30.0)
    if discovery.begun_in_log:
        yield say("mute_port")


def _not(server: Server, discovery: Discovery, hung: list[Attempt]) -> Iterator[Statement]:
    """What must not be concluded."""
    if (hung or discovery.found_gpu is False) and is_excerpt(server, discovery):
        yield say("excerpt")
    if discovery.complete and discovery.found_gpu is False:
        if any(event == "a.unable" for event in discovery.events):
            yield say("not.cudart")
        if discovery.total_vram == "0 B" and hung:
            yield say("not.vram")
    if any(left.why == "skip.requested" for left in discovery.left_out):
        yield say("not.skipped")
    if not hung:
        return
    level = levels.of(server)[0]
    yield say("not.load") if level != "TRACE" else say("not.load_trace")
    yield say("not.server")
    if any(attempt.libraries for attempt in hung):
        yield say("not.path")
    if any(attempt.extra == {} for attempt in hung):
        yield say("not.envs")
    for attempt in hung:
        if attempt.vendor == "nvidia" and attempt.directory != "cuda_v13":
            yield say("not.eager", directory=attempt.directory)


def _refreshes(server: Server) -> Iterator[Statement]:
    counted = server.builder.all_refreshes
    if counted.failed:
        yield say("refresh.failed", count=counted.failed)
    if counted.slow and counted.slowest_s is not None:
        at = shape.time_of(counted.slowest_at, server.offset_s)
        where = ", ".join(filter(None, (at, f"line {counted.slowest_line}" if counted.slowest_line else "")))
        budget_s = eras.budget_s(eras.REFRESH, server.releases)
        yield say("refresh.slow", count=counted.slow, seconds=counted.slowest_s, where=where, budget_s=budget_s)


def _text(message: str) -> str:
    entry: dict[str, Any] = next(item for item in versions.load("messages")["messages"] if item["id"] == message)
    return str(entry["text"]).strip()


def _message_of(line: str) -> str:
    return line.partition("msg=")[2].replace('"', "") or line
