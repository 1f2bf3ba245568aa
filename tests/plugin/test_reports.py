"""What a person, a CI system and a monitor get to see."""

from __future__ import annotations

import dataclasses
import os
import pty
import re
import select
import subprocess
import tarfile
import time
from xml.etree import ElementTree

import pytest

from pytest_gpudiscovery.model import (
    Action,
    Blocker,
    Check,
    CheckOutcome,
    Finding,
    Kind,
    Outcome,
    Severity,
    StageRecord,
    State,
    Step,
    Verdict,
)
from pytest_gpudiscovery.reports import exitcodes, junit, wording
from pytest_gpudiscovery.reports.console import simulated_words
from tests import fakes
from tests.plugin.conftest import LIMIT_S, Runner
from tests.plugin.test_attempts import EMPTY

NUMBERS = {"kernel": 4, "driver": 6, "enumeration": 7, "runtime": 8, "backend": 11}
HANG = Finding(
    "driver.cuinit.hang",
    Severity.BLOCKER,
    "cuInit(0) did not return within 45.0 s",
    "Everything that CUDA does first happens inside cuInit.",
    {"blocked_in": "ioctl on /dev/nvidiactl < cuInit (libcuda.so.580.159.04); state D, wchan rwsem_down_read_slowpath"},
    "look for Xid lines: dmesg -T | grep -i xid",
    Action.SAFE,
    0.9,
)
HUNG = fakes.record(
    "driver",
    Outcome.TIMED_OUT,
    summary=HANG.summary,
    deadline_s=45.0,
    ollama_budget_s=30.0,
    steps=(Step("dlopen", 0.1, 0.2), Step("cuInit(0)", 0.3, None)),
    checks=(Check("P42", Kind.BLOCKING, "host", CheckOutcome.FAILED, finding=HANG),),
)
DESIGN = """\
06 driver: cuInit(0) did not return within 45.0 s
   blocked in: ioctl on /dev/nvidiactl < cuInit (libcuda.so.580.159.04); state D, wchan rwsem_down_read_slowpath
   last step : cuInit(0), started 44.7 s before the deadline
   explains  : 07 enumeration, 08 runtime, 11 backend were not reached
   Ollama    : gives up after 30 s: "failed to finish discovery before timeout"
   next      : look for Xid lines: dmesg -T | grep -i xid   (safe)"""


def verdict(state: State, *records: StageRecord, **changes: object) -> Verdict:
    return dataclasses.replace(EMPTY, verdict=state, stages=records, duration_s=1.94, **changes)  # type: ignore[arg-type]


def failed(**changes: object) -> StageRecord:
    """Return a driver stage that failed by an answer."""
    finding = dataclasses.replace(HANG, cause="driver.cuinit.error", summary="cuInit answered 100", evidence=None)
    check = Check("P42", Kind.BLOCKING, "host", CheckOutcome.FAILED, "", 0, 100, finding)
    base = dataclasses.replace(HUNG, outcome=Outcome.FAILED, summary=finding.summary, checks=(check,))
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


# -- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("era", "said"),
    [
        ("B", 'gives up after 30 s: "failed to finish discovery before timeout"'),
        ("C", 'gives up after 30 s: "context deadline exceeded"'),
        ("A", "waits for ever, and says nothing"),
    ],
)
def test_what_ollama_does_about_a_hang_depends_on_its_era(era: str, said: str) -> None:
    of = verdict(State.BLOCKED, HUNG, versions={"ollama_era": era})
    assert f"   Ollama    : {said}\n" in wording.failure_block(HUNG, NUMBERS, (), of)


def test_a_step_was_open_until_its_childs_deadline_and_not_the_stages() -> None:
    seen = {"open_step": "cuInit(0)", "open_for_s": 14.7}
    one = dataclasses.replace(HUNG, evidence={"cuda_v12": seen})
    assert "cuInit(0), started 14.7 s before the deadline" in wording.failure_block(one, NUMBERS, ())
    step = dataclasses.replace(HUNG.steps[1], name="cuda_v12: cuInit(0)", started=40.0)
    several = dataclasses.replace(one, steps=(step,), evidence={"cuda_v12": seen})
    assert "cuda_v12: cuInit(0), started 14.7 s before the deadline" in wording.failure_block(several, NUMBERS, ())


