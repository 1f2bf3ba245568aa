"""The GPUs side by side: one table each, a column for every source that was asked, the findings about it above."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

from pytest_gpudiscovery.model import Check, CheckOutcome, Verdict
from pytest_gpudiscovery.reports.html_first import gpu_name
from pytest_gpudiscovery.reports.html_marks import BAD, PASSED, WARN, check_mark, edge, mark
from pytest_gpudiscovery.reports.html_story import label
from pytest_gpudiscovery.reports.html_text import Html, Paper, el, join
from pytest_gpudiscovery.reports.html_values import finite

VIEWS = ("sysfs", "nvml", "cuda", "pynvml", "cuda_python", "runtime", "ggml", "ollama")
NAMES = {
    "sysfs": "sysfs",
    "nvml": "NVML",
    "cuda": "CUDA",
    "pynvml": "pynvml",
    "cuda_python": "cuda-python",
    "runtime": "CUDA runtime",
    "ggml": "ggml",
    "ollama": "Ollama",
}
ALIASES = {"total_memory": "memory", "memory_total": "memory", "memory_free": "free", "model": "name", "address": "pci"}
# What ggml calls otherwise than all others: its `name` is CUDA0, the GPU's is the description.
GGML = {"name": "ggml_name", "description": "name", "id": "uuid", "device_id": "pci"}
# Ollama's `driver` is CUDA's version, sysfs's the module's name; its `id` is the UUID, or since 0.30 a number.
OLLAMA = {"compute": "cc", "driver": "cuda_version", "free_memory": "free", "libdir": "directory"}
# How a probe looked, not what it saw; shown only when it is not as usual.
USUAL: Mapping[str, tuple[object, ...]] = {
    "lacks": ([], None),
    "sound": (True,),
    "left_alone": (False,),
    "overflow": (0,),
    "layout": ("ollama",),
}
HIDDEN = ("written",)
PER_DIRECTORY = ("runtime", "ggml", "ollama")  # each GPU directory brings a library of its own, with its own answer
FIRST = ("name", "pci", "uuid", "cc", "memory", "sm_count", "ordinal", "index", "minor", "mig", "ecc")
TITLES = {
    "pci": "PCI address",
    "uuid": "UUID",
    "cc": "compute capability",
    "sm_count": "SMs",
    "cuda_version": "CUDA of the driver",
    "ecc": "ECC",
    "mig": "MIG",
}
GIB = 1 << 30
Complaints = dict[str, list[tuple[str, Check]]]  # subject -> (stage, check)
BYTES = ("memory", "total", "free", "used", "reserved")
EMPTY: tuple[object, ...] = (None, "", [], {})
GPUS, SOURCES, ROWS, FOLD_FROM = 128, 12, 40, 3


def gpus(verdict: Verdict, paper: Paper) -> Html:
    """Return the section; it says so when no GPU was seen."""
    kept, cut = paper.rows(verdict.gpus, GPUS)
    entries = [gpu if isinstance(gpu, dict) else {} for gpu in kept]
    asked = set().union(*(_views(gpu) for gpu in entries))
    known = {name: index for index, name in enumerate(VIEWS)}
    sources = sorted(asked, key=lambda name: (known.get(_source(name)[0], len(VIEWS)), name))[:SOURCES]
    complaints = _by_subject(verdict)
    parts = [_gpu(gpu, sources, complaints, paper, len(kept)) for gpu in entries]
    return el(
        "section",
        el("h2", "GPUs, by each source", id="gpus"),
        el("p", "What the kernel, the driver's libraries and the second witnesses each say of one GPU.", class_="lead")
        if parts
        else el("p", "No stage that compares GPUs has an answer.", class_="lead"),
        join(parts),
        cut,
        aria_labelledby="gpus",
    )


def _views(gpu: Mapping[str, object]) -> Mapping[str, object]:
    """Return what each source says; "ggml (cuda_v12, cuda_v13)" where directories of one source say the same."""
    views = gpu.get("views")
    found: dict[str, object] = {}
    for name, view in views.items() if isinstance(views, Mapping) else ():
        inner = list(view.items())[:SOURCES] if isinstance(view, Mapping) else []
        if name not in PER_DIRECTORY or not inner or not all(isinstance(item, Mapping) for _, item in inner):
            found[str(name)] = view
            continue
        alike: list[tuple[dict[str, object], list[str]]] = []
        for directory, item in inner:
            flat = _flat(item, name)
            same = next((names for seen, names in alike if seen == flat), None)
            if same is None:
                alike.append((flat, [str(directory)]))
            else:
                same.append(str(directory))
        for flat, names in alike:
            short = [posixpath.basename(each) or each for each in names]
            key = f"{name} ({', '.join(short)})"
            found[f"{name} ({', '.join(names)})" if key in found else key] = flat
    return found


def _source(name: str) -> tuple[str, str]:
    """Return "ggml" and " (cuda_v12)" of "ggml (cuda_v12)"."""
    source, found, rest = name.partition(" (")
    return source, f" ({rest}" if found else ""


def _gpu(gpu: Mapping[str, object], sources: list[str], complaints: Complaints, paper: Paper, count: int) -> Html:
    views = _views(gpu)
    titles = {name: _titled(name, paper) for name in sources}
    seen, lost = ([titles[name] for name in sources if (name in views) is there] for there in (True, False))
    by = join(
        (" · seen by ", _listed(seen) if seen else "no source", join(("; not by ", _listed(lost))) if lost else "")
    )
    if len(sources) > 1 and not lost:
        by = join((f" · seen by all {len(sources)} sources",))
    wrong = complaints.get(f"gpu:{gpu.get('pci')}", [])
    worst = BAD if any(check.outcome is CheckOutcome.FAILED for _, check in wrong) else WARN if wrong else PASSED
    word = {BAD: "does not fit", WARN: "with warnings", PASSED: "no complaint"}[worst]
    title = join((paper.text(gpu.get("pci") or "no PCI address", 60), " · ", paper.text(gpu_name(gpu), 120)))
    inside = join((_complaints(wrong, paper), _table(titles, views, paper)))
    return el(
        "details",
        el("summary", el("h3", title), " ", mark(worst, word), by),
        el("div", inside, class_="in"),
        open=worst != PASSED or count < FOLD_FROM,
        class_=edge(worst),
    )


def _titled(name: str, paper: Paper) -> Html:
    source, rest = _source(name)
    return join((NAMES.get(source) or paper.text(source, 40), paper.text(rest, 80)))


def _by_subject(verdict: Verdict) -> Complaints:
    """Return the failed and warned checks of every GPU, with their stage, by what they are about."""
    found: Complaints = {}
    for record in verdict.stages:
        for check in record.checks:
            if check.outcome in (CheckOutcome.FAILED, CheckOutcome.WARNED) and check.subject.startswith("gpu:"):
                found.setdefault(check.subject, []).append((record.name, check))
    return found


def _complaints(wrong: list[tuple[str, Check]], paper: Paper) -> Html:
    kept, cut = paper.rows(wrong, 20)
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
    return join((el("ul", join(items), class_="plain") if items else Html(""), cut or Html("")))


def _listed(titles: Sequence[str]) -> Html:
    return join(part for index, title in enumerate(titles) for part in ((", ", title) if index else (title,)))


def _table(titles: Mapping[str, str], views: Mapping[str, object], paper: Paper) -> Html:
    if not views:
        return el("p", "No source described it.")
    shown = {name: _flat(views[name], name) if name in views else {} for name in titles}
    keys = list(dict.fromkeys(key for view in shown.values() for key, value in view.items() if value not in EMPTY))
    keys.sort(key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST))
    kept, cut = paper.rows(keys, ROWS)
    heads = [join((title, "" if name in views else " (not shown)")) for name, title in titles.items()]
    head = el("tr", el("td", ""), join(el("th", text, scope="col") for text in heads))
    rows = [
        el(
            "tr",
            el("th", TITLES.get(key) or paper.text(key.replace("_", " "), 60), scope="row"),
            join(_cell(key, titles[name], shown[name], paper) for name in titles),
        )
        for key in kept
    ]
    table = el("table", el("thead", head), el("tbody", join(rows)), class_="fixed views")
    return join((table, cut or Html("")))


def _flat(view: object, source: str) -> dict[str, object]:
    """Return what SOURCE says by property; once more changes nothing ("ggml (cuda_v12)" is no source)."""
    if not isinstance(view, Mapping):
        return {"value": view}
    ggml = source == "ggml"
    names = {"ggml": GGML, "ollama": OLLAMA}.get(source, {})
    if source == "ollama" and str(view.get("id")).startswith(("GPU-", "MIG-")):
        names = {**names, "id": "uuid"}
    found: dict[str, object] = {}
    for key, value in view.items():
        if key == "props" and ggml and isinstance(value, Mapping):
            found |= {names.get(str(inner), str(inner)): item for inner, item in value.items()}
        elif key not in HIDDEN:
            name = names.get(str(key), str(key))
            found[ALIASES.get(name, name)] = value
    return {key: value for key, value in found.items() if value not in USUAL.get(key, ())}


def _cell(key: str, name: str, view: Mapping[str, object], paper: Paper) -> Html:
    value = view.get(key)
    text = paper.text(readable(key, value), 300)
    empty = value is None or text == ""
    return el("td", el("span", text, class_="v"), data_label=name, class_="empty" if empty else None)


def readable(key: str, value: object) -> object:
    """Return VALUE of property KEY as a person writes it: "79.6 GiB", compute capability "9.0"."""
    if key in ("cc", "cuda_version") and isinstance(value, (list, tuple)) and len(value) == 2:
        return f"{value[0]}.{value[1]}"
    if key in BYTES and isinstance(value, Mapping):
        return {str(name): readable(str(name), item) for name, item in list(value.items())[:20]}
    number = finite(value)
    if key in BYTES and number is not None and number >= 1 << 20:
        return f"{number / GIB:.2f} GiB ({value} bytes)" if key == "memory" else f"{number / GIB:.2f} GiB"
    return value
