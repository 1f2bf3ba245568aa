"""`gpu-discovery explain` as a person runs it: sources, exit codes, one line for what cannot be read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery import explain_cli
from pytest_gpudiscovery.ollama import source
from tests.ollama.writer import Log, begin, cpu, fail, gpu, spawn
from tests.test_loader_cli import COMMAND, Ended, run

CAPTURED = Path(__file__).parent / "corpus" / "captured.log"


def explain(*arguments: str | Path, **more: Any) -> Ended:
    return run("explain", *map(str, arguments), **more)


def piped(data: bytes, *arguments: str) -> Ended:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "explain", "-", *arguments],
        input=data,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        timeout=60,
        check=False,
    )
    out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in out + err
    return Ended(done.returncode, out, err)


def one_line(ended: Ended, code: int) -> str:
    assert ended.code == code
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("log", "code"),
    [
        (gpu(spawn(begin(Log())).at(0.5)), 0),
        (cpu(fail(begin(Log()).at(30), "cuda_v12")), 1),
        (begin(Log()), 20),
        (Log(), 20),
    ],
    ids=["found", "not found", "cut", "empty"],
)
def test_exit_codes(log: Log, code: int, tmp_path: Path) -> None:
    path = tmp_path / "ollama.log"
    path.write_bytes(log.data())
    ended = explain(path)
    assert (ended.code, ended.err) == (code, "")
    assert piped(log.data()).code == code
    found = explain(path, "--json").json
    assert {"gpu_found": 0, "no_gpu": 1, "cannot_tell": 20}[found["answer"]] == code


def test_the_text_begins_with_the_answer() -> None:
    lines = explain(CAPTURED).out.splitlines()
    assert lines[0] == "no GPU: cuda_v12 timed out in the first pass"
    assert any("0.16.2 to 0.17.4, era B (B5)" in line for line in lines)
    assert all(len(line) <= 110 for line in lines if line.startswith("  * "))


def test_what_is_no_log_is_one_line(tmp_path: Path) -> None:
    assert one_line(explain(tmp_path / "absent"), 4).endswith("absent: No such file or directory")
    assert "is a directory" in one_line(explain(tmp_path), 4)
    assert "LOG is empty" in one_line(explain(""), 4)
    assert "required: LOG" in one_line(run("explain"), 4)
    assert "unrecognized arguments: --yaml" in one_line(explain(CAPTURED, "--yaml"), 4)
    packed = tmp_path / "old.log.1.gz"
    packed.write_bytes(gzip.compress(CAPTURED.read_bytes()))
    assert one_line(explain(packed), 4).endswith(f"is compressed (gzip): zcat {packed} | gpu-discovery explain -")
    if os.geteuid() != 0:
        (tmp_path / "closed").touch(0o000)
        assert "Permission denied" in one_line(explain(tmp_path / "closed"), 4)


def test_a_binary_journal_file_says_how(tmp_path: Path) -> None:
    (tmp_path / "system.journal").write_bytes(b"LPKSHHRH" + b"\0" * 100)
    assert "journalctl --file" in one_line(explain(tmp_path / "system.journal"), 4)


def test_process_substitution_and_a_pipe_with_a_name(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, CAPTURED.read_bytes())
    os.close(writer)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "explain", f"/dev/fd/{reader}"],
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        pass_fds=(reader,),
        capture_output=True,
        timeout=60,
        check=False,
    )
    os.close(reader)
    assert done.returncode == 1, done.stderr


def test_names_in_a_log_cannot_steer_the_terminal() -> None:
    log = begin(Log())
    log.put(
        "types.go:42", "inference compute", id="0", library="CUDA", description="\x1b[2Jevil\u202e\x07", compute="9.0"
    )
    ended = piped(log.data())
    assert "\x1b" not in ended.out
    assert "\u202e" not in ended.out
    assert "evil" in ended.out
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "explain", "-"],
        input=begin(Log()).put("types.go:42", "inference compute", library="CUDA", description="Ünïcode ☃").data(),
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0


def test_a_reader_that_has_enough() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "explain", str(CAPTURED), "--json"],
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    assert child.wait(30) in (1, 20)
    assert b"Traceback" not in child.stderr.read()
    child.stderr.close()


def test_the_keyboard_ends_reading_with_what_there_was() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "explain", "-"],
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None
    child.stdin.write(CAPTURED.read_bytes())
    child.stdin.flush()
    wchan = Path(f"/proc/{child.pid}/wchan")
    end = time.monotonic() + 30
    while "pipe" not in wchan.read_text() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.2)  # it waits for more: what was written has been read
    child.send_signal(2)
    out, err = child.communicate(timeout=30)
    assert b"stopped by the keyboard" in out, err
    assert child.returncode == 1


def journalctl(folder: Path, script: str) -> None:
    path = folder / "journalctl"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def entries(log: Log) -> str:
    return "".join(json.dumps({"MESSAGE": line, "_PID": "7", "__REALTIME_TIMESTAMP": "1"}) + "\n" for line in log.lines)


def test_the_journal_of_a_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines").write_text(entries(cpu(fail(begin(Log()).at(30), "cuda_v12"))))
    journalctl(tmp_path, f'echo "$@" > {tmp_path}/arguments; cat {tmp_path}/lines')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert explain_cli.run(["explain", "journal:ollama-2.service"]) == 1
    out = capfd.readouterr().out
    assert "the journal of ollama-2.service" in out
    assert "in journal-json" in out
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:5] == ["-o", "json", "-u", "ollama-2.service", "--no-pager"]
    assert explain_cli.run(["explain", "journal"]) == 1
    assert "ollama.service" in (tmp_path / "arguments").read_text()


def test_an_old_journalctl_is_asked_without_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines").write_text(entries(gpu(begin(Log()))))
    refuse = "journalctl: unrecognized option '--output-fields'"
    journalctl(tmp_path, f'case "$*" in *output-fields*) echo "{refuse}" >&2; exit 1;; esac; cat {tmp_path}/lines')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert explain_cli.run(["explain", "journal"]) == 0
    assert "GPU found" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 0", "holds no line that you may read"),
        ('echo "Hint: You are currently not seeing messages from other users" >&2', "not seeing messages from other"),
        ("sleep 600", "journalctl did not end within 1 s"),
        ("while :; do echo x; done", "journalctl did not end within 1 s"),
    ],
    ids=["empty", "not allowed", "hangs", "endless"],
)
def test_a_journal_that_gives_no_answer_is_one_line(
    script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    journalctl(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(source, "JOURNAL_DEADLINE_S", 1.0)
    assert explain_cli.run(["explain", "journal"]) == 20
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert says in line


def test_the_journal_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines").write_text(entries(gpu(begin(Log()))) + "x" * 5_000_000)
    journalctl(tmp_path, f"cat {tmp_path}/lines")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(source, "JOURNAL_LIMIT", 300_000)
    assert explain_cli.run(["explain", "journal"]) == 0
    out = capfd.readouterr().out
    assert "GPU found" in out
    assert "(its first 0 MiB)" in out


def test_no_journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert explain_cli.run(["explain", "journal"]) == 20
    (line,) = capfd.readouterr().err.splitlines()
    assert "journalctl is not installed" in line


def test_a_file_that_is_called_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source.is_journal("journal")
    Path("journal").write_bytes(CAPTURED.read_bytes())
    assert not source.is_journal("journal")
    assert explain_cli.run(["explain", "journal"]) == 1


def test_a_file_that_never_answers(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(source, "FILE_DEADLINE_S", 0.001)  # no child is that fast
    assert explain_cli.run(["explain", str(CAPTURED)]) == 20
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"cannot tell: {CAPTURED}: ")
    assert "did not end within 0.001 s" in line
