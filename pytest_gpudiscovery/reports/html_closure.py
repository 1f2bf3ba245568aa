"""One predicted dlopen for people: ld.so's objections, the libraries as a tree, and the GPU code in them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence

from pytest_gpudiscovery.reports.html_marks import BAD, WARN, mark
from pytest_gpudiscovery.reports.html_text import Html, Paper, el, join
from pytest_gpudiscovery.reports.html_values import finite

Facts = Mapping[str, object]
PROBLEMS, NODES, DEPTH = 40, 400, 12
MIB = 1 << 20
KINDS = ("file", "version", "isa", "symbol", "relocation", "preload", "process")  # loader.closure.Problem


def problems(closure: Facts | None, paper: Paper) -> Html | None:
    """Return ld.so's own words for each objection, those that only follow from another one counted."""
    problems = closure.get("problems") if closure is not None else None
    found = dicts(problems if isinstance(problems, (list, tuple)) else ())
    direct = [item for item in found if item.get("follows") is not True]
    kept, cut = paper.rows(direct, PROBLEMS)
    if not kept:
        return None
    items = [
        el(
            "li",
            mark(BAD, str(item["kind"]) if item.get("kind") in KINDS else "problem"),
            " ",
            el("code", paper.text(item.get("text"), 600)),
        )
        for item in kept
    ]
    follow = f"{len(found) - len(direct)} more follow from these." if len(found) > len(direct) else None
    head = el("h4", "What ld.so would say")
    return join((head, el("ul", join(items), class_="plain"), el("p", follow) if follow else "", cut or ""))


def tree(closure: Facts | None, paper: Paper) -> Html | None:
    """Return the libraries as they ask for each other, with the rule that found each; none is shown twice."""
    names = closure.get("names") if closure is not None else None
    found = dicts(names if isinstance(names, (list, tuple)) else ())[:NODES]
    if not found:
        return None
    children: dict[str, list[Facts]] = {}
    for item in found:
        children.setdefault(str(item.get("requester") or ""), []).append(item)
    objects = closure.get("objects") if closure is not None else None
    files = {str(item.get("path")): item for item in dicts(objects if isinstance(objects, (list, tuple)) else ())}
    shown: set[str] = set()
    items = _branch("", children, files, shown, paper, 0)
    count = len({str(item.get("path")) for item in found if item.get("path")})
    return el(
        "details",
        el("summary", f"{count} libraries, each with the rule that finds it"),
        el("div", items, class_="in tree"),
        open=any(not item.get("path") for item in found),
    )


def _branch(
    requester: str,
    children: Mapping[str, list[Facts]],
    files: Mapping[str, Facts],
    shown: set[str],
    paper: Paper,
    depth: int,
) -> Html:
    rows = []
    for item in children.get(requester, []) if depth < DEPTH else []:
        path = item.get("path")
        key = name_of(path)
        seen = key in shown
        below = Html("") if seen or not key or key == requester else None
        shown.add(key)
        if below is None:
            below = _branch(key, children, files, shown, paper, depth + 1)
        rows.append(el("li", _node(item, files, seen, paper), below))
    return el("ul", join(rows)) if rows else Html("")


def _node(item: Facts, files: Mapping[str, Facts], seen: bool, paper: Paper) -> Html:
    path = item.get("path")
    name = paper.text(name_of(item.get("name")), 120)
    if not path:
        return join((el("b", name), " ", mark(BAD, "not found")))
    if seen:
        return join((name, " ", el("span", "as above", class_="aside")))
    file = files.get(str(path), {})
    told = (("outside", "not from this install"), ("may_block", "may block"))
    driver = _of_driver(item.get("name"))
    marks = [word for key, word in told if file.get(key) and not (driver and key == "outside")]
    size, shadows = finite(file.get("size")), item.get("shadows")
    rule = join((paper.text(item.get("rule"), 300), f", {size_of(size)}" if size else ""))
    other = join(("; hides ", paper.text(shadows, 300))) if isinstance(shadows, (list, tuple)) and shadows else ""
    place = el("span", paper.text(path, 400), " — ", rule, other, class_="aside")
    return join((el("b", name), *(join((" ", mark(WARN, word))) for word in marks), " ", place))


def _of_driver(name: object) -> bool:
    """Whether NAME is a library of the driver, which no install of Ollama brings."""
    return name_of(name).startswith(("libcuda.so", "libnvidia-"))


def gpu_code(fatbins: list[Facts], paper: Paper) -> Html | None:
    """Return a table of the GPU code in each library, and whether it runs here."""
    kept, cut = paper.rows(fatbins, 20)
    if not kept:
        return None
    heads = ("Library", "On this host's GPUs", "Machine code (sm)", "PTX (compute)", "Parts", "Needs a driver for")
    rows = []
    for item in kept:
        targets = item.get("targets")
        names = [str(name) for name in (targets if isinstance(targets, (list, tuple)) else ())[:200]]
        cells = (
            "; ".join(runs(item)) or str(item.get("problem") or "no GPU here to compare with"),
            " ".join(name.removeprefix("sm_") for name in names if name.startswith("sm_")) or "none",
            " ".join(name.removeprefix("compute_") for name in names if name.startswith("compute_")) or "none",
            item.get("containers"),
            _floor(item),
        )
        data = [
            el("td", el("span", paper.text(cell, 400), class_="v"), data_label=head)
            for cell, head in zip(cells, heads[1:], strict=True)
        ]
        rows.append(el("tr", el("th", paper.text(name_of(item.get("path")), 120), scope="row"), join(data)))
    head = el("thead", el("tr", join(el("th", text, scope="col") for text in heads)))
    caption = el("caption", "GPU code in the libraries")
    table = el("table", caption, head, el("tbody", join(rows)), class_="fixed fatbins")
    return join((table, cut or Html("")))


def _floor(fatbin: Facts) -> str:
    verdicts = fatbin.get("verdicts")
    needs = []
    for entry in dicts(verdicts if isinstance(verdicts, (list, tuple)) else ())[:8]:
        told = entry.get("verdict")
        cuda = told.get("needs_cuda") if isinstance(told, Mapping) else None
        if isinstance(cuda, (list, tuple)):
            needs.append("CUDA " + ".".join(map(str, cuda[:2])))
        if entry.get("driver_floor"):
            needs.append(f"driver {entry['driver_floor']}")
    return ", ".join(dict.fromkeys(needs)) or "none in particular"


def runs(fatbin: Facts) -> Iterator[str]:
    """Yield, for each kind of GPU of this host, how FATBIN's code runs on it."""
    verdicts = fatbin.get("verdicts")
    for entry in dicts(verdicts if isinstance(verdicts, (list, tuple)) else ())[:8]:
        told = entry.get("verdict")
        if isinstance(told, Mapping):
            yield f"{told.get('how')}: {told.get('reason')}"


def dicts(items: Sequence[object]) -> list[Facts]:
    """Return those of ITEMS that are objects."""
    return [item for item in items if isinstance(item, Mapping)]


def name_of(path: object) -> str:
    """Return the last part of PATH, "" for what is no text."""
    return posixpath.basename(path) if isinstance(path, str) else ""


def size_of(number: float) -> str:
    """Return a number of bytes as "1.5 MiB"."""
    return f"{number / MIB:.1f} MiB" if number >= MIB else f"{number / 1024:.0f} KiB"
