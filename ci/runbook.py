"""Write docs/runbook.md and docs/runbook/NN-STAGE.md from the catalogue of causes, so that they cannot drift from it.

    python ci/runbook.py [--check]

`--check` writes nothing and exits 1 when a page is not what the catalogue says.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pytest_gpudiscovery import stages
from pytest_gpudiscovery.diagnosis import catalogue, layers, ollama_says
from pytest_gpudiscovery.diagnosis.catalogue import Cause, causes
from pytest_gpudiscovery.diagnosis.resolver import EVERYTHING
from pytest_gpudiscovery.model import Kind, Severity
from pytest_gpudiscovery.reports.html_story import ACTIONS
from pytest_gpudiscovery.reports.wording import NOT_OLLAMA

ROOT = Path(__file__).resolve().parent.parent
ROUTES = ROOT / "pytest_gpudiscovery" / "ollama" / "data" / "routes.json"
INDEX, PAGES = "docs/runbook.md", "docs/runbook"
GENERATED = "<!-- Written by ci/runbook.py from pytest_gpudiscovery/diagnosis/data; edit that, not this. -->"
FIELD = re.compile(r"(?<!\{)\{(\w+)[^{}]*\}(?!\})")  # not {{...}}, which stands for itself
SEVERITIES = {Severity.BLOCKER: "blocks", Severity.WARNING: "warns", Severity.NOTE: "is noted"}


def pages() -> dict[str, str]:
    """Return every page by its path under the repository."""
    table = stages.table()
    by_stage = {name: _of(name) for name in table}
    rows = catalogue.rows().values()
    found = {INDEX: "\n".join(_index(by_stage)) + "\n"}
    for name, spec in table.items():
        if by_stage[name]:
            asserted = [row for row in rows if row["stage"] == name]
            text = "\n".join(_page(f"{spec.number:02d} {name}", spec.deadline_s, asserted, by_stage[name]))
            found[f"{PAGES}/{spec.number:02d}-{name}.md"] = text + "\n"
    return found


def _of(stage: str) -> list[Cause]:
    """Return the causes that STAGE can name, the ones nearest to the root first."""
    return sorted((cause for cause in causes().values() if stage in cause.stages), key=lambda cause: cause.rank)


def _index(by_stage: dict[str, list[Cause]]) -> Iterator[str]:
    yield from (GENERATED, "", "# Runbook", "")
    yield from _text(
        "The last line of a run names the stage that blocks: `gpu-discovery: BLOCKED at 06 driver: ...`. Its page has "
        "every cause that this stage can name, with the next command and what that command does to the host. The id of "
        "a cause (`driver.cuinit.hang`) is in verdict.json (`blockers[0].cause`), report.html, JUnit and Allure. What "
        "stands as `<name>` or `name` is filled in for the host by the report. What Ollama logs for a cause is told "
        "by era: A up to v0.12.3, B v0.12.4 to v0.24.0, C from v0.30.0; DEBUG is OLLAMA_DEBUG=1, TRACE is "
        "OLLAMA_DEBUG=2. P01, P02 and so on are the prerequisites: each page begins with those of its stage; P00 is a "
        "probe that ended without an answer."
    )
    yield "| stage | causes that block | others |"
    yield "|---|---|---|"
    for name, found in by_stage.items():
        number = stages.NAMES.index(name) + 1
        if found:
            blocking = sum(cause.severity is Severity.BLOCKER for cause in found)
            link = f"[{number:02d} {name}](runbook/{number:02d}-{name}.md)"
            yield f"| {link} | {blocking} | {len(found) - blocking} |"
    yield ""
    yield from _routes()
    yield from _text(
        "Before anything destructive: keep the report directory (`verdict.json`, `report.html`, `evidence/`). It holds "
        "the stacks and the state of what hung, and a reboot or a GPU reset ends that."
    )


def _routes() -> Iterator[str]:
    """Yield the ways to Ollama's timeout, each with the causes that name it."""
    yield from ('## Ollama logged "failed to finish discovery before timeout"', "")
    yield from _text("Every way to it that is known, and the causes by which the gate names it:")
    titles = {route["id"]: route["title"] for route in _json(ROUTES)["routes"]}
    yield "| way | what | causes |"
    yield "|---|---|---|"
    for route, names in _json(catalogue.DATA / "routes.json")["routes"].items():
        told = ", ".join(f"`{name}{'*' if name.endswith('.') else ''}`" for name in names)
        yield f"| {route} | {_prose(titles[route])} | {told} |"
    yield ""


