"""What a child does to itself: identity, /dev, privileges, limits. What it cannot do, it says."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_gpudiscovery.supervise import identity
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Identity, Setup
from tests.privileges import needs_mounts
from tests.supervise import rigs
from tests.supervise.probes.t_dev import listing

NOBODY = Identity(65534, 65534)
ROOT = Path(__file__).parents[2]
NODE = "/dev/gpu-discovery-test"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes somebody else, mounts or makes nodes")
as_nobody = pytest.mark.skipif(os.geteuid() == 0, reason="shows what an unprivileged caller gets")


def started_as(who: Identity, **setup: object) -> ChildResult:
    if identity.find_interpreter(who) is None:
        pytest.skip(f"no Python that uid {who.uid} can execute")
    return run(rigs.probe("t_echo", setup=Setup(identity=who, **setup)), extra=rigs.PROBES)  # type: ignore[arg-type]


@as_root
@pytest.mark.parametrize("groups", [(), (65533, 20)])
def test_identity(groups: tuple[int, ...]) -> None:
    result = started_as(Identity(65534, 65533, groups))
    assert result.ending is Ending.ANSWERED
    assert result.answer["uids"] == [65534] * 3
    assert result.answer["gids"] == [65533] * 3
    assert sorted(result.answer["groups"]) == sorted(groups)
    assert int(result.answer["status"]["CapEff"], 16) == 0
    assert int(result.answer["status"]["CapPrm"], 16) == 0
    setup = result.observed["setup"]
    assert (setup["uid"], setup["gid"], setup["not_done"]) == (65534, 65533, [])
    assert setup["interpreter"] == result.answer["executable"]
    assert result.observed["env"] == rigs.ENV


@as_root
def test_probes_reach_an_identity_that_cannot_read_them(tmp_path: Path) -> None:
    private = tmp_path / "home"
    shutil.copytree(rigs.PROBES, private)
    private.chmod(0o700)
    if identity.find_interpreter(NOBODY) is None:
        pytest.skip("no Python that uid 65534 can execute")
    result = run(rigs.probe("t_echo", setup=Setup(identity=NOBODY)), extra=private)
    assert result.ending is Ending.ANSWERED
    broken = run(rigs.probe("t_end", setup=Setup(identity=NOBODY), how="raise"), extra=private)
    assert "the probe's own mistake" in broken.stderr


@as_root
def test_hung_child_of_another_identity_is_looked_at_and_killed() -> None:
    if identity.find_interpreter(NOBODY) is None:
        pytest.skip("no Python that uid 65534 can execute")
    probe = rigs.probe("t_hang", 2.0, setup=Setup(identity=NOBODY), how="signals")
    result = run(probe, extra=rigs.PROBES)
    assert result.ending is Ending.TIMED_OUT
    assert "error" not in result.evidence["forensics"]
    assert result.evidence["forensics"]["errors"] == {}
    assert result.evidence["forensics"]["stacks"]


@as_nobody
def test_only_root_becomes_somebody_else() -> None:
    result = run(
        rigs.probe("t_echo", setup=Setup(identity=Identity(0, 0), interpreter=sys.executable)), extra=rigs.PROBES
    )
    assert result.ending is Ending.NOT_SPAWNED
    assert result.answer is None
    assert "cannot become uid 0" in result.notes[0]


def test_our_own_identity_needs_nothing() -> None:
    ours = Identity(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    result = run(rigs.probe("t_echo", setup=Setup(identity=ours)), extra=rigs.PROBES)
    assert result.ending is Ending.ANSWERED
    assert result.answer["executable"] == sys.executable


@as_root
@pytest.mark.parametrize("uid", [2**32, -5])
def test_impossible_identity_never_runs_as_root(uid: int) -> None:
    setup = Setup(identity=Identity(uid, 65534), interpreter=sys.executable)
    result = run(rigs.probe("t_echo", setup=setup), extra=rigs.PROBES)
    assert result.ending is Ending.NOT_SPAWNED
    assert f"cannot become uid {uid}" in result.notes[0]


@as_root
def test_no_interpreter_for_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "interpreters", lambda _: ())
    result = run(rigs.probe("t_echo", setup=Setup(identity=NOBODY)), extra=rigs.PROBES)
    assert result.ending is Ending.NOT_SPAWNED
    assert "no Python that uid 65534 can execute" in result.notes[0]


def test_interpreter_that_is_not_there() -> None:
    result = run(rigs.probe("t_echo", setup=Setup(interpreter="/nonexistent/python")), extra=rigs.PROBES)
    assert result.ending is Ending.NOT_SPAWNED
    assert result.notes == ("no interpreter could be started: /nonexistent/python: No such file or directory",)


def test_interpreter_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "python3"
    old.write_text(
        f"#!{sys.executable} -IS\n"
        "import sys\n"
        "arguments = sys.argv\n"
        "sys.argv = ['-c', *arguments[arguments.index('-c') + 2:]]\n"
        "sys.version_info = (3, 6, 8)\n"
        "exec(arguments[arguments.index('-c') + 1])\n"
    )
    old.chmod(0o755)
    echo = rigs.probe("t_echo", setup=Setup(interpreter=str(old)))
    alone = run(echo, extra=rigs.PROBES)
    assert alone.ending is Ending.NOT_SPAWNED
    assert "is Python 3.6, 3.10 is needed" in alone.notes[0]

    monkeypatch.setattr(
        "pytest_gpudiscovery.supervise.child._Child._interpreters", lambda _: (str(old), sys.executable)
    )
    assert run(echo, extra=rigs.PROBES).answer["executable"] == sys.executable


@needs_mounts
def test_private_dev_changes_nothing_outside() -> None:
    outside = listing("/dev")
    result = run(rigs.probe("t_dev", setup=Setup(private_dev=True), path=NODE), extra=rigs.PROBES)
    try:
        assert result.ending is Ending.ANSWERED
        assert result.observed["setup"]["dev"] == "private"
        assert result.observed["setup"]["not_done"] == []
        assert (result.answer["error"], result.answer["opened"]) == ("", "yes")
        assert not os.path.exists(NODE)
        assert listing("/dev") == outside
        inside = {path: seen for path, seen in result.answer["dev"].items() if not path.startswith(NODE)}
        assert inside == {path: list(seen) for path, seen in outside.items()}
        assert result.answer["shm"] == os.stat("/dev/shm").st_dev
    finally:
        for path in (NODE, NODE + "2"):
            if os.path.exists(path):
                os.unlink(path)


@as_root
def test_dropped_mknod_stays_dropped(tmp_path: Path) -> None:
    path = tmp_path / "node"
    kept = run(rigs.probe("t_dev", path=str(path)), extra=rigs.PROBES)
    assert (kept.answer["error"], kept.answer["by_exec"]) == ("", 0)  # else this shows nothing
    dropped = run(rigs.probe("t_dev", setup=Setup(drop_mknod=True), path=str(path) + "-dropped"), extra=rigs.PROBES)
    assert dropped.answer["error"] == "Operation not permitted"
    assert dropped.answer["by_exec"] != 0
    assert dropped.observed["setup"]["mknod"] == "dropped"


@as_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_root_without_cap_sys_admin_gives_up_mknod_instead(tmp_path: Path) -> None:
    script = f"""
