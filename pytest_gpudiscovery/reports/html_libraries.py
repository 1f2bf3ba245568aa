"""Each GPU directory: what dlopen was predicted to do and did, its libraries as a tree, the GPU code in them, ggml."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_gpudiscovery.model import Check, CheckOutcome, Outcome, StageRecord, Verdict
from pytest_gpudiscovery.reports.html_closure import Facts, dicts, gpu_code, name_of, problems, runs, size_of, tree
from pytest_gpudiscovery.reports.html_gpus import readable
from pytest_gpudiscovery.reports.html_marks import BAD, OPEN, PASSED, WARN, check_mark, edge, mark
from pytest_gpudiscovery.reports.html_story import label
from pytest_gpudiscovery.reports.html_text import Html, Paper, el, join
from pytest_gpudiscovery.reports.html_values import finite, seconds

DIRECTORIES, COMPLAINTS = 20, 40
PREFIX = "dir:"  # begins the subject of a check that is about a GPU directory
TIMED_OUT, NO_ANSWER = "did not return", "no answer"


def libraries(verdict: Verdict, paper: Paper) -> Html:
    """Return the section, nothing where no stage looked at a GPU directory."""
    closures, fatbins = dicts(verdict.closures), dicts(verdict.fatbins)
    loads, backends = _facts_of(verdict, "load", "loads"), _facts_of(verdict, "backend", "backends")
    checks = _by_directory(verdict)
    everything = [*closures, *fatbins, *loads, *backends]
    names = list(dict.fromkeys([str(item["directory"]) for item in everything if item.get("directory")] + [*checks]))
    if not names:
        return Html("")
    kept, cut = paper.rows(names, DIRECTORIES)
    parts = [
        _directory(
            name,
            next((item for item in _of(name, closures) if item.get("model") != "probe"), None),
            _of(name, fatbins),
            next(iter(_of(name, loads)), None),
            next(iter(_of(name, backends)), None),
            checks.get(name, []),
            _record(verdict, "load"),
            paper,
        )
        for name in kept
    ]
    return el(
        "section",
        el("h2", "GPU directories and their libraries", id="libraries"),
        el(
            "p",
            "What dlopen of each libggml-cuda.so was predicted to do, what it did, and what ggml then said.",
            class_="lead",
        ),
        join(parts),
        cut,
        aria_labelledby="libraries",
    )


def _directory(
    name: str,
    closure: Facts | None,
    fatbins: list[Facts],
    load: Facts | None,
    backend: Facts | None,
    checks: list[tuple[str, Check]],
    stage: StageRecord | None,
    paper: Paper,
) -> Html:
    wrong = [pair for pair in checks if pair[1].outcome in (CheckOutcome.FAILED, CheckOutcome.WARNED)]
    bad = any(check.outcome is CheckOutcome.FAILED for _, check in wrong)
    tone, word = (BAD, "does not work") if bad else (WARN, "with warnings") if wrong else (PASSED, "no complaint")
    if tone == PASSED and closure is not None and closure.get("outcome") != "loads":
        tone, word = OPEN, "cannot be predicted"
    rows = [
        ("Predicted", _predicted(closure, paper)),
        ("Loaded", _loaded(load, stage, paper)),
        ("As predicted", _agrees(load, paper)),
        ("On disk", _storage(load)),
        ("ggml", _ggml(backend, paper)),
        ("Second pass", _second_pass(checks, paper)),
        ("GPU code", _code(fatbins, paper)),
    ]
    facts = el("dl", join(join((el("dt", title), el("dd", text, class_="v"))) for title, text in rows if text))
    inside = (
        facts,
        _complaints(wrong, paper),
        problems(closure, paper),
        tree(closure, paper),
        gpu_code(fatbins, paper),
    )
    title = el("h3", paper.text(name, 80))
    return el(
        "details",
        el("summary", title, " ", mark(tone, word)),
        el("div", *inside, class_="in"),
        open=True,
        class_=edge(tone),
    )


def _predicted(closure: Facts | None, paper: Paper) -> Html:
    if closure is None:
        return Html("")
    said = [str(closure.get("outcome") or NO_ANSWER)]
    if closure.get("message"):
        said.append(f": {closure['message']}")
    loader, checked = closure.get("loader"), closure.get("symbols_checked")
    if isinstance(loader, Mapping):
        said.append(f"; by the rules of glibc {loader.get('glibc')}, {checked} symbols checked")
    return paper.text("".join(said), 600)


def _loaded(load: Facts | None, stage: StageRecord | None, paper: Paper) -> Html:
    if load is None:
        return Html("")
    if load.get("error"):
        return paper.text(load["error"], 600)
    if finite(load.get("seconds")) is None:
        hung = stage is not None and stage.outcome in (Outcome.TIMED_OUT, Outcome.UNKILLABLE)
        return Html(TIMED_OUT if hung else NO_ANSWER)
    return Html(f"in {seconds(load['seconds'])}")


def _agrees(load: Facts | None, paper: Paper) -> Html:
    if load is None or load.get("agrees") is None:
        return Html("")
    differences = load.get("differences")
    if not differences:
        return Html("yes, the same files")
    return join(("no: ", paper.text(differences, 1_000)))


def _storage(load: Facts | None) -> Html:
    storage = load.get("storage") if load is not None else None
    if not isinstance(storage, Mapping):
        return Html("")
    whole, cached = finite(storage.get("bytes")), finite(storage.get("cached"))
    if not whole:
        return Html("")
    part = f", {min(1.0, cached / whole):.0%} of it in memory" if cached is not None else ""
    cold = storage.get("cold_s")
    return Html(f"{size_of(whole)}{part}" + (f", cold read in {seconds(cold)}" if finite(cold) is not None else ""))


def _ggml(backend: Facts | None, paper: Paper) -> Html:
    if backend is None:
        return Html("")
    if backend.get("error"):
        return paper.text(backend["error"], 600)
    registry = backend.get("registry")
    version = registry.get("api_version") if isinstance(registry, Mapping) else None
    devices = backend.get("devices")
    shown = []
    for device in dicts(devices if isinstance(devices, (list, tuple)) else ())[:32]:
        total = readable("total", device.get("memory_total"))
        shown.append(f"{device.get('name')} {device.get('description')}" + (f", {total}" if total else ""))
    found = f"{backend.get('count')} device{'' if backend.get('count') == 1 else 's'}"
    more = f" (backend API {version})" if version is not None else ""
    return paper.text(f"{found}{more}: {'; '.join(shown) or 'none'}", 1_000)


def _second_pass(checks: list[tuple[str, Check]], paper: Paper) -> Html:
    rows = [check for stage, check in checks if stage == "backend" and check.prerequisite in ("P56", "P58")]
    said = [f"{check.outcome.value.replace('_', ' ')}{f', {check.reason}' if check.reason else ''}" for check in rows]
    return paper.text("; ".join(said), 600) if said else Html("")


def _code(fatbins: list[Facts], paper: Paper) -> Html:
    """What the GPUs of this host will run, of the backend itself."""
    main = next((item for item in fatbins if name_of(item.get("path")).startswith("libggml-cuda")), None)
    return paper.text("; ".join(runs(main)), 600) if main is not None else Html("")


def _complaints(wrong: list[tuple[str, Check]], paper: Paper) -> Html | None:
    kept, cut = paper.rows(wrong, COMPLAINTS)
    items = [
        el(
            "li",
            check_mark(check.outcome),
            " ",
            paper.text(label(stage), 60),
            ": ",
            el("bdi", paper.text(check.finding.summary if check.finding else check.reason, 300)),
        )
        for stage, check in kept
    ]
    return join((el("ul", join(items), class_="plain"), cut or Html(""))) if items else None


def _of(name: str, items: list[Facts]) -> list[Facts]:
    return [item for item in items if str(item.get("directory")) == name]


def _record(verdict: Verdict, stage: str) -> StageRecord | None:
    return next((record for record in verdict.stages if record.name == stage), None)


def _facts_of(verdict: Verdict, stage: str, key: str) -> list[Facts]:
    record = _record(verdict, stage)
    value = record.facts.get(key) if record is not None and isinstance(record.facts, Mapping) else None
    return dicts(value) if isinstance(value, (list, tuple)) else []


def _by_directory(verdict: Verdict) -> dict[str, list[tuple[str, Check]]]:
    found: dict[str, list[tuple[str, Check]]] = {}
    for record in verdict.stages:
        for check in record.checks:
            if check.subject.startswith(PREFIX):
                found.setdefault(check.subject[len(PREFIX) :], []).append((record.name, check))
    return found
