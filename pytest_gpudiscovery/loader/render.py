"""Closures and image lists for people: problems first, then the tree with the rule behind each file."""

from __future__ import annotations

import os

from pytest_gpudiscovery.loader.closure import Closure, Dependency
from pytest_gpudiscovery.loader.fatbin import Images
from pytest_gpudiscovery.loader.kernels import KernelVerdict
from pytest_gpudiscovery.loader.process import ALREADY
from pytest_gpudiscovery.loader.record import plain

PROBLEMS_SHOWN = 20
ABSENT = ("No such file or directory", "no such directory", "used")  # verdicts that need no word
MEGABYTE = 1 << 20


def closure_json(closure: Closure) -> dict[str, object]:
    """Return CLOSURE as plain dicts and lists, with the derived answers beside the facts."""
    found = plain(closure)
    assert isinstance(found, dict)
    return {**found, "loads": closure.loads, "missing": list(closure.missing), "address_space": closure.address_space}


def images_json(images: Images, verdict: KernelVerdict | None = None) -> dict[str, object]:
    """Return IMAGES counted by kind, and the verdict if there is one."""
    return {
        "path": images.path,
        "containers": len(images.containers),
        "found_by": images.found_by,
        "problem": images.problem,
        "targets": list(images.targets),
        "images": [{**_fields(image), "count": count} for image, count in images.distinct.items()],
        "verdict": None if verdict is None else verdict_json(verdict),
    }


def verdict_json(verdict: KernelVerdict) -> dict[str, object]:
    """Return VERDICT as a plain dict, with the derived answer beside the facts."""
    return {**_fields(verdict), "runs": verdict.runs}


def _fields(record: object) -> dict[str, object]:
    found = plain(record)
    assert isinstance(found, dict)
    return found