def _json(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _text(paragraph: str) -> Iterator[str]:
    yield from textwrap.wrap(paragraph, 118, break_on_hyphens=False, break_long_words=False)
    yield ""


def _page(title: str, deadline: float, rows: list[dict[str, str]], found: list[Cause]) -> Iterator[str]:
    yield from (GENERATED, "", f"# {title}", "")
    yield f"Deadline {deadline:g} s unless set by `--gpu-stage-timeout`. It asserts:"
    yield ""
    for row in rows:
        what = "" if row["kind"] == Kind.BLOCKING.value else f" ({row['kind']}: it cannot block)"
        yield f"* {row['id']}: {_prose(row['title'])}{what}"
    yield from ("", "The other pages: [runbook](../runbook.md).")
    for cause in found:
        yield from ("", f"## `{cause.id}`", "")
        yield f"**{_prose(cause.summary)}** ({cause.prerequisite}, {SEVERITIES[cause.severity]})"
        yield from ("", _prose(cause.explanation))
        blame = layers.between(*cause.views) if cause.views else None
        if blame is not None:
            yield from ("", _prose(blame.text))
        if cause.explained_by:
            named = [name for name in cause.explained_by if name != EVERYTHING]
            names = ", ".join(f"`{name}{'*' if name.endswith('.') else ''}`" for name in named)
            where = ["an earlier stage failed"] if EVERYTHING in cause.explained_by else []
            where += [f"one of these was found too: {names}"] if named else []
            yield from ("", f"A consequence, where {', or '.join(where)}.")
        if cause.next:
            yield from ("", f"Next ({cause.action.value}: {ACTIONS[cause.action]}):", "", "```")
            yield FIELD.sub(r"<\1>", cause.next).replace("{{", "{").replace("}}", "}")
            yield "```"
        yield from _ollama(cause)
        told = ", ".join(map(_source, catalogue.sources(cause)))
        if told:
            yield from ("", f"Sources: {told}" if cause.sources else f"Sources (of {cause.prerequisite}): {told}")


def _ollama(cause: Cause) -> Iterator[str]:
    family = ollama_says.of(cause.id)
    if family is None or family.name == NOT_OLLAMA:
        return
    eras = ollama_says.eras(cause.id)
    told = f"era{'s' if len(eras) > 1 else ''} {', '.join(eras)}"
    yield from ("", f"Ollama ({told}) logs at INFO {_prose(family.info)}. At DEBUG: {_prose(family.debug)}.")
    yield f"At TRACE: {_prose(family.trace)}."


def _source(source: str) -> str:
    address = catalogue.link(source)
    if address is None:
        return f"`{source}`"
    return f"<{address}>" if address == source else f"[`{source}`]({address})"


def _prose(template: str) -> str:
    """Return a template of the catalogue as Markdown: its fields as code, nothing else read as markup."""
    parts = FIELD.split(template)
    texts = [re.sub(r"([\\`*_\[\]<>|])", r"\\\1", part.replace("{{", "{").replace("}}", "}")) for part in parts[::2]]
    fields = [f"`{name}`" for name in parts[1::2]]
    woven = [texts[0]]
    for field, text in zip(fields, texts[1:], strict=True):
        woven += [field, text]
    return "".join(woven).strip()


def main() -> int:
    """Write the pages, or say which are not current."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when something would change")
    check = parser.parse_args().check
    wanted = pages()
    there = {str(path.relative_to(ROOT)) for path in (ROOT / PAGES).glob("*.md")}
    stale = sorted(there - wanted.keys())
    for name, text in wanted.items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if not check:
        for name in there - wanted.keys():
            (ROOT / name).unlink()
    print("\n".join(stale) or "the runbook is current")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
