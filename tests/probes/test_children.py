"""What starts, watches and ends Ollama's own programs: real children, and nothing of them is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import private, spawned
from pytest_gpudiscovery.probes.spawned import HEAD, TAIL, Output, Spawned

SH = "/bin/sh"
ENV = {"PATH": "/usr/bin:/bin"}
LIMIT_S = 30.0


def shell(text: str, *, apart: bool = False) -> Spawned:
    return Spawned([SH, "-c", text], ENV, apart=apart)


def within(seconds: float) -> float:
    return time.monotonic() + seconds


def gone(pid: int) -> bool:
    """Whether PID ends soon: it may still be a zombie of somebody else's."""
    until = within(LIMIT_S)
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (OSError, IndexError):
            return True
        time.sleep(0.01)
    return False


def test_both_outputs_are_kept_in_the_order_of_their_coming_or_apart() -> None:
    both = shell("echo one; echo two >&2; exit 3")
    assert both.wait(within(LIMIT_S))
    assert (both.status, both.err.to_json()["text"]) == (3, "one\ntwo\n")
    apart = shell("echo one; echo two >&2", apart=True)
    assert apart.wait(within(LIMIT_S))
    assert (apart.out.to_json()["text"], apart.err.to_json()["text"]) == ("one\n", "two\n")
    for program in (both, apart):
        assert program.kill()


def test_a_program_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"\x7fELFnothing")
    assert Spawned([str(tmp_path / "none")], ENV).problem == "ENOENT"
    assert Spawned([str(empty)], ENV).problem == "EACCES"
    empty.chmod(0o755)
    assert Spawned([str(empty)], ENV).problem == "ENOEXEC"


def test_it_gets_exactly_its_environment_no_input_and_the_signals_of_a_fresh_program() -> None:
    program = shell('env; read line || echo "no input"; grep SigIgn /proc/self/status')
    assert program.wait(within(LIMIT_S))
    text = program.err.to_json()["text"]
    assert "PATH=/usr/bin:/bin" in text
    assert "HOME=" not in text
    assert "no input" in text
    assert int(text.split("SigIgn:")[1], 16) & (1 << 12 | 1 << 24) == 0
    program.kill()


def test_all_of_its_group_ends_with_it() -> None:
    program = shell("sleep 1000 & echo $!; wait")
    assert not program.wait(within(1.0))
    child = int(program.err.to_json()["text"])
    assert program.kill()
    assert program.status == -9
    assert gone(child)


def test_it_ends_with_the_probe_that_started_it() -> None:
    code = (
        "import sys, time; from pytest_gpudiscovery.probes.spawned import Spawned; "
        "p = Spawned(['/bin/sleep', '1000'], {}); print(p.pid, flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdout is not None
        pid = int(probe.stdout.readline())
        probe.kill()
    assert gone(pid)


def test_output_without_end_is_cut_in_its_middle_and_costs_no_memory() -> None:
    program = shell("head -c 300000 /dev/zero | tr '\\0' x; echo end")
    assert program.wait(within(LIMIT_S))
    kept = program.err.to_json()
    assert kept["dropped"] == 300_004 - HEAD - TAIL
    assert kept["text"].endswith("xend\n")
    assert len(kept["text"]) < HEAD + TAIL + 100
    program.kill()


@given(st.lists(st.binary(max_size=5000), max_size=20))
def test_what_is_kept_and_what_is_dropped_is_all(parts: list[bytes]) -> None:
    lines: list[str] = []
    output = Output(time.monotonic(), lambda _, line: lines.append(line))
    for part in parts:
        output.feed(part)
    whole, kept = b"".join(parts), output.to_json()
    assert kept["dropped"] == max(0, len(whole) - HEAD - TAIL)
    if not kept["dropped"]:
        assert kept["text"] == whole.decode("utf-8", "backslashreplace")
    assert len(lines) == whole.count(b"\n")


def test_lines_come_with_their_time_and_one_without_end_is_no_line() -> None:
    seen: list[str] = []
    output = Output(time.monotonic(), lambda at, line: seen.append(f"{at >= 0} {line}"))
    output.feed(b"a\nb")
    output.feed(b"c\n" + b"x" * (spawned.LINE + 1))
    output.feed(b"\nd\n")
    assert seen == ["True a", "True bc", "True ", "True d"]


GUARDED = """
import os, sys, time
from pytest_gpudiscovery.probes import private
from pytest_gpudiscovery.probes.guardian import Guardian
from pytest_gpudiscovery.probes.spawned import Spawned
with Guardian() as guardian:
    home = private.make((sys.argv[1],))
    guardian.directory(home)
    # As a server does: its child is in a group of its own and outlives it.
    server = Spawned(["/bin/sh", "-c", "sleep 1000 & echo $! > " + home + "/child; wait"], {"PATH": "/usr/bin:/bin"})
    guardian.group(server.pid)
    while not os.path.exists(home + "/child") or not open(home + "/child").read().endswith("\\n"):
        time.sleep(0.01)
    print(server.pid, open(home + "/child").read().strip(), home, flush=True)
    if sys.argv[2] == "hang":
        time.sleep(1000)
    server.kill()
    guardian.gone(server.pid)
"""


@pytest.mark.parametrize("how", ["hang", "end"])
def test_the_guardian_cleans_up_behind_a_killed_probe_only(tmp_path: Path, how: str) -> None:
    argv = [sys.executable, "-c", GUARDED, str(tmp_path), how]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as probe:
        assert probe.stdout is not None
        server, child, home = probe.stdout.readline().split()
        if how == "hang":
            os.killpg(probe.pid, 9)
        else:
            assert probe.wait(LIMIT_S) == 0
    assert gone(int(server))
    assert gone(int(child))
    until = within(LIMIT_S)
    while how == "hang" and os.path.exists(home) and time.monotonic() < until:
        time.sleep(0.01)
    assert os.path.exists(home) == (how == "end")  # in order, the probe removes it itself


def test_a_private_directory_is_nobody_elses_and_goes_with_all_in_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("stays")
    home = Path(private.make((str(tmp_path),)))
    assert home.stat().st_mode & 0o777 == 0o700
    (home / "a" / "b").mkdir(parents=True)
    (home / "a" / "b" / "file").write_text("goes")
    (home / "link").symlink_to(outside)
    (home / "directory").symlink_to(tmp_path)
    private.remove(str(home))
    assert not home.exists()
    assert outside.read_text() == "stays"


def test_a_place_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    assert private.make((str(tmp_path / "none"), str(tmp_path))).startswith(str(tmp_path / private.NAME))
    with pytest.raises(FileNotFoundError):
        private.make((str(tmp_path / "none"),))


def test_only_old_directories_of_probes_that_are_gone_are_swept(tmp_path: Path) -> None:
    with subprocess.Popen(["/bin/true"]) as ended:
        ended.wait()
    mine, theirs, young = (tmp_path / f"{private.NAME}{pid}-1" for pid in (os.getpid(), ended.pid, f"0{ended.pid}"))
    strange = tmp_path / f"{private.NAME}x-1"
    for path in (mine, theirs, young, strange):
        path.mkdir()
    old = time.time() - 2 * private.OLD_S
    for path in (mine, theirs, strange):
        os.utime(path, (old, old))
    private.sweep(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in (mine, young, strange))
