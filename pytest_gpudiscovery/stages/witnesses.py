"""What the second witnesses (pynvml, cuda-python) say against what the gate's own calls saw. Never a block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, Kind
from pytest_gpudiscovery.stages.identity import capability, integer, mapping, objects, pci, sequence, uuid
from pytest_gpudiscovery.stages.spec import found, passed
from pytest_gpudiscovery.stages.views import Row
from pytest_gpudiscovery.supervise.types import ChildResult, Ending

WITNESSES = {"pynvml": ("pynvml", "nvml"), "cuda_python": ("cuda-python", "cuda")}  # -> name, the view it repeats


def judge_witnesses(result: ChildResult | None, said: Mapping[str, Any], rows: list[Row]) -> list[Check]:
    """Return one check for each witness; RESULT is None when none was asked, SAID is what it observed and answered."""
    if result is None:
        return []
    checks = []
    for key, (name, source) in WITNESSES.items():
        statement = mapping(said.get(key))
        if statement:
            checks.append(_judge(statement, name, key, source, rows))
    if result.ending is not Ending.ANSWERED:
        step = result.open_step.name if result.open_step else "the witness probe"
        facts = {"step": step, "ending": _words(result), "stderr": result.stderr[-500:]}
        hung = result.ending in (Ending.TIMED_OUT, Ending.UNKILLABLE)
        checks.append(found("enumeration.witness.hang" if hung else "enumeration.witness.died", facts, observed=facts))
    return checks


def _judge(statement: Mapping[str, Any], name: str, key: str, source: str, rows: list[Row]) -> Check:
    facts: dict[str, Any] = {"witness": name, "version": statement.get("version")}
    if statement.get("import_error"):
        facts["error"] = str(statement["import_error"])
        return found("enumeration.witness.absent", facts, observed=facts["error"])
    own = [row for row in rows if source in row.views]
    if statement.get("error"):
        facts["error"] = str(statement["error"])
        # A witness that fails where the gate's own calls failed too agrees with them.
        cause = "enumeration.witness.failed" if own else "enumeration.witness.absent"
        return found(cause, facts, observed=facts["error"])
    theirs = [gpu for gpu in objects(statement.get("gpus")) if "error" not in gpu]
    if len(theirs) != len(own):
        facts["differences"] = f"{len(theirs)} GPUs, the gate's own calls {len(own)}"
        return found("enumeration.witness.differs", facts, expected=len(own), observed=len(theirs))
    differences = [text for row in own for text in _differences(mapping(row.views.get(key)), row.views[source], row)]
    if differences:
        facts["differences"] = "; ".join(differences)
        return found("enumeration.witness.differs", facts, observed=differences)
    lacks = sorted({str(text) for gpu in theirs for text in sequence(gpu.get("lacks"))})
    if lacks:
        facts["lacks"] = "; ".join(lacks)
        return found("enumeration.witness.lacks", facts, observed=lacks)
    reason = f"{name} {facts['version'] or ''} agrees".replace("  ", " ")
    return passed("P78", Kind.RISK, reason=reason, observed=len(theirs))


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], row: Row) -> list[str]:
    if not theirs:
        return [f"{row.subject}: not there"]
    total = mapping(ours.get("memory")).get("total") if "memory" in ours else ours.get("total_memory")
    pairs = (
        ("uuid", uuid(theirs.get("uuid")), uuid(ours.get("uuid"))),
        ("pci", pci(theirs.get("pci")), pci(ours.get("pci"))),
        ("name", theirs.get("name"), ours.get("name")),
        ("cc", capability(theirs.get("cc")), capability(ours.get("cc"))),
        ("memory", integer(theirs.get("memory")), integer(total)),
    )
    return [f"{row.subject}: {what} {a} and {b}" for what, a, b in pairs if None not in (a, b) and a != b]


def _words(result: ChildResult) -> str:
    if result.ending is Ending.SIGNALLED:
        return f"signal {result.signal}"
    return f"exit code {result.exit_code}" if result.ending is Ending.EXITED else result.ending.value
