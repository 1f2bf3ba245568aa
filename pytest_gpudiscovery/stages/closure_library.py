"""The part of stage 09 that judges one predicted dlopen: what is missing, what is refused, what comes from elsewhere.

A finding carries ld.so's own words, because Ollama drops them: a release build of ggml says nothing.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.model import Check, Kind
from pytest_gpudiscovery.stages.identity import mapping, objects, sequence, string
from pytest_gpudiscovery.stages.spec import found, not_applicable, passed, unknown

Facts = Mapping[str, Any]
LIBCUDA = "libcuda.so.1"
TOOLKIT = ("libcudart", "libcublas", "libcublasLt")
CUBLAS = ("libcublas", "libcublasLt")
UNANSWERED = "unsupported"
NO_START = "the program does not start: "  # loader/process.py, before what ld.so says of the program itself
ROWS = ("P22", "P24", "P25", "P26", "P72", "P73", "P79")
# Outcome of a problem -> cause; what is not here ends in an error that dlerror() words.
BY_OUTCOME = {
    "abort": "closure.loader.aborts",
    "sigbus": "closure.object.truncated",
    "sigsegv": "closure.object.truncated",
    "hangs": "closure.object.blocks",
    "no start": "closure.start.impossible",
}
BY_WORDS = (
    ("wrong ELF class", "closure.object.wrong_class"),
    ("file too short", "closure.object.unusable"),
    ("invalid ELF header", "closure.object.unusable"),
    ("cannot read file data", "closure.object.unusable"),
    ("object file has no", "closure.object.unusable"),
    ("cannot open shared object file", "closure.dependency.missing"),
)


@dataclass(frozen=True)
class Subject:
    """The directory that is judged: its place, and what it and lib/ollama ship."""

    name: str
    path: str
    lib: str
    shipped: tuple[str, ...]

    @property
    def text(self) -> str:
        """The subject of its checks."""
        return f"dir:{self.name}"


def stem(path: Any) -> str:
    """Return the name of a library without its version: libcudart for /x/libcudart.so.12."""
    return posixpath.basename(path).partition(".so")[0] if isinstance(path, str) else ""


def major(name: Any) -> int | None:
    """Return the number behind .so in NAME: 12 for libcudart.so.12.8.90."""
    match = re.search(r"\.so\.([0-9]{1,3})", posixpath.basename(name)) if isinstance(name, str) else None
    return int(match[1]) if match else None


def judge_load(seen: Facts, subject: Subject) -> list[Check]:
    """Return the checks of one directory that concern the loader."""
    child = mapping(mapping(seen.get("models")).get("child"))
    outcome, where = string(child.get("outcome")), subject.text
    if outcome is None or outcome == UNANSWERED:
        reason = f"cannot be predicted: {child.get('message') or 'no answer'}"
        return [unknown(row, reason, _kind(row), subject=where) for row in ROWS]
    checks = _problems(child, subject)
    failed = {check.prerequisite for check in checks}
    checks += _foreign(child, subject) + _duplicates(child, subject) + _file_systems(child, subject)
    checks += _majors(child, subject) if "P25" not in failed else []
    checks += _stub(child, subject) if "P26" not in failed else []
    done = {check.prerequisite for check in checks if check.kind is Kind.BLOCKING or check.prerequisite != "P24"}
    return checks + [_fine(row, child, subject, bool(failed)) for row in ROWS if row not in done]


def _kind(row: str) -> Kind:
    return Kind.RISK if row in ("P72", "P79") else Kind.BLOCKING


def _fine(row: str, child: Facts, subject: Subject, failed: bool) -> Check:
    """Return the check of a ROW that nothing was said against."""
    files = {stem(item.get("path")): item.get("path") for item in objects(child.get("objects"))}
    wanted = {
        "P22": ("libggml-base",),
        "P25": TOOLKIT,
        "P26": ("libcuda",),
        "P72": ("libcuda", "libcudart"),
        "P79": CUBLAS,
    }.get(row, ())
    observed = {name: files[name] for name in wanted if name in files}
    if not wanted:
        observed = {"symbols_checked": child.get("symbols_checked"), "objects": len(files)}
    elif not observed:
        needed = {stem(item.get("name")) for item in objects(child.get("names"))}
        if failed and not needed & set(wanted):
            return unknown(row, "the prediction ends before", _kind(row), subject=subject.text)
        loaded = {stem(item.get("name")): item.get("path") for item in objects(child.get("names"))}
        observed = {name: loaded[name] for name in wanted if loaded.get(name)}
        if not observed:
            reason = f"{posixpath.basename(str(child.get('library')))} needs no {' or '.join(wanted)}"
            return not_applicable(row, reason, _kind(row), subject=subject.text)
    return passed(row, _kind(row), subject=subject.text, observed=observed)


# --- what ld.so objects to -------------------------------------------------------------------------------------------


def _problems(child: Facts, subject: Subject) -> list[Check]:
    """Return a check per cause, the decisive problem first; consequences of a missing file are left out."""
    direct = [item for item in objects(child.get("problems")) if item.get("follows") is not True]
    if child.get("outcome") != "loads" and not direct:
        direct = [{"outcome": child.get("outcome"), "text": child.get("message"), "kind": "process", "subject": ""}]
    first: dict[str, Facts] = {}
    texts: dict[str, list[str]] = {}
    for problem in direct:
        if problem.get("kind") in ("preload", "process") and child.get("outcome") == "loads":
            continue  # ld.so goes on without it; stage 02 judges preloads
        cause = cause_of(problem, child)
        first.setdefault(cause, problem)
        texts.setdefault(cause, []).append(str(problem.get("text")))
    return [_finding(cause, problem, texts[cause], child, subject) for cause, problem in first.items()]


def _finding(cause: str, problem: Facts, texts: list[str], child: Facts, subject: Subject) -> Check:
    """Return the check for CAUSE, worded by its first PROBLEM; further ones of the same cause are its evidence."""
    text, thing = texts[0], _object(problem, child, subject)
    facts = {
        "text": text,
        "short": _short(text),
        "library": child.get("library"),
        "file": posixpath.basename(str(child.get("library"))),
        "object": thing,
        "name": posixpath.basename(thing),
        "requester": posixpath.basename(str(problem.get("requester") or child.get("library"))),
        "directory": subject.path,
        "lib": subject.lib,
        "exe": child.get("exe"),
    }
    more = texts[1:] or None
    return found(cause, facts, subject=subject.text, expected="loads", observed=text, evidence=more)


def _short(text: str) -> str:
    """Return TEXT without the directories of what it names: a summary has 80 characters."""
    return re.sub(r"/[^\s:)]*/", "", text)


def cause_of(problem: Facts, child: Facts) -> str:
    """Return the catalogue id for PROBLEM."""
    outcome, text = problem.get("outcome"), str(problem.get("text"))
    if problem.get("kind") in ("symbol", "version") and outcome in ("error", "abort"):
        return _of_symbol(problem, child)
    if isinstance(outcome, str) and outcome in BY_OUTCOME:
        return BY_OUTCOME[outcome]
    cause = next((cause for words, cause in BY_WORDS if words in text), "closure.refused")
    if cause != "closure.dependency.missing":
        return cause
    missing = stem(problem.get("subject") or text.partition(":")[0])
    if missing == "libcuda":
        return "closure.libcuda.missing"
    if missing in TOOLKIT:
        return "closure.toolkit.missing"
    return "closure.base.missing" if missing == "libggml-base" else cause


def _of_symbol(problem: Facts, child: Facts) -> str:
    """A symbol or version that a library lacks: whose library is it, Ollama's own or one that came before it?"""
    provider = _provider(problem, child)
    if stem(provider.get("path")) == "libcuda":
        return "closure.libcuda.incomplete"
    if provider.get("outside") is True and stem(provider.get("path")) in TOOLKIT:
        return "closure.shim.cublas" if stem(provider.get("path")) in CUBLAS else "closure.shim.incomplete"
    if problem.get("outcome") == "abort":
        return "closure.loader.aborts"
    return "closure.version.missing" if problem.get("kind") == "version" else "closure.symbol.missing"


