"""A verdict with one hostile text in every field that a host can fill."""

from __future__ import annotations

import dataclasses

from pytest_gpudiscovery.model import CheckOutcome, Outcome, StageRecord, State, Step, Verdict
from pytest_gpudiscovery.stages.spec import found
from tests.reports.parts import not_reached, record, stuck_child, verdict

EVIL = (
    "</pre></td><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg/onload=alert(3)> "
    "\x1b[2J\x1b]0;title\x07 \x00\x08\r\n\u202egnp.exe\u202c \u2066\u200b\ud800 "
    "Z\u0335\u0321\u0322\u0327\u0328\u0335\u0321 <!-- --> &lt;b&gt; ]]> ${x} {{x}} "
    "javascript:alert(4) \U000e0041 \u2028 end"
)


def hostile(text: str = EVIL) -> Verdict:
    """A verdict with TEXT in every field that a host can fill."""
    finding = found("driver.cuinit.hang", {"deadline_s": 45.0}, subject=text, expected={text: [text]}, observed=[text])
    assert finding.finding is not None
    check = dataclasses.replace(
        finding,
        prerequisite=text,
        reason=text,
        finding=dataclasses.replace(
            finding.finding,
            cause=text,
            summary=text,
            detail=text,
            next=text,
            evidence={"blocked_in": text, text: {text: text}},
        ),
    )
    stuck = stuck_child(text, "D")
    thread = {
        **stuck["at_deadline"]["threads"][0],
        "name": text,
        "wchan": text,
        "stack": [text],
        "syscall": {"name": text},
    }
    stuck |= {"stderr": text, "stdout": text, "notes": [text], "at_deadline": {"threads": [thread, text]}, text: text}
    bad = record(
        text,
        Outcome.TIMED_OUT,
        text,
        45.0,
        subject=text,
        required=True,
        blocked_by=text,
        steps=(Step(text, 0.1, 0.2, text), Step(text, 0.4, None, {text: text})),
        checks=(check, dataclasses.replace(check, finding=None, outcome=CheckOutcome.UNKNOWN)),
        evidence={text: stuck, "plain": text, f"x/{text}": {"ending": text}},
        facts={text: text},
        ollama_budget_s=30.0,
    )
    views = {"nvml": {text: text, "name": text, "memory": {text: text}}, text: {text: [text]}, "cuda": text}
    return verdict(
        State.BLOCKED,
        [
            _loaded(bad, text),
            bad,
            *not_reached(bad, "enumeration"),
            dataclasses.replace(bad, outcome=Outcome.PASSED, name="driver"),
        ],
        blockers=(),
        tool={"name": text, "version": text},
        started=text,
        simulated={"host": text, "faults": [text]},
        selection={"until": text, text: text},
        host={"name": text, "kernel": text, "glibc": text, "arch": [text]},
        versions={"driver": text, "cuda_driver": {text: text}, "ollama": text, "ollama_era": text},
        context={"as": text, "uid": text, text: text, "not_adopted": [{"what": text, "why": text}, text]},
        profile={text: text},
        gpus=({"pci": text, "uuid": text, "mig": text, "views": views}, {"pci": text, "views": {}}),
        closures=({text: text}, _closure(text)),
        fatbins=(text, _fatbin(text)),
        comparison=_comparison(text),
        notes=(text,),
    )


def _comparison(text: str) -> dict[str, object]:
    side = {"version": text, "gpus": [{"name": text, "pci": text}], "directories": [text], "cause": text}
    side |= {"seconds": text, "warnings": [text], "stale": [text]}
    place = {"path": text, "rule": text}
    return {
        "installed": {**side, "gpus": text},
        "candidate": side,
        "in_place": side,
        "sentence": text,
        "architectures": {"installed": {text: [text]}, "candidate": {text: text, "x": [text]}},
        "closures": [{"directory": text, "name": text, "installed": place, "candidate": text}],
        text: text,
    }


def _closure(text: str) -> dict[str, object]:
    name = {"name": text, "requester": "", "path": text, "rule": text, "shadows": [text]}
    return {
        "directory": text,
        "model": "child",
        "outcome": text,
        "message": text,
        "loader": {"glibc": text},
        "symbols_checked": text,
        "problems": [{"kind": text, "text": text}, {"kind": text, "text": text, "follows": True}],
        "names": [name, {**name, "requester": text.rpartition("/")[2]}, {**name, "path": None}],
        "objects": [{"path": text, "size": text, "outside": True, "may_block": True}],
    }


def _fatbin(text: str) -> dict[str, object]:
    verdict = {"how": text, "reason": text, "needs_cuda": [text, text]}
    targets = [f"sm_{text}", f"compute_{text}", text]
    told = [{"verdict": verdict, "driver_floor": text}]
    return {
        "directory": text,
        "path": f"{text}/libggml-cuda.so",
        "targets": targets,
        "verdicts": told,
        "containers": text,
    }


def _loaded(bad: StageRecord, text: str) -> StageRecord:
    """Stage 10 with facts of TEXT, and a check about the directory called so."""
    load = {
        "directory": text,
        "seconds": text,
        "error": text,
        "differences": [text],
        "agrees": False,
        "storage": {text: 1},
    }
    check = dataclasses.replace(bad.checks[0], subject=f"dir:{text}")
    return dataclasses.replace(bad, name="load", facts={"loads": [load, text]}, checks=(check,), evidence=None)