XID = "[812.345678] NVRM: Xid (PCI:0000:06:00): 119, pid=812, name=python3, Timeout after 45s of waiting for RPC"
LOOK = {
    "activity": {"pace": "hung", "words": "hung: no progress for at least 33.8 s (0.00 s of CPU time, 0 waits)"},
    "forensics": {
        "holders": {"holders": [{"kind": "lock", "pid": 7}, {"kind": "gpu", "pid": 812, "name": "python3"}, None]},
        "kernel_log": {"lines": ["[800.000000] nvidia 0000:06:00.0: enabled", XID]},
    },
}
CHILD = {  # of Ollama's own, in its finding
    "activity": LOOK["activity"],
    "holders": [{"kind": "gpu", "pid": 812, "name": "python3"}],
    "kernel_log": [XID],
    "goroutines": {"told": "goroutine 1 [syscall, 1 minutes]: discover._Cfunc_cuInit < main.main"},
}
ROWS = """\
   so far    : hung: no progress for at least 33.8 s (0.00 s of CPU time, 0 waits)
   GPU users : PID 812 (python3)
   kernel log: [812.345678] NVRM: Xid (PCI:0000:06:00): 119, pid=812, name=python3, Timeout after 45s of waiting for RPC
"""


def test_the_failure_block_says_what_a_look_at_the_child_showed() -> None:
    first, rest = DESIGN.split("   last step")
    seen = dataclasses.replace(HUNG, evidence={"driver": LOOK})
    assert (
        wording.failure_block(seen, NUMBERS, ("enumeration", "runtime", "backend"))
        == f"{first}{ROWS}   last step{rest}"
    )

    finding = dataclasses.replace(HANG, evidence=CHILD)
    check = dataclasses.replace(HUNG.checks[0], finding=finding)
    block = wording.failure_block(dataclasses.replace(HUNG, checks=(check,)), NUMBERS)
    so_far, *others = ROWS.splitlines(keepends=True)
    goroutine = f"   goroutine : {CHILD['goroutines']['told']}\n"  # type: ignore[index]
    assert "".join((so_far, goroutine, *others)) in block


def test_a_cause_that_only_warned_is_in_the_block_of_what_it_stopped() -> None:
    limit = dataclasses.replace(HANG, cause="service.limit.cpu_time", summary="RLIMIT_CPU is 2 s", next="ulimit -t")
    check = Check("P11", Kind.RISK, "host", CheckOutcome.WARNED, finding=limit)
    warned = fakes.record("service", Outcome.WARNED, checks=(check,))
    blocker = Blocker("driver", "host", Outcome.TIMED_OUT, limit.cause, limit.summary)
    whole = verdict(State.BLOCKED, warned, HUNG, blockers=(blocker,))
    block = wording.failure_block(HUNG, {**NUMBERS, "service": 2}, (), whole)
    assert block.splitlines()[1].startswith("   cause     : 02 service: RLIMIT_CPU is 2 s. ")
    assert block.splitlines()[-1] == "   next      : ulimit -t   (safe)"
    own = dataclasses.replace(blocker, cause=HANG.cause)
    plain = wording.failure_block(HUNG, NUMBERS)
    assert wording.failure_block(HUNG, NUMBERS, (), dataclasses.replace(whole, blockers=(own,))) == plain


def test_the_failure_block_has_the_shape_of_the_contract() -> None:
    assert wording.failure_block(HUNG, NUMBERS, ("enumeration", "runtime", "backend")) == DESIGN


def test_a_wrong_answer_says_what_was_expected_and_seen() -> None:
    text = wording.failure_block(failed(steps=()), NUMBERS, ("runtime",))
    assert text.splitlines() == [
        "06 driver: cuInit answered 100",
        "   expected  : 0",
        "   seen      : 100",
        "   because   : Everything that CUDA does first happens inside cuInit.",
        "   explains  : 08 runtime was not reached",
        '   Ollama    : logs no error: only the CPU line ("inference compute" id=cpu library=cpu), then total_vram='
        '"0 B" (from v0.15.5); up to v0.12.3 "Unable to load cudart library <path>: <error>"',
        "   next      : look for Xid lines: dmesg -T | grep -i xid   (safe)",
    ]


def test_other_failed_rows_are_not_lost() -> None:
    other = dataclasses.replace(HANG, cause="driver.count.zero", summary="no device")
    record = failed(checks=(*failed().checks, Check("P47", Kind.BLOCKING, "host", CheckOutcome.FAILED, finding=other)))
    assert "   also      : no device" in wording.failure_block(record, NUMBERS)


@pytest.mark.parametrize(
    ("made", "code", "line"),
    [
        (
            verdict(
                State.BLOCKED,
                HUNG,
                blockers=(
                    Blocker("driver", "host", Outcome.TIMED_OUT, HANG.cause, "cuInit(0) did not return within 45 s"),
                ),
            ),
            1,
            "gpu-discovery: BLOCKED at 06 driver: cuInit(0) did not return within 45 s (exit 1)",
        ),
        (
            verdict(State.READY, fakes.record("kernel", Outcome.PASSED), fakes.record("driver", Outcome.PASSED)),
            0,
            "gpu-discovery: READY: 2 stages passed in 1.9 s (exit 0)",
        ),
        (
            verdict(
                State.READY, fakes.record("package", Outcome.NOT_APPLICABLE), fakes.record("driver", Outcome.PASSED)
            ),
            0,
            "gpu-discovery: READY: 1 stage passed, 1 not applicable in 1.9 s (exit 0)",
        ),
        (
            verdict(State.DEGRADED, fakes.record("kernel", Outcome.WARNED), simulated={"host": "h100"}),
            0,
            "gpu-discovery: SIMULATED DEGRADED by 04 kernel: kernel warned (exit 0)",
        ),
        (
            verdict(State.INCOMPLETE, fakes.record("kernel", Outcome.NOT_SELECTED)),
            20,
            "gpu-discovery: INCOMPLETE at 04 kernel: kernel not_selected (exit 20)",
        ),
        (
            verdict(
                State.INCOMPLETE,
                fakes.record(
                    "kernel",
                    Outcome.WARNED,
                    checks=(Check("P38", Kind.BLOCKING, "host", CheckOutcome.UNKNOWN, "dmesg is restricted"),),
                ),
            ),
            20,
            "gpu-discovery: INCOMPLETE at 04 kernel: P38 is unknown: dmesg is restricted (exit 20)",
        ),
    ],
    ids=lambda value: value.verdict.value if isinstance(value, Verdict) else None,
)
def test_the_last_line(made: Verdict, code: int, line: str) -> None:
    assert wording.last_line(made, NUMBERS, code) == line


@pytest.mark.parametrize(
    ("state", "code", "strict", "nagios", "npd"),
    [
        (State.READY, 0, False, 0, 0),
        (State.DEGRADED, 0, False, 1, 0),
        (State.DEGRADED, 1, True, 2, 1),
        (State.BLOCKED, 1, False, 2, 1),
        (State.INCOMPLETE, 20, False, 3, 2),
        (State.READY, 1, False, 2, 1),  # something failed that no stage explains
        (State.INCOMPLETE, 2, False, 3, 2),
        (State.BLOCKED, 3, False, 3, 2),
        (State.INCOMPLETE, 143, False, 143, 143),
    ],
)
def test_exit_code_conventions(state: State, code: int, strict: bool, nagios: int, npd: int) -> None:
    real, fake = verdict(state), verdict(state, simulated={"host": "h100"})
    assert exitcodes.translate(code, real, "pytest", strict=strict) == code
    assert exitcodes.translate(code, real, "nagios", strict=strict) == nagios
    assert exitcodes.translate(code, real, "npd", strict=strict) == npd
    if code < exitcodes.ENDED_BY_SIGNAL:
        assert exitcodes.translate(code, fake, "nagios", strict=strict) == 3, "simulated is UNKNOWN"
        assert exitcodes.translate(code, fake, "npd", strict=strict) == 2


def test_simulated_words() -> None:
    assert simulated_words({"host": "h100", "faults": []}) == "h100"
    assert simulated_words({"host": "h100", "faults": ["a", "b"]}) == "h100, fault a, fault b"