def _provider(problem: Facts, child: Facts) -> Facts:
    """Return the object that should have had what PROBLEM misses, {} when it cannot be told."""
    text = str(problem.get("text"))
    known = objects(child.get("objects"))
    match = re.search(r"undefined symbol: (\S+?)(?:, version (\S+))?(?: \(|$)", text)
    if match is None:
        paths = (problem.get("subject"), text.partition(":")[0])
        return next((item for item in [*known, *_preloaded(child)] if item.get("path") in paths), {})
    symbol, version = match[1], match[2]
    # NVIDIA names version nodes after the library (…@libcudart.so.12); libcuda's symbols have none.
    if version and ".so." in version:
        return next((item for item in [*known, *_preloaded(child)] if item.get("soname") == version), {})
    if re.match(r"cu[A-Z]", symbol):
        return next((item for item in known if stem(item.get("path")) == "libcuda"), {})
    prefixes = (("cuda", "libcudart"), ("__cuda", "libcudart"), ("cublasLt", "libcublasLt"), ("cublas", "libcublas"))
    name = next((name for prefix, name in prefixes if symbol.startswith(prefix)), "")
    return next((item for item in known if name and stem(item.get("path")) == name), {})


def _preloaded(child: Facts) -> list[Facts]:
    """Return what satisfies a DT_NEEDED because the process has it already; Ollama's own never holds the toolkit."""
    held = [item for item in objects(child.get("names")) if item.get("rule") == "already loaded"]
    return [{"path": item.get("path"), "soname": item.get("name"), "outside": True} for item in held]


