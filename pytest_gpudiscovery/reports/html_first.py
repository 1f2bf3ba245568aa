"""The first screen: the verdict, where it is stuck and in what, since when, the next command, the versions."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_gpudiscovery.model import State, Verdict
from pytest_gpudiscovery.reports.html_marks import BAD, WARN, mark
from pytest_gpudiscovery.reports.html_story import ACTIONS, Also, Fact, Story, label
from pytest_gpudiscovery.reports.html_text import Html, Paper, el, join

VERSIONS = (
    ("driver", "Driver"),
    ("cuda_driver", "CUDA of the driver"),
    ("ollama", "Ollama"),
)
HOST = (("kernel", "Kernel"), ("glibc", "glibc"), ("arch", "Machine"))
MEANS = {
    State.READY: "Every stage that was asked for has its answer, and none objects.",
    State.DEGRADED: "The GPUs can be used. What is named here costs time, or may stop it later.",
    State.BLOCKED: "The GPUs cannot be used as asked: a required stage did not pass.",
    State.INCOMPLETE: "Nobody knows: a required stage has no answer. This is neither a pass nor a fault of the host.",
}
SIMULATED = "SIMULATED HOST: this says nothing about a real machine"


def banner(verdict: Verdict, paper: Paper, name: str) -> Html:
    """Return the band that says that nothing here is real; nothing for a real host. NAME labels the landmark."""
    if verdict.simulated is None:
        return Html("")
    what = paper.text(_simulated(verdict.simulated), 300)
    return el("div", f"{SIMULATED} (", what, ")", class_="simulated", role="region", aria_label=f"Simulated, {name}")


def _simulated(value: object) -> object:
    if not isinstance(value, dict):
        return value
    faults = value.get("faults")
    many = isinstance(faults, list) and len(faults) > 1
    listed = ", ".join(map(str, faults)) if isinstance(faults, list) else faults
    words = {"host": value.get("host"), "faults" if many else "fault": listed}
    return {key: item for key, item in words.items() if item}


def hero(verdict: Verdict, story: Story, paper: Paper) -> Html:
    """Return the band with the verdict in it."""
    host = verdict.host.get("name") if isinstance(verdict.host, dict) else None
    state = ("SIMULATED " if verdict.simulated is not None else "") + verdict.verdict.value.upper()
    return el(
        "header",
        el("div", "GPU discovery on ", el("bdi", paper.text(host or "this host", 200)), class_="host"),
        el("h1", el("span", state, " ", class_="state"), el("bdi", paper.text(story.headline, 400))),
        el("p", MEANS[verdict.verdict], class_="means"),
        class_="hero",
    )


def first(verdict: Verdict, story: Story, paper: Paper) -> Html:
    """Return what is known about it, beside the next command and the versions."""
    lead, more = (_facts([fact for fact in story.facts if fact.lead is lead], paper) for lead in (True, False))
    link = Html("")
    if story.where is not None and (story.where.checks or story.where.evidence or story.where.steps):
        place = f"#stage-{list(verdict.stages).index(story.where) + 1}"
        link = el("p", el("a", "Everything about ", paper.text(label(story.where.name), 60), href=place))
    found = el("section", lead, class_="lead-facts", aria_label="What was found")
    rest = el(
        "section", more, _also(story.also, verdict, paper), link, class_="more-facts", aria_label="Why, and what else"
    )
    both = el("div", el("div", found, rest, class_="side"), _next(story, paper), class_="first")
    return join((both, _versions(verdict, paper)))


def command(text: str, action: str, meaning: str, paper: Paper) -> Html:
    """Return a command that can be copied, after what it does to the host."""
    return join(
        (
            el("p", el("span", action, class_=f"tag {action}"), " ", meaning, class_="action"),
            el("code", paper.text(text, 2_000), class_="command"),
        )
    )


def _facts(facts: list[Fact], paper: Paper) -> Html:
    return el("dl", join(_fact(fact, paper) for fact in facts)) if facts else Html("")


def _fact(fact: Fact, paper: Paper) -> Html:
    value = el("span", paper.text(fact.value, 3_000), class_="v code" if fact.code else "v")
    note = el("span", fact.note, class_="note") if fact.note else None
    return join((el("dt", fact.label), el("dd", value, note)))


def _next(story: Story, paper: Paper) -> Html:
    if not story.command:
        text = "Nothing to do." if story.where is None else "None is known for this; the reason is beside it."
        return el("section", el("h2", "Next", id="next"), text, class_="box next", aria_labelledby="next")
    return el(
        "section",
        el("h2", "Next command", id="next"),
        command(story.command, story.action.value, ACTIONS[story.action], paper),
        class_="box next",
        aria_labelledby="next",
    )


def _also(also: tuple[Also, ...], verdict: Verdict, paper: Paper) -> Html:
    if not also:
        return Html("")
    bad = "blocks too" if verdict.verdict is State.BLOCKED else "failed"
    kept, cut = paper.rows(also, 6)
    items = [
        el(
            "li",
            mark(BAD, bad) if item.blocks else mark(WARN, "warning"),
            " ",
            paper.text(label(item.stage), 60),
            ": ",
            el("bdi", paper.text(item.summary, 200)),
        )
        for item in kept
    ]
    return join((el("h2", "Also found"), el("ul", join(items), class_="plain"), cut or Html("")))


def _versions(verdict: Verdict, paper: Paper) -> Html:
    rows = [*_known(verdict.versions, VERSIONS, paper), *_known(verdict.host, HOST, paper), *_gpus(verdict, paper)]
    rows.append(_pair("Probed as", _probed_as(verdict), paper))
    return el("section", el("dl", join(rows), class_="strip"), class_="box", aria_label="Versions and host")


def _pair(title: str, value: object, paper: Paper) -> Html:
    return el("div", el("dt", title), el("dd", paper.text(value, 300)))


def _known(values: object, names: tuple[tuple[str, str], ...], paper: Paper) -> list[Html]:
    known = values if isinstance(values, Mapping) else {}
    required = names is VERSIONS
    return [
        _pair(title, version(known.get(key)), paper) for key, title in names if known.get(key) is not None or required
    ]


def version(value: object) -> object:
    """Return VALUE as a version: CUDA's 13010 is 13.1; anything else is what it is."""
    if isinstance(value, int) and 1000 <= value < 1_000_000:
        return f"{value // 1000}.{value % 1000 // 10}"
    return "not known" if value is None else value


def _gpus(verdict: Verdict, paper: Paper) -> list[Html]:
    return [_pair("GPUs", gpu_kinds(verdict), paper)]


def gpu_kinds(verdict: Verdict) -> str:
    """Return how many of which GPU stage 07 found, or whether it looked at all."""
    names = [gpu_name(gpu) for gpu in verdict.gpus[:256]]
    looked = any(record.name == "enumeration" and record.duration_s > 0 for record in verdict.stages)
    kinds = "; ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return kinds or ("no GPU seen" if looked else "GPUs not enumerated")


def gpu_name(gpu: object) -> str:
    """Return what the first view that knows it calls a GPU."""
    views = gpu.get("views") if isinstance(gpu, dict) else None
    for view in views.values() if isinstance(views, dict) else ():
        for key in ("name", "model"):
            if isinstance(view, dict) and isinstance(view.get(key), str):
                return str(view[key])
    return "GPU without a name"


def _probed_as(verdict: Verdict) -> str:
    context = verdict.context if isinstance(verdict.context, dict) else {}
    who = str(context.get("as") or "caller")
    return f"{who}, uid {context['uid']}" if context.get("uid") is not None else who
