"""Render verdicts and photograph them in headless Chromium: wide, narrow, light, dark, and on paper.

    python ci/look.py OUT [NAME | verdict.json ...] [--axe axe.min.js] [--allure COMMAND]

A NAME is a sample of tests/reports/samples.py (default: all of them); a file is the verdict of a run. Writes
OUT/NAME.html, OUT/NAME-{1280,400}-{light,dark}.png (the whole page) and OUT/NAME.pdf, and exits 1 when a page is
wider than its window, writes to the console, asks for anything but itself or, with --axe, when axe-core (npm package
axe-core) finds something serious. With --allure, Allure's report of the same verdicts too (look_allure.py). Needs
`chromium` (Debian's package), so it is no part of the test suite.
"""

from __future__ import annotations

import argparse
import dataclasses
import html as escapes
import json
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import look_allure
from look_browser import SCHEMES, chromium, framed, photograph

from pytest_gpudiscovery.model import Verdict, verdict_from_json
from pytest_gpudiscovery.reports import html
from tests.reports import samples

WIDTHS = (1280, 400)
AXE_WIDTHS = (1280, 500)
SCRATCH = re.compile(r"/\w+/gpu-discovery-\d+-\w+/simulated")
FIRST_SCREEN = 800  # pixels of height: what is seen before scrolling
# The window's own width, then what sticks out of it; asked by a script that the page under test does not have.
MEASURE = """<script>
const wide=[...document.querySelectorAll('body *')].filter(e=>!e.closest('.skip,svg,thead,pre'))
.filter(e=>e.getBoundingClientRect().right>innerWidth+1).map(e=>e.tagName+'.'+e.className).slice(0,5);
document.documentElement.setAttribute('data-measured',
[document.documentElement.scrollWidth,innerWidth,document.body.scrollHeight,wide.join(' ')].join(';'));
</script>"""
MEASURED = re.compile(r'data-measured="(\d+);(\d+);(\d+);([^"]*)"')
SERIOUS = ("serious", "critical")  # axe-core's impacts
AXE = """<script>
for(const part of document.querySelectorAll('details'))part.open=true;
axe.run(document,{resultTypes:['violations']}).then(found=>document.documentElement.setAttribute('data-axe',
JSON.stringify(found.violations.map(v=>[v.impact,v.id,v.help,v.nodes.slice(0,3).map(n=>n.html.slice(0,120))]))));
</script>"""
AXE_FOUND = re.compile(r'data-axe="([^"]*)"')


def measure(page: Path, width: int, profile: str) -> tuple[list[str], int]:
    """Return what is wrong with PAGE at WIDTH pixels, and its height there."""
    probe = page.with_suffix(".measured.html")
    text = page.read_text(encoding="utf-8")
    probe.write_text(
        re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", MEASURE + "</body>"), encoding="utf-8"
    )
    outer = page.with_suffix(".outer.html")
    # Same-origin access between files is off; the frame reports by its own attribute, read from a page of its width.
    outer.write_text(
        framed(probe, width).replace("<body", "<html><body", 1)
        + "<script>onload=()=>{const d=document.querySelector('iframe').contentDocument;"
        "document.documentElement.setAttribute('data-measured',d.documentElement.getAttribute('data-measured'))}</script>",
        encoding="utf-8",
    )
    dom, _ = chromium(
        outer.as_uri(), profile, "--dump-dom", "--allow-file-access-from-files", "--virtual-time-budget=3000"
    )
    probe.unlink()
    outer.unlink()
    found = MEASURED.search(dom)
    if found is None:
        return [f"{page.name} at {width}: no measurement came back"], FIRST_SCREEN
    scroll, inner, height = (int(found[index]) for index in (1, 2, 3))
    wide = [f"{page.name} at {width}: {scroll} pixels wide ({found[4]})"] if scroll > inner or found[4] else []
    return wide, height


def judge(page: Path, axe: Path, width: int, profile: str) -> list[str]:
    """Return what axe-core finds serious in PAGE at WIDTH pixels (at least 500), with every folded part open."""
    probe = page.with_suffix(".axe.html")
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    script = f"<script>{axe.read_text(encoding='utf-8')}</script>{AXE}"
    probe.write_text(text.replace("</body>", script + "</body>"), encoding="utf-8")
    dom, _ = chromium(
        probe.as_uri(), profile, "--dump-dom", "--virtual-time-budget=20000", f"--window-size={width},1000"
    )
    probe.unlink()
    found = AXE_FOUND.search(dom.partition("<head")[0])
    if found is None:
        return [f"{page.name} at {width}: axe-core gave no answer"]
    rows = json.loads(escapes.unescape(found[1]))
    return [
        f"{page.name} at {width}: {impact}: {rule}: {text}: {nodes}"
        for impact, rule, text, nodes in rows
        if impact in SERIOUS
    ]


def verdicts(names: list[str]) -> dict[str, Verdict]:
    """Return the verdicts that NAMES stand for, by the name that their pictures get.

    What only the simulation adds is taken out: the scratch directory before each path, the kernel's own suffix.
    """
    found = {}
    for name in names:
        if name in samples.ALL:
            found[name] = samples.ALL[name]()
        else:
            path = Path(name)
            text = SCRATCH.sub("", path.read_text(encoding="utf-8"))
            verdict = verdict_from_json(json.loads(text))
            if verdict.simulated is not None:  # the kernel is of the machine that runs the simulation
                kernel = str(verdict.host.get("kernel", "")).partition("-")[0]
                verdict = dataclasses.replace(verdict, host={**verdict.host, "kernel": kernel})
            found[path.resolve().parent.name] = verdict
    return found


def main() -> int:
    """Render, measure, photograph; return 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--axe", type=Path, help="axe.min.js of the npm package axe-core")
    parser.add_argument("--first", action="store_true", help="only the first screen, not the whole page")
    parser.add_argument("--allure", action="append", default=[], help="command of Allure 3 or 2; repeatable")
    parser.add_argument("--only-allure", action="store_true", help="no pictures of report.html")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    out = given.out.resolve()
    wrong: list[str] = []
    asked = verdicts(given.names or list(samples.ALL))
    for command in given.allure:
        for name, verdict in asked.items():
            wrong += look_allure.look(command, name, [verdict], out)
        if len(asked) > 1:
            wrong += look_allure.look(command, "hosts", list(asked.values()), out)
    with tempfile.TemporaryDirectory() as profile:
        for name, verdict in () if given.only_allure else asked.items():
            page = out / f"{name}.html"
            page.write_text(html.render(verdict), encoding="utf-8")
            for width in AXE_WIDTHS if given.axe else ():
                wrong += judge(page, given.axe, width, profile)
            for width in WIDTHS:
                complaints, height = measure(page, width, profile)
                wrong += complaints
                for scheme in SCHEMES:
                    shown = FIRST_SCREEN if given.first else min(height + 10, 12_000)
                    picture = out / f"{name}-{width}-{scheme}.png"
                    wrong += photograph(page, picture, width, shown, profile, *SCHEMES[scheme])
            chromium(page.as_uri(), profile, "--no-pdf-header-footer", f"--print-to-pdf={out / name}.pdf")
    said = [] if given.only_allure else ["no page is too wide, no message on the console, nothing asked for"]
    said += ["nothing serious for axe-core"] if given.axe else []
    said += ["Allure: verdict in the title, stages in order, no green under a host that is not usable"] * bool(
        given.allure
    )
    print("\n".join(wrong or said))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
