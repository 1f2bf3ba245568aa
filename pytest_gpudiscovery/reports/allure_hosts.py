"""environment.properties of Allure: one host as plain keys, several hosts as one line each, worst first.

The file is added to by every host that shares the results' directory. What each host said is kept in comment lines of
the file itself (Allure 2 and 3 skip them), so the lines that are shown can be made again from all of them. Only the
block between BEGIN and END is ours; the lines of others are kept.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

from pytest_gpudiscovery.model import State, Verdict
from pytest_gpudiscovery.reports.html_first import gpu_kinds, version
from pytest_gpudiscovery.reports.html_story import label, tell
from pytest_gpudiscovery.reports.html_text import visible
from pytest_gpudiscovery.reports.html_values import clip, inline

NAME = "environment.properties"
BEGIN, END = "# gpu-discovery: begin", "# gpu-discovery: end"
KEPT = "# gpu-discovery: host "
READ_LIMIT = 1 << 20  # bytes of an existing file that is added to
LONGEST = 2_000  # characters of a name: more than 100 escaped ones, or a host would not be known again
WORST = (State.BLOCKED.value, State.INCOMPLETE.value, State.DEGRADED.value, State.READY.value)
SIMULATED = "SIMULATED "
OURS = re.compile(r"[0-9a-f-]{36}-(result\.json|attachment\.[a-z]{3,4})")


@dataclass(frozen=True)
class Host:
    """What one host says of itself; `files` are the names of its results and attachments in the directory."""

    name: str
    verdict: str
    simulated: bool = False
    at: str = ""
    rows: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """SIMULATED, where it was, and the verdict in capitals."""
        return (SIMULATED if self.simulated else "") + self.verdict.upper()

    @property
    def headline(self) -> str:
        """The verdict and the stage that decided it: "BLOCKED at 09 closure"."""
        return f"{self.word} at {self.at}" if self.at else self.word

    @property
    def short(self) -> str:
        """The name without the word that the verdict says already: Allure 3 shows 14 characters of a key."""
        return self.name.removeprefix(SIMULATED.lower()) if self.simulated else self.name


def host_from(verdict: Verdict, name: str, files: Iterable[str]) -> Host:
    """Return what VERDICT says of host NAME: its rows in the order in which a person asks for them."""
    story = tell(verdict)
    known = verdict.versions if isinstance(verdict.versions, dict) else {}
    host = verdict.host if isinstance(verdict.host, dict) else {}
    context = verdict.context if isinstance(verdict.context, dict) else {}
    first = ("driver", "cuda_driver", "ollama")
    others = {key: value for key, value in {**known, **host}.items() if key not in (*first, "name", "ollama_era")}
    values: dict[str, object] = {
        "gpus": gpu_kinds(verdict),
        "driver": known.get("driver"),
        "cuda": None if known.get("cuda_driver") is None else version(known["cuda_driver"]),
        "ollama": known.get("ollama"),
        "next": story.command or None,
        **others,
        "probed_as": context.get("as"),
        "gpu-discovery": verdict.tool.get("version") if isinstance(verdict.tool, dict) else None,
    }
    return Host(
        name=name,
        verdict=verdict.verdict.value,
        simulated=verdict.simulated is not None,
        at=label(story.where.name) if story.where is not None else "",
        rows={_key(str(key)): _value(value) for key, value in values.items() if value is not None},
        files=tuple(files),
    )


def read(directory: str) -> tuple[list[str], dict[str, Host]]:
    """Return the lines of others in DIRECTORY's environment, and the hosts in it by name; raises OSError."""
    try:
        with open(os.path.join(directory, NAME), encoding="utf-8", errors="replace") as file:
            lines = file.read(READ_LIMIT).splitlines()
    except FileNotFoundError:
        return [], {}
    others, hosts, ours = [], {}, False
    for line in lines:
        if line.startswith(KEPT) and (host := _host(line.removeprefix(KEPT))) is not None:
            hosts[host.name] = host
        ours = (ours or line == BEGIN) and line != END
        if line and not ours and not line.startswith((KEPT, END)):
            others.append(line)
    return others, hosts


def _host(text: str) -> Host | None:
    """Return the host in one comment line, None for what is no such line: anybody may have written the file."""
    try:
        found = json.loads(text)
        rows = {_key(str(key)): _value(value) for key, value in found["rows"].items()}
        files = tuple(name for name in found["files"] if isinstance(name, str) and OURS.fullmatch(name))
        said = {key: clip(visible(str(found[key])), LONGEST) for key in ("name", "verdict", "at")}
        return Host(**said, simulated=bool(found["simulated"]), rows=rows, files=files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def text_of(others: Iterable[str], hosts: Iterable[Host]) -> str:
    """Return the text of environment.properties."""
    ranked = worst_first(hosts)
    shown = [f"{key} = {_escaped(value)}" for key, value in _rows(ranked)]
    kept = [KEPT + json.dumps(asdict(host)) for host in ranked]
    return "\n".join([*others, BEGIN, *kept, *shown, END]) + "\n"


def worst_first(hosts: Iterable[Host]) -> list[Host]:
    """Return HOSTS, the blocked ones first."""
    place = {state: index for index, state in enumerate(WORST)}
    return sorted(hosts, key=lambda host: (place.get(host.verdict, 0), host.name))


def sentence(ranked: list[Host]) -> str:
    """Return the headline of all hosts: "BLOCKED at 09 closure on gpu-17", "1 BLOCKED, 3 READY"."""
    if len(ranked) == 1:
        return f"{ranked[0].headline} on {ranked[0].short}"
    return _counted(ranked)


def _counted(ranked: list[Host]) -> str:
    whole = SIMULATED if all(host.simulated for host in ranked) else ""
    words = [host.word.removeprefix(whole) for host in ranked]
    return whole + ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def _rows(ranked: list[Host]) -> Iterator[tuple[str, str]]:
    if len(ranked) == 1:
        yield "verdict", ranked[0].headline
        yield from ranked[0].rows.items()
        return
    yield "verdict", _counted(ranked)
    keys = list(dict.fromkeys(key for host in ranked for key in host.rows))
    same = [key for key in keys if len({host.rows.get(key) for host in ranked}) == 1]
    used = {"verdict", *same}
    for host in ranked:
        key = _key(host.short)
        while key in used:
            key += "_"
        used.add(key)
        differing = (f"{name} {value}" for name, value in host.rows.items() if name not in same)
        yield key, clip("; ".join((host.headline, *differing)), 600)
    yield from ((key, ranked[0].rows[key]) for key in same)


def _key(text: str) -> str:
    """Return TEXT as a key of a properties file."""
    return "".join(c if c.isalnum() or c in "_-." else "_" for c in visible(clip(text, 100))) or "_"


def _value(value: object) -> str:
    return visible(inline(value, 300)).replace("\n", " ")


def _escaped(value: str) -> str:
    return _value(value).replace("\\", "\\\\")