def closure_text(closure: Closure, nearby: tuple[str, ...] = ()) -> str:
    """Return the verdict, every objection, then the tree of what is mapped and by which rule.

    NEARBY: files with the names that are missing, in places where ld.so does not look.
    """
    verdict = f": {closure.message}" if closure.message else ""
    lines = [f"{closure.library}: {closure.outcome}{verdict}"]
    lines += _problem_lines(closure)
    lines += [f"  {path} exists, but nothing leads ld.so there (LD_LIBRARY_PATH would)" for path in nearby]
    lines += _risk_lines(closure)
    if closure.loads:
        lines.append(
            f"  {_count(len(closure.objects), 'new file')}, {_size(sum(item.size for item in closure.objects))}, in "
            f"{_size(closure.address_space)} of addresses; {closure.symbols_checked} symbols looked up; "
            f"{_count(sum(item.constructors for item in closure.objects), 'constructor')} would run"
        )
    if closure.loader is not None:
        version = ".".join(map(str, closure.loader.version))
        lines.append(f"  predicted for glibc {version}, {closure.loader.path}, in {_program(closure)}")
    tree = _tree(closure)
    if tree and (closure.objects or len(tree) > 1):
        lines += ["", *tree, *_present(closure)]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / MEGABYTE:.1f} MB" if count >= MEGABYTE else f"{-(-count // 1024)} kB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _program(closure: Closure) -> str:
    assert closure.loader is not None
    program = closure.process[0] if closure.process else ""
    bare = os.path.realpath(closure.loader.path) == program
    return "a program that needs libc alone (--exe FILE: in that one)" if bare else program


def _problem_lines(closure: Closure) -> list[str]:
    direct = [item for item in closure.problems if not item.follows]
    lines: list[str] = []
    for item in direct[:PROBLEMS_SHOWN]:
        if len(direct) > 1 or item.requester or item.text != closure.message:
            lines.append(f"  problem: {item.text}{_needed_by(item.requester)}")
        if item.kind == "file":  # ld.so's message does not say it
            asked = next((name for name in closure.dependencies if name.name == item.subject), None)
            passed = _unusable(asked) if asked is not None else {}
            lines += [f"    passed over: {path}: {why}" for path, why in passed.items() if why not in item.text]
    if len(direct) > PROBLEMS_SHOWN:
        lines.append(f"  ... and {len(direct) - PROBLEMS_SHOWN} more problems")
    follow = len(closure.problems) - len(direct)
    if follow:
        lines.append(f"  {follow} symbols or versions are missing because of it")
    return lines


def _unusable(item: Dependency) -> dict[str, str]:
    """Return {path: why} of the files that were there for ITEM and not taken."""
    return {tried.path: tried.verdict for tried in item.tried if item.path is None and tried.verdict not in ABSENT}


def _needed_by(requester: str) -> str:
    return f"   (for {os.path.basename(requester)})" if requester else ""


def _risk_lines(closure: Closure) -> list[str]:
    lines = [f"  two copies: {first} and {second}" for first, second in closure.duplicates]
    for item in closure.objects:
        if item.may_block:
            lines.append(f"  may block: {item.path} is on {item.file_system}")
        if item.truncated:
            lines.append(f"  truncated: {item.path} is shorter than its segments")
    return lines


def _rule(rule: str) -> str:
    """Return RULE with the base name of the object it speaks of."""
    words, of, path = rule.partition(" of /")
    return f"{words} of {os.path.basename(path)}" if of else rule


def _tree(closure: Closure) -> list[str]:
    """Each file once, below the object whose request mapped it: which is breadth first, as ld.so maps."""
    children: dict[str, list[Dependency]] = {}
    for item in closure.dependencies:
        if item.rule != ALREADY:
            children.setdefault(item.requester, []).append(item)
    sizes = {item.path: item.size for item in closure.objects}
    lines: list[str] = []
    shown: set[str] = set()
    stack = [(item, 0) for item in reversed(children.get("", []))]
    while stack:
        item, depth = stack.pop()
        path = item.path or ("NOT USABLE" if _unusable(item) else "NOT FOUND")
        size = f", {_size(sizes[path])}" if path in sizes and path not in shown else ""
        name = os.path.basename(item.name) if path == item.name else item.name
        lines.append(f"{'  ' * depth}{name} => {path}   [{_rule(item.rule) or 'not found'}{size}]")
        if item.path is not None and item.path not in shown and item.path in sizes:
            shown.add(item.path)
            stack += [(child, depth + 1) for child in reversed(children.get(item.path, []))]
    return lines


def _present(closure: Closure) -> list[str]:
    """What was asked for and in the process before."""
    before = set(closure.process)
    found = {item.name: item.path for item in closure.dependencies if item.rule == ALREADY and item.path in before}
    return [f"already in the process: {name} => {path}" for name, path in found.items()]


def explain_text(closure: Closure, name: str) -> str:
    """Return why NAME is this file and no other: every candidate with its verdict, then what it shadows."""
    item = closure.of(name)
    if item is None:
        asked = ", ".join(dict.fromkeys(dependency.name for dependency in closure.dependencies))
        return f"{name}: nobody asks for it. Asked for: {asked}"
    who = os.path.basename(item.requester) if item.requester else "the program"
    found = item.path or ("NOT USABLE" if _unusable(item) else "NOT FOUND")
    lines = [f"{item.name}, asked for by {who} => {found}   [{_rule(item.rule) or 'not found'}]"]
    if item.rule == ALREADY:
        lines.append("  an object of this name, or with this DT_SONAME, was loaded before: nothing is searched")
    subdirectories = [place for place in (closure.loader.subdirectories if closure.loader else ()) if place]
    left_out: dict[str, None] = {}
    for tried in item.tried:
        inside = next((place for place in subdirectories if tried.path.endswith(place + item.name)), None)
        if inside is not None and tried.verdict in ABSENT:
            left_out[inside] = None
            continue
        here = "" if "/" in tried.path else " in the current directory (an empty element of the path)"
        lines.append(f"  tried {tried.path}{here}: {tried.verdict}   [{_rule(tried.rule)}]")
    if left_out:
        lines.append(f"  not there either: the capability subdirectories {' '.join(left_out)}")
    lines += [f"  would be next: {path}   [{_rule(rule)}]" for path, rule in item.shadows]
    return "\n".join(lines)


def images_text(images: Images, verdict: KernelVerdict | None = None, architectures: tuple[int, ...] = ()) -> str:
    """Return what device code there is, counted, and whether it runs."""
    lines = [f"{images.path}: {len(images.images)} images in {len(images.containers)} containers"]
    if images.problem:
        lines.append(f"  problem: {images.problem}")
    if verdict is not None:
        lines.append(f"  {'runs' if verdict.runs else 'DOES NOT RUN'} ({verdict.how}): {verdict.reason}")
        if verdict.eager_stall:
            lines.append(
                f"  STALLS: eager loading compiles {verdict.jit_modules} modules before the first call returns; "
                "unset CUDA_MODULE_LOADING and CUDA_FORCE_PTX_JIT"
            )
    if architectures:
        lines.append(f"  compiled for: {', '.join(map(str, architectures))}")
    counted: dict[object, int] = {}
    for image in images.images:
        counted[image] = counted.get(image, 0) + 1
    for image in dict.fromkeys(images.images):
        isa = f", PTX ISA {image.ptx_isa[0]}.{image.ptx_isa[1]}" if image.ptx_isa != (0, 0) else ""
        packed = f", {image.compression}" if image.compression else ""
        lines.append(f"  {counted[image]:6} x {image.kind} {image.target}{isa}{packed}")
    return "\n".join(lines)
