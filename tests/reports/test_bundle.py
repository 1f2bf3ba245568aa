"""The bundle: what is in it, that it is bounded and the same twice; a hostile report directory does no harm."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pytest_gpudiscovery
from pytest_gpudiscovery import bundle_cli, collect
from pytest_gpudiscovery.model import State, Verdict, to_json
from pytest_gpudiscovery.reports import bundle, evidence, verdict_json
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Probe
from tests.reports import samples
from tests.reports.hostile import hostile

SCHEMA = json.loads((Path(pytest_gpudiscovery.__file__).parent / "schema" / "verdict-1.json").read_text())
GPU = "GPU-01234567-89ab-cdef-0123-456789abcdef"
ALICE = "alicequux"


def unpacked(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {}
        for entry in archive:
            assert (entry.uid, entry.gid, entry.uname, entry.mtime, entry.mode) == (0, 0, "", 0, 0o644)
            assert entry.isreg()
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name.removeprefix(f"{bundle.ROOT}/")] = file.read().decode()
        assert list(found) == sorted(found)
        return found


def report(directory: Path, verdict: Verdict) -> str:
    verdict_json.write(str(directory), verdict)
    evidence.write(str(directory), verdict)
    return str(directory)


def test_it_holds_the_run_and_is_the_same_twice(tmp_path: Path) -> None:
    verdict = samples.blocked_in_cuinit()
    entries = bundle.gather(report(tmp_path, verdict), verdict)
    found = unpacked(bundle.pack(verdict, entries))
    wanted = {"about.txt", "environment.txt", "journal.txt", "redacted.txt", "summary.txt", "verdict.json"}
    assert wanted | {"evidence/driver-driver.txt"} == set(found)
    assert "BLOCKED at 06 driver: cuInit(0) did not return" in found["summary.txt"]
    assert "cuInit(0)" in found["journal.txt"]
    jsonschema.validate(json.loads(found["verdict.json"]), SCHEMA)
    again = unpacked(bundle.pack(verdict, entries))
    assert {name: text for name, text in again.items() if name != "about.txt"} == {
        name: text for name, text in found.items() if name != "about.txt"
    }


def test_no_secret_of_any_file_is_in_it_and_equal_things_are_equal_across_files(tmp_path: Path) -> None:
    verdict = dataclasses.replace(
        samples.blocked_in_cuinit(),
        host={"name": "node7quux", "kernel": "6.1.0-clusterquux", "glibc": "2.36", "arch": "x86_64"},
        context={
            "as": "caller",
            "not_adopted": [{"what": "user carolquux", "why": "only root can probe as carolquux"}],
        },
        notes=("probing as carolquux", f"HF_TOKEN=hf_{'q' * 30}", f"/home/{ALICE}/lib", GPU),
    )
    place = report(tmp_path, verdict)
    Path(place, "evidence", "x.txt").write_text(
        f"{ALICE} on NODE7QUUX, 6.1.0-clusterquux: {GPU} http://u:pwquux@10.1.2.3/"
    )
    extract = bundle.Entry("nvidia-smi-q.txt", f"{GPU}\nSerial Number : 1320012345678", "nvidia-smi of node7quux")
    data = bundle.pack(verdict, bundle.gather(place, verdict, [extract]))
    found = unpacked(data)
    whole = "\n".join([*found, *found.values()]).lower()
    for secret in (
        ALICE,
        "carolquux",
        "node7quux",
        "clusterquux",
        "hf_q",
        GPU[4:],
        "pwquux",
        "10.1.2.3",
        "1320012345678",
    ):
        assert secret.lower() not in whole, secret
    assert found["evidence/x.txt"] == "user-2 on host-1, 6.1.0-kernel-1: gpu-1 http://<credentials>@ipv4-1/"
    assert found["nvidia-smi-q.txt"].startswith("gpu-1\n")
    assert json.loads(found["verdict.json"])["host"]["name"] == "host-1"
    assert "serial" in found["redacted.txt"]


def test_unredacted_it_says_so_and_belongs_to_its_owner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = dataclasses.replace(samples.healthy(), notes=(f"/home/{ALICE}",))
    target = tmp_path / "b.tar.gz"
    argv = ["bundle", report(tmp_path / "r", verdict), "-o", str(target), "--offline", "--no-redact"]
    assert bundle_cli.run(argv) == 0
    found = unpacked(target.read_bytes())
    assert ALICE in found["environment.txt"]
    assert "NOT REDACTED" in found["about.txt"]
    assert "redacted.txt" not in found
    assert target.stat().st_mode & 0o777 == 0o600
    assert "NOT redacted" in capsys.readouterr().out


def test_files_and_the_whole_are_bounded_and_verdict_json_stays_valid(tmp_path: Path) -> None:
    verdict = dataclasses.replace(samples.healthy(), closures=({"text": "x " * (1 << 20)},))
    entries = [bundle.Entry(f"evidence/{number}.txt", f"{number} word\n" * 200_000, "") for number in range(30)]
    found = unpacked(bundle.pack(verdict, entries, redact=False))
    assert all(len(text.encode()) <= bundle.FILE_LIMIT for text in found.values())
    assert sum(len(text.encode()) for text in found.values()) <= bundle.LIMIT + 100_000
    jsonschema.validate(json.loads(found["verdict.json"]), SCHEMA)
    assert "without closures" in found["about.txt"]
    assert "left out" in found["about.txt"]
    assert "characters left out" in found["evidence/0.txt"]


def test_a_secret_at_the_cut_does_not_escape_in_two_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "FILE_LIMIT", 10_000)
    half = bundle.FILE_LIMIT // 2 - bundle.MARK
    secret = "hf_" + "q" * 200
    text = "a " * ((half - 100) // 2) + secret + " b" * bundle.FILE_LIMIT
    assert text[:half].endswith("hf_" + "q" * 90) or "hf_q" in text[:half]
    (found,) = (
        text
        for name, text in unpacked(bundle.pack(samples.healthy(), [bundle.Entry("x.txt", text, "")])).items()
        if name == "x.txt"
    )
    assert "qqq" not in found


def test_the_hostile_verdict_is_packed(tmp_path: Path) -> None:
    verdict = hostile()
    found = unpacked(bundle.pack(verdict, bundle.gather(report(tmp_path, verdict), verdict)))
    assert "verdict.json" in found


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_no_name_of_a_file_leaves_the_archives_directory(tmp_path: Path, name: str) -> None:
    place = tmp_path / "r"
    (place / "evidence").mkdir(parents=True, exist_ok=True)
    try:
        (place / "evidence" / f"{name}.txt").write_text("content of it")
    except OSError:
        return  # too long in bytes
    found = unpacked(bundle.pack(samples.healthy(), bundle.gather(str(place), samples.healthy())))
    for inside in found:
        assert ".." not in inside.split("/")
        assert not inside.startswith("/")
        assert inside.isprintable()
    assert any("content of it" in text for text in found.values())


def test_only_regular_files_of_the_directory_are_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside of it")
    place = tmp_path / "r"
    (place / "evidence").mkdir(parents=True)
    (place / "evidence" / "link.txt").symlink_to(tmp_path / "secret")
    os.mkfifo(place / "evidence" / "fifo.txt")
    (place / "evidence" / "directory.txt").mkdir()
    (place / "ollama-log.json").symlink_to(tmp_path / "secret")
    (tmp_path / "s").symlink_to(place / "evidence")
    names = [entry.name for entry in bundle.gather(str(place), samples.healthy())]
    assert names == ["summary.txt", "journal.txt", "environment.txt"]
    os.rename(place / "evidence", place / "real")
    (place / "evidence").symlink_to(place / "real")
    assert [entry.name for entry in bundle.gather(str(place), samples.healthy())] == names


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("{", "no JSON"),
        ("[]", "not a verdict"),
        ("{}", "not a verdict"),
        ("[" * 50_000, "verdict"),
    ],
)
def test_what_is_no_report_directory_is_one_line_and_exit_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "verdict.json").write_text(content)
    assert bundle_cli.run(["bundle", str(tmp_path)]) == bundle_cli.USAGE
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert bundle_cli.run(["bundle", str(tmp_path), "-o", "x.zip"]) == bundle_cli.USAGE


def test_what_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = report(tmp_path / "r", samples.healthy())
    assert bundle_cli.run(["bundle", place, "--offline", "-o", str(tmp_path / "no" / "b.tar.gz")]) == bundle_cli.FAILED
    assert "could not be written: No such file or directory" in capsys.readouterr().err


class Supervisor:
    """Stands for the supervisor: answers what it was given, and remembers what was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, []  # type: tuple[dict[str, Any], list[str]]

    def __call__(self, probe: Probe) -> ChildResult:
        key = "log" if "log" in probe.request else "q" if "-q" in probe.request["argv"] else "smi"
        self.asked.append(key)
        answer = self.answers.get(key)
        ending = Ending.TIMED_OUT if answer is None else Ending.ANSWERED
        seen = {} if answer else {"blocked_in": "ioctl on /dev/nvidiactl; state D"}
        return ChildResult(ending, 0, None, 0.0, 0.1, (), {}, answer, "", "", seen)


