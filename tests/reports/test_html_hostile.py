"""What a page shows may be anything: it stays text, in bounded size and time, whichever field it comes from."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.model import Verdict
from pytest_gpudiscovery.reports import html
from pytest_gpudiscovery.reports.html_text import Html, Paper, el, visible
from pytest_gpudiscovery.reports.html_values import clip, inline, outline, seconds
from tests.reports import hostile, parts, samples
from tests.reports.page import Page

# Every element and attribute that a harmless verdict with the same fields full gives.
PLAIN = Page(html.render(hostile.hostile("plain")))
SAMPLES = [Page(html.render(make())) for name, make in samples.ALL.items() if name != "hostile"]
ELEMENTS = PLAIN.elements.union(*(page.elements for page in SAMPLES))
ATTRIBUTES = PLAIN.attributes.union(*(page.attributes for page in SAMPLES))
HOSTILE = (
    hostile.EVIL,
    "</title></style></textarea><script src=//evil.example/x.js></script>",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "<a href=javascript:alert(1)>x</a><form action=//evil><input>",
    "<!--><svg><style><img src=x onerror=alert(1)>",
    "<![CDATA[ ]]> <?xml ?> <!DOCTYPE x> &amp;lt; &#x3c; &NotAnEntity;",
    "\x00\x01\x1b]8;;http://evil\x07click\x1b]8;;\x07",
    "\udcff\ud83d \ude00 \ufffe\uffff \ufeff",
    "admin\u202excod.exe \u2066 \u200f\u061c",
    "a\u0300\u0301\u0302\u0303\u0304\u0305" * 50,
    "\r\n\t\v\f\x85\u2028\u2029",
    "{{7*7}} ${7*7} <%= 7*7 %> %s %(x)s {0} {",
    "../../etc/passwd\nfile:///etc/shadow",
    "=cmd|'/c calc'!A1",
)
AWFUL = (
    st.text(st.characters(), max_size=60)
    | st.sampled_from(HOSTILE)
    | st.text("<>&\"'/=! -\x00\u202e\ud800", max_size=40)
)


def holds(text: str) -> Page:
    """Assert that TEXT in every field changes nothing but text; return the page."""
    page = Page(html.render(hostile.hostile(text)))
    assert page.elements <= ELEMENTS
    assert page.attributes <= ATTRIBUTES
    assert all(str(link.attributes["href"]).startswith("#") for link in page.root.all("a"))
    assert page.one("script").text == PLAIN.one("script").text
    assert page.one("style").text == PLAIN.one("style").text
    return page


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_every_field_is_shown_as_text(text: str) -> None:
    page = holds(text)
    assert page.text.count(visible(text)) > 40 or len(text) > 250


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(AWFUL)
def test_any_text_in_every_field_is_shown_as_text(text: str) -> None:
    page = holds(text)
    assert visible(text) in page.text


def fields(verdict: Verdict) -> set[str]:
    """Return the names of the fields of every object of VERDICT that hold a string somewhere."""
    found = set()

    def walk(value: Any, name: str) -> None:
        if isinstance(value, str):
            found.add(name)
        elif isinstance(value, dict):
            for item in value.values():
                walk(item, name)
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item, name)
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                walk(getattr(value, field.name), f"{type(value).__name__}.{field.name}")

    walk(verdict, "")
    return found


def test_the_hostile_verdict_fills_every_field_that_a_harmless_one_has() -> None:
    harmless = set().union(*(fields(make()) for name, make in samples.ALL.items() if name != "hostile"))
    assert harmless - fields(hostile.hostile()) <= {
        "Blocker.stage",
        "Blocker.subject",
        "Blocker.outcome",
        "Blocker.cause",
        "Blocker.summary",
        "Blocker.explains",
        "Blocker.surer",
    }


def test_a_hostile_blocker_is_shown_as_text() -> None:
    made = samples.blocked_in_cuinit()
    evil = dataclasses.replace(made.blockers[0], cause=hostile.EVIL, summary=hostile.EVIL, subject=hostile.EVIL)
    for stage in ("driver", hostile.EVIL):
        blocker = dataclasses.replace(evil, stage=stage, explains=(hostile.EVIL,))
        page = Page(html.render(dataclasses.replace(made, blockers=(blocker,))))
        assert page.elements <= ELEMENTS
        assert page.attributes <= ATTRIBUTES


@pytest.mark.parametrize("letter", ["x", "<", "\u202e", "\U0001f600", "\n"])
def test_ten_megabytes_in_every_field_are_cut_and_said(letter: str) -> None:
    text = "first " + letter * 10_000_000 + " last"
    begun = time.perf_counter()
    made = html.render(hostile.hostile(text))
    took = time.perf_counter() - begun
    assert len(made.encode()) < 6_000_000
    assert took < 20  # reading 10 MB a hundred times would take longer
    page = Page(made)
    assert page.elements <= ELEMENTS
    assert re.search(r"… \[\d+ characters cut, see verdict\.json\] …", page.text)


def test_a_million_rows_are_cut_and_said() -> None:
    made = samples.blocked_in_cuinit()
    driver = made.stages[5]
    many = dataclasses.replace(
        driver,
        checks=driver.checks * 100_000,
        steps=driver.steps * 100_000,
        evidence={f"p{i}": "x" for i in range(9_000)},
    )
    records = tuple(many if record is driver else record for record in made.stages)
    gpus = tuple(parts.gpu(index % 8) for index in range(5_000))
    text = html.render(dataclasses.replace(made, stages=records, gpus=gpus, notes=("note",) * 100_000))
    assert len(text.encode()) < 6_000_000
    assert re.search(r"\d+ more: see verdict\.json", Page(text).text)


def test_the_first_screen_survives_a_verdict_that_fills_the_page() -> None:
    made = samples.blocked_in_cuinit()
    full = dataclasses.replace(made.stages[0], summary="y" * 1000, evidence={f"p{i}": "x" * 60_000 for i in range(400)})
    page = Page(html.render(dataclasses.replace(made, stages=(*[full] * 30, *made.stages[1:]))))
    assert "BLOCKED at 06 driver: cuInit(0) did not return within 45 s" in page.one("h1").text
    assert parts.CUINIT in page.text


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters()))
def test_visible_text_has_nothing_that_acts_and_loses_nothing(text: str) -> None:
    shown = visible(text)
    shown.encode()  # no lone surrogate is left
    assert not re.search(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", shown
    )
    assert visible(shown) == shown
    if "\\" not in text:
        escape = re.compile(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}")
        assert escape.sub(lambda match: chr(int(match.group()[2:], 16)), shown) == text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300), st.integers(1, 50))
def test_a_cut_keeps_the_begin_and_the_end_and_never_makes_it_longer(text: str, limit: int) -> None:
    cut = clip(text, limit)
    assert len(cut) <= len(text)
    if len(text) <= limit:
        assert cut == text
    else:
        assert text.startswith(cut.partition(" … [")[0])
        assert text.endswith(cut.rpartition("] … ")[2])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=30,
)


@settings(max_examples=200, deadline=None)
@given(JSON, st.integers(20, 300))
def test_any_json_is_written_within_its_limit(value: Any, limit: int) -> None:
    assert len(inline(value, limit)) <= limit + 80
    assert len(outline(value, limit)) <= limit + 80
    Page(str(el("pre", Paper().block(value, limit))))


@given(JSON)
def test_seconds_takes_anything(value: Any) -> None:
    assert seconds(value)


def test_a_deep_object_and_a_huge_integer_are_said_to_be_there() -> None:
    deep: Any = "bottom"
    for _ in range(5_000):
        deep = {"k": [deep]}
    assert "…" in outline(deep, 10_000)
    assert "…" in inline(deep, 10_000)
    assert inline(10**6000, 100) == "an integer of 19932 bits"


def test_only_html_is_taken_as_markup() -> None:
    assert el("p", "<b>", Html("<i></i>"), title='"<') == '<p title="&quot;&lt;">&lt;b&gt;<i></i></p>'
