"""The upgrade gate's answer as a table: the installed Ollama, the candidate, and the candidate unpacked over it."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_gpudiscovery.model import Outcome, Verdict
from pytest_gpudiscovery.reports.html_closure import dicts
from pytest_gpudiscovery.reports.html_marks import stage_mark
from pytest_gpudiscovery.reports.html_text import Html, Paper, el, join
from pytest_gpudiscovery.reports.html_values import finite, seconds

SIDES = (("installed", "Installed"), ("candidate", "Candidate"), ("in_place", "Candidate unpacked over it"))
STAGE = "upgrade"
LIBRARIES, DIRECTORIES = 100, 20


def upgrade(verdict: Verdict, paper: Paper) -> Html:
    """Return the section; nothing where no candidate was compared."""
    comparison = verdict.comparison
    if not is_upgrade(comparison) or not isinstance(comparison, Mapping):
        return Html("")
    sides = {name: value for name, _ in SIDES if isinstance(value := comparison.get(name), Mapping)}
    record = next((record for record in verdict.stages if record.name == STAGE), None)
    marked = record is not None and record.outcome is not Outcome.NOT_SELECTED
    return el(
        "section",
        el("h2", "Upgrade", id="upgrade"),
        el(
            "p",
            join((stage_mark(record), " ")) if record is not None and marked else None,
            el("strong", paper.text(comparison.get("sentence"), 400), class_="v"),
        ),
        _sides(sides, paper),
        _code(comparison.get("architectures"), paper),
        _moved(comparison.get("closures"), paper),
        aria_labelledby="upgrade",
    )


def is_upgrade(comparison: object) -> bool:
    """Whether COMPARISON has the shape of stage 14's; anything else is shown as an outline."""
    return isinstance(comparison, Mapping) and isinstance(comparison.get("candidate"), Mapping)


def _sides(sides: Mapping[str, Mapping[str, object]], paper: Paper) -> Html:
    shown = [
        (name, title) for name, title in SIDES if name in sides and ("version" in sides[name] or name == "installed")
    ]
    rows = [
        ("Version", [paper.text(_version(sides[name]), 80) for name, _ in shown]),
        ("GPUs that Ollama keeps", [_gpus(sides[name], paper) for name, _ in shown]),
        ("GPU directories used", [paper.text(sides[name].get("directories") or "none", 200) for name, _ in shown]),
        ("Discovery takes", [_took(sides[name]) for name, _ in shown]),
        ("What stops it", [paper.text(sides[name].get("cause") or "nothing", 200) for name, _ in shown]),
        ("Warnings", [paper.text(sides[name].get("warnings") or "none", 600) for name, _ in shown]),
        ("Files left of the old release", [_stale(sides[name], name, paper) for name, _ in shown]),
    ]
    head = el("thead", el("tr", el("td", ""), join(el("th", title, scope="col") for _, title in shown)))
    body = join(
        el(
            "tr",
            el("th", title, scope="row"),
            join(
                el("td", el("span", cell, class_="v"), data_label=name, class_=None if cell else "empty")
                for cell, (_, name) in zip(cells, shown, strict=True)
            ),
        )
        for title, cells in rows
    )
    return el("table", head, el("tbody", body), class_="fixed")


def _version(side: Mapping[str, object]) -> object:
    return side.get("version") or "none"


def _gpus(side: Mapping[str, object], paper: Paper) -> Html:
    if side.get("gpus") is None:
        return Html("not known")
    gpus = dicts(_listed(side.get("gpus")))
    kept = "; ".join(f"{gpu.get('name')} at {gpu.get('pci') or gpu.get('id')}" for gpu in gpus[:32])
    return paper.text(f"{len(gpus)}: {kept}" if gpus else "none", 1_000)


def _took(side: Mapping[str, object]) -> Html:
    return Html("not timed" if finite(side.get("seconds")) is None else seconds(side.get("seconds")))


def _stale(side: Mapping[str, object], name: str, paper: Paper) -> Html:
    return paper.text((side.get("stale") or "none") if name == "in_place" else "", 1_000)


def _code(value: object, paper: Paper) -> Html:
    """What GPU code the backends of either release hold, where it differs."""
    both = value if isinstance(value, Mapping) else {}
    old, new = (side if isinstance(side := both.get(name), Mapping) else {} for name in ("installed", "candidate"))
    rows = []
    for name in list(dict.fromkeys([*map(str, old), *map(str, new)]))[:DIRECTORIES]:
        before, after = ([str(item) for item in _listed(side.get(name))] for side in (old, new))
        gone, come = ([item for item in one if item not in other] for one, other in ((before, after), (after, before)))
        if gone or come:
            rows.append(
                el(
                    "tr",
                    el("th", paper.text(name, 80), scope="row"),
                    *(
                        el("td", el("span", paper.text(" ".join(names) or "none", 400), class_="v"), data_label=title)
                        for title, names in (("Only installed", gone), ("Only candidate", come))
                    ),
                )
            )
    if not rows:
        return Html("")
    heads = ("GPU directory", "Only in the installed one", "Only in the candidate")
    head = el("thead", el("tr", join(el("th", text, scope="col") for text in heads)))
    return join((el("h3", "GPU code that differs"), el("table", head, el("tbody", join(rows)), class_="fixed")))


def _moved(value: object, paper: Paper) -> Html:
    """Which libraries either release takes from elsewhere, folded: most differ by their prefix alone."""
    changes = dicts(_listed(value))
    if not changes:
        return Html("")
    kept, cut = paper.rows(changes, LIBRARIES)
    rows = [
        el(
            "tr",
            el("th", paper.text(item.get("directory"), 80), ": ", paper.text(item.get("name"), 300), scope="row"),
            *(
                el("td", el("span", _place(item.get(name), paper), class_="v"), data_label=title)
                for name, title in SIDES[:2]
            ),
        )
        for item in kept
    ]
    head = el("thead", el("tr", join(el("th", text, scope="col") for text in ("Library", "Installed", "Candidate"))))
    table = el("table", head, el("tbody", join(rows)), class_="fixed")
    title = f"{len(changes)} {'library' if len(changes) == 1 else 'libraries'} found elsewhere, or by another rule"
    return el("details", el("summary", title), el("div", table, cut, class_="in"))


def _place(value: object, paper: Paper) -> Html:
    if not isinstance(value, Mapping):
        return Html("not asked for")
    return join((paper.text(value.get("path") or "not found", 400), " (", paper.text(value.get("rule"), 300), ")"))


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []
