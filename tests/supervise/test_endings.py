"""Every way in which a child can end by itself is its own outcome."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.output import LIMIT, HeadTail
from pytest_gpudiscovery.supervise.types import ChildResult, Ending
from tests.supervise import rigs

ROOT = Path(__file__).parents[2]


def end(how: str, deadline_s: float = 30.0, **request: Any) -> ChildResult:
    return run(rigs.probe("t_end", deadline_s, how=how, **request), extra=rigs.PROBES)


def test_answer() -> None:
    result = end("well")
    assert (result.ending, result.exit_code, result.signal) == (Ending.ANSWERED, 0, None)
    assert result.answer == {"how": "well"}
    assert result.observed["seen"] == 1
    assert result.stdout == "the end\n"
    assert result.stderr == ""
    assert result.evidence == {}
    assert result.notes == ()
    (step,) = result.steps
    assert step.name == "before"
    assert step.duration_s is not None
    assert 0 < step.started < result.duration_s


@pytest.mark.parametrize("how", ["leave", "libc exit", "half a line", "close all and leave"])
def test_exit_0_is_no_answer(how: str, hang_library: str) -> None:
    result = end(how, lib=hang_library)
    assert (result.ending, result.exit_code, result.answer) == (Ending.NO_ANSWER, 0, None)
    assert result.observed["seen"] == 1


@pytest.mark.parametrize(("how", "code"), [("exit 3", 3), ("SystemExit", 4), ("raise", 1), ("not JSON", 1)])
def test_exit_code(how: str, code: int) -> None:
    result = end(how)
    assert (result.ending, result.exit_code, result.answer) == (Ending.EXITED, code, None)


@pytest.mark.parametrize("opens", [False, True])
def test_a_library_that_takes_every_descriptor_is_named(opens: bool, tmp_path: Path) -> None:
    try:
        library = rigs.library(tmp_path, rigs.NO_DESCRIPTORS, "libtake.so")
    except rigs.Unavailable as why:
        pytest.skip(str(why))
    result = end("no descriptors", lib=library, opens=opens)
    assert result.ending is (Ending.EXITED if opens else Ending.ANSWERED)
    assert any(note.startswith("a library lowered [from, to]: {'RLIMIT_NOFILE': [") for note in result.notes)
    assert not result.python_failed, "what fails without descriptors is the library's doing"
    if opens:
        assert "Too many open files" in result.stderr


def test_exception_is_told_twice() -> None:
    result = end("raise")
    for text in (result.stderr, result.observed["traceback"]):
        assert "LookupError: the probe's own mistake" in text
        assert "t_end.py" in text


@pytest.mark.parametrize(
    ("how", "number"), [("segv", signal.SIGSEGV), ("abort", signal.SIGABRT), ("sigkill", signal.SIGKILL)]
)
def test_signal(how: str, number: signal.Signals) -> None:
    result = end(how)
    assert (result.ending, result.signal, result.exit_code) == (Ending.SIGNALLED, number, None)


def test_crash_names_its_step_and_its_line() -> None:
    result = end("segv")
    assert result.open_step is not None
    assert result.open_step.name == "crash"
    assert "Segmentation fault" in result.stderr
    assert "t_end.py" in result.stderr


def test_closed_pipes_are_fine() -> None:
    assert end("close").ending is Ending.ANSWERED


def test_500_mb_of_output() -> None:
    result = end("flood", 60.0, streams=["stdout", "stderr"], megabytes=250)
    assert result.ending is Ending.ANSWERED
    for text in (result.stdout, result.stderr):
        assert len(text) < LIMIT + 100
        assert "bytes dropped" in text
    assert result.stdout.endswith("the end\n")


def test_500_mb_of_journal_do_not_grow_us() -> None:
    script = """
import json, resource
from tests.supervise import rigs
from pytest_gpudiscovery.supervise.child import run

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
r = run(rigs.probe("t_end", 60.0, how="flood", streams=["journal"], megabytes=500), extra=rigs.PROBES)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([r.ending, r.notes, r.observed.get("seen"), after - before]))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=True)
    ending, notes, seen, grown_kb = json.loads(done.stdout)
    assert ending == "no_answer"  # the answer came behind the limit: no answer is better than half of one
    assert any("dropped" in note for note in notes)
    assert seen == 1
    assert grown_kb < 100 << 10


@pytest.mark.parametrize(
    "text",
    [
        "no JSON\n",
        "[" * 100_000 + "\n",
        '{"ev": "observe", "key": "deep", "value": ' + "[" * 500 + "]" * 500 + "}\n",
        '{"ev": "start", "id": [], "step": 1, "t": "x"}\n{"ev": "end", "id": {}}\n{"ev": "end", "id": 77}\n',
        '{"ev": "__init__"}\n{"ev": 5}\n{"ev": "line"}\nnull\n5\n"x"\n[]\n{}\n',
        '{"ev": "observe", "key": 5, "value": 1}\n{"ev": "refused", "value": "too late"}\n',
        "\xff\xfe\x00\n\n\n",
        '{"ev": "observe", "key": "big", "value": ' + "9" * 100_000 + "}\n",
    ],
)
def test_garbage_in_the_journal_is_harmless(text: str) -> None:
    result = end("garbage", text=text)
    assert result.ending is Ending.ANSWERED
    assert result.answer == {"how": "garbage"}
    assert [step.name for step in result.steps] == ["before"]
    json.dumps(result.observed, allow_nan=False)


def test_many_steps_are_bounded() -> None:
    result = end("many steps", count=12_000)
    assert result.ending is Ending.ANSWERED
    assert len(result.steps) == 10_000


def test_environment_and_directory_are_exactly_those_asked_for(tmp_path: Path) -> None:
    result = run(rigs.probe("t_echo", cwd=str(tmp_path), some={"nested": [1, None]}), extra=rigs.PROBES)
    assert result.observed["env"] == rigs.ENV
    assert result.answer["cwd"] == str(tmp_path)
    assert result.answer["request"] == {"some": {"nested": [1, None]}}
    assert result.answer["fds"] <= 5  # 0, 1, 2, the journal and the directory being listed


def test_child_has_its_own_session_and_no_input() -> None:
    answer = run(rigs.probe("t_echo"), extra=rigs.PROBES).answer
    assert answer["pid"] == answer["sid"] == answer["pgid"]
    assert answer["stdin"] == ""


def test_site_gives_the_installed_packages() -> None:
    probe = rigs.probe("t_import", names=["pytest", "pytest_gpudiscovery.probes.journal"])
    assert run(probe, extra=rigs.PROBES).answer["pytest"] is False
    with_site = type(probe)(**{**probe.__dict__, "site": True})
    answer = run(with_site, extra=rigs.PROBES).answer
    assert answer == {"pytest": True, "pytest_gpudiscovery.probes.journal": True}


def test_absent_probe() -> None:
    result = run(rigs.probe("no_such_probe"))
    assert result.ending is Ending.EXITED
    assert "no_such_probe" in result.stderr


def test_extra_probes_cannot_replace_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "journal.py").write_text("")
    with pytest.raises(ValueError, match="journal"):
        run(rigs.probe("journal"), extra=tmp_path)


def test_request_must_be_json() -> None:
    with pytest.raises(TypeError):
        run(rigs.probe("t_echo", what=object()), extra=rigs.PROBES)


@pytest.mark.parametrize("executable", ["/nonexistent/python", "/"])
def test_no_interpreter(executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    result = end("well")
    assert (result.ending, result.pid) == (Ending.NOT_SPAWNED, None)
    assert executable in result.notes[0]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_fork_fails(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", fail)
    result = end("well")
    assert result.ending is Ending.NOT_SPAWNED
    assert os.strerror(number) in result.notes[0]


def test_directory_that_is_not_there() -> None:
    result = run(rigs.probe("t_echo", cwd="/nonexistent"), extra=rigs.PROBES)
    assert result.ending is Ending.NOT_SPAWNED
    assert result.notes == ("working directory /nonexistent: No such file or directory",)


def test_interpreter_that_fails_before_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'error while loading shared libraries' >&2\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    result = end("well")
    assert (result.ending, result.exit_code) == (Ending.EXITED, 127)
    assert "shared libraries" in result.stderr
    assert result.notes == ("the probe's own code was not reached",)


def test_without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", missing)
    assert end("well").ending is Ending.ANSWERED
    assert end("segv").signal == signal.SIGSEGV
    assert run(rigs.probe("t_hang", 1.0, how="signals"), extra=rigs.PROBES).ending is Ending.TIMED_OUT


def test_descriptors_do_not_leak() -> None:
    end("well")
    before = sorted(os.listdir("/proc/self/fd"))
    for how in ("well", "segv", "leave", "close"):
        end(how)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_head_and_tail() -> None:
    kept = HeadTail(limit=8)
    for data in (b"abc", b"defgh", b"ij", b"klmnop"):
        kept.feed(data)
    assert kept.dropped == 8
    assert kept.text() == "abcd\n... 8 bytes dropped ...\nmnop"
