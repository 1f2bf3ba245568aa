"""report.html: what a person finds where, in every kind of verdict, and that nothing of it needs a network."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_gpudiscovery.model import Outcome, State, Verdict
from pytest_gpudiscovery.reports import html
from pytest_gpudiscovery.reports.html_style import STYLE
from tests.reports import hostile, parts, samples
from tests.reports.page import Element, Page

EVERY = pytest.mark.parametrize("make", samples.ALL.values(), ids=samples.ALL)


def page_of(verdict: Verdict) -> Page:
    return Page(html.render(verdict))


def first_screen(page: Page) -> str:
    main = page.one("main")
    return page.one("header").text + main.children[0].text + main.children[1].text


@EVERY
def test_the_verdict_is_the_first_heading(make: Callable[[], Verdict]) -> None:
    made = make()
    page = page_of(made)
    state = made.verdict.value.upper()
    assert page.one("h1").text.startswith(f"SIMULATED {state} " if made.simulated else f"{state} ")
    assert state in next(page.one("head").all("title")).text
    assert page.one("body").attributes["class"] == made.verdict.value


@EVERY
def test_headings_descend_by_one_and_landmarks_are_named(make: Callable[[], Verdict]) -> None:
    page = page_of(make())
    levels = [int(name[1]) for name in _headings(page.root)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for name in ("header", "main", "footer"):
        page.one(name)
    ids = page.ids()
    assert len(ids) == len(set(ids))
    for section in page.root.all("section"):
        label = section.attributes.get("aria-labelledby")
        assert label in ids if label else section.attributes.get("aria-label")
    for link in page.root.all("a"):
        assert str(link.attributes["href"]).removeprefix("#") in ids


def _headings(element: Element) -> list[str]:
    found = [element.name] if re.fullmatch(r"h[1-6]", element.name) else []
    return found + [name for child in element.children for name in _headings(child)]


@EVERY
def test_nothing_outside_of_the_file_is_named(make: Callable[[], Verdict]) -> None:
    made = make()
    text = html.render(made)
    page = Page(text)
    loading = {"src", "srcset", "action", "background", "poster", "data", "formaction", "xlink:href", "style"}
    assert not {name for _, name in page.attributes} & loading
    assert not page.elements & {"link", "img", "iframe", "object", "embed", "base", "form", "image", "use", "audio"}
    assert all(str(link.attributes["href"]).startswith("#") for link in page.root.all("a"))
    assert not re.search(r"@import|https?:|//|@font-face", STYLE)
    assert re.findall(r"url\(([^)]*)\)", STYLE) == ["#hatch"]
    policy = next(str(meta.attributes["content"]) for meta in page.root.all("meta") if "http-equiv" in meta.attributes)
    assert policy.startswith("default-src 'none'; ")


def test_the_ladder_has_every_stage_in_order_with_its_outcome() -> None:
    made = samples.blocked_in_cuinit()
    rows = next(page_of(made).root.all("ol")).children
    assert [row.text.split()[0] for row in rows] == [f"{number:02d}" for number in range(1, 15)]
    by_name = {row.text.split()[1]: row for row in rows}
    assert "48.9 s of 45 s; over Ollama's 30 s" in by_name["driver"].text
    assert "unkillable" in by_name["driver"].text
    assert "because of 06 driver" in by_name["runtime"].text
    for name in parts.UNASKED:
        assert "not selected" in by_name[name].text
        assert "after the target runtime" in by_name[name].text


def test_a_blocked_host_says_at_once_in_what_since_when_and_what_to_do() -> None:
    screen = first_screen(page_of(samples.blocked_in_cuinit()))
    assert "BLOCKED at 06 driver: cuInit(0) did not return within 45 s" in screen
    assert parts.CUINIT in screen
    assert "not even SIGKILL" in screen
    assert "2026-11-22 21:25:14 UTC; the deadline 45 s passed at 21:25:59 UTC" in screen
    assert "cuInit(0), begun 44.7 s before the deadline at 21:25:15 UTC; it did not return" in screen
    assert "gives up after 30 s" in screen
    assert "07 enumeration, 08 runtime" in screen
    assert parts.DRIVER in screen
    assert "systemd:ollama.service, uid 997" in screen
    assert "CUDA of the driver13.0" in screen


@pytest.mark.parametrize(
    ("make", "command", "action"),
    [
        (samples.blocked_in_cuinit, "dmesg", "safe reads only"),
        (samples.needs_reset, "nvidia-smi --gpu-reset -i 0", "destructive ends work that runs on the GPU"),
        (samples.incomplete, "pytest --gpu-discovery --gpu-until upgrade", "safe"),
    ],
)
def test_the_next_command_stands_alone_and_says_what_it_does(
    make: Callable[[], Verdict], command: str, action: str
) -> None:
    page = page_of(make())
    box = next(section for section in page.root.all("section") if section.attributes.get("class") == "box next")
    code = next(box.all("code"))
    assert code.text.startswith(command)
    assert code.attributes["class"] == "command"
    assert action in box.text.replace(code.text, "")


def test_a_ready_host_has_nothing_to_do_and_says_what_was_not_asked() -> None:
    screen = first_screen(page_of(samples.healthy()))
    assert "READY 8 stages passed, up to 08 runtime" in screen
    assert "Nothing to do." in screen
    assert "12 bootstrap" in screen


def test_a_check_that_nobody_could_make_is_what_an_incomplete_verdict_names() -> None:
    screen = first_screen(page_of(samples.not_allowed()))
    assert "INCOMPLETE at 04 kernel" in screen
    assert "P34" in screen
    assert "may not be listed by uid 1000" in screen


def test_passed_is_green_only_on_a_ready_host() -> None:
    """Passed takes its colour from --passed, which is the ink of secondary text unless the body is `ready`."""
    assert re.findall(r"--passed:([^;}]+)", STYLE.partition("@media print")[0]) == ["#57606a", "#9ba6b2", "var(--good)"]
    assert ".ready{--passed:var(--good)" in STYLE
    green = {"--good", "--passed", "--bar"}
    users = {name for name in green if re.search(rf"\.passed\{{color:var\({name}\)", STYLE)}
    assert users == {"--passed"}


@EVERY
def test_no_outcome_is_said_by_colour_alone(make: Callable[[], Verdict]) -> None:
    """Every coloured word follows a symbol that is hidden from a screen reader, which reads the word."""
    page = page_of(make())
    marks = [span for span in page.root.all("span") if str(span.attributes.get("class")).startswith("word ")]
    for mark in marks:
        (symbol,) = mark.children
        assert symbol.attributes["aria-hidden"] == "true"
        assert len(mark.text.removeprefix(symbol.text).strip()) > 3
    if any(record.checks for record in make().stages):
        assert marks


def test_simulated_is_said_first_and_last() -> None:
    page = page_of(samples.simulated())
    bands = [div for div in page.root.all("div") if div.attributes.get("class") == "simulated"]
    assert [band.text for band in bands] == [
        "SIMULATED HOST: this says nothing about a real machine (host h100, fault driver.cuinit.hang)"
    ] * 2
    children = page.one("body").children
    assert children[1] is bands[0]
    assert children[-2] is bands[1]
    assert "SIMULATED" not in html.render(samples.blocked_in_cuinit())


def test_every_gpu_is_shown_by_every_source_and_the_missing_one_is_open() -> None:
    page = page_of(samples.eight_gpus())
    section = next(part for part in page.root.all("section") if part.attributes.get("aria-labelledby") == "gpus")
    parts = [part for part in section.children if part.name == "details"]
    assert len(parts) == 8
    assert [part for part in parts if "open" in part.attributes] == [parts[6]]
    assert "seen by sysfs, NVML; not by CUDA, pynvml, cuda-python" in parts[6].text
    assert "is on the host and not shown by CUDA" in parts[6].text
    heads = [head.text for head in parts[0].all("th") if head.attributes.get("scope") == "col"]
    assert heads == ["sysfs", "NVML", "CUDA", "pynvml", "cuda-python"]
    assert "total 79.65 GiB" in parts[0].text


@EVERY
def test_every_check_is_a_row_with_its_prerequisite(make: Callable[[], Verdict]) -> None:
    made = make()
    rows = [row.text for row in page_of(made).root.all("tr")]
    for record in made.stages:
        for check in record.checks:
            if made.notes != (hostile.EVIL,):
                assert any(row.startswith(f"{check.prerequisite} ") and check.reason in row for row in rows)


def test_the_stage_that_stopped_the_run_is_open_and_passed_ones_are_folded() -> None:
    page = page_of(samples.blocked_in_cuinit())
    shown = {
        part.attributes["id"]: "open" in part.attributes
        for part in page.root.all("details")
        if part.attributes.get("id")
    }
    assert shown["stage-6"]
    assert not shown["stage-1"]
    evidence = next(part for part in page.root.all("details") if part.text.startswith("Evidence: driver"))
    assert "open" not in evidence.attributes
    assert "rwsem_down_read_slowpath+0x2c4" in evidence.text
    assert "retrying ioctl NV_ESC_RM_ALLOC" in evidence.text


def test_an_open_step_is_hatched_up_to_the_end_of_its_stage() -> None:
    page = page_of(samples.blocked_in_cuinit())
    picture = next(svg for svg in page.root.all("svg") if svg.attributes.get("role") == "img")
    late = [rect for rect in picture.all("rect") if rect.attributes.get("class") == "late"]
    assert [rect.text for rect in late] == ["cuInit(0): did not return"]
    assert float(str(late[0].attributes["width"]).rstrip("%")) > 90
    assert "06 driver 48.9 s" in picture.text
    assert {"Ollama's 30 s", "deadline 45 s"} <= {text.text for text in picture.all("text")}


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("state", list(State))
def test_every_outcome_in_every_state_has_a_page(outcome: Outcome, state: State) -> None:
    """Also combinations that the verdict's rules exclude: a report must not fail where it is needed most."""
    made = samples.healthy()
    records = [*made.stages[:5], dataclasses.replace(made.stages[5], outcome=outcome, checks=()), *made.stages[6:]]
    page = page_of(dataclasses.replace(made, verdict=state, stages=tuple(records), blockers=()))
    assert state.value.upper() in page.one("h1").text


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e300, 1e300, 0.0])
def test_impossible_times_are_no_reason_to_fail(number: float) -> None:
    made = samples.blocked_in_cuinit()
    records = [
        dataclasses.replace(
            record,
            started=number,
            duration_s=number,
            deadline_s=number,
            ollama_budget_s=number,
            steps=tuple(dataclasses.replace(step, started=number, duration_s=number) for step in record.steps),
        )
        for record in made.stages
    ]
    page_of(dataclasses.replace(made, stages=tuple(records)))