def _object(problem: Facts, child: Facts, subject: Subject) -> str:
    provider = _provider(problem, child)
    text = str(problem.get("text")).removeprefix(NO_START)
    name = str(provider.get("path") or problem.get("subject") or text.partition(":")[0])
    if "/" in name:
        return name
    known = [*objects(child.get("objects")), *objects(child.get("names"))]
    paths = (item.get("path") for item in known if name in (item.get("soname"), item.get("name")))
    place = subject.lib if name.startswith("libggml") else subject.path
    return next((path for path in paths if isinstance(path, str)), f"{place}/{name}" if ".so" in name else name)


# --- what loads, and should not be the one ---------------------------------------------------------------------------


def _foreign(child: Facts, subject: Subject) -> list[Check]:
    """Return a warning per bundled library that is taken from outside although Ollama ships its own."""
    checks = []
    for item in objects(child.get("objects")):
        name = stem(item.get("path"))
        own = next((file for file in subject.shipped if stem(file) == name), None)
        if item.get("outside") is not True or own is None:
            continue
        cause = "closure.foreign.cublas" if name in CUBLAS else "closure.foreign.library"
        facts = {
            "path": item.get("path"),
            "name": posixpath.basename(str(item.get("path"))),
            "rule": item.get("rule"),
            "own": own,
            "lib": subject.lib,
            "library": child.get("library"),
        }
        checks.append(found(cause, facts, subject=subject.text, expected=own, observed=item.get("path")))
    return checks


def _duplicates(child: Facts, subject: Subject) -> list[Check]:
    checks = []
    for pair in sequence(child.get("duplicates")):
        first, second = (*(str(path) for path in sequence(pair)), "?", "?")[:2]
        facts = {"first": first, "second": second, "name": stem(second), "library": child.get("library")}
        checks.append(found("closure.duplicate", facts, subject=subject.text, observed=[first, second]))
    return checks


def _file_systems(child: Facts, subject: Subject) -> list[Check]:
    slow: dict[str, str] = {}
    for item in objects(child.get("objects")):
        if item.get("may_block") is True:
            slow.setdefault(str(item.get("file_system")), str(item.get("path")))
    return [
        found("closure.file_system", {"kind": kind, "path": path}, subject=subject.text, observed=path)
        for kind, path in slow.items()
    ]


def _majors(child: Facts, subject: Subject) -> list[Check]:
    """Judge that the CUDA libraries are all of the directory's CUDA major."""
    match = re.fullmatch(r"cuda_v([0-9]{1,2})", subject.name)
    files = [item for item in objects(child.get("names")) if stem(item.get("name")) in TOOLKIT]
    have = {str(item.get("name")): major(item.get("name")) for item in files}
    known = {number for number in have.values() if number is not None}
    expected = int(match[1]) if match else next(iter(sorted(known)), None)
    wrong = {name: number for name, number in have.items() if number is not None and number != expected}
    if not wrong:
        return []
    facts = {"names": ", ".join(wrong), "expected": expected, "directory": subject.path, "name": subject.name}
    return [found("closure.toolkit.other_major", facts, subject=subject.text, expected=expected, observed=have)]


def _stub(child: Facts, subject: Subject) -> list[Check]:
    for item in objects(child.get("objects")):
        path = str(item.get("real_path") or item.get("path"))
        if stem(item.get("path")) == "libcuda" and "/stubs/" in path:
            facts = {"path": item.get("path"), "rule": item.get("rule"), "library": child.get("library")}
            return [found("closure.libcuda.stub", facts, subject=subject.text, observed=path)]
    return []