def test_junit_properties() -> None:
    made = verdict(
        State.BLOCKED,
        HUNG,
        versions={"driver": "580.159.04", "ollama": None},
        host={"name": "n1"},
        blockers=(Blocker("driver", "host", Outcome.TIMED_OUT, HANG.cause, HANG.summary),),
        gpus=({"pci": "0000:00:06.0"},),
    )
    properties = dict(junit.suite_properties(made))
    assert properties["verdict"] == "blocked"
    assert properties["driver"] == "580.159.04"
    assert "ollama" not in properties
    assert properties["blocker.0"].startswith("driver: driver.cuinit.hang")
    assert dict(junit.item_properties(HUNG))["gpu_discovery.cause"] == HANG.cause


# -- runs ---------------------------------------------------------------------------------------------------------


def test_lines_of_a_run(gate: Runner) -> None:
    ended = gate("--junitxml=junit.xml", "-v", stages="driver=hang kernel=warn")
    lines = ended.out.splitlines()
    assert lines[0].startswith("gpu-discovery ")
    stages = [line for line in lines if line[:2].isdigit() and ":" not in line]
    assert [line.split()[1] for line in stages] == list(ended.outcomes)
    assert [line.split()[2] for line in stages[2:5]] == ["passed", "warned", "passed"]
    assert stages[5].startswith("06 driver       timed out ")
    assert stages[6].endswith("because of 06 driver")
    assert re.search(r"^ +\d+\.\d{3} s  kernel call", ended.out, re.MULTILINE), "-v: the steps"
    block = ended.out[ended.out.index("06 driver: driver call did not return") :].splitlines()
    assert [line[3:13].rstrip() for line in block[1:6]] == ["blocked in", "so far", "last step", "explains", "next"]
    assert "\x1b" not in ended.out, "no colours where there is no terminal"
    assert lines[-1] == "gpu-discovery: BLOCKED at 06 driver: driver call did not return within 1 s (hung) (exit 1)"
    assert not any(word in ended.out for word in ("test session starts", "short test summary", "FAILURES", "::"))

    suite = ElementTree.parse(gate.directory / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    properties = {node.get("name"): node.get("value") for node in suite.iterfind("properties/property")}
    assert properties["gpu_discovery.verdict"] == "blocked"
    case = next(node for node in suite.iterfind("testcase") if node.get("name") == "test_the_driver_answers")
    assert case.get("classname") == "gpu-discovery.test_06_driver"
    failure = case.find("failure")
    assert failure is not None
    assert str(failure.text).startswith("06 driver: driver call did not return within 1 s (hung)\n   blocked in: ")
    assert "Traceback" not in str(failure.text)
    item = {node.get("name"): node.get("value") for node in case.iterfind("properties/property")}
    assert item["gpu_discovery.outcome"] == "timed_out"
    skipped = next(node for node in suite.iterfind("testcase") if node.get("name") == "test_the_runtime_answers")
    reason = skipped.find("skipped")
    assert reason is not None
    assert str(reason.get("message")).startswith("not reached: driver timed out: ")


def test_quiet_is_one_line(gate: Runner) -> None:
    ended = gate("-q", "-n", "2", stages="driver=fail", plugins=("xdist.plugin", "pytest_timeout"))
    assert ended.out.splitlines() == ["gpu-discovery: BLOCKED at 06 driver: driver was told to fail (exit 1)"]


def test_colours_when_asked_for(gate: Runner) -> None:
    assert "\x1b[32mpassed" in gate("--color=yes").out


def test_strict_and_conventions(gate: Runner) -> None:
    assert gate("-q", stages="kernel=warn").code == 0
    assert gate("-q", "--gpu-strict", stages="kernel=warn").code == 1
    ended = gate("--gpu-exit", "npd", stages="kernel=unknown")
    assert ended.code == 2
    assert len(ended.out.splitlines()) == 1, "monitors read the first line"


def test_a_simulated_host_is_said_first_and_last(gate: Runner) -> None:
    ended = gate("--gpu-simulate", "h100", "--gpu-exit", "pytest")
    assert ended.out.splitlines()[0].startswith("SIMULATED host h100")
    assert ended.last.startswith("gpu-discovery: SIMULATED READY")
    assert ended.verdict["simulated"]["host"] == "h100"


def test_a_full_disk_changes_no_verdict(gate: Runner) -> None:
    ended = gate(env={"FAKE_FULL": "1"})
    assert ended.code == 0
    assert "No space left on device" in ended.out
    assert "report: " not in ended.out, "no path to a file that is not there"
    assert ended.last.startswith("gpu-discovery: READY")


def test_a_directory_that_cannot_be_made_changes_no_verdict(gate: Runner) -> None:
    (gate.directory / "file").touch()
    ended = gate("--gpu-report", "file/reports", stages="driver=fail")
    assert ended.code == 1
    assert "reports cannot be written to" in ended.out
    assert "report: " not in ended.out
    assert ended.last.startswith("gpu-discovery: BLOCKED at 06 driver")


def test_a_disk_that_fills_up_leaves_a_file_of_this_run(gate: Runner) -> None:
    ended = gate(env={"FAKE_FULL": "end"})
    assert ended.code == 0
    assert ended.verdict["verdict"] == "incomplete"
    assert "; the one there is of an earlier moment of this run" in ended.out
    assert "report: " not in ended.out


def test_an_old_verdict_that_cannot_be_replaced_is_refused(gate: Runner) -> None:
    old = gate.directory / "gpu-discovery-report" / "verdict.json"
    (old.parent / "verdict.previous.json" / "full").mkdir(parents=True)  # stops root, too, from moving the file aside
    old.write_text('{"verdict": "ready"}', encoding="utf-8")
    ended = gate()
    assert (ended.code, ended.ran) == (4, ())
    assert ended.err.startswith("ERROR: the old ")
    assert "verdict.json stands and cannot be replaced" in ended.err
    assert ended.err.strip().count("\n") == 0


@pytest.mark.parametrize(("convention", "code"), [("nagios", 3), ("npd", 2), ("pytest", 4)])
@pytest.mark.parametrize("wrong", [("--gpu-until", "nowhere"), ("gpu-discovery/test_99.py",)], ids=["value", "suite"])
def test_usage_errors_in_a_convention(gate: Runner, convention: str, code: int, wrong: tuple[str, ...]) -> None:
    ended = gate("--gpu-exit", convention, *wrong)
    assert (ended.code, ended.ran) == (code, ())
    assert ended.err.startswith("ERROR: ")
    assert wrong[-1] in ended.err
    assert "Traceback" not in ended.err


def test_progress_on_a_terminal(gate: Runner) -> None:
    """A slow stage shows how long it has run, and the line is gone when the stage has its own."""
    ours, theirs = pty.openpty()
    command = gate.command("--gpu-stage-timeout", "driver=4", "-k", "test_06")
    with subprocess.Popen(
        command,
        cwd=gate.directory,
        env=gate.environment(FAKE_STAGES="driver=hang", TERM="xterm"),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        seen = b""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until and select.select([ours], [], [], LIMIT_S)[0]:
            try:
                seen += os.read(ours, 1 << 16)
            except OSError:  # EIO: the last writer is gone
                break
    os.close(ours)
    text = seen.decode()
    assert process.returncode == 1, text
    assert "\r\x1b[K06 driver  2 s of 4 s" in text
    after = text[text.rindex(" s of 4 s") :]
    assert "\r\x1b[K" in after
    assert "timed out" in after


def test_the_report_directory(gate: Runner) -> None:
    ended = gate("-q", "--gpu-bundle", "b.tar.gz", stages="driver=hang")
    with tarfile.open(ended.directory / "b.tar.gz") as bundle:
        assert {"summary.txt", "kernel.log", "redacted.txt"} <= {name.rpartition("/")[2] for name in bundle.getnames()}
    assert not list(gate.temporary.iterdir()), "the run's own directory is gone"
    report = ended.directory / "gpu-discovery-report"
    assert {path.name for path in report.iterdir()} >= {"verdict.json", "report.html", "evidence"}
    assert "driver call did not return" in (report / "report.html").read_text(encoding="utf-8")
    assert "could not be written" not in ended.out


def test_a_report_that_fails_costs_no_verdict(gate: Runner) -> None:
    (gate.directory / "gpu-discovery-report" / "report.html").mkdir(parents=True)
    ended = gate(stages="driver=fail")
    assert ended.code == 1
    assert "the html report could not be written" in ended.out
    assert ended.verdict["verdict"] == "blocked"
    assert ended.last.startswith("gpu-discovery: BLOCKED at 06 driver")