def test_a_stage_of_another_plugin_has_no_number() -> None:
    made = samples.healthy()
    added = parts.record("interconnect", Outcome.PASSED, "NVLink is up")
    rows = next(page_of(dataclasses.replace(made, stages=(*made.stages, added))).root.all("ol")).children
    assert rows[-1].text.startswith("interconnect")


def test_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / html.NAME).write_text("old")
    (tmp_path / f".{html.NAME}.left").write_text("of somebody else")
    html.write(str(tmp_path), samples.healthy())
    assert (tmp_path / html.NAME).read_text(encoding="utf-8") == html.render(samples.healthy())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{html.NAME}.left", html.NAME]


def test_a_directory_that_cannot_be_written_is_an_oserror_and_keeps_the_old_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        html.write(str(tmp_path / "nowhere"), samples.healthy())
    (tmp_path / html.NAME).mkdir()  # cannot be replaced by a file, also not by root
    with pytest.raises(OSError, match=html.NAME):
        html.write(str(tmp_path), samples.healthy())
    assert [path.name for path in tmp_path.iterdir()] == [html.NAME]


def test_a_link_in_place_of_the_report_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    directory = tmp_path / "report"
    directory.mkdir()
    (directory / html.NAME).symlink_to(victim)
    html.write(str(directory), samples.healthy())
    assert victim.read_text() == "untouched"
    assert not (directory / html.NAME).is_symlink()


def test_gpus_that_nobody_looked_for_are_not_called_none() -> None:
    screen = page_of(samples.blocked_in_cuinit()).text
    assert "GPUs not enumerated" in screen
    assert "no GPU seen" not in screen


def test_paper_gets_the_tables_of_a_wide_screen() -> None:
    """A sheet is narrower than 821 pixels: rules for narrow screens would print every table as a stack of lines."""
    assert "@media screen and (max-width:820px)" in STYLE
    assert "@media (max-width" not in STYLE
    assert "@media print,(min-width:821px)" in STYLE