LOG = {"text": "6,1,1,-;NVRM: Xid (PCI:0000:00:06): 79", "errno": None, "status": 0}
SMI = {"text": "NVIDIA-SMI 580", "status": 0, "dropped": 0}


@pytest.fixture(name="smi")
def _smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


@pytest.mark.usefixtures("smi")
def test_nvidia_smi_is_not_run_beside_a_child_that_still_hangs_in_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = samples.blocked_in_cuinit()
    supervisor = Supervisor(log=LOG, smi=SMI, q=SMI)
    log, smi, q = collect.extracts(verdict, supervise=supervisor)
    assert supervisor.asked == ["log"]
    assert "Xid" in log.text
    assert "not run: the driver hung" in smi.how
    assert "not run: the driver hung" in q.how
    gone = dataclasses.replace(
        verdict,
        stages=tuple(
            dataclasses.replace(
                record, evidence={"driver": {"notes": ["PID 4194399 outlived SIGKILL and was abandoned"]}}
            )
            if record.evidence
            else record
            for record in verdict.stages
        ),
    )
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    assert [extract.text for extract in collect.extracts(gone, supervise=supervisor)][1:] == [SMI["text"]] * 2


@pytest.mark.usefixtures("smi")
def test_an_nvidia_smi_that_gives_no_answer_is_asked_once() -> None:
    supervisor = Supervisor(log={"text": "", "errno": "EPERM"})
    log, smi, q = collect.extracts(samples.healthy(), supervise=supervisor)
    assert supervisor.asked == ["log", "smi"]
    assert "EPERM" in log.how
    assert "no answer within 10 s" in smi.how
    assert "state D" in smi.how
    assert "not run" in q.how


def test_a_simulated_or_foreign_host_is_not_asked() -> None:
    supervisor = Supervisor()
    simulated = dataclasses.replace(samples.healthy(), simulated={"host": "h100"})
    assert all("simulated" in found.how for found in collect.extracts(simulated, supervise=supervisor))
    assert all(
        "another" in found.how for found in collect.extracts(samples.healthy(), refused="another", supervise=supervisor)
    )
    assert supervisor.asked == []


@pytest.mark.parametrize(
    ("script", "text", "how"), [("echo seen; exit 3", "seen\n", "exit status 3"), ("", "", "status 0")]
)
def test_a_real_program_runs_in_a_real_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smi: None, script: str, text: str, how: str
) -> None:
    (tmp_path / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    tmp_path.chmod(0o755)
    found = collect.extracts(samples.healthy())
    assert found[1].text == text
    assert how in found[1].how


def test_the_state_of_the_verdict_does_not_change_by_it() -> None:
    verdict = samples.healthy()
    before = to_json(verdict)
    bundle.pack(verdict, [])
    assert to_json(verdict) == before
    assert verdict.verdict is State.READY