import json
from tests.supervise import rigs
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.types import Setup
r = run(rigs.probe("t_dev", setup=Setup(private_dev=True), path={str(tmp_path / "node")!r}), extra=rigs.PROBES)
print(json.dumps([r.observed["setup"], r.answer["error"], r.answer["by_exec"]]))
"""
    command = ["setpriv", "--bounding-set=-sys_admin,-setpcap", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    setup, error, by_exec = json.loads(done.stdout)
    assert (setup["dev"], setup["mknod"]) == ("host", "dropped")
    assert error == "Operation not permitted"
    assert by_exec != 0  # without CAP_SETPCAP only no_new_privs keeps it dropped
    assert [entry["what"] for entry in setup["not_done"]] == ["private_dev", "drop_mknod from the bounding set"]


@as_nobody
def test_unprivileged_caller_is_told_what_it_cannot_have() -> None:
    result = run(rigs.probe("t_echo", setup=Setup(private_dev=True, drop_mknod=True)), extra=rigs.PROBES)
    assert result.ending is Ending.ANSWERED
    setup = result.observed["setup"]
    assert setup["dev"] == "host"
    assert "private_dev" in [entry["what"] for entry in setup["not_done"]]


@pytest.mark.parametrize("wanted", [True, False])
def test_no_new_privs(wanted: bool) -> None:
    answer = run(rigs.probe("t_echo", setup=Setup(no_new_privs=wanted)), extra=rigs.PROBES).answer
    ours = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("NoNew")]
    assert answer["status"]["NoNewPrivs"] == ("1" if wanted else ours[0])


def test_limits() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = {"NOFILE": (64, 128), "RLIMIT_CORE": (0, 0), "NO_SUCH": (1, 1)}
    probe = rigs.probe("t_limits", setup=Setup(limits=limits), names=["RLIMIT_NOFILE", "RLIMIT_CORE"])
    result = run(probe, extra=rigs.PROBES)
    assert result.answer == {"RLIMIT_NOFILE": [64, 128], "RLIMIT_CORE": [0, 0]}
    assert [entry["what"] for entry in result.observed["setup"]["not_done"]] == ["RLIMIT_NO_SUCH"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard


@as_nobody
def test_limit_that_cannot_be_raised_is_said() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    result = run(rigs.probe("t_echo", setup=Setup(limits={"NOFILE": (hard + 1, hard + 1)})), extra=rigs.PROBES)
    assert result.ending is Ending.ANSWERED
    assert [entry["what"] for entry in result.observed["setup"]["not_done"]] == ["RLIMIT_NOFILE"]


def test_mode_bits_along_the_path(tmp_path: Path) -> None:
    stranger, friend = Identity(4_000_001, 4_000_001), Identity(4_000_001, 4_000_001, (os.getegid(),))
    tmp_path.chmod(0o755)
    directory, other = tmp_path / "bin", tmp_path / "other"
    directory.mkdir()
    other.mkdir()
    program = directory / "python3"
    program.write_text("")
    program.chmod(0o755)
    link = other / "python3"
    link.symlink_to("../bin/python3")
    reachable = identity.may_execute(str(program), stranger)  # pytest's own directories may be private
    outer = all(os.stat(parent).st_mode & 1 for parent in tmp_path.parents)
    assert reachable is outer
    ours = Identity(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    assert identity.may_execute(str(program), ours)
    assert identity.may_execute(str(link), ours)
    directory.chmod(0o750)
    assert not identity.may_execute(str(program), stranger)
    assert not identity.may_execute(str(link), stranger)
    assert identity.may_execute(str(program), friend) is outer
    program.chmod(0o644)
    assert not identity.may_execute(str(program), ours)
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert not identity.may_execute(str(loop), ours)
    assert not identity.may_execute("/nonexistent/python3", ours)
    assert not identity.may_execute("/", ours)


def test_interpreters_come_in_order_and_once() -> None:
    ours = Identity(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    paths = (sys.executable, "/nonexistent/python3", sys.executable)
    assert identity.interpreters(ours, paths) == (sys.executable,)
    assert identity.find_interpreter(ours) == sys.executable
