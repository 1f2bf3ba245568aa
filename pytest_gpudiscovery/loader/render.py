"""Closures and image lists for people: problems first, then the tree with the rule behind each file."""

from __future__ import annotations

import os

from pytest_gpudiscovery.loader.closure import Closure, Dependency
from pytest_gpudiscovery.loader.fatbin import Images
from pytest_gpudiscovery.loader.kernels import KernelVerdict
from pytest_gpudiscovery.loader.record import plain

PROBLEMS_SHOWN = 20
MEGABYTE = 1 << 20


def closure_json(closure: Closure) -> dict[str, object]:
    """Return CLOSURE as plain dicts and lists, with the derived answers beside the facts."""
    found = plain(closure)
    assert isinstance(found, dict)
    return {**found, "loads": closure.loads, "missing": list(closure.missing), "address_space": closure.address_space}


def images_json(images: Images, verdict: KernelVerdict | None = None) -> dict[str, object]:
    """Return IMAGES counted by kind, and the verdict if there is one."""
    counted: dict[object, int] = {}
    for image in images.images:
        counted[image] = counted.get(image, 0) + 1
    return {
        "path": images.path,
        "containers": len(images.containers),
        "found_by": images.found_by,
        "problem": images.problem,
        "targets": list(images.targets),
        "images": [{**_fields(image), "count": count} for image, count in counted.items()],
        "verdict": None if verdict is None else {**_fields(verdict), "runs": verdict.runs},
    }


def _fields(record: object) -> dict[str, object]:
    found = plain(record)
    assert isinstance(found, dict)
    return found


def closure_text(closure: Closure) -> str:
    """Return the verdict, every objection, then the tree of what is mapped and by which rule."""
    verdict = f": {closure.message}" if closure.message else ""
    lines = [f"{closure.library}: {closure.outcome}{verdict}"]
    if closure.loader is not None:
        version = ".".join(map(str, closure.loader.version))
        lines.append(
            f"  predicted for {closure.loader.path} (glibc {version}); {closure.symbols_checked} symbols checked"
        )
    lines += _problem_lines(closure)
    lines += _risk_lines(closure)
    lines.append("")
    lines += _tree(closure)
    return "\n".join(lines)


def _problem_lines(closure: Closure) -> list[str]:
    direct = [item for item in closure.problems if not item.follows]
    lines = [f"  problem: {item.text}{_needed_by(item.requester)}" for item in direct[:PROBLEMS_SHOWN]]
    if len(direct) > PROBLEMS_SHOWN:
        lines.append(f"  ... and {len(direct) - PROBLEMS_SHOWN} more problems")
    follow = len(closure.problems) - len(direct)
    if follow:
        lines.append(f"  {follow} symbols or versions are missing with it")
    return lines


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


def _tree(closure: Closure) -> list[str]:
    children: dict[str, list[Dependency]] = {}
    for item in closure.dependencies:
        children.setdefault(item.requester, []).append(item)
    sizes = {item.path: item.size for item in closure.objects}
    lines: list[str] = []
    shown: set[str] = set()
    stack = [(item, 0) for item in reversed(children.get("", []))]
    while stack:
        item, depth = stack.pop()
        path = item.path or "NOT FOUND"
        size = f", {sizes[path] / MEGABYTE:.1f} MB" if path in sizes and path not in shown else ""
        lines.append(f"{'  ' * depth}{item.name} => {path}   [{item.rule or 'not found'}{size}]")
        if item.path is not None and item.path not in shown and item.path in sizes:
            shown.add(item.path)
            stack += [(child, depth + 1) for child in reversed(children.get(item.path, []))]
    return lines


def explain_text(closure: Closure, name: str) -> str:
    """Return why NAME is this file and no other: every candidate with its verdict, then what it shadows."""
    item = closure.of(name)
    if item is None:
        asked = ", ".join(dict.fromkeys(dependency.name for dependency in closure.dependencies))
        return f"{name}: nobody asks for it. Asked for: {asked}"
    who = os.path.basename(item.requester) if item.requester else "the program"
    lines = [f"{item.name}, asked for by {who} => {item.path or 'NOT FOUND'}   [{item.rule or 'not found'}]"]
    lines += [f"  tried {tried.path}: {tried.verdict}   [{tried.rule}]" for tried in item.tried]
    lines += [f"  would be next: {path}   [{rule}]" for path, rule in item.shadows]
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
