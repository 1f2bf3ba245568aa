"""The matrix as a page of Markdown: counts, confusion table, each miss with what was expected and what was seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pytest_gpudiscovery import stages

ORDER = (*stages.NAMES, "-")
COLUMNS = ("rows", "faults", "stage", "cause", "exit", "in_time", "clean", "false_green", "false_block")
HEADS = (
    "rows",
    "faults",
    "stage right",
    "cause right first",
    "exit code",
    "in time",
    "clean",
    "false green",
    "false block",
)


def page(data: Mapping[str, Any]) -> str:
    """Return the page for what tally.summary returned."""
    parts = ["# The fault matrix", "", _what(), "", "## Simulated hosts", ""]
    parts += _counts(data)
    parts += ["", "### Stage expected (down) and stage named (across)", "", *_confusion(data["confusion"])]
    parts += ["", "### Every row that differs from what was written down", "", *_misses(data["rows"])]
    if data["left_out"]:
        parts += ["", "### Left out", ""]
        parts += [f"* `{name}`: {why}" for name, why in sorted(data["left_out"].items())]
    parts += ["", "## Healthy variants of a host", "", *_variants(data["variants"])]
    parts += ["", "## Real GPUs", "", *_real(data["real"])]
    return "\n".join(parts) + "\n"


def _what() -> str:
    return (
        "Each row is one run of `gpu-discovery gate` as a process, with one fault or two injected. Stage: verdict, "
        "stage and outcome are the expected ones. Cause: the cause that is named first is. In time: every stage by its "
        "deadline plus 4 s, and the whole by the sum. Clean: no traceback and no process left behind. False green: "
        "exit 0 where something blocks, or ready where something must be said. False block: no exit 0 on what is "
        "healthy or merely degraded. `ci/matrix.py` makes this page; the rows are in tests/matrix/data."
    )


def _table(heads: Iterable[str], lines: Iterable[Sequence[object]]) -> list[str]:
    names = list(heads)
    rule = "|".join("---" if index == 0 else "---:" for index in range(len(names)))
    shown = ["| " + " | ".join(names) + " |", f"|{rule}|"]
    return shown + ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def _counts(data: Mapping[str, Any]) -> list[str]:
    lines: list[list[object]] = []
    for origin, part in data["by_origin"].items():
        lines.append([f"{origin}: {part['what']}", *(part["as_written"][name] for name in COLUMNS)])
        if part["corrections"]:
            after = [part["after_corrections"][name] for name in COLUMNS]
            lines.append([f"{origin}, with {part['corrections']} rows corrected by the mechanism", *after])
    lines.append(["**all, as written**", *(data["counts"][name] for name in COLUMNS)])
    lines.append(["**all, after corrections**", *(data["counts_after_corrections"][name] for name in COLUMNS)])
    return _table(["", *HEADS], lines)


def _confusion(table: Mapping[str, Mapping[str, int]]) -> list[str]:
    present = [name for name in ORDER if name in table or any(name in named for named in table.values())]
    lines = [
        [f"**{stage}**", *(table[stage].get(named, "") or "" for named in present)]
        for stage in present
        if stage in table
    ]
    return _table(["", *present], lines)


def _misses(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        if row["right"]:
            continue
        wanted, seen = row["expected"], row["seen"]
        cause = wanted.get("cause") or f"{'/'.join(wanted.get('rows', []))} /{wanted.get('says', '')}/"
        also = f", or {', '.join(wanted['alternatives'])}" if wanted.get("alternatives") else ""
        expected = f"{wanted['verdict']} {wanted['stage']} {wanted['outcome']} {cause}{also}"
        said = f"{seen['verdict']} {seen['stage']} {seen['outcome']} {seen['cause'] or ', '.join(seen['findings'])}"
        why = row.get("why") or "not explained"
        mark = "corrected: " if row.get("corrected", {}).get("right") else ""
        cells = (row["name"], row["origin"], ", ".join(row["wrong"]), expected, said, mark + why)
        lines.append([f"`{cells[0]}`", *(str(cell).replace("|", "\\|").strip() for cell in cells[1:])])
    if not lines:
        return ["None."]
    heads = ["injected", "origin", "wrong", "expected", "seen", "why"]
    return [line.replace("---:", "---") for line in _table(heads, lines)]


def _variants(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    run = [row for row in rows if "skipped" not in row]
    if not run:
        return ["None in this run."]
    blocked, right = sum(bool(row["false_block"]) for row in run), sum(bool(row["right"]) for row in run)
    said = (
        f"{len(run)} variants of tests/healthy (layouts, drivers, containers, users, limits, GPUs in use): {blocked} "
        f"blocked; {right} with the verdict and the warnings that the table allows."
    )
    cells = [(row["name"], row["expected"], row["seen"]) for row in run if not row["right"]]
    wrong = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    skipped = [f"* not made here: {row['name']} ({row['skipped']})" for row in rows if "skipped" in row]
    table = ["", *_table(["variant", "expected", "seen"], wrong)] if wrong else []
    return [said, *table, *([""] if skipped else []), *skipped]


def _real(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["None in this run."]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["source"], []).append(row)
    lines: list[list[object]] = [
        [name, len(found), len({row["name"] for row in found}), sum(bool(row["right"]) for row in found)]
        for name, found in groups.items()
    ]
    distinct = len({(row["fault"]) for row in rows if row.get("fault")})
    lines.append(["**all**", len(rows), distinct, sum(bool(row["right"]) for row in rows)])
    shown = _table(["run", "rows", "distinct", "right"], lines)
    wrong = [
        [f"`{row['name']}`", row["source"], f"{row['expected']}".replace("|", "\\|"), f"{row['seen']}"]
        for row in rows
        if not row["right"]
    ]
    if wrong:
        shown += ["", *_table(["differs", "run", "expected", "seen"], wrong)]
    return shown
