"""Allure's own report of the same verdicts, written as `--alluredir` writes it, generated and photographed.

`look(COMMAND, NAME, VERDICTS, OUT)` is what `ci/look.py --allure COMMAND` calls. With Allure 3 it uses the template in
ci/templates/allure, opens the report as a person does, and returns what is wrong: rows out of order, a green row under
a verdict that is not usable, a title without the verdict. Allure 2 is only photographed.
"""

from __future__ import annotations

import html as escapes
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from look_browser import SCHEMES, chromium, photograph

from pytest_gpudiscovery.model import Verdict
from pytest_gpudiscovery.reports import allure

TEMPLATE = Path(__file__).parent / "templates" / "allure" / "allurerc.mjs"
LIMIT_S = 180
TRIES = 3  # of a visit: on a machine that is busy a page may not be unpacked when its time is up
# What a picture shows: the width, the height, and what is done before it is taken.
FIRST = ""
STAGE = "of('tree-leaf').filter(e=>!e.textContent.includes('00 '))[0].click();await until('test-result-info-title');"
# The groups of hosts that are not ready unfold by themselves, a little after they are there.
UNFOLD = "await until('tree-leaf',100);if(!of('tree-leaf').length){for(const e of of('tree-arrow'))e.click();"
UNFOLD += "await until('tree-leaf');}"
SWITCH = "const all=[...document.querySelectorAll('button')];"
SWITCH += "const own=all[all.findIndex(e=>e.dataset.testid=='toggle-layout-button')+1];"
SWITCH += "own.click();await pause(500);own.click();await pause(2000);"  # as the system says, light, dark
VIEWS: tuple[tuple[str, int, int, str, str], ...] = (
    ("first-1280-light", 1280, 900, "light", FIRST),
    ("first-1280-dark", 1280, 900, "dark", FIRST),
    ("first-1280-switched", 1280, 900, "light", SWITCH),
    ("first-400-light", 400, 1400, "light", FIRST),
    ("stage-1280-light", 1280, 1300, "light", UNFOLD + STAGE),
    ("stage-400-dark", 400, 1700, "dark", UNFOLD + STAGE),
)
# Virtual time does not wait for the report to unpack its data: between two looks the page keeps the processor busy.
ACT = """<script>const pause=ms=>new Promise(r=>setTimeout(r,ms));
const of=id=>[...document.querySelectorAll(`[data-testid="${{id}}"]`)];
const until=async(id,looks=200)=>{{for(let i=0;i<looks&&!of(id).length;i++){{for(let k=0;k<2e7;k++);await pause(20);}}
await pause(500);}};
addEventListener('load',async()=>{{await until('tree-arrow');{}}});</script>"""
ROWS = (
    UNFOLD
    + """document.documentElement.setAttribute('data-rows',JSON.stringify([document.title,
of('tree-leaf').map(e=>[e.querySelector('[data-testid=tree-leaf-title]').textContent,
(e.querySelector('[data-testid^=tree-leaf-status]')||{dataset:{testid:''}}).dataset.testid])]));"""
)
FOUND = re.compile(r'data-rows="([^"]*)"')
VIRTUAL = ("--allow-file-access-from-files", "--virtual-time-budget=12000")


def look(command: str, name: str, verdicts: Sequence[Verdict], out: Path) -> list[str]:
    """Write OUT/NAME-allure2.png, or OUT/NAME-allure-*.png and .pdf; return what is wrong."""
    version = _run(command, "--version").strip()
    with tempfile.TemporaryDirectory() as scratch:
        results, report = Path(scratch) / "allure-results", Path(scratch) / "allure-report"
        for verdict in verdicts:
            allure.write(str(results), verdict, {})
        if version.startswith("2."):
            _run(command, "generate", str(results), "-o", str(report))
            picture = ("--window-size=1280,900", f"--screenshot={out / name}-allure2.png")
            _visit(report / "index.html", *picture)
            return []
        shutil.copy(TEMPLATE, scratch)
        _run(command, "generate", "--config", TEMPLATE.name, str(results), cwd=scratch)
        wrong = _judge(_acting(report, "rows", ROWS), name, verdicts)
        for view, width, height, scheme, script in VIEWS:
            page = _acting(report, view, script)
            shot = out / f"{name}-allure-{view}.png"
            for _ in range(TRIES):
                with tempfile.TemporaryDirectory() as profile:  # Allure keeps what was unfolded and switched in it
                    said = photograph(page, shot, width, height, profile, *VIRTUAL, *SCHEMES[scheme][:1])
                bad = [line for line in said if "CONSOLE" not in line or "Uncaught" in line]  # it logs by itself
                if not bad:
                    break
            wrong += bad
        paper = ("--no-pdf-header-footer", f"--print-to-pdf={out / name}-allure.pdf")
        _visit(report / "index.html", *paper)
    return wrong


def _run(*command: str, cwd: str | None = None) -> str:
    """Return what COMMAND prints; raises CalledProcessError or TimeoutExpired."""
    environment = {**os.environ, "ALLURE_RESULTS": "allure-results", "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, check=True, cwd=cwd, env=environment
    )
    return done.stdout


def _visit(page: Path, *flags: str) -> str:
    """Return what a browser without a past prints of PAGE."""
    with tempfile.TemporaryDirectory() as profile:
        return chromium(page.as_uri(), profile, *VIRTUAL, *flags)[0]


def _acting(report: Path, name: str, script: str) -> Path:
    """Return a copy of REPORT's page that does SCRIPT once it is there."""
    begin, end, rest = (report / "index.html").read_text(encoding="utf-8").rpartition("</body>")
    page = report / f"{name}.html"
    page.write_text(begin + ACT.format(script) + end + rest, encoding="utf-8")
    return page


def _judge(page: Path, name: str, verdicts: Sequence[Verdict]) -> list[str]:
    """Return what is wrong with the rows of PAGE; of several hosts, only the title is looked at."""
    title, rows = "", []
    for _ in range(TRIES):
        found = FOUND.search(_visit(page, "--dump-dom").partition("<head")[0])
        title, rows = json.loads(escapes.unescape(found[1])) if found else ("", [])
        if rows:
            break
    word = verdicts[0].verdict.value.upper()
    wrong = [] if word in title else [f"{name}: Allure's title is {title!r}"]
    if len(verdicts) == 1:
        titles = [text for text, _ in rows]
        if not titles or not titles[0].startswith("00 ") or titles != sorted(titles):
            wrong.append(f"{name}: Allure's order is {titles}")
        if verdicts[0].verdict not in allure.GREEN:
            wrong += [f"{name}: green under {word}: {text}" for text, status in rows if "passed" in status]
    return wrong
