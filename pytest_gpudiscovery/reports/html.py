"""report.html: one self-contained file, a function of the verdict alone, that opens from a mail without a network."""

from __future__ import annotations

import os

from pytest_gpudiscovery.model import Verdict
from pytest_gpudiscovery.reports.atomic import replace
from pytest_gpudiscovery.reports.html_first import banner, first, hero
from pytest_gpudiscovery.reports.html_gpus import gpus
from pytest_gpudiscovery.reports.html_ladder import ladder
from pytest_gpudiscovery.reports.html_libraries import libraries
from pytest_gpudiscovery.reports.html_stages import stages
from pytest_gpudiscovery.reports.html_story import Story, tell
from pytest_gpudiscovery.reports.html_style import SCRIPT, STYLE, policy
from pytest_gpudiscovery.reports.html_text import Html, Paper, el, join
from pytest_gpudiscovery.reports.html_timeline import timeline
from pytest_gpudiscovery.reports.html_upgrade import is_upgrade, upgrade

NAME = "report.html"
LINKS = (
    ("stages", "Stages"),
    ("upgrade", "Upgrade"),
    ("timeline", "Timeline"),
    ("gpus", "GPUs"),
    ("libraries", "Libraries"),
    ("checks", "Checks"),
    ("context", "Context"),
)


def write(directory: str, verdict: Verdict) -> None:
    """Replace DIRECTORY/report.html by VERDICT's; raises OSError and then leaves the file that was there."""
    replace(directory, NAME, render(verdict).encode())


def render(verdict: Verdict) -> str:
    """Return the page of VERDICT, at most a few MB whatever the verdict holds."""
    paper, story = Paper(), tell(verdict)
    page = el("html", _head(verdict, story, paper), _body(verdict, story, paper), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _head(verdict: Verdict, story: Story, paper: Paper) -> Html:
    host = verdict.host.get("name") if isinstance(verdict.host, dict) else None
    simulated = "SIMULATED " if verdict.simulated is not None else ""
    words = (simulated, verdict.verdict.value.upper(), " ", story.headline, " · ", str(host or "GPU discovery"))
    return el(
        "head",
        el("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy()}">'),  # longer than el() lets text be
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", paper.text("".join(words), 200)),
        el("style", Html(STYLE)),
    )


def _body(verdict: Verdict, story: Story, paper: Paper) -> Html:
    # In the order in which they may use up the room: the first screen is never cut for the sake of the evidence.
    top = join((banner(verdict, paper, "top"), hero(verdict, story, paper)))
    found = first(verdict, story, paper)
    sections = {
        "stages": ladder(verdict, paper),
        "upgrade": upgrade(verdict, paper),
        "timeline": timeline(verdict, paper),
        "gpus": gpus(verdict, paper),
        "libraries": libraries(verdict, paper),
        "context": _context(verdict, paper),
        "checks": stages(verdict, story, paper),
    }
    links = [el("li", el("a", text, href=f"#{name}")) for name, text in LINKS if sections[name]]
    return el(
        "body",
        el("a", "Skip to what was found", href="#main", class_="skip"),
        top,
        el(
            "main",
            found,
            el("nav", el("ul", join(links)), aria_label="Parts of this report"),
            join(sections[name] for name, _ in LINKS),
            id="main",
        ),
        _footer(verdict, paper),
        banner(verdict, paper, "bottom"),
        el("script", Html(SCRIPT)),
        class_=verdict.verdict.value,
    )


def _context(verdict: Verdict, paper: Paper) -> Html:
    """Who probed, what could not be adopted, what the host had to be, what was asked for, and what was noted."""
    context = verdict.context if isinstance(verdict.context, dict) else {}
    missing = context.get("not_adopted")
    items = [
        el("li", el("strong", paper.text(item.get("what"), 300)), ": ", paper.text(item.get("why"), 600))
        for item in (missing if isinstance(missing, list) else [])[:50]
        if isinstance(item, dict)
    ]
    notes, cut = paper.rows(verdict.notes, 100)
    # Closures and fat binaries of a shape that `libraries` does not know are still shown.
    odd = [
        item for item in (*verdict.closures, *verdict.fatbins) if not isinstance(item, dict) or "directory" not in item
    ]
    more = (("Libraries", odd), ("Comparison", None if is_upgrade(verdict.comparison) else verdict.comparison))
    return el(
        "section",
        el("h2", "Context", id="context"),
        el("h3", "Probed as"),
        _list({key: value for key, value in context.items() if key != "not_adopted"}, paper),
        join((el("h3", "Not adopted"), el("ul", join(items)))) if items else None,
        join((el("h3", "Notes"), el("ul", join(el("li", paper.text(note, 2_000), class_="v") for note in notes))))
        if notes
        else None,
        cut,
        el("h3", "What this host had to be"),
        _list(verdict.profile, paper),
        el("h3", "What was asked for"),
        _list(verdict.selection, paper),
        join((el("h3", "Simulated"), _list(verdict.simulated, paper))) if verdict.simulated is not None else None,
        join(_outline(title, value, paper) for title, value in more if value),
        aria_labelledby="context",
    )


def _list(values: object, paper: Paper) -> Html:
    if not isinstance(values, dict) or not values:
        return el("p", "Nothing was said.", class_="lead")
    kept, cut = paper.rows(list(values.items()), 60)
    rows = [
        join(
            (el("dt", paper.text(str(key).replace("_", " "), 60)), el("dd", paper.text(_shown(value), 800), class_="v"))
        )
        for key, value in kept
    ]
    return join((el("dl", join(rows)), cut or Html("")))


def _shown(value: object) -> object:
    return "none" if value in (None, "", [], {}) else value


def _outline(title: str, value: object, paper: Paper) -> Html:
    return join((el("h3", title), el("pre", paper.block(value), tabindex="0", aria_label=title)))


def _footer(verdict: Verdict, paper: Paper) -> Html:
    tool = verdict.tool if isinstance(verdict.tool, dict) else {}
    captured: tuple[str, ...] = ()
    if any(isinstance(record.evidence, dict) and record.evidence for record in verdict.stages):
        captured = (", what was captured of stuck probes in ", el("code", os.path.join("evidence", "")))
    return el(
        "footer",
        el(
            "p",
            paper.text(tool.get("name"), 80),
            " ",
            paper.text(tool.get("version"), 40),
            " · begun ",
            paper.text(verdict.started, 60),
            f" · took {verdict.duration_s:.1f} s · everything shown here is in ",
            el("code", "verdict.json"),
            *captured,
            " beside this file.",
        ),
    )
